"""Call a service from many clients at once, and record which requests fail."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

_TIMEOUT_S = 60.0
_PAUSE_S = 0.05
"""Pause of a client after a failure, as a client that tries again makes one."""


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        client: number of the client.
        path: path of the request.
        started, ended: in seconds, of ``time.monotonic``.
        failure: what was wrong with the answer, or the error of the connection; None if nothing.
    """

    client: int
    path: str
    started: float
    ended: float
    failure: str | None


@dataclass(frozen=True)
class Request:
    """What a client sends again and again.

    Attributes:
        path: path of the request.
        body: sent as JSON.
        expected: fields that the answer must have, with their values.
    """

    path: str
    body: dict[str, Any]
    expected: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calls:
    """Requests in the order in which they ended."""

    all: list[Call] = field(default_factory=list)

    def of(self, path: str) -> Calls:
        """Return the requests to ``path``."""
        return Calls([call for call in list(self.all) if call.path == path])

    @property
    def failed(self) -> list[Call]:
        """The requests that failed."""
        return [call for call in list(self.all) if call.failure is not None]

    def answered_after(self, moment: float) -> Counter[int]:
        """Return how many requests of each client were sent after a moment and answered."""
        return Counter(
            call.client for call in list(self.all) if call.failure is None and call.started > moment
        )

    @property
    def longest_gap_s(self) -> float:
        """Longest time in which no request was answered."""
        ends = [call.ended for call in self.all if call.failure is None]
        return max(after - before for before, after in pairwise(ends))

    @property
    def longest_s(self) -> float:
        """Longest time from a request to its answer."""
        return max(call.ended - call.started for call in self.all if call.failure is None)


def post(address: str, path: str, body: Any) -> dict[str, Any]:
    """Send one request and return its answer.

    Raises:
        OSError, http.client.HTTPException: the connection failed.
        ValueError: the status is not 200; the message has it and the answer.
    """
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    try:
        return _post(connection, path, body)
    finally:
        connection.close()


@contextmanager
def calling(address: str, requests: Sequence[Request]) -> Iterator[Calls]:
    """Run one client per request while the block runs; yield the record of their calls.

    Args:
        address: host and port of the service.
        requests: what each client sends.
    """
    calls, is_over = Calls(), threading.Event()

    def run(client: int, request: Request) -> None:
        connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
        while not is_over.is_set():
            started, failure = time.monotonic(), None
            try:
                answer = _post(connection, request.path, request.body)
                if not request.expected.items() <= answer.items():
                    failure = f"expected {request.expected}, got {answer}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                failure = f"{type(error).__name__}: {error}"
                connection.close()
            calls.all.append(Call(client, request.path, started, time.monotonic(), failure))
            if failure is not None:
                is_over.wait(_PAUSE_S)
        connection.close()

    threads = [threading.Thread(target=run, args=each) for each in enumerate(requests)]
    for thread in threads:
        thread.start()
    try:
        yield calls
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _post(connection: http.client.HTTPConnection, path: str, body: Any) -> dict[str, Any]:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise ValueError(f"{answer.status} {content.decode(errors='replace'):.300}")
    found: dict[str, Any] = json.loads(content)
    return found
