"""Adapted policies outlive the service in its run's storage; damaged ones are passed over."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
import pytest

import maml_ray
from maml_ray.common.errors import RunDirError
from maml_ray.evaluation.agent import Agent
from maml_ray.persistence.run_storage import write_settings
from maml_ray.persistence.storage import LocalStorage, Storage, open_storage
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.policy_archive import DIRECTORY, ArchiveWriter, PolicyArchive, open_archive
from maml_ray.serving.policy_store import PolicyStore
from maml_ray.serving.served_policy import (
    ServedPolicy,
    creation_time,
    new_policy_name,
    without_secret,
)
from maml_ray.tasks.task import Task
from tests.small_runs import agent_of, run_of, settings

DEADLINE_S = 60.0
TASK = Task("goal", {"x": 0.5, "y": -0.25})
Value = TypeVar("Value")


class FaultyStorage:
    """A storage that fails or waits when it is told to."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.failure: OSError | None = None
        self.may_write = threading.Event()
        self.may_write.set()
        self.written: list[str] = []
        self.num_failures = 0

    def __str__(self) -> str:
        return str(self.storage)

    def write(self, name: str, content: bytes) -> None:
        assert self.may_write.wait(DEADLINE_S)
        self._check()
        self.storage.write(name, content)
        self.written.append(name)

    def read(self, name: str, max_bytes: int = 10_000_000) -> bytes:
        self._check()
        return self.storage.read(name, max_bytes)

    def names(self, directory: str) -> list[str]:
        self._check()
        return self.storage.names(directory)

    def remove(self, name: str) -> None:
        self._check()
        self.storage.remove(name)

    def _check(self) -> None:
        if self.failure is not None:
            self.num_failures += 1
            raise self.failure


@pytest.fixture(scope="module")
def agent() -> Agent:
    return agent_of(settings())


def adapted(agent: Agent, age_s: float = 0.0, now: float = 1_800_000_000.0) -> ServedPolicy:
    """A policy that was named ``age_s`` before ``now``."""
    milliseconds = round(1000 * (now - age_s))
    return ServedPolicy(f"adapted-{milliseconds:012x}{new_policy_name()[-32:]}", agent, TASK)


def archive_at(
    storage: Storage | Path, *, max_policies: int = 10, now: float = 1_800_000_000.0
) -> PolicyArchive:
    found = LocalStorage(storage) if isinstance(storage, Path) else storage
    return PolicyArchive(found, max_policies=max_policies, max_age_s=100.0, clock=lambda: now)


def store_at(storage: Storage | Path, agent: Agent, **options: Any) -> PolicyStore:
    """The store of a service that has just started."""
    timeout_s = options.pop("archive_timeout_s", DEADLINE_S)
    now = options.get("now", 1_800_000_000.0)
    return PolicyStore(
        ServedPolicy("checkpoint-5", agent),
        max_policies=options.get("max_policies", 10),
        max_age_s=100.0,
        clock=lambda: now,
        archive=archive_at(storage, **options),
        archive_timeout_s=timeout_s,
    )


def run(awaitable: Awaitable[Value]) -> Value:
    async def wait() -> Value:
        return await awaitable

    return asyncio.run(wait())


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    pause = threading.Event()
    for _ in range(round(DEADLINE_S / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen in time")


def is_found(store: PolicyStore, name: str) -> bool:
    try:
        return run(store.find(name)).name == name
    except ApiError as error:
        if error.status != 404:
            raise
        return False


def entries(folder: Path) -> set[str]:
    return set(os.listdir(folder / DIRECTORY))


def test_names_carry_their_time_and_128_random_bits() -> None:
    names = [new_policy_name() for _ in range(100)]
    assert len({name[-32:] for name in names}) == 100
    assert all(abs(creation_time(name) - creation_time(names[0])) < 60.0 for name in names)  # type: ignore[operator]
    assert without_secret(names[0]) == names[0][:20] + "..."
    assert without_secret("checkpoint-12") == "checkpoint-12"


def test_a_restarted_service_has_the_same_policy_to_the_bit(agent: Agent, tmp_path: Path) -> None:
    policy = adapted(agent, age_s=30.0)
    assert run(store_at(tmp_path, agent).save(policy)) == 70.0
    found = run(store_at(tmp_path, agent).find(policy.name))
    assert found.policy is not None
    assert found.policy.parameters_file == policy.parameters_file
    assert found.policy.description_file == policy.description_file
    assert found.policy.task == TASK
    assert found.expires_in_s == 70.0, "a restart must not make it younger"
    observations = np.ones((3, agent.spec.observation_size), np.float32)
    np.testing.assert_array_equal(found.policy.agent.act(observations), agent.act(observations))


def test_it_is_a_saved_policy_which_the_library_loads(agent: Agent, tmp_path: Path) -> None:
    policy = adapted(agent)
    archive_at(tmp_path).write(policy)
    loaded = maml_ray.load(tmp_path / DIRECTORY / policy.name)
    np.testing.assert_equal(dict(loaded.parameters), dict(agent.parameters))


def test_too_old_policies_are_not_found_and_removed(agent: Agent, tmp_path: Path) -> None:
    young, old = adapted(agent, age_s=50.0), adapted(agent, age_s=99.0)
    for policy in (young, old):
        archive_at(tmp_path).write(policy)
    later = store_at(tmp_path, agent, now=1_800_000_001.0)
    assert is_found(later, young.name)
    assert not is_found(later, old.name)
    until(lambda: entries(tmp_path) == {young.name})


def test_names_from_the_future_are_none_of_ours(agent: Agent, tmp_path: Path) -> None:
    ahead, far = adapted(agent, age_s=-60.0), adapted(agent, age_s=-1e6)
    for policy in (ahead, far):
        archive_at(tmp_path).write(policy)
    archive_at(tmp_path).remove_old()
    assert entries(tmp_path) == {ahead.name}, "or it would be kept for longer than all others"


def test_beyond_the_maximum_the_oldest_go_but_those_in_use_last(
    agent: Agent, tmp_path: Path
) -> None:
    policies = [adapted(agent, age_s=age) for age in (5.0, 4.0, 3.0, 2.0, 1.0)]
    archive = archive_at(tmp_path, max_policies=3)
    for policy in policies:
        archive.write(policy)
    archive.remove_old(in_use={policies[0].name})
    assert entries(tmp_path) == {policies[index].name for index in (0, 3, 4)}


def test_memory_and_archive_keep_the_same_policies(agent: Agent, tmp_path: Path) -> None:
    store = store_at(tmp_path, agent, max_policies=3)
    policies = [adapted(agent, age_s=age) for age in (5.0, 4.0, 3.0, 2.0)]
    for policy in policies[:3]:
        run(store.save(policy))
    assert store.get(policies[0].name).name == policies[0].name  # used: the second is the oldest
    run(store.save(policies[3]))
    kept = {policies[index].name for index in (0, 2, 3)}
    until(lambda: entries(tmp_path) == kept)
    assert [is_found(store, policy.name) for policy in policies] == [True, False, True, True]


@pytest.mark.parametrize(
    "name",
    [
        "base",
        "checkpoint-5",
        "../settings.yaml",
        "adapted-",
        "adapted-..",
        "adapted-0",
        f"adapted-{'0' * 44}",
        f"adapted-{'f' * 44}",
        f"adapted-{'0' * 12}/../{'0' * 28}",
        f"ADAPTED-{'0' * 44}",
    ],
)
def test_no_other_name_becomes_a_path(name: str, agent: Agent, tmp_path: Path) -> None:
    class Untouchable(FaultyStorage):
        def read(self, name: str, max_bytes: int = 0) -> bytes:
            raise AssertionError(f"{name} was read")

    archive = archive_at(Untouchable(LocalStorage(tmp_path)))
    assert archive.read(name) is None
    assert archive.read(adapted(agent).name + "\n") is None


def test_a_process_that_dies_leaves_no_half_policy(agent: Agent, tmp_path: Path) -> None:
    class DiesAfterOneFile(FaultyStorage):
        def write(self, name: str, content: bytes) -> None:
            if self.written:
                raise SystemExit
            super().write(name, content)

    policy = adapted(agent)
    with pytest.raises(SystemExit):
        archive_at(DiesAfterOneFile(LocalStorage(tmp_path))).write(policy)
    assert os.listdir(tmp_path / DIRECTORY / policy.name) == ["parameters.safetensors"]
    assert not is_found(store_at(tmp_path, agent), policy.name)
    archive_at(tmp_path, now=1_800_000_101.0).remove_old()
    assert entries(tmp_path) == set()


def _truncate(folder: Path) -> None:
    file = folder / "parameters.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    file = folder / "parameters.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _enlarge(folder: Path) -> None:
    os.truncate(folder / "parameters.safetensors", 50_000_000_000)


def _not_json(folder: Path) -> None:
    (folder / "policy.json").write_text("{")


def _directory(folder: Path) -> None:
    (folder / "policy.json").unlink()
    (folder / "policy.json").mkdir()


def _pipe(folder: Path) -> None:
    (folder / "policy.json").unlink()
    os.mkfifo(folder / "policy.json")


@pytest.mark.parametrize("damage", [_truncate, _flip, _enlarge, _not_json, _directory, _pipe])
def test_a_damaged_policy_is_passed_over_and_logged_without_its_name(
    damage: Callable[[Path], None],
    agent: Agent,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damaged, whole = adapted(agent), adapted(agent)
    for policy in (damaged, whole):
        archive_at(tmp_path).write(policy)
    damage(tmp_path / DIRECTORY / damaged.name)
    store = store_at(tmp_path, agent)
    assert not is_found(store, damaged.name)
    assert is_found(store, whole.name)
    (record,) = caplog.records
    assert "is damaged and passed over" in record.getMessage()
    assert damaged.name not in record.getMessage(), "who knows the name can use the policy"
    assert store.warnings == []


def test_a_policy_of_other_sizes_is_not_served(agent: Agent, tmp_path: Path) -> None:
    other = adapted(agent_of(settings(policy={"hidden_sizes": [5]})))
    archive_at(tmp_path).write(other)
    assert not is_found(store_at(tmp_path, agent), other.name)


def test_two_services_share_a_run(agent: Agent, tmp_path: Path) -> None:
    one, other = store_at(tmp_path, agent), store_at(tmp_path, agent)
    policies = [adapted(agent) for _ in range(4)]

    async def save_at_once() -> None:
        await asyncio.gather(*((one, other)[i % 2].save(p) for i, p in enumerate(policies)))

    run(save_at_once())
    assert all(is_found(store, policy.name) for store in (one, other) for policy in policies)


def test_a_policy_that_another_service_removes_first_is_no_error(
    agent: Agent, tmp_path: Path
) -> None:
    class RemovedByAnother(FaultyStorage):
        def remove(self, name: str) -> None:
            super().remove(name)
            raise FileNotFoundError(name)

    archive_at(tmp_path).write(adapted(agent))
    later = archive_at(RemovedByAnother(LocalStorage(tmp_path)), now=1_800_000_101.0)
    later.remove_old()
    assert entries(tmp_path) == set()


def test_without_its_storage_the_service_goes_on_and_says_so_once(
    agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FaultyStorage(LocalStorage(tmp_path))
    store = store_at(storage, agent)
    storage.failure = OSError(30, "Read-only file system")
    policies = [adapted(agent) for _ in range(3)]
    for policy in policies:
        run(store.save(policy))
        until(lambda: bool(store.warnings))
    assert all(is_found(store, policy.name) for policy in policies)
    (record,) = caplog.records
    assert "Read-only file system" in record.getMessage()
    (warning,) = store.warnings
    assert "kept in memory only" in warning
    assert str(tmp_path) not in warning  # probes need no token
    with pytest.raises(ApiError, match="does not answer") as raised:
        run(store.find(adapted(agent).name))
    assert raised.value.status == 503, "it may be there: a client must not drop it"


def test_what_could_not_be_written_is_written_later_and_both_are_logged_once(
    agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FaultyStorage(LocalStorage(tmp_path))
    policy = adapted(agent)
    storage.failure = OSError("unreachable")
    writer = ArchiveWriter(archive_at(storage), lambda: [policy.name], retry_s=0.01)
    writer.submit(policy).result(DEADLINE_S)
    until(lambda: storage.num_failures > 3)
    assert writer.is_failing
    storage.failure = None
    until(lambda: not writer.is_failing)
    assert archive_at(tmp_path).read(policy.name) is not None
    failed, recovered = [record.getMessage() for record in caplog.records]
    assert "(unreachable)" in failed
    assert "can be used again" in recovered


def test_a_failure_is_over_once_the_storage_answers_although_nothing_is_to_be_written(
    tmp_path: Path,
) -> None:
    storage = FaultyStorage(LocalStorage(tmp_path))
    storage.failure = OSError("unreachable")
    writer = ArchiveWriter(archive_at(storage), list, retry_s=0.01)
    until(lambda: writer.is_failing)
    storage.failure = None
    until(lambda: not writer.is_failing)


def test_what_is_no_longer_in_memory_is_not_tried_for_ever(agent: Agent, tmp_path: Path) -> None:
    storage = FaultyStorage(LocalStorage(tmp_path))
    dropped, kept = adapted(agent), adapted(agent)
    in_use = [dropped.name, kept.name]
    storage.failure = OSError("unreachable")
    writer = ArchiveWriter(archive_at(storage), lambda: in_use, retry_s=0.01)
    writer.submit(dropped).result(DEADLINE_S)
    in_use.remove(dropped.name)
    writer.submit(kept).result(DEADLINE_S)
    storage.failure = None
    until(lambda: not writer.is_failing)
    assert entries(tmp_path) == {kept.name}


def test_nothing_waits_for_a_policy_that_is_no_longer_in_memory(
    agent: Agent, tmp_path: Path
) -> None:
    storage = FaultyStorage(LocalStorage(tmp_path))
    storage.may_write.clear()
    first, dropped, last = adapted(agent), adapted(agent), adapted(agent)
    in_use = [first.name, dropped.name, last.name]
    writer = ArchiveWriter(archive_at(storage), lambda: in_use)
    writer.submit(first)
    attempt = writer.submit(dropped)
    in_use.remove(dropped.name)
    writer.submit(last)
    attempt.result(DEADLINE_S)  # although nothing has been written
    assert not storage.written
    storage.may_write.set()
    until(lambda: archive_at(tmp_path).read(last.name) is not None)


def test_a_storage_that_hangs_delays_one_answer_at_most(
    agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FaultyStorage(LocalStorage(tmp_path))
    storage.may_write.clear()
    first, second = adapted(agent), adapted(agent)
    store = store_at(storage, agent, archive_timeout_s=0.05)
    run(store.save(first))
    assert store.warnings, "the time is up"
    patient = store_at(storage, agent, archive_timeout_s=DEADLINE_S)
    patient._writer = store._writer
    run(patient.save(second))  # returns at once, although nothing can be written
    assert not storage.written
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    storage.may_write.set()
    until(lambda: not store.warnings)


def test_a_run_folder_that_was_removed_does_not_come_back(agent: Agent, tmp_path: Path) -> None:
    store = store_at(tmp_path / "gone", agent)
    run(store.save(adapted(agent)))
    assert not (tmp_path / "gone").exists()
    assert store.warnings


def test_the_archive_is_where_the_runs_checkpoints_are(agent: Agent, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    chosen = settings(run={"storage": url})
    remote = run_of(chosen, tmp_path / "remote")
    write_settings(open_storage(f"{url}/remote"), chosen)
    local = run_of(settings(), tmp_path / "local")
    limits: Any = {"max_policies": 10, "max_age_s": 1e9}
    for place, expected in (
        (str(local.path), f"{local.path}/served"),
        (str(remote.path), f"{url}/remote/served"),
        (f"{url}/remote", f"{url}/remote/served"),
    ):
        archive = open_archive(place, **limits)
        assert str(archive) == expected
        assert archive is not None
        policy = ServedPolicy(new_policy_name(), agent, TASK)
        archive.write(policy)
        found = archive.read(policy.name)
        assert found is not None
        assert found.description_file == policy.description_file
        archive.remove_old()
        assert archive.read(policy.name) is not None
    assert len(fsspec.filesystem("memory").ls(f"{url}/remote/served")) == 2
    agent.save(tmp_path / "exported")
    assert open_archive(str(tmp_path / "exported"), **limits) is None


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    folder = run_of(settings(), tmp_path / "run").path
    (tmp_path / "elsewhere").mkdir()
    (folder / DIRECTORY).symlink_to(tmp_path / "elsewhere")
    return folder


def test_a_link_out_of_the_run_is_not_written_through(linked: Path) -> None:
    with pytest.raises(RunDirError, match="leads out of"):
        open_archive(str(linked), max_policies=10, max_age_s=1e9)
