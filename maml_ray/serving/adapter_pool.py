"""Adapt in worker processes, so that requests to act never wait for one to adapt.

A worker that dies is replaced, and so is one that exceeds its request's deadline: no request can
hang or take the service with it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from maml_ray.common.errors import error_reason
from maml_ray.serving.adaptation import AdaptResponse, FindPolicy
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.served_policy import ServedPolicy

Handle = Callable[[bytes, FindPolicy], AdaptResponse | ApiError]
"""Answers a request to adapt, given its body, in a worker process."""

START_TIMEOUT_S = 120.0
"""Seconds in which a worker must be prepared, which imports torch and the user's modules."""
_FIND_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)


class WorkerFailed(Exception):
    """The code of a worker has a defect; the message is its traceback."""


class AdapterPool:
    """Adapt in ``size`` worker processes, one request at a time each; close it at the end.

    Args:
        make_handle: called in each new worker, to prepare it and return what answers requests;
            pickled.
        find_policy: returns the policy of a name; raises ``ApiError`` if there is none.
        size: number of workers.
        max_waiting: maximum number of requests that wait for a worker; more are rejected.
        timeout_s: maximum seconds for a request, including its wait.
    """

    def __init__(
        self,
        make_handle: Callable[[], Handle],
        find_policy: Callable[[str], Awaitable[ServedPolicy]],
        *,
        size: int,
        max_waiting: int,
        timeout_s: float,
    ) -> None:
        self._find_policy = find_policy
        self._max_pending, self._timeout_s = size + max_waiting, timeout_s
        self._num_pending = 0
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="adapter")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(make_handle) for _ in range(size)]
        for worker in self._workers:
            worker.start()
            self._idle.put(worker)

    def __enter__(self) -> AdapterPool:
        return self

    def __exit__(self, *raised: Any) -> None:
        for worker in self._workers:
            worker.stop()
        self._threads.shutdown(cancel_futures=True)

    async def adapt(self, content: bytes | bytearray) -> AdaptResponse | ApiError:
        """Adapt a policy as the body ``content`` of a request asks.

        Returns:
            The response, or the error to answer with: the request is not allowed, too many others
            wait, or the worker died or took too long (503).

        Raises:
            WorkerFailed: the worker's code has a defect.
        """
        if self._num_pending >= self._max_pending:
            return ApiError(503, "too many requests wait for the adapter: try again later")
        self._num_pending += 1
        deadline = time.monotonic() + self._timeout_s
        loop = asyncio.get_running_loop()
        try:
            answer = loop.run_in_executor(self._threads, self._adapt, content, loop, deadline)
            # Also here, for the requests that wait for a worker until their deadline.
            return await asyncio.wait_for(answer, self._timeout_s)
        except TimeoutError:
            return ApiError(503, f"the adapter did not answer within {self._timeout_s:g} s")
        except _WorkerDied:
            return ApiError(503, "the adapter is unavailable: try again later")
        finally:
            self._num_pending -= 1

    def _adapt(
        self, content: bytes | bytearray, loop: asyncio.AbstractEventLoop, deadline: float
    ) -> AdaptResponse | ApiError:
        async def find(name: str) -> ServedPolicy:
            return await self._find_policy(name)

        def find_policy(name: str) -> ServedPolicy:
            found = asyncio.run_coroutine_threadsafe(find(name), loop)
            return found.result(_FIND_TIMEOUT_S)

        worker = self._idle.get()
        try:
            return worker.handle(content, find_policy, deadline)
        finally:
            self._idle.put(worker)


class _WorkerDied(Exception):
    """A worker died while it handled a request."""


@dataclass(frozen=True)
class _PolicyRequest:
    """A worker asks for the policy that a request names."""

    name: str


@dataclass(frozen=True)
class _Failure:
    """The traceback of a worker's exception."""

    traceback: str


class _Worker:
    """A worker process; used by one thread at a time."""

    def __init__(self, make_handle: Callable[[], Handle]) -> None:
        self._make_handle = make_handle
        self._is_stopped = False
        self._lock = threading.Lock()  # of a replacement, which another thread may stop

    def start(self) -> None:
        """Start a process, which prepares itself in the background.

        Raises:
            OSError: the machine has no memory or no process left.
        """
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, self._make_handle), name="maml-ray-adapter"
        )
        with theirs, _stop_signals_blocked():
            process.start()
        self._connection, self._process = connection, process
        self._is_ready, self._started_at = False, time.monotonic()

    def stop(self) -> None:
        """Kill the process; a request that it handles fails."""
        with self._lock:
            self._is_stopped = True
            self._process.kill()
            self._process.join()

    def handle(
        self, content: bytes | bytearray, find_policy: FindPolicy, deadline: float
    ) -> AdaptResponse | ApiError:
        """Handle a request, until ``deadline`` of the monotonic clock.

        Raises:
            TimeoutError: the deadline has passed; the process is killed and replaced.
            _WorkerDied: the process died, and is replaced.
            WorkerFailed: its code has a defect.
        """
        if not self._process.is_alive():
            self._replace()
        self._wait_until_ready(deadline)
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._process.kill)
        timer.start()
        try:
            self._connection.send_bytes(content)
            while isinstance(answer := self._receive(), _PolicyRequest):
                try:
                    self._connection.send(find_policy(answer.name))
                except ApiError as error:
                    self._connection.send(error)
            return answer  # type: ignore[no-any-return]
        except WorkerFailed:
            raise
        except (EOFError, OSError):
            timer.cancel()
            self._replace()
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            raise _WorkerDied from None
        except Exception:  # the worker waits for a policy that was not found
            self._replace()
            raise
        finally:
            timer.cancel()

    def _wait_until_ready(self, deadline: float) -> None:
        """Wait for a new process; it is not killed for a request that does not wait for so long.

        Raises:
            TimeoutError: the deadline has passed.
            _WorkerDied: the process died, and is replaced.
        """
        if self._is_ready:
            return
        try:
            if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                if time.monotonic() - self._started_at > START_TIMEOUT_S:
                    self._replace()
                raise TimeoutError
            self._is_ready = self._receive()
        except (EOFError, ConnectionError):
            self._replace()
            raise _WorkerDied from None

    def _receive(self) -> Any:
        reply = self._connection.recv()
        if isinstance(reply, _Failure):
            raise WorkerFailed(reply.traceback)
        return reply

    def _replace(self) -> None:
        """Kill the process and start another one, unless the worker is stopped.

        Raises:
            _WorkerDied: it is, or no process can be started now; the next request tries again.
        """
        with self._lock:
            if self._is_stopped:
                raise _WorkerDied
            self._process.kill()
            self._process.join()
            _log.warning(
                "an adapter ended with exit code %s: it is replaced", self._process.exitcode
            )
            self._connection.close()
            try:
                self.start()
            except OSError as error:
                _log.warning("no adapter can be started: %s", error_reason(error))
                raise _WorkerDied from None


def _work(connection: Connection, make_handle: Callable[[], Handle]) -> None:
    """Handle requests until the service closes the connection or ends."""

    def find_policy(name: str) -> ServedPolicy:
        connection.send(_PolicyRequest(name))
        found: ServedPolicy | ApiError = connection.recv()
        if isinstance(found, ApiError):
            raise found
        return found

    threading.Thread(target=_end_with_service, daemon=True).start()
    try:
        handle = make_handle()
        connection.send(True)
        while True:
            content = connection.recv_bytes()
            try:
                reply: Any = handle(content, find_policy)
            except Exception:
                reply = _Failure(traceback.format_exc())
            connection.send(reply)
    except (EOFError, OSError):
        return


def _end_with_service() -> None:
    """End this process when the service is gone, however it ended and whatever is in progress."""
    service = multiprocessing.parent_process()
    if service is not None:
        service.join()
        os._exit(1)


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Let a process started meanwhile ignore Ctrl-C and SIGTERM, which a whole group may receive.

    The service ends it, once it has answered what is in progress.
    """
    resource_tracker.ensure_running()  # its start, within that of a process, unblocks them again
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
