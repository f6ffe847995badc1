"""The status actor, and that a run never waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.monitoring.publisher import Publisher
from maml_ray.monitoring.registry import find_run, get_status_actor, list_run_ids, list_runs
from maml_ray.monitoring.status_actor import (
    NAMESPACE,
    SNAPSHOTS_KEPT,
    RunStatus,
    Snapshot,
    StatusActor,
)
from maml_ray.persistence.records import StartReport
from maml_ray.policies.spec import PolicyParameters
from maml_ray.runs.remote_source import RemoteRun
from maml_ray.runtime.run_context import RunId
from tests.reporting.conftest import MakeRecord, record  # noqa: F401  (a fixture)
from tests.small_runs import settings

STATUS = RunStatus("runs/x", "CPU", 0.0, 1, 5, 1, None, None, None, 2, 0, 0.0, None)
START = StartReport("runs/x", 0, 2, "CPU, 2 threads", "127.0.0.1:6379", None)


def snapshot(version: int) -> Snapshot:
    return Snapshot(version, (None,))  # type: ignore[arg-type]


def actor_with(*versions: int) -> StatusActor:
    actor = StatusActor("a/01000000", (None,))  # type: ignore[arg-type]
    for version in versions:
        asyncio.run(actor.publish(STATUS, snapshot(version)))
    return actor


@pytest.mark.parametrize(
    ("newer_than", "every", "version"),
    [(-1, 1, 12), (11, 1, 12), (12, 1, None), (-1, 5, 10), (10, 5, None), (-1, 9, None)],
)
def test_the_latest_matching_version_among_those_kept_is_returned(
    newer_than: int, every: int, version: int | None
) -> None:
    actor = actor_with(9, 10, 11, 12)  # 9 is one more than are kept
    found = asyncio.run(actor.snapshot(newer_than, every))
    assert (found.version if found else None) == version


def test_a_waiting_caller_gets_the_version_that_it_waits_for() -> None:
    async def scene() -> Snapshot | None:
        actor = StatusActor("a/01000000", (None,))  # type: ignore[arg-type]
        waiting = asyncio.create_task(actor.snapshot(newer_than=2, every=2, timeout_s=60.0))
        for version in (1, 2, 3, 4):
            await actor.publish(STATUS, snapshot(version))
            await asyncio.sleep(0)
        return await waiting

    found = asyncio.run(scene())
    assert found is not None
    assert found.version == 4


def test_a_run_id_round_trips_through_text() -> None:
    name = RunId("a.b-c", "02000000")
    assert RunId.parse(str(name)) == name
    assert RunId.parse("learner") is None


class Run:
    """A fake run without actors, which publishes parameters."""

    make_record: MakeRecord

    def __init__(self, chosen: Settings) -> None:
        self.settings = chosen
        self.spec = policy_spec(chosen)
        self.learner = MetaLearner(chosen, self.spec)
        self.events: list[str] = []
        self.iteration = -1
        self._put()
        self.publisher = Publisher(
            chosen,
            self.spec,
            lambda: (self.version, self.parameters),
            self.events.append,
        )
        self.run_id = RunId(chosen.run.name, ray.get_runtime_context().get_job_id())
        self.publisher.on_start(START)

    def _put(self) -> None:
        self.version = self.iteration + 1
        values = {name: value + 1 for name, value in self.learner.publish().values.items()}
        self.parameters = ray.put(PolicyParameters(self.version, values, None))

    def iterate(self) -> None:
        self.iteration += 1
        self._put()
        self.publisher.on_iteration(self.make_record(self.iteration))

    def iterate_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline, self.events
            self.iterate()
            time.sleep(0.02)

    def arrived(self) -> bool:
        """Return whether the status actor has the latest version."""
        found = next((one for one in list_runs() if one.run_id == self.run_id), None)
        return bool(found and found.status and found.status.version == self.version)


@pytest.fixture(scope="module")
def only_run(local_ray: None) -> Iterator[Run]:
    made = Run(settings(run={"name": "example"}))
    yield made
    made.publisher.close()


@pytest.fixture
def run(only_run: Run, record: MakeRecord) -> Run:  # noqa: F811
    """The run, with a status actor that has the latest version."""
    only_run.make_record = record
    only_run.iterate_until(only_run.arrived)
    only_run.events.clear()
    return only_run


def status_actor_pid() -> int:
    """Return the process id of the only running status actor."""
    (found,) = (
        process.pid
        for process in psutil.Process().children(recursive=True)  # other runs have their own
        if process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        and " ".join(process.cmdline()).startswith("ray::StatusActor")
    )
    return found


def test_a_follower_gets_the_parameters_themselves_and_waits_for_newer_ones(run: Run) -> None:
    follower = RemoteRun(find_run("example"), check_stop=lambda: None)
    found = follower.next(-1, 1)
    assert found is not None
    assert found.version == run.version
    assert found.agent.settings == run.settings
    for name, value in run.learner.publish().values.items():
        np.testing.assert_array_equal(found.agent.parameters[name], value + 1)

    def stop() -> None:
        raise InterruptedError  # instead of a wait for a version that does not come

    with pytest.raises(InterruptedError):
        RemoteRun(run.run_id, check_stop=stop).next(run.version, 1)


def test_a_killed_status_actor_is_restarted(run: Run) -> None:
    os.kill(status_actor_pid(), signal.SIGKILL)
    run.iterate_until(lambda: len(run.events) > 0)
    run.iterate_until(run.arrived)
    assert len(run.events) == 1
    assert "restarting the status actor" in run.events[0]


def test_a_hanging_status_actor_is_restarted_without_waiting(run: Run) -> None:
    hanging = status_actor_pid()
    os.kill(hanging, signal.SIGSTOP)
    try:
        run.iterate()  # this message is under way for ever
        under_way = run.publisher._pending
        assert under_way is not None
        run.iterate()
        assert run.publisher._pending == under_way, "a second message must not pile up"
        run.publisher._timeout_s = 0.0
        run.iterate()
        run.publisher._timeout_s = 60.0
        assert len(run.events) == 1
        assert "has not answered" in run.events[0]
        run.iterate_until(run.arrived)
    finally:
        with suppress(ProcessLookupError):  # Ray has ended it, as it should
            os.kill(hanging, signal.SIGKILL)
    assert len(run.events) == 1


def test_a_non_finite_return_is_none(run: Run) -> None:
    made, run.make_record = run.make_record, lambda i: made(i, return_after=float("nan"))  # type: ignore[assignment]
    run.iterate_until(run.arrived)
    run.iterate()
    run.iterate_until(run.arrived)
    (seen,) = list_runs()
    assert seen.status is not None
    assert seen.status.return_after is None
    assert seen.status.return_before == 10.0 * run.iteration


def test_old_parameters_are_released(run: Run) -> None:
    references = []
    for _ in range(10):
        run.iterate()
        references.append(run.parameters.hex())
        run.iterate_until(run.arrived)
    worker: Any = ray._private.worker.global_worker
    counts = worker.core_worker.get_all_reference_counts
    deadline = time.monotonic() + 30
    while len(set(references) & set(counts())) > SNAPSHOTS_KEPT + 1:  # and the run's own
        assert time.monotonic() < deadline, "references pile up"
        time.sleep(0.05)


def test_two_runs_of_one_name_must_be_named_in_full(run: Run) -> None:
    other: Any = ray.remote(StatusActor)
    name = RunId("example", "ff000000")
    second = other.options(name=str(name), namespace=NAMESPACE, num_cpus=0).remote(
        str(name), (None,)
    )
    try:
        assert list_run_ids() == sorted([run.run_id, name])
        with pytest.raises(Exception, match=f"name one of {run.run_id}, {name}"):
            find_run("example")
        assert find_run(str(name)) == name
        assert {one.run_id: one.problem for one in list_runs()} == {
            run.run_id: None,
            name: "starting",
        }
    finally:
        ray.kill(second)


def test_a_follower_ends_with_its_run(run: Run) -> None:
    follower = RemoteRun(run.run_id, check_stop=lambda: None)
    assert follower.next(-1, 1) is not None
    run.publisher.close()
    assert follower.next(run.version, 1) is None
    assert get_status_actor(run.run_id) is None
    with pytest.raises(Exception, match=r"no run called example .*no run trains there now"):
        find_run("example")
