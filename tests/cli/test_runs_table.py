from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from maml_ray.cli.runs_table import runs_table
from maml_ray.monitoring.registry import RunEntry
from maml_ray.monitoring.status_actor import RunStatus
from maml_ray.runtime.run_context import RunId

STATUS = RunStatus(
    run_directory="runs/x",
    learner="CPU, 2 threads",
    began_at=1_800_000_000.0,
    iteration=1999,
    iterations=2000,
    version=1999,
    return_before=-1772.4,
    return_after=-1791.5,
    steps_per_second=138_687.4,
    actors=1000,
    failures=3,
    elapsed_s=100.0,
    checkpoint_age_s=61.0,
)


def shown(*seen: RunEntry) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(runs_table(seen))
    assert isinstance(console.file, io.StringIO)
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_large_numbers_and_a_long_name_fit_80_columns() -> None:
    lines = shown(RunEntry(RunId("half-cheetah-backward-with-a-long-name", "02000000"), STATUS, 3))
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "half" in line)
    for figure in ("1999/2000", "-1772.4", "-1791.5", "138,687", "1000", "1:04 ago"):
        assert figure in row
    first_column = "".join(line.split()[0] for line in lines[2:] if line.split())
    assert "half-cheetah-backward-with-a-long-name" in first_column


def test_repeated_names_show_their_job_and_problems_are_sentences() -> None:
    begun = replace(STATUS, return_before=None, return_after=None, checkpoint_age_s=None)
    lines = shown(
        RunEntry(RunId("a", "02000000"), STATUS),
        RunEntry(RunId("a", "03000000"), begun),
        RunEntry(RunId("b", "04000000"), None, problem="no answer within 5 s"),
    )
    assert any(line.startswith("a/02000000") for line in lines)
    assert any(line.startswith("a/03000000") for line in lines)
    assert lines[-1] == "b: no answer within 5 s"


def test_a_message_replaces_an_empty_table() -> None:
    assert shown() == ["no run is training on this cluster"]
