"""Test watching a run on a ``ray start`` cluster: Prometheus, status and --follow."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from maml_ray.evaluation.evaluate import evaluate
from maml_ray.evaluation.loading import load
from maml_ray.monitoring.prometheus import METRICS
from maml_ray.persistence.checkpoint_store import has_checkpoints
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.storage import LocalStorage
from tests.runtime.test_ray_cluster import BIN, Cluster, cluster  # noqa: F401  (a fixture)

# Alone: the ports of Ray's metrics are fixed, so that only one Ray of a machine has them.
pytestmark = [pytest.mark.ray, pytest.mark.runs_alone]
SMALL = [
    part
    for setting in (
        "run.name=watched",
        "run.iterations=100000",
        "run.checkpoint_every=4",
        "run.keep_checkpoints=100000",
        "task.name=point-navigation",
        "task.horizon=20",
        "meta_batch.tasks=2",
        "meta_batch.episodes=2",
        "policy.hidden_sizes=[8]",
        "evaluation.video=false",
    )
    for part in ("--set", setting)
]
LAST = {
    "return_before": "return_before",
    "return_after": "return_after",
    "meta_loss": "loss",
    "gradient_norm": "gradient_norm",
    "inner_kl": "inner_kl",
    "query_kl": "query_kl",
    "staleness": "staleness",
    "entropy": "entropy",
    "env_steps_per_second": "steps_per_second",
    "env_steps_total": "total_env_steps",
    "actors": "actors",
    "failures_total": "failures",
    "learner_restarts_total": "learner_restarts",
    "discarded_episodes_total": "discarded_episodes",
    "checkpoint_age": "checkpoint_age_s",
    "parameter_version": "version",
}
"""Metrics that equal a key of the last row of metrics.jsonl."""
SUMS = {
    "work_retried_total": "retried",
    "work_duplicated_total": "duplicated",
    "work_discarded_total": "discarded",
    "work_lost_total": "lost",
}
"""Metrics that equal a sum over its rows."""

Sample = dict[tuple[str, str], float]


def scraped(cluster: Cluster) -> Sample:  # noqa: F811
    """Return the exported metrics of the run, by name and phase, from Prometheus' targets."""
    home = Path(cluster.environment["HOME"])
    found: Sample = {}
    for entry in json.loads((home / "ray/prom_metrics_service_discovery.json").read_text()):
        for target in entry["targets"]:
            text = urlopen(f"http://{target}/metrics", timeout=10).read().decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name.startswith("ray_maml_ray_"):
                        assert sample.labels["run"] == "watched"
                        assert sample.labels["job_id"]
                        name = sample.name.removeprefix("ray_maml_ray_")
                        found[name, sample.labels.get("phase", "")] = sample.value
    return found


class Program:
    """A maml-ray command on the cluster; its output goes to files, which have no buffer limit."""

    def __init__(self, cluster: Cluster, place: Path, *arguments: str) -> None:  # noqa: F811
        self._output_files = [place / f"{arguments[0]}.{stream}" for stream in ("out", "err")]
        with self._output_files[0].open("w") as out, self._output_files[1].open("w") as err:
            self.process = subprocess.Popen(
                [str(BIN / "maml-ray"), *arguments, "--address", cluster.address],
                cwd=place,
                env=cluster.environment,
                stdout=out,
                stderr=err,
            )

    @property
    def output(self) -> str:
        return "".join(path.read_text() for path in self._output_files)

    def code(self) -> int:
        return self.process.wait(timeout=60)


def wait_for(what: str, there: Callable[[], Any], *programs: Program) -> Any:
    deadline = time.monotonic() + 120
    while not (found := there()):
        output = "\n".join(program.output for program in programs)
        assert time.monotonic() < deadline, f"{what} did not come\n{output}"
        assert all(program.process.poll() is None for program in programs), output
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def watched(
    cluster: Cluster,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Observe a run from its start to Ctrl-C."""
    place = tmp_path_factory.mktemp("watched")
    rows = place / "followed" / "followed.jsonl"

    def status() -> Any:
        done = cluster.run("maml-ray", "status", "--json", "--address", cluster.address, cwd=place)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    programs = [Program(cluster, place, "train", "--run-dir", "r", *SMALL)]
    try:
        seen = wait_for(
            "a status", lambda: [one for one in status() if one.get("iteration")], *programs
        )
        options = ["--output", "followed", "--tasks", "2", "--episodes", "3", "--every", "4"]
        programs.append(Program(cluster, place, "evaluate", "--follow", "watched", *options))
        wait_for("rows", lambda: rows.exists() and rows.read_text().count("\n") > 2, *programs)
        programs[0].process.send_signal(signal.SIGINT)
        codes = [programs[0].code()]
        sample = scraped(cluster)
        codes.append(programs[1].code())
    finally:
        for program in programs:
            program.process.kill()
    return {
        "place": place,
        "seen": seen,
        "sample": sample,
        "rows": read_metrics(RunDir(place / "r").metrics),
        "evaluated": [json.loads(line) for line in rows.read_text().splitlines()],
        "codes": codes,
        "output": [program.output for program in programs],
        "afterwards": status(),
    }


def test_prometheus_has_the_last_metrics_of_an_ended_run(watched: dict[str, Any]) -> None:
    sample, rows = watched["sample"], watched["rows"]
    expected: Sample = {(name, ""): rows[-1][key] for name, key in LAST.items()}
    for name, key in SUMS.items():
        expected[name, ""] = sum(row[key] for row in rows)
    for phase in ("collect", "adapt", "learn", "rest"):
        expected["phase_seconds_total", phase] = sum(row[f"{phase}_s"] for row in rows)
    expected["skipped_updates_total", ""] = sum(row["skipped"] is not None for row in rows)
    expected["iterations_finished", ""] = len(rows)
    expected["iterations_planned", ""] = 100000
    assert sample == pytest.approx(expected, rel=1e-9)
    exported = {name.removeprefix("maml_ray_") for name in (metric.name for metric in METRICS)}
    assert exported - {name for name, _ in sample} == {"speed_before", "speed_after"}  # none here


def test_status_shows_only_runs_that_train(watched: dict[str, Any]) -> None:
    assert watched["afterwards"] == []
    (seen,) = watched["seen"]
    assert (seen["run"], seen["problem"], seen["iterations"]) == ("watched", None, 100000)
    assert seen["run_directory"] == "r"
    row = watched["rows"][seen["iteration"] - 1]
    for key in ("version", "return_before", "return_after", "steps_per_second", "actors"):
        assert seen[key] == row[key]


def test_follow_evaluates_new_versions_until_the_run_ends(
    watched: dict[str, Any],
) -> None:
    assert watched["codes"] == [130, 0], watched["output"]
    evaluated = watched["evaluated"]
    versions = [row["version"] for row in evaluated]
    assert versions == sorted(set(versions))
    assert all(version % 4 == 0 for version in versions)
    assert f"has ended; {len(evaluated)} versions were evaluated" in watched["output"][1]
    # The parameters received over the cluster are those in the checkpoint.
    folder = watched["place"] / "r"
    assert has_checkpoints(LocalStorage(folder))
    row = next(row for row in evaluated if (folder / f"checkpoints/{row['version']:08d}").exists())
    alone = evaluate(load(folder, checkpoint=str(row["version"])), tasks=2, episodes=3)
    assert [one["mean"] for one in row["rows"]] == [one.mean for one in alone.rows]
