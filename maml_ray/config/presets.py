"""Define the presets: named settings that a settings file and the command line override.

The first ones are what we train these families with. The others reproduce the settings of papers
and their code, for comparison. docs/results.md lists what they set
and which choices silently change results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Data = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Preset:
    """Named settings.

    Attributes:
        description: what it trains, or whose experiment it is.
        duration: of a run, roughly, on 2 CPUs.
        settings: sections of settings that differ from the defaults.
    """

    description: str
    duration: str
    settings: Data


def _merged(*parts: Data) -> Data:
    """Return the parts merged key by key; later parts win."""
    result: dict[str, dict[str, Any]] = {}
    for part in parts:
        for section, values in part.items():
            result.setdefault(section, {}).update(values)
    return result


_CONTEXT: Data = {
    # With a standard deviation of 1 the first million steps do little but reduce it.
    "policy": {"activation": "relu", "initial_log_std": -0.7, "min_log_std": -2.0},
    # Support episodes at either side of a context tell the adapted policy its task. A step of all
    # parameters hardly moves the policy: it leaves one gait for both directions.
    "inner": {"parameters": "context", "learning_rate": 3.0, "learn_inner_rates": True},
    "outer": {
        "learning_rate": 3e-3,
        "final_learning_rate": 2e-4,
        "epochs": 8,
        "max_query_kl": 0.2,
    },
    "evaluation": {"tasks": 10, "episodes": 20},
}
_LONG: Data = {
    "policy": {"hidden_sizes": [128, 128]},
    "outer": {"learning_rate": 1e-3, "final_learning_rate": 1e-4},
}
# Many small updates: with 20 episodes the first 2 million steps lead to half as much.
_SMALL_BATCH: Data = {
    "meta_batch": {"tasks": 10, "episodes": 4},
    "outer": {"tasks_per_minibatch": 5},
}
_DIRECTION: Data = {
    "run": {"iterations": 500},
    "task": {"name": "half-cheetah-direction", "horizon": 200},
    # Two gaits share little. Forward, over three seeds: 1,140 to 1,190; with 0.1, 1,000 to 1,250.
    "inner": {"learning_rate": 2.0, "context_variance": 2.0},
}
_VELOCITY: Data = {
    "run": {"iterations": 200},
    "task": {"name": "half-cheetah-velocity", "horizon": 200},
    "meta_batch": {"tasks": 20, "episodes": 4},
    "outer": {"tasks_per_minibatch": 10},
}
# At this rate the contexts of 0 and 3 m/s are about those that support episodes act with. A learned
# rate falls, until these run at speeds that no query episode has seen.
_VELOCITY_3: Data = {
    "task": {"options": {"speed_range": [0.0, 3.0]}},
    "policy": {"min_log_std": -2.5},
    "inner": {"learning_rate": 2.5, "learn_inner_rates": False},
    "outer": {"learning_rate": 1.5e-3},
}

_ANT: Data = {
    "run": {"iterations": 900},
    # The reward of PEARL's ants. The control cost makes noise expensive.
    "task": {
        "name": "ant-direction",
        "horizon": 200,
        "options": {"control_cost": 0.5, "survival_bonus": 1.0},
    },
    "policy": {"initial_log_std": -1.2},
    "meta_batch": {"tasks": 4, "episodes": 10},
    "inner": {"learning_rate": 2.0, "context_variance": 0.5},
    "outer": {"learning_rate": 3e-3, "tasks_per_minibatch": 2},
}

_BACKWARD: Data = {
    "run": {"iterations": 1000},
    "task": {"name": "half-cheetah-backward", "horizon": 200},
}

_POINT: Data = {
    "run": {"iterations": 25},
    "task": {"name": "point-navigation", "horizon": 100},
    # A step of the point is at most 0.1: actions of about 1 cover that range.
    "policy": {"action_scale": 0.1, "initial_log_std": -0.5},
    "meta_batch": {"tasks": 20, "episodes": 10},
    "inner": {"learning_rate": 0.2},
    "outer": {
        "learning_rate": 1e-2,
        "final_learning_rate": 1e-3,
        "epochs": 2,
        "tasks_per_minibatch": 10,
    },
    "evaluation": {"tasks": 20, "episodes": 10},
}

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
_FINN: Data = _merged(
    _PAPERS,
    _TRPO,
    {
        "run": {"iterations": 800},
        "policy": {"hidden_sizes": [100, 100], "activation": "relu"},
        "meta_batch": {"tasks": 40, "episodes": 20},
        "inner": {"objective": "log_prob"},
    },
)
_PROMP2019: Data = _merged(
    _PAPERS,
    _PROMP,
    {
        "run": {"iterations": 1000},
        "policy": {"hidden_sizes": [64, 64], "activation": "tanh", "action_scale": 0.1},
        "meta_batch": {"tasks": 40, "episodes": 20},
    },
)

_RLLIB: Data = _merged(
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
_MAML_RL_TORCH: Data = _merged(
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


def _preset(name: str, description: str, duration: str, *parts: Data) -> tuple[str, Preset]:
    """Return a preset whose runs have its name."""
    return name, Preset(description, duration, _merged(*parts, {"run": {"name": name}}))


PRESETS: Mapping[str, Preset] = dict(
    (
        _preset(
            "point-navigation",
            "A point must find its goal in the plane: shows adaptation fast.",
            "half a minute",
            _POINT,
        ),
        _preset(
            "direction",
            "The half-cheetah must run forward or backward but is not told which.",
            "4 minutes",
            _CONTEXT,
            _SMALL_BATCH,
            _DIRECTION,
        ),
        _preset(
            "direction-long",
            "The same with a larger network and four times as many steps.",
            "20 minutes",
            _CONTEXT,
            _SMALL_BATCH,
            _DIRECTION,
            _LONG,
            {"run": {"iterations": 2000}},
        ),
        _preset(
            "velocity",
            "The half-cheetah must run at a target speed that it does not observe.",
            "4 minutes",
            _CONTEXT,
            _VELOCITY,
        ),
        _preset(
            "velocity-3",
            "The same with target speeds up to 3 m/s instead of 2.",
            "5 minutes",
            _CONTEXT,
            _VELOCITY,
            _VELOCITY_3,
        ),
        _preset(
            "backward-long",
            "The half-cheetah must run backward, the default's task, with a larger network.",
            "20 minutes",
            _CONTEXT,
            _LONG,
            _SMALL_BATCH,
            _BACKWARD,
        ),
        _preset(
            "ant-direction",
            "The ant must run forward or backward, with the rewards of PEARL's.",
            "1 hour",
            _CONTEXT,
            _LONG,
            _ANT,
        ),
        _preset(
            "finn2017",
            "MAML-TRPO, directions: Finn et al. 2017 (arXiv:1703.03400, "
            "github.com/cbfinn/maml_rl).",
            "5 hours",
            _FINN,
            _direction(200, torso=True),
        ),
        _preset(
            "finn2017-velocity",
            "MAML-TRPO, target speeds: Finn et al. 2017.",
            "5 hours",
            _FINN,
            _velocity(200, torso=True, fastest=2.0),
        ),
        _preset(
            "promp2019",
            "ProMP, directions: Rothfuss et al. 2019 (arXiv:1810.06784, "
            "github.com/jonasrothfuss/ProMP).",
            "2 hours",
            _PROMP2019,
            _direction(100, torso=False),
        ),
        _preset(
            "promp2019-velocity",
            "ProMP, target speeds: Rothfuss et al. 2019.",
            "2 hours",
            _PROMP2019,
            _velocity(100, torso=False, fastest=3.0),
        ),
        _preset(
            "rllib",
            "RLlib's MAML, until Ray 2.6, directions.",
            "1 hour",
            _RLLIB,
            _direction(100, torso=False),
        ),
        _preset(
            "maml-rl-torch",
            "MAML-TRPO, directions: github.com/tristandeleu/pytorch-maml-rl.",
            "2 hours",
            _MAML_RL_TORCH,
            _direction(100, torso=True),
        ),
        _preset(
            "maml-rl-torch-velocity",
            "MAML-TRPO, target speeds: github.com/tristandeleu/pytorch-maml-rl.",
            "2 hours",
            _MAML_RL_TORCH,
            _velocity(100, torso=True, fastest=2.0),
        ),
        _preset(
            "notebook",
            "The hyperparameters of the notebook that this project started from.",
            "2 minutes",
            _NOTEBOOK,
        ),
    )
)
"""Presets by name; durations over half an hour are estimates."""
