"""The experiments: one per row of the table, with its budget in environment steps."""

from __future__ import annotations

from dataclasses import dataclass

from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings


@dataclass(frozen=True)
class Experiment:
    """An experiment: one run for each seed.

    Attributes:
        name: prefix of its run directories, and name in the table.
        preset: preset that its settings start from.
        env_steps: budget in environment steps, support and query together.
        overrides: changes to the preset.
        steps: maximum number of gradient steps in the evaluation.
    """

    name: str
    preset: str
    env_steps: int
    overrides: tuple[str, ...] = ()
    steps: int = 3

    def settings(self, seed: int) -> Settings:
        """Return the run's settings, with as many iterations as the budget allows."""
        changes = [f"run.name={self.name}", f"run.seed={seed}", *self.overrides]
        once = load_settings(preset=self.preset, overrides=changes)
        batch, phases = once.meta_batch, once.inner.steps + 1
        per_iteration = batch.tasks * batch.episodes * once.task.horizon * phases
        changes += [
            f"run.iterations={self.env_steps // per_iteration}",
            "run.checkpoint_every=25",
            # All are evaluated by the protocol afterwards; the evaluation in the run can be short.
            "evaluation.tasks=2",
            "evaluation.episodes=2",
            "evaluation.video=false",
        ]
        return load_settings(preset=self.preset, overrides=changes)


_TRPO = ("outer.objective=trpo",)
_NO_ADAPTATION = ("inner.steps=0", "meta_batch.tasks=20", "outer.tasks_per_minibatch=10")
_ORACLE = (*_NO_ADAPTATION, "task.observe_parameters=true")
_SHORT = ("task.horizon=100",)
# Three steps multiply the effect of a change of the parameters: at the preset's rates the first
# step of an update can move the adapted policies by several nats, and training is unstable.
_THREE_STEPS = (
    "inner.steps=3",
    "inner.learning_rate=0.05",
    "outer.learning_rate=1.5e-3",
    "outer.final_learning_rate=2e-4",
    "outer.max_gradient_norm=0.5",
)

DIRECTION, VELOCITY = 5_000_000, 12_000_000

MAIN = (
    Experiment("direction-ppo", "direction", DIRECTION),
    Experiment("direction-trpo", "direction", DIRECTION, _TRPO),
    Experiment("velocity-ppo", "velocity", VELOCITY),
    Experiment("velocity-trpo", "velocity", VELOCITY, _TRPO),
)
"""Three seeds each."""

SHORT = (
    Experiment("direction-100", "direction", 6_000_000, _SHORT),
    Experiment("direction-100-three-steps", "direction", 24_000_000, (*_SHORT, *_THREE_STEPS)),
)
"""A horizon of 100 steps, as ProMP, RLlib and learn2learn."""

COMPARED = (
    Experiment("direction-first-order", "direction", DIRECTION, ("outer.order=first",)),
    Experiment("direction-no-adaptation", "direction", DIRECTION, _NO_ADAPTATION),
    Experiment("direction-oracle", "direction", DIRECTION, _ORACLE),
    # These two have learned no inner rates, and 0.1 is too large for more than one step.
    Experiment("velocity-no-adaptation", "velocity", VELOCITY, _NO_ADAPTATION, steps=1),
    Experiment("velocity-oracle", "velocity", VELOCITY, _ORACLE, steps=1),
)
"""Baselines: first order, pre-training, and a policy that observes its task."""
