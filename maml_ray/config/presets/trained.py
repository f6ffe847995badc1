"""Define the presets that train our families; docs/results.md has what they reach."""

from __future__ import annotations

from maml_ray.config.presets.preset import Data, named

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
    # Two gaits share little: the forward one is between 800 and 1,360, over four seeds.
    "inner": {"learning_rate": 2.0, "context_variance": 2.0},
}
_DIRECTION_LONG: Data = {
    "run": {"iterations": 2500},
    # Late in a long run the noise is at its floor. Three seeds had 1,478; with -2 and 2,000
    # iterations, 1,395.
    "policy": {"min_log_std": -2.5},
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
    "run": {"iterations": 1300},
    # The reward of PEARL's ants.
    "task": {
        "name": "ant-direction",
        "horizon": 200,
        "options": {"control_cost": 0.5, "survival_bonus": 1.0},
    },
    # The control cost makes noise expensive, and ants stand still until it is gone: with -1.2 for
    # 30 iterations more.
    "policy": {"initial_log_std": -1.5, "min_log_std": -2.5},
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

TRAINED = dict(
    (
        named(
            "point-navigation",
            "A point must find its goal in the plane: shows adaptation fast.",
            "half a minute",
            _POINT,
        ),
        named(
            "direction",
            "The half-cheetah must run forward or backward but is not told which.",
            "4 minutes",
            _CONTEXT,
            _SMALL_BATCH,
            _DIRECTION,
        ),
        named(
            "direction-long",
            "The same with a larger network and five times as many steps.",
            "half an hour",
            _CONTEXT,
            _SMALL_BATCH,
            _DIRECTION,
            _LONG,
            _DIRECTION_LONG,
        ),
        named(
            "velocity",
            "The half-cheetah must run at a target speed that it does not observe.",
            "4 minutes",
            _CONTEXT,
            _VELOCITY,
        ),
        named(
            "velocity-3",
            "The same with target speeds up to 3 m/s instead of 2.",
            "5 minutes",
            _CONTEXT,
            _VELOCITY,
            _VELOCITY_3,
        ),
        named(
            "backward-long",
            "The half-cheetah must run backward, the default's task, with a larger network.",
            "20 minutes",
            _CONTEXT,
            _LONG,
            _SMALL_BATCH,
            _BACKWARD,
        ),
        named(
            "ant-direction",
            "The ant must run forward or backward, with the rewards of PEARL's.",
            "45 minutes",
            _CONTEXT,
            _LONG,
            _ANT,
        ),
    )
)
"""Presets by name."""
