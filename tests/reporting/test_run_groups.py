from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from maml_ray.common.errors import RunDirError
from maml_ray.reporting.run_groups import (
    describe_different_tasks,
    group_by_settings,
    read_runs,
    without_duplicates,
)
from tests.reporting.conftest import MakeRun


def test_runs_that_differ_only_in_the_seed_are_one_group(make_run: MakeRun) -> None:
    paths = [
        make_run("ppo-0", "run.seed=0"),
        make_run("trpo-0", "outer.objective=trpo"),
        make_run("ppo-1", "run.seed=1", "cluster.rollout_actors=3", "evaluation.tasks=9"),
    ]
    groups = group_by_settings(read_runs(paths))
    assert [group.label for group in groups] == ["ppo", "trpo"]
    assert [[run.run_dir.path.name for run in group.runs] for group in groups] == [
        ["ppo-0", "ppo-1"],
        ["trpo-0"],
    ]


def test_groups_with_equal_names_are_labeled_by_the_settings_that_differ(make_run: MakeRun) -> None:
    paths = [make_run("x-0"), make_run("x-1", "outer.epochs=9", "inner.l2=0.5")]
    labels = [group.label for group in group_by_settings(read_runs(paths))]
    assert labels == ["l2=0.0, epochs=1", "l2=0.5, epochs=9"]


def test_returns_of_different_tasks_are_not_to_be_compared(make_run: MakeRun) -> None:
    told = ("task.name=half-cheetah-direction", "task.observe_parameters=true")
    paths = [make_run("a-0", told[0]), make_run("b-0", *told, "outer.epochs=9")]
    assert describe_different_tasks(group_by_settings(read_runs(paths))) == []
    paths.append(make_run("c-0", "task.horizon=100"))
    assert describe_different_tasks(group_by_settings(read_runs(paths))) == [
        "the runs differ in task.name, task.horizon: do not compare their returns"
    ]


def test_a_folder_of_runs_is_expanded(make_run: MakeRun) -> None:
    paths = [make_run("a-0"), make_run("b-0", "outer.epochs=9")]
    assert [run.run_dir.path for run in read_runs([paths[0].parent])] == paths


def test_the_same_run_given_twice_is_one(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("x-0")
    (tmp_path / "link").symlink_to(run)
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    other = make_run("x-1", wall_s=3.0)  # the same settings and seed, trained again
    paths = [run, run / "../x-0", tmp_path / "link", copy, other]
    runs, notes = without_duplicates(read_runs(paths))
    assert [run.run_dir.path for run in runs] == [run, other]
    assert len(notes) == 3
    assert all("counted once" in note for note in notes)
    assert str(copy) in notes[2]


def test_what_cannot_be_compared_is_refused_by_name(make_run: MakeRun, tmp_path: Path) -> None:
    good = make_run("x-0")
    with pytest.raises(RunDirError, match="there is no run directory"):
        read_runs([good, tmp_path / "nowhere"])
    empty = make_run("y-0")
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(RunDirError, match="has not finished an iteration"):
        read_runs([good, empty])
    (empty / "metrics.jsonl").write_text((good / "metrics.jsonl").read_text())
    (empty / "evaluation.json").write_text("{")
    with pytest.raises(RunDirError, match="does not hold an evaluation"):
        read_runs([good, empty])
