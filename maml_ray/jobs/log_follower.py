"""Following a job: its log, its end, and what Ctrl-C means on the way.

The first Ctrl-C says what a second one does. With a second one the job is stopped, and followed
until its checkpoint is written; without, it is left to itself.
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
from maml_ray.jobs.job_client import STOP_WAIT_S, JobServer

SECOND_WITHIN_S = 10.0
"""How long after the first Ctrl-C a second one stops the job."""
TELL_EVERY_S = 10.0
"""Seconds between two lines on what a job that has not begun waits for."""
SILENCE_S = 120.0
"""How long the job server may be away until it is given up."""
LEFT = 128 + signal.SIGINT
"""Exit code of who leaves a job to itself."""
STOPPED = 128 + signal.SIGTERM
"""Exit code of a job that was stopped: Ray does not keep its own."""
_POLL_S = 0.5


def exit_code(status: JobStatus, driver_exit_code: int | None) -> int | None:
    """The exit code of a job that has ended; None where its command was never begun."""
    if status == JobStatus.SUCCEEDED:
        return 0
    if status == JobStatus.STOPPED:
        return STOPPED
    if driver_exit_code is None:
        return None
    return driver_exit_code if driver_exit_code >= 0 else 128 - driver_exit_code


def follow(server: JobServer, job_id: str) -> int:
    """Show a job's log until it ends; its exit code.

    Raises:
        ResourceError: the job could not be begun, or its server is gone.
    """
    return asyncio.run(_Following(server, job_id).run())


def say(text: str) -> None:
    """What this program tells beside the job's output."""
    print(f"maml-ray: {text}", file=sys.stderr, flush=True)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class _Gone(Exception):
    """The job is left to itself."""


@dataclass
class _CtrlC:
    """What the person at the terminal has asked for."""

    count: int = 0
    at: float = 0.0

    def hear(self) -> None:
        self.count += 1
        self.at = time.monotonic()


class _Following:
    """One job, while it is followed."""

    def __init__(self, server: JobServer, job_id: str) -> None:
        self._server, self._id = server, job_id
        self._keys = _CtrlC()
        self._answered = 0
        self._shown = 0

    async def run(self) -> int:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._keys.hear)
        log = asyncio.create_task(self._follow_log())
        watch = asyncio.create_task(self._watch())
        try:
            first, _ = await asyncio.wait({log, watch}, return_when=asyncio.FIRST_COMPLETED)
            return self._code(first.pop().result())
        except _Gone:
            return LEFT
        finally:
            for task in (log, watch):
                task.cancel()
            await asyncio.gather(log, watch, return_exceptions=True)

    def _code(self, info: JobDetails) -> int:
        code = exit_code(info.status, info.driver_exit_code)
        if code is None:
            told = " ".join((info.message or "no reason is given").split())[-600:]
            raise ResourceError(f"job {self._id} could not be begun: {told}")
        say(f"job {self._id} {info.status.value.lower()} (exit code {code})")
        return code

    async def _watch(self) -> JobDetails:
        """Obey Ctrl-C, tell what a job waits for, and see that the server is still there.

        The job's end is the log's to tell; here it ends only where the log falls silent.
        """
        began = looked = heard = time.monotonic()
        while True:
            await asyncio.sleep(_POLL_S)
            await self._obey()
            if time.monotonic() - looked < TELL_EVERY_S:
                continue
            looked = time.monotonic()
            info = await self._look()
            if info is None:
                self._check_silence(looked - heard)
            elif info.status.is_terminal():
                await asyncio.sleep(TELL_EVERY_S)  # for the rest of the log
                return info
            else:
                heard = looked
                if info.status == JobStatus.PENDING:
                    why = " ".join((info.message or "").split())[:300]
                    say(f"job {self._id} has not begun, for {looked - began:.0f} s: {why}")

    def _check_silence(self, seconds: float) -> None:
        if seconds > SILENCE_S:
            raise ResourceError(
                f"the job server at {self._server.get_address()!r} has not answered for "
                f"{seconds:.0f} s; job {self._id} may go on without it"
            )

    async def _obey(self) -> None:
        keys = self._keys
        again = f"ray job logs --follow {self._id}"
        if keys.count > self._answered:
            self._answered = keys.count
            if keys.count == 1:
                say(f"job {self._id} goes on; Ctrl-C again within {SECOND_WITHIN_S:.0f} s stops it")
            elif keys.count == 2:
                await asyncio.to_thread(self._server.stop, self._id)
                say(
                    f"job {self._id} is asked to stop, and has {STOP_WAIT_S} s to write its "
                    "checkpoint; Ctrl-C again leaves it to that"
                )
            else:
                say(f"job {self._id} is stopping; no longer followed")
                raise _Gone
        elif keys.count == 1 and time.monotonic() - keys.at > SECOND_WITHIN_S:
            say(f"job {self._id} goes on and is no longer followed; again: {again}")
            raise _Gone

    async def _look(self) -> JobDetails | None:
        """The job's state; None while its server does not answer."""
        try:
            return await asyncio.to_thread(self._server.look, self._id)
        except ResourceError:
            return None

    async def _follow_log(self) -> JobDetails:
        """Show all of the log, over as many connections as it takes; the job's end."""
        while True:
            await self._one_connection()
            info = await self._look()
            if info is not None and info.status.is_terminal():
                return info
            await asyncio.sleep(_POLL_S)

    async def _one_connection(self) -> None:
        """The server tells the log from its beginning; show what is new."""
        seen = 0
        try:
            async for text in self._server.tail_job_logs(self._id):
                fresh = text[max(0, self._shown - seen) :]
                seen += len(text)
                self._shown = max(self._shown, seen)
                if fresh:
                    _show(fresh)
        except (TimeoutError, RuntimeError, OSError, aiohttp.ClientError):
            return  # what became of the job is asked for next
