"""Define the presets that reproduce the settings of papers and of their code, for comparison.

docs/results.md lists what they set and which choices silently change results.
"""

from __future__ import annotations

from maml_ray.config.presets.preset import Data, merged, named

# Common to all the papers: raw observations, the linear baseline, a constant outer rate, and a
# value of zero after the time limit. Finn's, ProMP's and pytorch-maml-rl's code wrap environments
# in rllab's normalization of actions or its like (normalized_env.py of each), which rescales and
# clips: the control cost is of clipped actions.
_PAPERS: Data = {
    "policy": {
        "normalize_observations": False,
        "action_bounds": "rescale",
        "initial_log_std": 0.0,
        "min_log_std": -13.8,  # a standard deviation of 1e-6
    },
    "advantages": {
        "discount": 0.99,
        "gae_lambda": 1.0,
        "baseline": "linear",
        "bootstrap_time_limit": False,
        "normalize": True,
    },
    "inner": {"steps": 1, "learning_rate": 0.1, "l2": 0.0},
    "outer": {
        "order": "second",
        "final_learning_rate": None,
        "tasks_per_minibatch": None,
        "max_query_kl": None,
        "weight_decay": 0.0,
        "max_gradient_norm": None,
    },
    "evaluation": {"tasks": 40, "episodes": 20},
}
_TRPO: Data = {
    "outer": {
        "objective": "trpo",
        "trust_region": {
            "max_kl": 0.01,
            "cg_iterations": 10,
            "damping": 1e-5,
            "backtrack_ratio": 0.8,
            "max_backtracks": 15,
        },
    },
}
_PROMP: Data = {
    "outer": {
        "objective": "ppo",
        "learning_rate": 1e-3,
        "epochs": 5,
        "clip": 0.3,
        "inner_kl_coefficient": 5e-4,
    },
    "inner": {"objective": "ratio"},
}
_FINN: Data = merged(
    _PAPERS,
    _TRPO,
    {
        "run": {"iterations": 800},
        "policy": {"hidden_sizes": [100, 100], "activation": "relu"},
        "meta_batch": {"tasks": 40, "episodes": 20},
        "inner": {"objective": "log_prob"},
    },
)
_PROMP2019: Data = merged(
    _PAPERS,
    _PROMP,
    {
        "run": {"iterations": 1000},
        "policy": {"hidden_sizes": [64, 64], "activation": "tanh", "action_scale": 0.1},
        "meta_batch": {"tasks": 40, "episodes": 20},
    },
)

_RLLIB: Data = merged(
    _PROMP2019,
    {
        "run": {"iterations": 500},
        # clip_actions: False in halfcheetah-rand-direc-maml.yaml. Since Ray 1.4 RLlib's default of
        # normalize_actions rescales all the same; its published curve is older.
        "policy": {"action_scale": 1.0, "action_bounds": "none"},
        "meta_batch": {"tasks": 31},
        # Its critic is a network; our linear baseline, refitted for each task, takes its place.
        "advantages": {"bootstrap_time_limit": True},
    },
)
_MAML_RL_TORCH: Data = merged(
    _FINN,
    {
        "run": {"iterations": 500},
        "policy": {"hidden_sizes": [64, 64], "activation": "tanh", "action_scale": 0.1},
    },
)


def _direction(horizon: int, *, torso: bool) -> Data:
    options = {"torso_position": torso, "control_cost": 0.05}
    return {
        "task": {"name": "half-cheetah-direction", "horizon": horizon, "options": options},
    }


def _velocity(horizon: int, *, torso: bool, fastest: float) -> Data:
    options = {
        "torso_position": torso,
        "control_cost": 0.05,
        "speed_range": [0.0, fastest],
    }
    return {"task": {"name": "half-cheetah-velocity", "horizon": horizon, "options": options}}


# The hyperparameters of the source notebook: one episode per task, raw discounted returns, an
# inner log-probability loss with L2, REINFORCE as the outer loss, and Adam(weight_decay).
_NOTEBOOK: Data = {
    "run": {"iterations": 500, "checkpoint_every": 100},
    "policy": {
        "hidden_sizes": [64, 64],
        "activation": "relu",
        "normalize_observations": False,
        "min_log_std": -20.0,
        "action_bounds": "none",
    },
    "meta_batch": {"tasks": 4, "episodes": 1},
    "advantages": {
        "discount": 0.99,
        "gae_lambda": 1.0,
        "baseline": "zero",
        "normalize": False,
    },
    "inner": {"steps": 1, "learning_rate": 0.01, "objective": "log_prob", "l2": 1e-4},
    "outer": {
        "objective": "reinforce",
        "learning_rate": 1e-3,
        "final_learning_rate": None,
        "epochs": 1,
        "tasks_per_minibatch": None,
        "weight_decay": 1e-4,
    },
}

PUBLISHED = dict(
    (
        named(
            "finn2017",
            "MAML-TRPO, directions: Finn et al. 2017 (arXiv:1703.03400, "
            "github.com/cbfinn/maml_rl).",
            "5 hours",
            _FINN,
            _direction(200, torso=True),
        ),
        named(
            "finn2017-velocity",
            "MAML-TRPO, target speeds: Finn et al. 2017.",
            "5 hours",
            _FINN,
            _velocity(200, torso=True, fastest=2.0),
        ),
        named(
            "promp2019",
            "ProMP, directions: Rothfuss et al. 2019 (arXiv:1810.06784, "
            "github.com/jonasrothfuss/ProMP).",
            "2 hours",
            _PROMP2019,
            _direction(100, torso=False),
        ),
        named(
            "promp2019-velocity",
            "ProMP, target speeds: Rothfuss et al. 2019.",
            "2 hours",
            _PROMP2019,
            _velocity(100, torso=False, fastest=3.0),
        ),
        named(
            "rllib",
            "RLlib's MAML, until Ray 2.6, directions.",
            "1 hour",
            _RLLIB,
            _direction(100, torso=False),
        ),
        named(
            "maml-rl-torch",
            "MAML-TRPO, directions: github.com/tristandeleu/pytorch-maml-rl.",
            "2 hours",
            _MAML_RL_TORCH,
            _direction(100, torso=True),
        ),
        named(
            "maml-rl-torch-velocity",
            "MAML-TRPO, target speeds: github.com/tristandeleu/pytorch-maml-rl.",
            "2 hours",
            _MAML_RL_TORCH,
            _velocity(100, torso=True, fastest=2.0),
        ),
        named(
            "notebook",
            "The hyperparameters of the notebook that this project started from.",
            "2 minutes",
            _NOTEBOOK,
        ),
    )
)
"""Presets by name."""
