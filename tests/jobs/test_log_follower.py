"""Following a job, against a server that is scripted: no cluster, and Ctrl-C by real signals."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from maml_ray.common.errors import ResourceError
from maml_ray.jobs import log_follower
from maml_ray.jobs.log_follower import exit_code, follow


class Server:
    """One job: its log comes over connections, each of which tells it from the beginning."""

    def __init__(self, *connections: list[str], code: int | None = 0) -> None:
        self.connections = list(connections)
        self.status = JobStatus.RUNNING
        self.code = code
        self.message = "the last words"
        self.stopped = asyncio.Event()
        self.lost = False

    def get_address(self) -> str:
        return "http://there"

    def job_info(self, job_id: str) -> Any:
        if self.lost:
            raise ResourceError("away")
        return SimpleNamespace(status=self.status, driver_exit_code=self.code, message=self.message)

    def stop(self, job_id: str) -> None:
        self.stopped.set()

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        script = self.connections.pop(0)
        for number, text in enumerate(script):
            if text == "ctrl-c":
                heard = following_count()
                os.kill(os.getpid(), signal.SIGINT)
                while following_count() == heard:
                    await asyncio.sleep(0.01)
            elif text == "until stopped":
                while not self.stopped.is_set():
                    await asyncio.sleep(0.01)
                self.status, self.code = JobStatus.STOPPED, None
            elif text == "for ever":
                await asyncio.sleep(3600)
            elif text == "cut":
                raise RuntimeError("WebSocket connection closed unexpectedly")
            else:
                yield text
            assert number < len(script)
        if self.status is JobStatus.RUNNING:
            self.status = JobStatus.SUCCEEDED if self.code == 0 else JobStatus.FAILED


SAID: list[str] = []


def following_count() -> int:
    return len(SAID)


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    SAID.clear()
    monkeypatch.setattr(log_follower, "print_message", SAID.append)
    monkeypatch.setattr(log_follower, "_POLL_INTERVAL_S", 0.01)
    return SAID


def run(server: Server) -> int:
    return follow(server, "job-1")  # type: ignore[arg-type]


def test_the_log_is_shown_and_the_job_s_exit_code_returned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(Server(["one\n", "two\n"])) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert run(Server(["bad\n"], code=3)) == 3


def test_a_connection_that_breaks_is_made_again_and_nothing_shown_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        run(Server(["one\n", "two", "cut"], ["one\ntw", "o and", "cut"], ["one\ntwo and on"])) == 0
    )
    assert capsys.readouterr().out == "one\ntwo and on"


def test_a_second_ctrl_c_stops_the_job_and_its_end_is_waited_for(
    said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(["a\n", "ctrl-c", "ctrl-c", "until stopped", "checkpoint written\n"])
    assert run(server) == 143
    assert server.stopped.is_set()
    assert "checkpoint written" in capsys.readouterr().out
    assert "keeps running; Ctrl-C again within 10 s stops it" in said[0]
    assert "is stopping and has 60 s" in said[1]


def test_one_ctrl_c_alone_leaves_the_job_to_itself_and_says_how_to_follow_it(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_follower, "CONFIRM_WITHIN_S", 0.1)
    server = Server(["a\n", "ctrl-c", "for ever"])
    assert run(server) == 130
    assert not server.stopped.is_set()
    assert "ray job logs --follow job-1" in said[-1]


def test_a_third_ctrl_c_does_not_wait_for_the_end(said: list[str]) -> None:
    server = Server(["ctrl-c", "ctrl-c", "ctrl-c", "for ever"])
    assert run(server) == 130
    assert server.stopped.is_set()
    assert "no longer followed" in said[-1]


def test_a_job_that_never_began_is_a_matter_of_resources() -> None:
    server = Server([], code=None)
    with pytest.raises(ResourceError, match="job-1 could not be started: the last words"):
        run(server)


def test_a_server_that_is_gone_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_follower, "SERVER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(log_follower, "STATUS_INTERVAL_S", 0.05)
    server = Server(["for ever"])
    server.lost = True
    with pytest.raises(ResourceError, match=r"http://there.*has not answered"):
        run(server)


def test_a_job_that_waits_says_so_and_what_for(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_follower, "STATUS_INTERVAL_S", 0.02)
    server = Server(["for ever"])
    server.status, server.message = JobStatus.PENDING, "its environment\nis set up"

    def tell(text: str) -> None:
        SAID.append(text)
        server.status = JobStatus.SUCCEEDED

    monkeypatch.setattr(log_follower, "print_message", tell)
    assert run(server) == 0
    assert "has not started" in said[0]
    assert "its environment is set up" in said[0]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.STOPPED, None, 143),
        (JobStatus.FAILED, None, None),
    ],
)
def test_exit_codes(status: JobStatus, code: int | None, expected: int | None) -> None:
    assert exit_code(status, code) == expected
