"""Worker processes that adapt: what happens when they die, hang, fail or are too few."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from maml_ray.evaluation.agent import Agent
from maml_ray.serving.adaptation import AdaptResponse, FindPolicy, handle_adapt_request
from maml_ray.serving.adapter_pool import AdapterPool, Handle, WorkerFailed
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.served_policy import ServedPolicy
from tests.serving.bodies import body_of
from tests.serving.local_service import LIMITS, MAX_ENV_STEPS
from tests.small_runs import agent_of, settings

DEADLINE_S = 120.0


def answer(folder: Path, content: bytes | bytearray, find_policy: FindPolicy) -> Any:
    """Do as the body says, in a worker."""
    command, _, argument = bytes(content).decode().partition(" ")
    if command == "pid":
        return os.getpid()
    if command == "die":
        os._exit(9)
    if command == "raise":
        raise RuntimeError("a defect")
    if command == "policy":
        try:
            return find_policy(argument).name
        except ApiError as error:
            return error
    assert command == "hang"
    (folder / "hangs").touch()
    signal.pause()
    return None


def make_handle(folder: Path) -> Handle:
    return partial(answer, folder)


async def find_policy(name: str) -> ServedPolicy:
    if name != "base":
        raise ApiError(404, f"{name} is unknown")
    return ServedPolicy("checkpoint-1", agent_of(settings()))


def pool(
    make: Callable[[], Handle], *, max_waiting: int = 4, timeout_s: float = DEADLINE_S
) -> AdapterPool:
    return AdapterPool(make, find_policy, size=1, max_waiting=max_waiting, timeout_s=timeout_s)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_a_worker_that_dies_or_fails_does_not_take_the_service_with_it(tmp_path: Path) -> None:
    async def check() -> None:
        with pool(partial(make_handle, tmp_path)) as adapters:
            first: Any = await adapters.adapt(b"pid")
            assert await adapters.adapt(b"policy base") == "checkpoint-1"  # type: ignore[comparison-overlap]
            unknown = await adapters.adapt(b"policy nobody")
            with pytest.raises(WorkerFailed, match="a defect"):
                await adapters.adapt(b"raise")
            assert await adapters.adapt(b"pid") == first
            died = await adapters.adapt(b"die")
            second: Any = await adapters.adapt(b"pid")
            os.kill(second, signal.SIGKILL)  # while it is idle
            await until(lambda: not _is_running(second))
            third = await adapters.adapt(b"pid")
        assert all(isinstance(pid, int) for pid in (first, second, third))
        assert len({first, second, third}) == 3
        assert isinstance(died, ApiError)
        assert (died.status, died.headers["retry-after"]) == (503, "1")
        assert isinstance(unknown, ApiError)
        assert unknown.status == 404

    asyncio.run(check())


def test_a_worker_that_cannot_be_replaced_now_is_replaced_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(self: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    async def check() -> None:
        with pool(partial(make_handle, tmp_path)) as adapters:
            first: Any = await adapters.adapt(b"pid")
            with monkeypatch.context() as patched:
                patched.setattr("multiprocessing.context.SpawnProcess.start", no_memory)
                for _ in range(2):
                    died = await adapters.adapt(b"die")
                    assert isinstance(died, ApiError)
                    assert died.status == 503
            second: Any = await adapters.adapt(b"pid")
            assert isinstance(second, int)
            assert second != first

    asyncio.run(check())
    assert "Cannot allocate memory" in caplog.text


def _is_running(pid: int) -> bool:
    """Return whether a child is neither gone nor dead, with all of its threads."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except FileNotFoundError:
        return False


def test_a_request_past_its_deadline_does_not_go_on(tmp_path: Path) -> None:
    async def check() -> None:
        with pool(partial(make_handle, tmp_path), timeout_s=1.0) as adapters:
            first: Any = ApiError(503, "")
            while isinstance(first, ApiError):  # none of these stops the worker's preparation
                first = await adapters.adapt(b"pid")
            late = await adapters.adapt(b"hang")
            assert isinstance(late, ApiError)
            assert (late.status, "within 1 s" in late.message) == (503, True)
            assert (tmp_path / "hangs").exists()
            await until(lambda: not _is_running(first))

    asyncio.run(check())


def test_more_than_may_wait_are_rejected_at_once(tmp_path: Path) -> None:
    async def check() -> None:
        with pool(partial(make_handle, tmp_path), max_waiting=1) as adapters:
            running = asyncio.create_task(adapters.adapt(b"hang"))
            await until((tmp_path / "hangs").exists)
            waiting = asyncio.create_task(adapters.adapt(b"pid"))
            await asyncio.sleep(0)
            rejected = await adapters.adapt(b"pid")
            assert isinstance(rejected, ApiError)
            assert (rejected.status, "too many" in rejected.message) == (503, True)
            assert not running.done()
            assert not waiting.done()
        for task in (running, waiting):  # the service stops
            (stopped,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(stopped, ApiError | asyncio.CancelledError)

    asyncio.run(check())


@pytest.fixture(scope="module")
def agent() -> Agent:
    return agent_of(settings("half-cheetah-direction", policy={"action_scale": 1.0}))


def adapt_in_worker() -> Handle:
    return partial(handle_adapt_request, limits=LIMITS, max_env_steps=MAX_ENV_STEPS)


def test_adaptation_in_a_worker_equals_the_librarys_to_the_bit(agent: Agent) -> None:
    support = agent.collect_support(seed=5)
    content = orjson.dumps({"trajectories": body_of(agent, support)})

    async def find(name: str) -> ServedPolicy:
        return ServedPolicy("checkpoint-1", agent)

    async def adapt() -> Any:
        with AdapterPool(
            adapt_in_worker, find, size=1, max_waiting=1, timeout_s=DEADLINE_S
        ) as adapters:
            return await adapters.adapt(content)

    response = asyncio.run(adapt())
    assert isinstance(response, AdaptResponse), response
    for name, value in agent.adapt(support).parameters.items():
        np.testing.assert_array_equal(response.policy.agent.parameters[name], value)
