"""How connections are accepted; test_stop.py has the rest, in a process of its own."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

from maml_ray.serving.server import _accept_all


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED])
def test_what_cannot_be_accepted_ends_no_turn_with_an_error(number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()):
            (accepted,) = _accept_all(listening)
            accepted.close()

        class Full:
            setblocking = listening.setblocking

            def accept(self) -> Any:
                raise OSError(number, "too many open files")

        assert list(_accept_all(Full())) == []  # type: ignore[arg-type]
