"""Test the program as a user runs it: process, exit code, output and files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import maml_ray
from maml_ray.common.errors import RunDirError
from maml_ray.persistence.checkpoint_store import load_newest_checkpoint
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.storage import LocalStorage
from maml_ray.tasks.families.half_cheetah import HalfCheetahBackward

pytestmark = pytest.mark.ray
SMALL = {
    "run.iterations": "4",
    "run.checkpoint_every": "2",
    "task.horizon": "40",
    "meta_batch.tasks": "2",
    "meta_batch.episodes": "3",
    "policy.hidden_sizes": "[8]",
    "evaluation.tasks": "2",
    "evaluation.episodes": "3",
    "cluster.rollout_actors": "2",
}


def command(*arguments: str, **changes: str) -> list[str]:
    settings = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    program = [sys.executable, "-m", "maml_ray", *arguments]
    return program + [
        part for key, value in settings.items() for part in ("--set", f"{key}={value}")
    ]


def environment() -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, "PYTHONUNBUFFERED": "1"}


def finished(program: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the directory of a finished small run, and its output."""
    cwd = tmp_path_factory.mktemp("whole")
    done = finished(command("train", "--run-dir", "run"), cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "run", done.stdout


def test_a_run_writes_all_files(whole: tuple[Path, str]) -> None:
    folder = RunDir(whole[0])
    assert [row["iteration"] for row in read_metrics(folder.metrics)] == [0, 1, 2, 3]
    assert load_newest_checkpoint(LocalStorage(folder.path))[0].iteration == 4
    plots = {path.name for path in folder.plots.iterdir()}
    assert {"returns.svg", "returns_by_time.svg", "loss.svg", "evaluation.svg"} <= plots
    assert len(folder.episodes.read_text().splitlines()) == 1 + 4 * 6
    evaluation = json.loads(folder.evaluation.read_text())
    assert [(row["steps"], row["actions"]) for row in evaluation["rows"]] == [
        (0, "stochastic"),
        (0, "mean"),
        (1, "stochastic"),
        (1, "mean"),
    ]
    assert all(row["episodes"] == 6 for row in evaluation["rows"])
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    rows = read_metrics(folder.metrics)
    logged = [event.value for event in events.Scalars("1 returns by iteration/return_after")]
    np.testing.assert_allclose(logged, [row["return_after"] for row in rows], rtol=1e-6)
    assert "<video" in folder.report.read_text() or not folder.video.exists()


def test_it_prints_a_line_per_iteration_and_where_the_files_are(whole: tuple[Path, str]) -> None:
    lines = whole[1].splitlines()
    assert sum("  return before " in line for line in lines) == 4
    for word in ("return before", "after", "steps/s", "collect", "learn", "rest", "left"):
        assert any(word in line for line in lines if line.startswith("iteration 4/4")), word
    assert any("report.html" in line for line in lines)
    assert any("learner     CPU" in line for line in lines)
    assert not any("Token authentication" in line or "FutureWarning" in line for line in lines)


def test_the_video_shows_an_episode_that_moves(whole: tuple[Path, str]) -> None:
    video = RunDir(whole[0]).video
    if not video.exists():
        pytest.skip("this machine cannot render")
    frames = iio.imread(video)
    assert frames.shape[:3:2] == (41, 800)  # two pictures side by side
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1.0


def test_evaluate_and_report_work_on_the_folder_alone(whole: tuple[Path, str]) -> None:
    cwd = whole[0].parent
    program = [sys.executable, "-m", "maml_ray"]
    again = finished([*program, "evaluate", "run", "--episodes", "4", "--tasks", "3"], cwd)
    assert again.returncode == 0, again.stderr
    assert "3 tasks x 4 episodes" in again.stdout
    rows = json.loads(RunDir(whole[0]).evaluation.read_text())["rows"]
    assert all(row["episodes"] == 12 for row in rows)
    assert "random" in again.stdout
    RunDir(whole[0]).report.unlink()
    assert finished([*program, "report", "run"], cwd).returncode == 0
    assert f"{rows[-1]['mean']:.1f}" in RunDir(whole[0]).report.read_text()


def test_the_trained_policy_is_used_from_python_and_adapts(whole: tuple[Path, str]) -> None:
    agent = maml_ray.load(whole[0])
    env = HalfCheetahBackward()
    observation, _ = env.reset(seed=0)
    assert agent.act(observation).shape == (6,)
    assert agent.act(np.stack([observation] * 5)).shape == (5, 6)
    np.testing.assert_array_equal(agent.act(observation), agent.act(observation))
    adapted = agent.adapt(agent.collect_support(seed=1))
    assert adapted.adaptation_steps == 1
    assert not np.allclose(adapted.act(observation), agent.act(observation))
    with pytest.raises(ValueError, match="last axis 17"):
        agent.act(observation[:-1])


def test_evaluation_repeats_itself_with_a_seed_and_differs_with_another(
    whole: tuple[Path, str],
) -> None:
    agent = maml_ray.load(whole[0])
    first, second = (maml_ray.evaluate(agent, tasks=1, episodes=2, seed=4) for _ in range(2))
    assert first.measurements == second.measurements
    assert maml_ray.evaluate(agent, tasks=1, episodes=2, seed=5).measurements != first.measurements


def test_a_folder_that_holds_a_run_is_not_overwritten(whole: tuple[Path, str]) -> None:
    before = RunDir(whole[0]).metrics.read_bytes()
    refused = finished(command("train", "--run-dir", "run"), whole[0].parent)
    assert refused.returncode == 2
    assert "--resume run" in refused.stderr
    assert RunDir(whole[0]).metrics.read_bytes() == before


def test_a_resumed_run_keeps_its_settings(whole: tuple[Path, str]) -> None:
    refused = finished(command("train", "--resume", "run", outer__epochs="7"), whole[0].parent)
    assert refused.returncode == 2
    assert "outer.epochs = 7, but the run to resume has 1" in refused.stderr


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_the_run_resumes_to_the_same_end(
    whole: tuple[Path, str], tmp_path: Path, number: signal.Signals
) -> None:
    program = command("train", "--run-dir", "run", run__checkpoint_every="1000")
    with subprocess.Popen(
        program,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("iteration 1/4"):
                process.send_signal(number)
                break
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "--resume run" in output + errors
    assert "Traceback" not in errors
    done = load_newest_checkpoint(LocalStorage(RunDir(tmp_path / "run").path))[0].iteration
    assert 1 <= done < 4
    resumed = finished([sys.executable, "-m", "maml_ray", "train", "--resume", "run"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = (
        load_newest_checkpoint(LocalStorage(RunDir(path).path))[0].learner.parameters
        for path in (tmp_path / "run", whole[0])
    )
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    rows = read_metrics(RunDir(tmp_path / "run").metrics)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]


def test_a_directory_without_a_run_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="not a run directory"):
        maml_ray.load(tmp_path)
    with pytest.raises(RunDirError, match="no run directory"):
        maml_ray.load(tmp_path / "nowhere")
