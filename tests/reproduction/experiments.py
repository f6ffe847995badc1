"""List the experiments of ``make reproduce``: one entry each, with its budget, seeds and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings

PLOTS: Mapping[str, str] = {
    "direction": "Half-cheetah, two directions",
    "direction-100": "Half-cheetah, two directions, episodes of 100 steps",
    "velocity": "Half-cheetah, target speeds",
    "backward": "Half-cheetah, backward",
    "ant": "Ant, two directions",
    "walker": "Walker, random dynamics",
    "hopper": "Hopper, random dynamics",
    "ablation": "Ablation at equal budget: half-cheetah, two directions",
}
"""Titles of the groups of plots, by name."""


@dataclass(frozen=True)
class Experiment:
    """An experiment: one run for each seed.

    Attributes:
        name: prefix of its run directories, and name in the table and the plots.
        preset: preset that its settings start from.
        plots: keys of :data:`PLOTS` whose plots show it.
        env_steps: budget in environment steps, support and query together; by default the preset's
            number of iterations.
        overrides: changes to the preset.
        seeds: random seeds, one run each.
        steps: maximum number of gradient steps in the evaluation.
        animated: record animations of its first finished seed.
    """

    name: str
    preset: str
    plots: tuple[str, ...]
    env_steps: int | None = None
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 3
    animated: bool = False

    def settings(self, seed: int) -> Settings:
        """Return the run's settings, with as many iterations as the budget allows.

        Raises:
            SettingsError: there is no such preset or setting.
        """
        changes = [
            f"run.name={self.name}",
            f"run.seed={seed}",
            *self.overrides,
            "run.checkpoint_every=25",
            # All are evaluated by the protocol afterwards; the evaluation in the run can be short.
            "evaluation.tasks=2",
            "evaluation.episodes=2",
            "evaluation.video=false",
        ]
        settings = load_settings(preset=self.preset, overrides=changes)
        if self.env_steps is None:
            return settings
        batch, phases = settings.meta_batch, settings.inner.steps + 1
        per_iteration = batch.tasks * batch.episodes * settings.task.horizon * phases
        changes.append(f"run.iterations={self.env_steps // per_iteration}")
        return load_settings(preset=self.preset, overrides=changes)


def select(names: Sequence[str], seeds: Sequence[int] | None) -> list[tuple[Experiment, int]]:
    """Return the runs of the experiments ``names``, all if empty: the first seed of each first.

    Args:
        names: names of experiments.
        seeds: seeds in place of those of each experiment; None for its own.

    Raises:
        ValueError: there is no such experiment.
    """
    known = [experiment.name for experiment in EXPERIMENTS]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is not an experiment: choose from {', '.join(known)}")
    chosen = [each for each in EXPERIMENTS if not names or each.name in names]
    runs = [
        (place, experiment, seed)
        for experiment in chosen
        for place, seed in enumerate(experiment.seeds if seeds is None else seeds)
    ]
    return [(experiment, seed) for _, experiment, seed in sorted(runs, key=lambda run: run[0])]


_TRPO = ("outer.objective=trpo",)
_FIXED_RATES = ("inner.learning_rate=0.1", "inner.learn_inner_rates=false")
_ALL_PARAMETERS = ("inner.parameters=all", *_FIXED_RATES)
# As many steps in an iteration as with one support set.
_NO_ADAPTATION = (*_ALL_PARAMETERS, "inner.steps=0", "meta_batch.episodes=8")
# With a floor of -2.5 its forward gait was poor: docs/results.md.
_ORACLE = (*_NO_ADAPTATION, "task.observe_parameters=true", "policy.min_log_std=-2")
_DYNAMICS = (
    "inner.learning_rate=3",
    "inner.context_variance=0.1",
    "outer.learning_rate=0.003",
    # With a floor of -2 the noise is gone before they have learned to walk.
    "policy.min_log_std=-1",
    "meta_batch.tasks=4",
    "meta_batch.episodes=10",
    "outer.tasks_per_minibatch=2",
)
# As many steps in an iteration as with a horizon of 200.
_SHORT = ("task.horizon=100", "meta_batch.episodes=8")

_BUDGET = 1_000_000
"""Environment steps of each run of the ablation."""
_ONE_SEED = (0,)
"""Baselines of one seed show the size of an effect, not its spread."""


def _ablation(name: str, *overrides: str) -> Experiment:
    return Experiment(f"direction-{name}", "direction", ("ablation",), _BUDGET, overrides, steps=1)


def _dynamics(animal: str, task: str, budget: int) -> tuple[Experiment, Experiment]:
    """Return an animal with random dynamics, and the same without adaptation."""
    adapting = Experiment(
        animal,
        "direction-long",
        (animal,),
        budget,
        (f"task.name={task}", *_DYNAMICS),
        _ONE_SEED,
        animated=True,
    )
    without = replace(
        adapting,
        name=f"{animal}-no-adaptation",
        # As many steps in an iteration as with a support set.
        overrides=(*adapting.overrides, *_NO_ADAPTATION, "meta_batch.episodes=20"),
        steps=1,
        animated=False,
    )
    return adapting, without


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("direction", "direction", ("direction",)),
    Experiment("direction-long", "direction-long", ("direction",), animated=True),
    _ablation("context"),
    _ablation("all-parameters", *_ALL_PARAMETERS),
    _ablation("first-order", *_ALL_PARAMETERS, "outer.order=first"),
    _ablation("learned-rates", "inner.parameters=all", "inner.learning_rate=0.1"),
    _ablation("anil", "inner.parameters=head", *_FIXED_RATES),
    _ablation("reptile", *_ALL_PARAMETERS, "outer.objective=reptile"),
    _ablation("no-adaptation", *_NO_ADAPTATION),
    Experiment(
        "direction-oracle", "direction-long", ("direction",), 16_000_000, _ORACLE, _ONE_SEED
    ),
    Experiment("direction-trpo", "direction", ("direction",), overrides=_TRPO),
    Experiment("velocity", "velocity", ("velocity",)),
    Experiment("velocity-3", "velocity-3", ("velocity",)),
    # These two have learned no inner rates, and 0.1 is too large for more than one step.
    Experiment(
        "velocity-no-adaptation",
        "velocity",
        ("velocity",),
        overrides=_NO_ADAPTATION,
        seeds=_ONE_SEED,
        steps=1,
    ),
    Experiment(
        "velocity-oracle",
        "velocity",
        ("velocity",),
        overrides=_ORACLE,
        seeds=_ONE_SEED,
        steps=1,
    ),
    Experiment("backward-long", "backward-long", ("backward",)),
    *_dynamics("walker", "walker2d-random-dynamics", 8_000_000),
    *_dynamics("hopper", "hopper-random-dynamics", 2_400_000),
    Experiment("ant-direction", "ant-direction", ("ant",), animated=True, steps=1),
    # A horizon of 100 steps, as ProMP, RLlib and learn2learn.
    Experiment("direction-100", "direction", ("direction-100",), overrides=_SHORT),
    Experiment(
        "direction-100-three-steps",
        "direction",
        ("direction-100",),
        overrides=(*_SHORT, "inner.steps=3", "policy.min_log_std=-2.5", "run.iterations=1000"),
    ),
)
"""All experiments, in the order of the table."""
