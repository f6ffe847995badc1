"""Compose the captions of the plots: what is shown, seeds, protocols, and the command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from maml_ray.reporting.run_groups import Run
from tests.reproduction.measurements import Result
from tests.reproduction.published_results import PublishedCurve, PublishedReturns
from tests.reproduction.runs import EPISODES, FEW_EPISODES, TASKS

_TRAINING = (
    "after adaptation (solid) and before it (dashed), in training with sampled actions; means over "
    "seeds, bands from the lowest to the highest seed"
)
_EVALUATION = (
    f"{TASKS} adaptations per seed to tasks held out from training where there are any to hold "
    f"out, {EPISODES} episodes for each, sampled actions, a new support set for each step"
)
_STARS = (
    f"after training, on the terms of PEARL: one gradient step on {FEW_EPISODES} episodes, then "
    f"mean actions, {TASKS} adaptations per seed to held-out tasks"
)

SHOWN = {
    "steps": "Return against environment steps (support and query episodes together), "
    f"{_TRAINING}.",
    "time": f"Return against wall-clock time of training, {_TRAINING}.",
    "gradient-steps": f"Return after 0 to 3 gradient steps: {_EVALUATION}. Means over seeds, bars "
    "from the lowest to the highest seed.",
    "directions": f"Return of each direction after 0 to 3 gradient steps: {_EVALUATION}. Means "
    "over seeds, bars from the lowest to the highest seed.",
    "speeds": f"Return over target speed, before adaptation (hollow) and after one step (filled): "
    f"{_EVALUATION}. One point per seed and task.",
}
"""What a plot shows, by its kind."""


def caption(
    kind: str,
    results: Sequence[Result],
    curves: Sequence[PublishedCurve] = (),
    returns: Sequence[PublishedReturns] = (),
) -> str:
    """Return the caption of a plot.

    Args:
        kind: key of :data:`SHOWN`.
        results: the finished runs in the plot.
        curves, returns: the published results in it.
    """
    sources: list[PublishedCurve | PublishedReturns] = [*curves, *returns]
    published = [f"{source.label} ({source.protocol})" for source in sources]
    return " ".join(
        [
            SHOWN[kind],
            f"Episodes of {_either(run.settings.task.horizon for run in _runs(results))} steps.",
            f"Seeds: {'; '.join(f'{each.name} {_list(each.seeds)}' for each in results)}.",
            *_machines(results),
            *([f"Stars: {_STARS}."] if curves else []),
            *([f"Published: {'; '.join(published)}."] if published else []),
            f"Command: `{command(results)}`.",
        ]
    )


def animation_caption(run: str, task: str) -> str:
    """Return the caption of an animation.

    Args:
        run: name of a run directory, such as ``direction-seed0``.
        task: name of the task in the file's name.
    """
    name, _, seed = run.rpartition("-seed")
    return (
        f"{name}, seed {seed}, task {task}: before adaptation (left) and after it (right), from "
        "the same initial state, mean actions; the return is of the whole episode, of which the "
        "first seconds are shown in real time. Command: "
        f'`make reproduce ARGS="--only {name} --seeds {seed}, --animations"`.'
    )


def command(results: Sequence[Result]) -> str:
    """Return the command that trains, evaluates and draws these experiments with these seeds."""
    names = " ".join(result.name for result in results)
    seeds = sorted({seed for result in results for seed in result.seeds})
    own = {result.seeds == result.experiment.seeds for result in results}
    chosen = "" if own == {True} else f" --seeds {_seeds_option(seeds)}"
    return f'make reproduce ARGS="--only {names}{chosen}"'


def _seeds_option(seeds: Sequence[int]) -> str:
    """Return seeds as ``--seeds`` takes them: a list, which for a single seed ends in a comma."""
    return f"{seeds[0]}," if len(seeds) == 1 else ",".join(map(str, seeds))


def _machines(results: Sequence[Result]) -> list[str]:
    machines = dict.fromkeys(machine for result in results for machine in result.machines)
    return [f"Trained on {'; '.join(machines)}."] if machines else []


def _runs(results: Sequence[Result]) -> list[Run]:
    return [run for result in results for run in result.runs]


def _either(values: Iterable[int]) -> str:
    return " or ".join(map(str, dict.fromkeys(values)))


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
