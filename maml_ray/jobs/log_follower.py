"""Print a job's log until it ends, and stop or leave the job on Ctrl-C.

The first Ctrl-C says what a second one does. A second one stops the job, whose log is printed until
it has written its checkpoint; without a second one the job continues on its own.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass

import aiohttp
from ray.job_submission import JobDetails, JobStatus

from maml_ray.common.errors import ResourceError
from maml_ray.jobs.job_client import STOP_GRACE_S, JobClient

CONFIRM_WITHIN_S = 10.0
"""Seconds after the first Ctrl-C in which a second one stops the job."""
STATUS_INTERVAL_S = 10.0
"""Seconds between two status requests, each with a line if the job has not started."""
SERVER_TIMEOUT_S = 120.0
"""Seconds without an answer of the job server until following ends."""
EXIT_DETACHED = 128 + signal.SIGINT
"""Exit code if the job is left running."""
EXIT_STOPPED = 128 + signal.SIGTERM
"""Exit code of a stopped job: Ray does not keep its own."""
_POLL_INTERVAL_S = 0.5


def exit_code(status: JobStatus, driver_exit_code: int | None) -> int | None:
    """Return the exit code of a job that has ended; None if its command never started."""
    if status == JobStatus.SUCCEEDED:
        return 0
    if status == JobStatus.STOPPED:
        return EXIT_STOPPED
    if driver_exit_code is None:
        return None
    return driver_exit_code if driver_exit_code >= 0 else 128 - driver_exit_code


def follow(client: JobClient, job_id: str) -> int:
    """Print a job's log until it ends, and return its exit code.

    Raises:
        ResourceError: the job could not be started, or its server does not answer.
    """
    return asyncio.run(_LogFollower(client, job_id).run())


def print_message(text: str) -> None:
    """Print a line of this program to stderr; the job's output goes to stdout."""
    print(f"maml-ray: {text}", file=sys.stderr, flush=True)


def _print_log(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class _Detached(Exception):
    """The job is left running."""


@dataclass
class _CtrlC:
    """Number of Ctrl-C, and the time of the last one."""

    count: int = 0
    at: float = 0.0

    def record(self) -> None:
        self.count += 1
        self.at = time.monotonic()


class _LogFollower:
    def __init__(self, client: JobClient, job_id: str) -> None:
        self._client, self._id = client, job_id
        self._ctrl_c = _CtrlC()
        self._handled = 0
        self._printed = 0

    async def run(self) -> int:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._ctrl_c.record)
        log = asyncio.create_task(self._follow_log())
        monitor = asyncio.create_task(self._monitor())
        try:
            first, _ = await asyncio.wait({log, monitor}, return_when=asyncio.FIRST_COMPLETED)
            return self._exit_code(first.pop().result())
        except _Detached:
            return EXIT_DETACHED
        finally:
            for task in (log, monitor):
                task.cancel()
            await asyncio.gather(log, monitor, return_exceptions=True)

    def _exit_code(self, info: JobDetails) -> int:
        code = exit_code(info.status, info.driver_exit_code)
        if code is None:
            reason = " ".join((info.message or "no reason is given").split())[-600:]
            raise ResourceError(f"job {self._id} could not be started: {reason}")
        print_message(f"job {self._id} {info.status.value.lower()} (exit code {code})")
        return code

    async def _monitor(self) -> JobDetails:
        """Handle Ctrl-C, print why a job has not started, and detect a server that is gone.

        Normally :meth:`_follow_log` sees the end of the job first. This returns it if the log
        does not end.
        """
        started = checked = answered = time.monotonic()
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
            await self._handle_ctrl_c()
            if time.monotonic() - checked < STATUS_INTERVAL_S:
                continue
            checked = time.monotonic()
            info = await self._job_info()
            if info is None:
                self._check_timeout(checked - answered)
            elif info.status.is_terminal():
                await asyncio.sleep(STATUS_INTERVAL_S)  # for the rest of the log
                return info
            else:
                answered = checked
                if info.status == JobStatus.PENDING:
                    reason = " ".join((info.message or "").split())[:300]
                    print_message(
                        f"job {self._id} has not started ({checked - started:.0f} s): {reason}"
                    )

    def _check_timeout(self, seconds: float) -> None:
        if seconds > SERVER_TIMEOUT_S:
            raise ResourceError(
                f"the job server at {self._client.get_address()!r} has not answered for "
                f"{seconds:.0f} s; job {self._id} may still be running"
            )

    async def _handle_ctrl_c(self) -> None:
        pressed = self._ctrl_c
        if pressed.count > self._handled:
            self._handled = pressed.count
            if pressed.count == 1:
                print_message(
                    f"job {self._id} keeps running; "
                    f"Ctrl-C again within {CONFIRM_WITHIN_S:.0f} s stops it"
                )
            elif pressed.count == 2:
                await asyncio.to_thread(self._client.stop, self._id)
                print_message(
                    f"job {self._id} is stopping and has {STOP_GRACE_S} s to write its "
                    "checkpoint; Ctrl-C again exits without waiting"
                )
            else:
                print_message(f"job {self._id} is stopping; no longer followed")
                raise _Detached
        elif pressed.count == 1 and time.monotonic() - pressed.at > CONFIRM_WITHIN_S:
            print_message(
                f"job {self._id} keeps running and is no longer followed; "
                f"follow it with: ray job logs --follow {self._id}"
            )
            raise _Detached

    async def _job_info(self) -> JobDetails | None:
        """Return the job's status; None if its server does not answer."""
        try:
            return await asyncio.to_thread(self._client.job_info, self._id)
        except ResourceError:
            return None

    async def _follow_log(self) -> JobDetails:
        """Print the whole log, reconnecting as needed, and return the job's final status."""
        while True:
            await self._print_connection()
            info = await self._job_info()
            if info is not None and info.status.is_terminal():
                return info
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def _print_connection(self) -> None:
        """Print what is new from one connection, each of which sends the log from its start."""
        received = 0
        try:
            async for text in self._client.tail_job_logs(self._id):
                new = text[max(0, self._printed - received) :]
                received += len(text)
                self._printed = max(self._printed, received)
                if new:
                    _print_log(new)
        except (TimeoutError, RuntimeError, OSError, aiohttp.ClientError):
            return  # the caller asks for the job's status next
