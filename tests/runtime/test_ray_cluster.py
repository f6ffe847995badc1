"""Runs on a cluster of `ray start` with token authentication: by address and as a job."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir

pytestmark = pytest.mark.ray
BIN = Path(sys.executable).parent
SUBMIT = ["maml-ray", "submit", "--no-install"]
SMALL = [
    part
    for setting in (
        "run.iterations=2",
        "task.horizon=20",
        "meta_batch.tasks=2",
        "meta_batch.episodes=2",
        "policy.hidden_sizes=[8]",
        "evaluation.tasks=1",
        "evaluation.episodes=2",
        "evaluation.video=false",
    )
    for part in ("--set", setting)
]


@dataclass(frozen=True)
class Cluster:
    address: str
    dashboard: str
    environment: dict[str, str]

    def run(self, *command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=cwd,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=180,
        )

    def jobs(self) -> list[dict[str, Any]]:
        """Return the submitted jobs that the job server lists."""
        request = urllib.request.Request(
            f"{self.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            jobs: list[dict[str, Any]] = json.load(answer)
        return [job for job in jobs if job["submission_id"]]

    @property
    def token(self) -> str:
        return (Path(self.environment["HOME"]) / ".ray" / "auth_token").read_text().strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # A home of its own, so that the token of the person who runs the tests stays as it is; and a
    # short path, since the names of Ray's local sockets have to fit into 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="mr"))
    port, dashboard = free_port(), free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody is left who would have to move away
    }
    token = [str(BIN / "ray"), "get-auth-token", "--generate"]
    subprocess.run(token, env=environment, check=True, capture_output=True, timeout=60)
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    # Another Ray on this machine has its agent at the usual port.
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", f"--temp-dir={home}/ray"]
    log = (home / "log").open("w")
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    cluster = Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
    try:
        deadline = time.monotonic() + 180
        trial = ["ray", "job", "submit", "--address", cluster.dashboard, "--no-wait", "--", "true"]
        while cluster.run(*trial, cwd=home).returncode:
            assert head.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, "no job could be submitted after 180 s"
        yield cluster
    finally:
        head.terminate()
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            head.kill()
        log.close()
        shutil.rmtree(home, ignore_errors=True)


def test_a_run_joins_the_cluster_at_an_address(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.run(
        "maml-ray", "train", "--address", cluster.address, "--run-dir", "r", *SMALL, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "2 rollout actors" in done.stdout
    assert len(read_metrics(RunDir(tmp_path / "r").metrics)) == 2


def test_a_run_is_submitted_as_a_job_and_its_actors_and_tasks_can_be_read(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "upload").mkdir()
    (tmp_path / "upload" / "deploy.yaml").write_text("run: {iterations: 2}\n")
    run = tmp_path / "r"
    submit = ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", "upload"]
    train = ["maml-ray", "train", "deploy.yaml", "--run-dir", str(run), *SMALL]
    done = cluster.run(*submit, "--", *train, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "iteration 2/2" in done.stdout
    assert len(read_metrics(RunDir(run).metrics)) == 2

    def listed(what: str) -> list[dict[str, str]]:
        listing = cluster.run(
            "ray", "list", what, "--address", cluster.dashboard, "--format", "json", "--limit",
            "1000", "--detail", cwd=tmp_path,
        )  # fmt: skip
        assert listing.returncode == 0, listing.stderr
        entries: list[dict[str, str]] = json.loads(listing.stdout)
        return entries

    assert {"learner", "rollout-0", "rollout-1"} <= {actor["name"] for actor in listed("actors")}
    tasks = {task["name"] for task in listed("tasks")}
    assert {"collect[task 0]", "collect[task 1]", "meta-update"} <= tasks
    summary = cluster.run(
        "ray", "summary", "tasks", "--address", cluster.dashboard, cwd=tmp_path
    ).stdout
    assert "collect[task 0]" in summary
    assert "meta-update" in summary


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_run_is_submitted_from_elsewhere_stopped_and_resumed(
    cluster: Cluster, tmp_path: Path
) -> None:
    settings = tmp_path / "elsewhere" / "deploy.yaml"
    settings.parent.mkdir()
    settings.write_text("run: {name: submitted}\ntask: {name: half-cheetah-direction}\n")
    kept = f"run.directory={tmp_path / 'runs'}"
    submit = [*SUBMIT, str(settings), "--address", cluster.dashboard, *SMALL, "--set", kept]
    command = [str(BIN / submit[0]), *submit[1:], "--set", "run.iterations=100000"]
    sent = subprocess.Popen(
        command, cwd=tmp_path, env=cluster.environment, stdout=subprocess.PIPE, text=True
    )
    assert sent.stdout is not None
    for line in sent.stdout:  # until it trains; at the end of a job that does not, the test fails
        if line.startswith("iteration "):
            break
    (job,) = [job for job in cluster.jobs() if (job["metadata"] or {}).get("run") == "submitted"]
    metadata = {"run": "submitted", "task": "half-cheetah-direction"}
    assert metadata.items() <= job["metadata"].items()
    assert job["submission_id"].startswith("submitted-")
    assert job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "60"
    stop = ["ray", "job", "stop", "--address", cluster.dashboard, job["submission_id"]]
    assert cluster.run(*stop, cwd=tmp_path).returncode == 0
    rest, _ = sent.communicate(timeout=90)
    assert sent.returncode == 143
    assert "stopped by signal 15" in rest

    (run,) = (tmp_path / "runs").iterdir()
    done = len(read_metrics(RunDir(run).metrics))
    assert done >= 1
    more = ["--resume", "--set", f"run.iterations={done + 2}"]
    again = cluster.run(*submit, *more, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"iteration {done + 1}/{done + 2}" in again.stdout
    assert [*(tmp_path / "runs").iterdir()] == [run]
    rows = read_metrics(RunDir(run).metrics)
    assert [row["iteration"] for row in rows] == list(range(done + 2))


def test_missing_resources_of_a_submitted_run_become_its_exit_code(
    cluster: Cluster, tmp_path: Path
) -> None:
    lacking = ["--set", "cluster.min_rollout_actors=3", "--set", f"run.directory={tmp_path}/runs"]
    sent = cluster.run(*SUBMIT, "--address", cluster.dashboard, *lacking, cwd=tmp_path)
    assert sent.returncode == 4
    assert "the cluster has 2 CPUs" in sent.stderr  # before it is sent
    assert "the cluster has 2 CPUs" in sent.stdout  # by the job
    assert "failed (exit code 4)" in sent.stderr
    assert not (tmp_path / "runs").exists()


def test_doctor_checks_the_cluster_from_within(cluster: Cluster, tmp_path: Path) -> None:
    kept = f"run.storage=file://{tmp_path}/runs"
    doctor = ["maml-ray", "doctor", "--no-install", "--address", cluster.dashboard, "--set", kept]
    done = cluster.run(*doctor, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for subject in ("upload", "resources", "versions", "gpu", "memory", "storage", "video"):
        assert re.search(rf"^(ok|warning) +{subject} ", done.stdout, re.MULTILINE), done.stdout
    assert "2 CPUs and 0 GPUs: 2 rollout actors" in done.stdout
    assert not [*(tmp_path / "runs").iterdir()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "cluster.min_rollout_actors=3"], "the cluster has 2 CPUs"),
        (["--set", "cluster.learner_device=cuda"], "no GPU"),
    ],
)
def test_missing_resources_are_reported_and_leave_no_files(
    cluster: Cluster, tmp_path: Path, arguments: list[str], words: str
) -> None:
    start = time.monotonic()
    done = cluster.run(
        "maml-ray",
        "train",
        "--address",
        cluster.address,
        "--run-dir",
        "r",
        *arguments,
        cwd=tmp_path,
    )
    assert done.returncode == 4
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 120  # not the minutes for which a run waits for resources
    assert not list(tmp_path.iterdir())


@pytest.mark.cluster
def test_a_missing_token_is_reported(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.run(
        "maml-ray", "train", "--address", cluster.address, cwd=tmp_path, RAY_AUTH_MODE="disabled"
    )
    assert done.returncode == 4
    assert "RAY_AUTH_MODE=token" in done.stderr
    assert "Traceback" not in done.stderr
    submit = [*SUBMIT, "--address", cluster.dashboard, "--set", f"run.directory={tmp_path}"]
    sent = cluster.run(*submit, cwd=tmp_path, RAY_AUTH_MODE="disabled")
    assert sent.returncode == 4
    assert "RAY_AUTH_MODE=token" in sent.stderr
    assert "Traceback" not in sent.stderr
