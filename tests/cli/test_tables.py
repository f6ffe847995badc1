from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from maml_ray.cli.tables import print_evaluation


def row(steps: int, mean: float, **changes: Any) -> dict[str, Any]:
    results = {"task": None, "actions": "mean", "speed": 0.25, "low": -1234.5, "high": 9876.5}
    return {"steps": steps, "mean": mean, **results, **changes}


def printed(results: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_evaluation(console, results)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def evaluation(tasks: int) -> dict[str, Any]:
    by_task = [row(0, 10.0 * task, task=f"task {task}", speed=None) for task in range(tasks)]
    return {
        "tasks": 4,
        "episodes": 2,
        "rows": [row(0, 1.5), row(1, 2.5)],
        "rows_by_task": by_task,
        "beside": {"a policy with a long name": [row(3, -77.75)]},
    }


@pytest.mark.parametrize("width", [80, 120])
def test_no_number_is_cut_on_a_narrow_terminal(width: int) -> None:
    lines = printed(evaluation(2), width).splitlines()
    assert any("4 tasks x 2 episodes" in line for line in lines)
    for steps, mean in (("0", "1.5"), ("1", "2.5"), ("3", "-77.8")):
        (line,) = [line for line in lines if f" {mean} " in line]
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        assert cells[1:] == [steps, "mean", mean, "-1234.5 to 9876.5", "0.25"]
    assert all(len(line) <= width for line in lines)


def test_only_a_few_tasks_are_shown_separately() -> None:
    assert "task 5" in printed(evaluation(6), 80)
    assert "task 5" not in printed(evaluation(7), 80)
    assert "By task" not in printed(evaluation(1), 80)


def test_a_single_policy_has_no_name_column() -> None:
    assert "meta-trained" not in printed({**evaluation(1), "beside": {}}, 80)
