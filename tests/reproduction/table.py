"""Write the table of finished runs as Markdown: one row per experiment, task and way to act."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tests.reproduction.measurements import Result, Returns, TaskReturns
from tests.reproduction.runs import (
    EPISODES,
    FEW_EPISODES,
    TASKS,
    evaluation_command,
    few_episodes_command,
)

_STEPS = range(4)
_HEAD = (
    "experiment",
    "seeds",
    "env steps",
    "minutes",
    "tasks",
    "actions",
    "before",
    "after 1 step",
    "after 2",
    "after 3",
    f"1 step, {FEW_EPISODES} episodes",
)

PROTOCOL = (
    f"Undiscounted return of an episode, over {TASKS} adaptations per seed to tasks held out from "
    f"training where there are any to hold out, and {EPISODES} episodes for each. Mean over seeds; "
    "in parentheses the lowest and the highest seed. Each gradient step uses a new support set of "
    f"the size used in training; in the last column, one step on {FEW_EPISODES} episodes, which is "
    "how many PEARL adapts to. Environment steps are of support and query episodes together, "
    "minutes those of training; both are means over seeds."
)


def table(results: Sequence[Result], missing: Sequence[str]) -> str:
    """Return the table with its protocol, commands, and what is missing.

    Args:
        results: finished runs, by experiment.
        missing: a line for each run that is not in the table.
    """
    lines = [PROTOCOL, "", _row(_HEAD), "|---" * len(_HEAD) + "|"]
    for result in results:
        lines += _result_rows(result)
    lines += _untrained_rows(results)
    lines += ["", f"One run by hand: `{evaluation_command(3)}`,", f"`{few_episodes_command()}`."]
    machines = dict.fromkeys(machine for result in results for machine in result.machines)
    if machines:
        lines += ["", f"Trained on {'; '.join(machines)}."]
    if missing:
        lines += ["", "Not in the table:", "", *(f"- {line}" for line in missing)]
    return "\n".join(lines) + "\n"


def _result_rows(result: Result) -> Iterator[str]:
    run = (
        result.name,
        str(len(result.seeds)),
        f"{result.env_steps / 1e6:.1f} M",
        f"{result.minutes:.1f}",
    )
    for returns in result.task_returns():
        yield _returns_row(run, returns)
        run = ("", "", "", "")


def _untrained_rows(results: Iterable[Result]) -> Iterator[str]:
    """Yield one row per family and horizon: untrained policies, evaluated by the same protocol."""
    seen = set()
    for result in results:
        task, returns = result.runs[0].settings.task, result.untrained()
        if returns is None or (task.name, task.horizon) in seen:
            continue
        seen.add((task.name, task.horizon))
        run = (f"{result.name}, untrained", str(len(result.seeds)), "0", "")
        yield _returns_row(run, returns)


def _returns_row(run: Sequence[str], returns: TaskReturns) -> str:
    cells = [_cell(returns.by_steps.get(step)) for step in _STEPS]
    actions = "sampled" if returns.actions == "stochastic" else "mean"
    task = returns.task or "all"
    return _row((*run, task, actions, *cells, _cell(returns.few_episodes)))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(returns: Returns | None) -> str:
    """Return mean, range over seeds, and speed."""
    if returns is None:
        return ""
    ends = (returns.lowest, returns.highest)
    digits = 0 if max(map(abs, ends)) >= 100.0 else 1
    mean, low, high = (f"{value:,.{digits}f}" for value in (returns.mean, *ends))
    text = f"{mean} ({low} to {high})" if returns.seeds > 1 else mean
    return text if returns.speed is None else f"{text}, {returns.speed:.2f} m/s"
