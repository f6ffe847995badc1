"""Connect to a Ray cluster, notice when it is lost, and plan which of its resources a run uses."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import ray

from maml_ray.common.errors import ClusterLost, Interrupted, ResourceError, Superseded
from maml_ray.config.settings import ClusterSettings, check_cluster_address
from maml_ray.runtime.ray_internals import (
    find_running_cluster,
    get_raylet_socket,
    get_token_logger,
    is_ray_client,
    owns_cluster,
)

CONNECT_TIMEOUT_S = 10.0
PROBE_INTERVAL_S = 1.0
"""Seconds between two looks at whether Ray's processes live."""
PROBE_TIMEOUT_S = 2.0
"""Deadline in seconds of a new connection to one of them."""
HEAD_PATIENCE_S = 45.0
"""Seconds that a cluster's head may be away, as while it restarts. Ray itself ends this process
after 60, without a word on the run."""
EXIT_GRACE_S = 8.0
"""Seconds to save and stop after the loss of Ray; calls to Ray may block for good."""
ADDRESS_VARIABLE = "RAY_ADDRESS"
THIS_MACHINE = "the last 'ray start' on this machine"
_OWN_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Why a connection may fail although the other process lives."""
_REMEDIES = {
    ADDRESS_VARIABLE: "unset RAY_ADDRESS to use this machine alone, or set it to the address "
    "that 'ray start' prints",
    THIS_MACHINE: "that cluster is gone or hangs: run 'ray stop', then 'ray start --head'",
}
"""What to do about an address where no cluster answers, by where it comes from."""
_VERSIONS = re.compile(
    r"cluster was started with:\s*Ray: (\S+)\s*Python: (\S+)\s*"
    r"This process on .*? was started with:\s*Ray: (\S+)\s*Python: (\S+)",
    re.DOTALL,
)
"""Matches the error that Ray raises if a driver's versions differ from its cluster's."""


@dataclass(frozen=True)
class ResourcePlan:
    """The resources that a run uses.

    Attributes:
        rollout_actors: number of rollout actors that fit now, one CPU each.
        learner_gpus: 1 if the learner takes a GPU, else 0.
        learner_device: ``"cuda"`` or ``"cpu"``.
    """

    rollout_actors: int
    learner_gpus: int
    learner_device: str


def plan_resources(settings: ClusterSettings, available: Mapping[str, float]) -> ResourcePlan:
    """Plan a run's resources from the settings and the cluster's.

    The learner requests no CPU: it and the actors take turns. (With ``meta_batch.async_collection``
    they do not; then ``cluster.rollout_actors`` determines how many CPUs are left for it.) With
    ``cluster.autoscaler`` missing resources are waited for; ``cluster.learner_device: auto`` uses a
    GPU only if the cluster has one now.

    Args:
        settings: limits of the number of actors, and the learner's device.
        available: resources in the format of ``ray.cluster_resources()``.

    Raises:
        ResourceError: the cluster lacks requested resources.
    """
    cpus, gpus = int(available.get("CPU", 0)), int(available.get("GPU", 0))
    least, most = settings.min_rollout_actors, settings.rollout_actors
    growing = "; or set cluster.autoscaler=true if an autoscaler adds them"
    if cpus < least and not settings.autoscaler:
        raise ResourceError(
            f"the cluster has {cpus} CPUs, cluster.min_rollout_actors is {least}, and a rollout "
            "actor takes a CPU: add nodes with CPUs"
            + (", or ask for fewer" if least > 1 else "")
            + growing
        )
    if settings.learner_device == "cuda" and gpus < 1 and not settings.autoscaler:
        raise ResourceError(
            "cluster.learner_device = 'cuda', but the cluster has no GPU: add a node with one, "
            f"or set cluster.learner_device to auto or cpu{growing}"
        )
    on_gpu = settings.learner_device == "cuda" or (settings.learner_device == "auto" and gpus > 0)
    return ResourcePlan(
        rollout_actors=cpus if most is None else min(most, cpus),
        learner_gpus=int(on_gpu),
        learner_device="cuda" if on_gpu else "cpu",
    )


@dataclass(frozen=True)
class ClusterAddress:
    """The address of a cluster.

    Attributes:
        value: host:port or ray://host:port; ``"auto"`` for a cluster that runs on this machine,
            ``"local"`` for one that is to be started.
        source: where it comes from: a setting, an option or a variable.
    """

    value: str
    source: str

    def __str__(self) -> str:
        return f"{self.value!r:.80} ({self.source})"


def find_address(address: str | None, source: str = "cluster.address") -> ClusterAddress:
    """Return the address that ``ray.init(address)`` joins: ``RAY_ADDRESS`` precedes ``"auto"``."""
    variable = os.environ.get(ADDRESS_VARIABLE)
    if variable and address in (None, "auto"):
        return ClusterAddress(variable, ADDRESS_VARIABLE)
    return ClusterAddress(address or "local", source)


def is_local(address: str | None) -> bool:
    """Return whether :func:`connected` starts, or has started, Ray on this machine alone."""
    if ray.is_initialized():
        return owns_cluster()
    return find_address(address).value == "local"


@contextmanager
def connected(
    address: str | None,
    source: str = "cluster.address",
    *,
    on_event: Callable[[str], None] = lambda message: None,
    exit_note: Callable[[], str] = lambda: "",
) -> Iterator[RaySession]:
    """Connect to Ray inside the block: the cluster at ``address``, this job's, or a local one.

    Without an address a submitted job joins its own cluster, and any other program starts Ray on
    this machine and stops it at the end. A program that has called ``ray.init`` itself keeps its
    connection.

    Args:
        address: host:port, ray://host:port, ``"auto"``, ``"local"`` or None.
        source: names where the address comes from, in errors.
        on_event: receives a message when the cluster's head does not answer, from another thread.
        exit_note: returns what to print after the reason if the process has to be ended because
            a call to a lost Ray does not return.

    Raises:
        SettingsError: the address is malformed.
        ResourceError: there is no cluster at the address, its versions differ, or Ray cannot start.
        Interrupted: SIGTERM arrived while Ray was starting.
        ClusterLost: Ray was lost inside the block.
    """
    if ray.is_initialized():
        with _watched(None, on_event, exit_note) as session, session.explaining():
            yield session
        return
    found = find_address(address, source)
    check_address(found)
    # Ray reads RAY_ADDRESS itself, and finds this machine's cluster with its token.
    target = address if found.source == ADDRESS_VARIABLE else found.value
    try:
        with _interrupted_by_sigterm(), _without_advice():
            ray.init(address=target, logging_level=logging.WARNING)
    except Interrupted:
        raise
    except Exception as error:  # on a busy machine Ray raises Exception itself: "timed out"
        raise ResourceError(_describe_connect_error(found, error)) from None
    with _watched(found, on_event, exit_note) as session:
        try:
            with session.explaining():
                yield session
        finally:
            if session.lost is None:
                session.close()
            # Without Ray's processes this may raise, or block until the session ends the process.
            lost = nullcontext() if session.lost is None else suppress(Exception)
            with _sigterm_handler_restored(), lost:
                ray.shutdown()


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
        os._exit(error.exit_code)


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
        """Return whether the connection is open, or can be opened anew."""
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


@contextmanager
def _watched(
    found: ClusterAddress | None, on_event: Callable[[str], None], exit_note: Callable[[], str]
) -> Iterator[RaySession]:
    """Watch the processes of the Ray that this process is connected to, inside the block.

    Args:
        found: where it was joined; None if the program has called ``ray.init`` itself.
        on_event, exit_note: as for :func:`connected`.
    """
    if is_ray_client():
        raylet, head = None, None if found is None else _host_and_port(found.value)
    else:
        raylet = get_raylet_socket()
        head = _host_and_port(ray.get_runtime_context().gcs_address)
    patience_s = 0.0 if not is_ray_client() and owns_cluster() else HEAD_PATIENCE_S
    session = RaySession(raylet, head, patience_s, on_event, exit_note)
    session.start()
    try:
        yield session
    finally:
        session.close()


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return host.strip("[]"), int(port)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Hide what Ray says at every start and what a run need not act on; keep its other warnings."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Token authentication is enabled")

    logger = get_token_logger()
    logger.addFilter(is_wanted)
    try:
        with warnings.catch_warnings():
            # Of GPUs hidden from actors that request none, which is what actors here rely on.
            warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
            yield
    finally:
        logger.removeFilter(is_wanted)


@contextmanager
def _sigterm_handler_restored() -> Iterator[None]:
    """Restore the program's own SIGTERM handler after Ray's start, and after its shutdown.

    ``ray.init`` installs a handler that exits with code 15; ``ray.shutdown`` removes all handlers,
    below Python, where only setting the handler again helps.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Raise :class:`Interrupted` for a SIGTERM that arrives while Ray starts.

    Ray's handler raises an exception, which Python drops inside a destructor; therefore arrived
    signals are recorded as well.
    """
    with _sigterm_handler_restored(), _recorded_signals() as arrived:
        try:
            yield
        except SystemExit as exit_request:
            if exit_request.code != signal.SIGTERM:
                raise
            raise Interrupted(signal.SIGTERM) from None
        if signal.SIGTERM in arrived():
            raise Interrupted(signal.SIGTERM)


@contextmanager
def _recorded_signals() -> Iterator[Callable[[], bytes]]:
    """Record the numbers of arriving signals, whatever their handlers do.

    Outside the main thread, where Python handles no signals, nothing is recorded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: b""
        return
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def arrived() -> bytes:
        try:
            return os.read(read_end, 4096)
        except BlockingIOError:
            return b""

    try:
        yield arrived
    finally:
        signal.set_wakeup_fd(before)
        os.close(read_end)
        os.close(write_end)


def check_address(address: ClusterAddress) -> None:
    """Check that a cluster answers at an address, unless it is to be started here.

    Raises:
        SettingsError: the address is malformed.
        ResourceError: no cluster answers there, or none runs on this machine.
    """
    if address.value == "local":
        return
    if address.value != "auto":
        check_reachable(address)
        return
    running = find_running_cluster()
    if running is None:
        raise ResourceError(
            "no Ray cluster runs on this machine: start one with 'ray start --head', or pass the "
            "address of one"
        )
    check_reachable(ClusterAddress(running, THIS_MACHINE))


def check_reachable(address: ClusterAddress) -> None:
    """Check an address within ``CONNECT_TIMEOUT_S``; ``ray.init`` would try for many minutes.

    Raises:
        SettingsError: the address is malformed.
        ResourceError: no server answers there.
    """
    check_cluster_address(address.value, address.source)
    target = address.value.removeprefix("ray://")
    if not _is_served(target):
        remedy = "check the address (ray start prints it) and that the port is open"
        raise ResourceError(
            f"no Ray cluster answers at {address} within {CONNECT_TIMEOUT_S:.0f} seconds: "
            f"{_REMEDIES.get(address.source, remedy)}"
        )


def _is_served(target: str) -> bool:
    """Return whether a gRPC server answers at host:port within ``CONNECT_TIMEOUT_S``."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):  # it would refuse a plain channel
        try:
            socket.create_connection(_host_and_port(target), CONNECT_TIMEOUT_S).close()
        except OSError:
            return False
        return True
    options = (("grpc.enable_http_proxy", 0),)
    with grpc.insecure_channel(target, options=options) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def _describe_connect_error(address: ClusterAddress, error: Exception) -> str:
    reason = " ".join(str(error).split())
    versions = _VERSIONS.search(str(error))
    if versions is not None:
        return _describe_versions(*versions.groups())
    if "auth" in reason.lower() and "token" in reason.lower():
        return (
            f"the cluster at {address} requires a token: set RAY_AUTH_MODE=token ({reason[:200]})"
        )
    is_started_here = address.value == "local"
    if not is_started_here and os.environ.get("RAY_AUTH_MODE") != "token":
        reason += "; if it was started with a token, as 'ray start' does, set RAY_AUTH_MODE=token"
    goal = "start Ray on this machine" if is_started_here else f"join the Ray cluster at {address}"
    return f"cannot {goal}: {reason[-300:]}"


def _describe_versions(theirs: str, their_python: str, ours: str, our_python: str) -> str:
    return (
        f"the cluster runs Ray {theirs} on Python {their_python}, but this program runs Ray {ours} "
        f"on Python {our_python}: run it in an environment with the cluster's versions, or as a "
        "job on the cluster (maml-ray submit)"
    )
