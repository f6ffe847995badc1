"""Signals that stop or kill the driver program at chosen moments."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import numpy as np
import psutil
import pytest

from maml_ray.common.errors import RunDirError, TrainingFailed
from maml_ray.persistence.checkpoint_store import load_newest_checkpoint
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.storage import LocalStorage
from maml_ray.tasks.families.half_cheetah import HalfCheetahBackwardTasks
from maml_ray.tasks.task import Task

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
DEADLINE_S = 120
"""Deadline in seconds of each wait; the program's own deadline for its exit is 9.5 seconds."""


class GatedTasks(HalfCheetahBackwardTasks):
    """Ray's workers write their process ids into the pipe ``options.gate``, and stop there.

    Args:
        gate: the named pipe; without one, nothing is special.
        at: ``start``: where the simulations are made; ``work``: at every piece of work.
    """

    def __init__(self, *, gate: str | None = None, at: str = "work") -> None:
        super().__init__()
        self._gate = Path(gate) if gate else None
        if at == "start":
            self._stop_here()

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Return different tasks in turn, since the same task would reuse the simulations."""
        return tuple(Task(f"backward {index}") for index in range(count))

    def retarget(self, env: Any, task: Task) -> bool:
        self._stop_here()
        return super().retarget(env, task)

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> Any:
        self._stop_here()
        return super().make_vector_env(task, num_envs=num_envs, horizon=horizon)

    def _stop_here(self) -> None:
        in_a_worker = Path(sys.argv[0]).name == "default_worker.py"
        if in_a_worker and self._gate is not None and self._gate.exists():
            with self._gate.open("w") as pipe:
                pipe.write(f"{os.getpid()}\n")
            threading.Event().wait()


SMALL = {
    "run.iterations": "3",
    "task.horizon": "20",
    "meta_batch.tasks": "2",
    "meta_batch.episodes": "2",
    "policy.hidden_sizes": "[8]",
    "evaluation.tasks": "1",
    "evaluation.episodes": "1",
    "evaluation.video": "false",
    "cluster.rollout_actors": "1",
}


def command(*arguments: str, **changes: str) -> list[str]:
    chosen = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    sets = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "maml_ray", *arguments, *sets]


@contextmanager
def driver(program: list[str], cwd: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    root = str(Path(__file__).parents[2])  # the task family below is imported from there
    with subprocess.Popen(
        program,
        cwd=cwd,
        env={**environment, **variables, "PYTHONUNBUFFERED": "1", "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = threading.Timer(DEADLINE_S, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    """Wait until the driver has printed a line with ``word`` in it."""
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"no {word!r}: {process.stderr and process.stderr.read()}")


def assert_ended(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Check that the driver exits properly after the signal; return its output."""
    said, complaints = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + number, complaints
    assert f"stopped by signal {int(number)}" in complaints
    assert "Traceback" not in complaints
    return said + complaints


def gate_of(folder: Path) -> Path:
    os.mkfifo(folder / "gate")
    return folder / "gate"


def somebody_at(gate: Path) -> int:
    """Wait until a worker blocks at the gate; return its process id."""
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(gate.read_text()), daemon=True)
    reader.start()
    reader.join(DEADLINE_S)
    assert found, "nobody came to the gate"
    return int(found[0].splitlines()[0])


def gated(gate: Path, **options: str) -> dict[str, str]:
    told = ", ".join(f"{key}: {value}" for key, value in {"gate": str(gate), **options}.items())
    return {"task__name": "tests.chaos.test_driver:GatedTasks", "task__options": f"{{{told}}}"}


@BOTH
def test_a_signal_while_ray_starts(tmp_path: Path, number: signal.Signals) -> None:
    with driver(command("train", "--run-dir", "run"), tmp_path) as process:
        lock = tmp_path / "run" / ".lock"
        _until(lock.exists, process)  # the last thing before Ray
        process.send_signal(number)
        assert_ended(process, number)
    assert not list(tmp_path.iterdir())


@BOTH
def test_a_signal_within_a_fork_while_ray_starts(tmp_path: Path, number: signal.Signals) -> None:
    """A library's hooks find what the hook before them has done; Python drops what they raise."""
    text = f"""
import os, signal
from maml_ray.cli.main import main

forks = []

def before(to_come=[{int(number)}]):
    if to_come and os.path.exists("run/.lock"):
        signal.raise_signal(to_come.pop())
    forks.append("begun")

def after():
    forks.pop()

os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)
main()
"""
    _, _, _, *arguments = command("train", "--run-dir", "run")
    with driver([sys.executable, "-c", text, *arguments], tmp_path) as process:
        assert_ended(process, number)
    assert not list(tmp_path.iterdir())


def test_a_signal_while_the_actors_start(tmp_path: Path) -> None:
    gate = gate_of(tmp_path)
    program = command("train", "--run-dir", "run", **gated(gate, at="start"))
    with driver(program, tmp_path) as process:
        somebody_at(gate)
        process.send_signal(signal.SIGTERM)
        assert_ended(process, signal.SIGTERM)
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.cluster),
        pytest.param(signal.SIGINT, marks=pytest.mark.soak),
    ],
)
def test_a_signal_during_the_evaluation(tmp_path: Path, number: signal.Signals) -> None:
    program = command("train", "--run-dir", "run", run__iterations="1", evaluation__tasks="400")
    with driver(program, tmp_path) as process:
        wait_for(process, "evaluating")
        process.send_signal(number)
        assert_ended(process, number)
    assert load_newest_checkpoint(LocalStorage(tmp_path / "run"))[0].iteration == 1
    assert not (tmp_path / "run" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("process", "words"),
    [
        ("raylet", "the raylet, .* has died"),
        pytest.param(
            "gcs_server", "the head of the Ray cluster .* has died", marks=pytest.mark.cluster
        ),
    ],
)
def test_the_death_of_rays_own_processes_is_named_with_the_way_to_go_on(
    tmp_path: Path, process: str, words: str
) -> None:
    """Ray itself waits for lost actors, or ends the driver after a minute."""
    program = command("train", "--run-dir", "run", run__iterations="1000000")
    with driver(program, tmp_path) as training:
        wait_for(training, " 2/1000000")
        children = psutil.Process(training.pid).children(recursive=True)
        (victim,) = [child for child in children if child.name() == process]
        victim.kill()
        killed_at = time.monotonic()
        _, complaints = training.communicate(timeout=DEADLINE_S)
    assert time.monotonic() - killed_at < 50.0  # 10 s, on a machine that is not busy
    assert training.returncode == TrainingFailed.exit_code, complaints
    assert re.search(f"maml-ray: {words}", complaints), complaints
    assert complaints.endswith("maml-ray train --resume run\n")
    assert "Traceback" not in complaints
    assert load_newest_checkpoint(LocalStorage(tmp_path / "run"))[0].iteration >= 1


@pytest.mark.soak
def test_a_second_signal_ends_the_driver_at_once(tmp_path: Path) -> None:
    """The first signal waits for the last checkpoint, whose storage no longer answers."""
    with training_on_a_bucket_that_fell_silent(tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode in (130, 143)  # two signals at once may be told in either order
    assert not (tmp_path / "fallback").exists()


@pytest.mark.cluster
def test_a_signal_while_the_storage_hangs(tmp_path: Path) -> None:
    with training_on_a_bucket_that_fell_silent(tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        said = assert_ended(process, signal.SIGTERM)
    (saved,) = (tmp_path / "fallback").iterdir()
    assert str(saved) in said
    assert load_newest_checkpoint(LocalStorage(saved))[0].iteration >= 1


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_driver_killed_twice_in_the_same_iteration_gives_the_same_result(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    gate = tmp_path / "gate"
    # No pipe there yet: nobody stops. It goes on for longer than it takes to make one.
    options = {**gated(gate), "run__iterations": "100"}
    with driver(command("train", "--run-dir", str(whole), **options), tmp_path) as process:
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
    with driver(command("train", "--run-dir", str(broken), **options), tmp_path) as process:
        wait_for(process, " 1/100")
        killed = [_killed_at(gate_of(tmp_path), process, broken)]
    resume = [sys.executable, "-m", "maml_ray", "train", "--resume", str(broken)]
    resume += ["--import", __name__]
    with driver(resume, tmp_path) as process:
        killed.append(_killed_at(gate, process, broken))
    gate.unlink()
    assert killed[0] == killed[1] < 100
    with driver(resume, tmp_path) as process:
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
    ours, theirs = (
        load_newest_checkpoint(LocalStorage(path))[0].learner for path in (broken, whole)
    )
    assert set(ours.parameters) == set(theirs.parameters)
    for name in theirs.parameters:
        np.testing.assert_array_equal(ours.parameters[name], theirs.parameters[name])


def _killed_at(gate: Path, process: subprocess.Popen[str], run: Path) -> int:
    """Kill the driver while its only actor blocks at the gate; return the iteration in progress."""
    somebody_at(gate)
    _until(lambda: _all_is_saved(run), process)
    process.kill()
    process.wait(timeout=DEADLINE_S)
    return _newest(run)


def _all_is_saved(run: Path) -> bool:
    try:
        return len(RunDir(run).metrics.read_text().splitlines()) == _newest(run)
    except RunDirError:  # checkpoints come and go while they are read
        return False


def _newest(run: Path) -> int:
    return load_newest_checkpoint(LocalStorage(run))[0].iteration


def _until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until the condition holds, or the driver has ended."""
    pause = threading.Event()
    while not there():
        assert process.poll() is None, process.stderr and process.stderr.read()
        pause.wait(0.02)


@dataclass(frozen=True)
class Bucket:
    """A bucket on its own server, which can be made to stop answering.

    Attributes:
        server: its process.
        environment: of programs that speak to it.
    """

    server: subprocess.Popen[bytes]
    environment: dict[str, str]

    def fall_silent(self) -> None:
        """Let the server accept connections without ever answering."""
        self.server.send_signal(signal.SIGSTOP)


@contextmanager
def bucket() -> Iterator[Bucket]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    program = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            client = boto3.client(
                "s3",
                endpoint_url=environment["AWS_ENDPOINT_URL"],
                aws_access_key_id="key",
                aws_secret_access_key="secret",
                region_name="us-east-1",
                config=botocore.config.Config(retries={"max_attempts": 20, "mode": "standard"}),
            )
            client.create_bucket(Bucket="bucket")
            yield Bucket(server, environment)
        finally:
            server.kill()


@contextmanager
def training_on_a_bucket_that_fell_silent(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run whose storage stops answering after the first iteration."""
    program = command(
        "train",
        "--run-dir",
        "run",
        run__iterations="1000",
        run__storage="s3://bucket/runs",
        faults__fallback_directory=str(folder / "fallback"),
    )
    with bucket() as storage, driver(program, folder, **storage.environment) as process:
        wait_for(process, "iteration    1/1000")
        storage.fall_silent()
        for _ in range(3):  # what is under way may still have been answered
            wait_for(process, "/1000")
        yield process
