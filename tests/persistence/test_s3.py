"""Against a server on loopback that speaks S3, with credentials as every S3 program takes them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from maml_ray.common.errors import RunDirError, RunWarning, Superseded
from maml_ray.common.safe_files import UnsuitableFile
from maml_ray.evaluation.loading import load
from maml_ray.persistence.checkpoint_store import (
    CheckpointScore,
    load_named_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
)
from maml_ray.persistence.lease import FencedStorage, acquire_lease
from maml_ray.persistence.metrics_file import REQUIRED_KEYS, read_metrics
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.run_storage import (
    MetricsMirror,
    fetch_metrics,
    fetch_run,
    open_run_storage,
    write_settings,
)
from maml_ray.persistence.storage import open_storage
from maml_ray.serving.policy_archive import PolicyArchive
from maml_ray.serving.served_policy import ServedPolicy, new_policy_name
from tests.persistence.test_checkpoint_store import assert_equal, checkpoint
from tests.small_runs import agent_of, run_of, settings

BUCKET = "maml-ray-tests"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}"
    for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=found["Key"])
    client.delete_bucket(Bucket=BUCKET)
    s3fs.S3FileSystem.clear_instance_cache()


def test_checkpoints_are_kept_replaced_and_removed(bucket: str) -> None:
    storage = open_storage(f"{bucket}/runs/a")
    with pytest.raises(RunDirError, match="no checkpoint"):
        load_newest_checkpoint(storage)
    for iteration in range(1, 6):
        scores = [CheckpointScore(2, 9.0)] if iteration > 2 else []
        save_checkpoint(storage, checkpoint(iteration), keep=2, scores=scores)
    kept = ["00000002", "00000004", "00000005", "best.json"]
    assert storage.names("checkpoints") == kept
    assert_equal(load_newest_checkpoint(storage)[0], checkpoint(5))
    assert_equal(load_named_checkpoint(storage, "best")[0], checkpoint(2))


def test_an_altered_object_is_seen_and_the_checkpoint_before_it_used(bucket: str) -> None:
    storage = open_storage(f"{bucket}/runs/a")
    for iteration in (1, 2):
        save_checkpoint(storage, checkpoint(iteration), keep=2)
    key = "runs/a/checkpoints/00000002/learner.safetensors"
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"another")
    with pytest.warns(RunWarning):
        newest, warnings = load_newest_checkpoint(storage)
    assert_equal(newest, checkpoint(1))
    assert "checksum" in warnings[0]


def test_the_size_of_an_object_is_asked_for_before_it_is_read(bucket: str) -> None:
    storage = open_storage(f"{bucket}/runs/a")
    storage.write("file", b"12345")
    storage.write("empty", b"")
    assert (storage.read("file", 5), storage.read("empty", 0)) == (b"12345", b"")
    with pytest.raises(UnsuitableFile, match="it has 5 bytes, and at most 4"):
        storage.read("file", 4)


def test_a_missing_bucket_is_an_error(bucket: str) -> None:
    with pytest.raises(OSError, match="bucket does not exist"):
        open_storage("s3://no-such-bucket/runs/a").write("file", b"")


def test_a_whole_run_is_fetched_from_its_storage(bucket: str, tmp_path: Path) -> None:
    """Settings, metrics in pieces, checkpoints: on another machine it is the same run."""
    chosen = settings(run={"storage": f"{bucket}/runs"})
    here = run_of(chosen, tmp_path / "here" / "small-1")
    storage = open_run_storage(here, chosen.run)
    assert str(storage) == f"{bucket}/runs/small-1"
    write_settings(storage, chosen)
    mirror = MetricsMirror(here, storage)
    with here.metrics.open("a") as lines:
        for iteration in range(250):
            row = {**dict.fromkeys(REQUIRED_KEYS, 1.0), "iteration": iteration}
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            if iteration in (0, 120, 249):
                mirror.sync()
    assert storage.names("metrics") == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
    save_checkpoint(storage, checkpoint(3), keep=1)
    there = fetch_run(f"{bucket}/runs/small-1", tmp_path / "there")
    fetch_metrics(storage, there, before=250)
    assert there.settings.read_bytes() == here.settings.read_bytes()
    assert read_metrics(there.metrics) == read_metrics(here.metrics)
    assert_equal(load_newest_checkpoint(open_run_storage(there, chosen.run))[0], checkpoint(3))


def test_a_url_without_a_run_is_an_error(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no run at"):
        fetch_run(f"{bucket}/runs/nobody", tmp_path)
    assert not (tmp_path / "nobody").exists()


def test_of_two_attempts_in_a_bucket_the_older_one_stops_writing(bucket: str) -> None:
    storage = open_storage(f"{bucket}/runs/a")
    older = FencedStorage(storage, acquire_lease(storage))
    save_checkpoint(older, checkpoint(1), keep=2)
    with pytest.raises(RunDirError, match="belongs to another run"):
        acquire_lease(storage, new=True)
    newer = FencedStorage(storage, acquire_lease(storage))
    with pytest.raises(Superseded, match="attempt 2 of this run began on"):
        save_checkpoint(older, checkpoint(2), keep=2)
    with pytest.raises(Superseded):
        older.remove("checkpoints/00000001")
    assert storage.names("checkpoints") == ["00000001"]
    save_checkpoint(newer, checkpoint(2), keep=2)
    assert storage.names("checkpoints") == ["00000001", "00000002"]


@pytest.mark.cluster
def test_a_run_killed_on_one_machine_goes_on_from_the_bucket_on_another(
    bucket: str, tmp_path: Path
) -> None:
    train = [sys.executable, "-m", "maml_ray", "train"]
    small = [
        *("--set", "task.name=point-navigation", "--set", "task.horizon=10"),
        *("--set", "meta_batch.tasks=2", "--set", "meta_batch.episodes=2"),
        *("--set", "evaluation.tasks=1", "--set", "evaluation.episodes=1"),
        *("--set", "evaluation.video=false", "--set", "run.checkpoint_every=1"),
    ]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    here = ["--run-dir", "runs/shared", "--set", f"run.storage={bucket}/kept"]
    subprocess.run(
        [*train, *here, *small, "--set", "run.iterations=2"], cwd=first, check=True, timeout=200
    )
    (first / "runs" / "shared" / "settings.yaml").unlink()  # the machine is gone
    url = f"{bucket}/kept/shared"
    subprocess.run(
        [*train, "--resume", url, "--set", "run.iterations=4"], cwd=second, check=True, timeout=200
    )
    run = RunDir(second / "runs" / "shared")
    assert [row["iteration"] for row in read_metrics(run.metrics)] == [0, 1, 2, 3]
    assert load_newest_checkpoint(open_storage(url))[0].iteration == 4
    assert load(run.path).spec == agent_of(load(run.path).settings).spec


def test_policies_of_a_service_are_kept_and_the_oldest_removed(bucket: str) -> None:
    storage = open_storage(f"{bucket}/run")
    archive = PolicyArchive(storage, max_policies=2, max_age_s=1e9)
    policies = [ServedPolicy(new_policy_name(), agent_of(settings())) for _ in range(3)]
    for policy in policies:
        archive.write(policy)
        found = archive.read(policy.name)
        assert found is not None
        assert found.parameters_file == policy.parameters_file
        assert found.description_file == policy.description_file
    assert archive.read(new_policy_name()) is None
    archive.remove_old()
    kept = sorted(policy.name for policy in policies)[1:]
    assert storage.names("served") == kept
    assert [archive.read(policy.name) is not None for policy in policies] == [
        policy.name in kept for policy in policies
    ]
