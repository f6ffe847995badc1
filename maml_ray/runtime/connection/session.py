"""Notice within seconds that the Ray which this process is connected to has gone."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

from maml_ray.common.errors import ClusterLost, Interrupted, Superseded
from maml_ray.common.signals import force_exit
from maml_ray.runtime.connection.address import ClusterAddress, host_and_port
from maml_ray.runtime.ray_internals import get_raylet_socket, is_ray_client, owns_cluster

PROBE_INTERVAL_S = 1.0
"""Seconds between two looks at whether Ray's processes live."""
PROBE_TIMEOUT_S = 2.0
"""Deadline in seconds of a new connection to one of them."""
HEAD_PATIENCE_S = 45.0
"""Seconds that a cluster's head may be away, as while it restarts. Ray itself ends this process
after 60, without a word on the run."""
EXIT_GRACE_S = 8.0
"""Seconds to save and stop after the loss of Ray; calls to Ray may block for good."""
_OWN_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Why a connection may fail although the other process lives."""


class RaySession:
    """A connection to Ray, which notices within seconds that Ray's own processes have gone.

    Without it, the death of this machine's raylet looks like that of all actors, which are waited
    for, and the death of the head (its GCS) blocks for a minute until Ray ends the process.

    Args:
        raylet: socket of this machine's raylet; None over Ray Client.
        head: host and port of the GCS, or of the Ray Client server; None if unknown.
        head_patience_s: seconds that the head may be away.
        on_event: receives a message when the head does not answer.
        exit_note: returns what to print after the reason if the process is ended.
    """

    def __init__(
        self,
        raylet: str | None,
        head: tuple[str, int] | None,
        head_patience_s: float,
        on_event: Callable[[str], None] = lambda message: None,
        exit_note: Callable[[], str] = lambda: "",
    ) -> None:
        self._raylet = _Peer(raylet) if raylet else None
        self._head = _Peer(head) if head else None
        self._patience_s, self._on_event, self._exit_note = head_patience_s, on_event, exit_note
        self._away_since: float | None = None
        self._closed = threading.Event()
        self._probing = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="ray-session", daemon=True)
        self.lost: str | None = None
        """Which process of Ray has gone, in one sentence; None while all live."""

    def start(self) -> None:
        """Start to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop to watch."""
        self._closed.set()
        with self._probing:
            for peer in (self._raylet, self._head):
                if peer is not None:
                    peer.close()

    def check(self) -> None:
        """Raise if Ray is lost.

        Raises:
            ClusterLost: a process that Ray cannot do without has gone.
        """
        if self.lost is not None:
            raise ClusterLost(self.lost)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise ClusterLost for whatever Ray raises inside the block because it is lost."""
        try:
            yield
        except (Interrupted, Superseded):
            raise
        except Exception:
            if self._probe(patience_s=0.0) is not None:
                self.check()
            raise

    def _watch(self) -> None:
        while not self._closed.wait(PROBE_INTERVAL_S):
            if self._probe(self._patience_s) is not None:
                if not self._closed.wait(EXIT_GRACE_S):
                    self._exit()
                return

    def _probe(self, patience_s: float) -> str | None:
        """Look whether Ray's processes live; return, and keep, a sentence if one has gone."""
        with self._probing:
            if self.lost is None and not self._closed.is_set():
                self.lost = self._find_loss(patience_s)
            return self.lost

    def _find_loss(self, patience_s: float) -> str | None:
        head_answers = self._head is None or self._head.answers()
        if self._raylet is not None and not self._raylet.answers():
            if not head_answers:
                return (
                    "Ray has ended: neither its raylet on this machine nor the cluster's head (the "
                    f"GCS at {self._head}) answers; was it stopped, by 'ray stop' or with its "
                    "machine?"
                )
            logs = Path(str(self._raylet)).parent.parent / "logs"
            return (
                "the raylet, Ray's process for this machine's actors, has died: its last words are "
                f"in {logs / 'raylet.out'}; without any it was killed, for example by the system "
                "for want of memory (dmesg)"
            )
        if head_answers:
            self._away_since = None
            return None
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            if patience_s > 0:
                self._on_event(
                    f"the head of the Ray cluster ({self._head}) does not answer: waiting "
                    f"{patience_s:.0f} s for it to return"
                )
        if now - self._away_since < patience_s:
            return None
        return (
            f"the head of the Ray cluster (its GCS at {self._head}) has died or cannot be reached: "
            "its last words are in Ray's logs/gcs_server.out there"
        )

    def _exit(self) -> None:
        """End the process, whose main thread waits for a reply that never comes."""
        error = ClusterLost(self.lost)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        # Not print, whose lock the main thread may hold.
        os.write(2, f"maml-ray: {error}{self._exit_note()}\n".encode(errors="backslashreplace"))
        force_exit(error.exit_code)


@contextmanager
def watched(
    found: ClusterAddress | None, on_event: Callable[[str], None], exit_note: Callable[[], str]
) -> Iterator[RaySession]:
    """Watch the processes of the Ray that this process is connected to, inside the block.

    Args:
        found: where it was joined; None if the program has called ``ray.init`` itself.
        on_event, exit_note: as for :func:`connected`.
    """
    if is_ray_client():
        raylet, head = None, None if found is None else host_and_port(found.value)
    else:
        raylet = get_raylet_socket()
        head = host_and_port(ray.get_runtime_context().gcs_address)
    patience_s = 0.0 if not is_ray_client() and owns_cluster() else HEAD_PATIENCE_S
    session = RaySession(raylet, head, patience_s, on_event, exit_note)
    session.start()
    try:
        yield session
    finally:
        session.close()


class _Peer:
    """A process, as an open connection to its socket shows it: its death closes the connection.

    Args:
        address: path of a Unix socket, or host and port.
    """

    def __init__(self, address: str | tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None

    def __str__(self) -> str:
        return self._address if isinstance(self._address, str) else "{}:{}".format(*self._address)

    def answers(self) -> bool:
        """Return whether the connection is open, or can be reopened."""
        if self._socket is not None and self._is_open(self._socket):
            return True
        self.close()
        try:
            self._socket = self._connect()
        except OSError as error:
            return error.errno in _OWN_SHORTAGES
        return True

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        if isinstance(self._address, str):
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                opened.settimeout(PROBE_TIMEOUT_S)
                opened.connect(self._address)
            except OSError:
                opened.close()
                raise
        else:
            opened = socket.create_connection(self._address, timeout=PROBE_TIMEOUT_S)
            _send_keepalives(opened)
        opened.setblocking(False)
        return opened

    @staticmethod
    def _is_open(opened: socket.socket) -> bool:
        try:
            while opened.recv(4096):  # the greeting of a gRPC server
                pass
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def _send_keepalives(opened: socket.socket) -> None:
    """Let the system notice within seconds that the other machine is gone without a farewell."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):  # macOS lacks some of them
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
