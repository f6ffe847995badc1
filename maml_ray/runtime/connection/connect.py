"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import ray

from maml_ray.common.errors import Interrupted, ResourceError
from maml_ray.common.signals import hold_signals_in_forks
from maml_ray.runtime.connection.address import (
    ADDRESS_VARIABLE,
    ClusterAddress,
    check_address,
    find_address,
)
from maml_ray.runtime.connection.session import RaySession, watched
from maml_ray.runtime.ray_internals import (
    find_running_cluster,
    get_token_logger,
    is_loopback_cluster,
    loopback_kept,
    owns_cluster,
)

_VERSIONS = re.compile(
    r"cluster was started with:\s*Ray: (\S+)\s*Python: (\S+)\s*"
    r"This process on .*? was started with:\s*Ray: (\S+)\s*Python: (\S+)",
    re.DOTALL,
)
"""Matches the error that Ray raises if a driver's versions differ from its cluster's."""


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
        with watched(None, on_event, exit_note) as session, session.explaining():
            yield session
        return
    found = find_address(address, source)
    check_address(found)
    # Ray reads RAY_ADDRESS itself, and finds this machine's cluster with its token.
    target = address if found.source == ADDRESS_VARIABLE else found.value
    loopback = loopback_kept() if _is_for_this_machine(found) else nullcontext()
    hold_signals_in_forks()  # Ray starts its processes with forks
    try:
        with _interrupted_by_sigterm(), _without_advice(), loopback:
            ray.init(address=target, logging_level=logging.WARNING)
    except Interrupted:
        raise
    except Exception as error:  # on a busy machine Ray raises Exception itself: "timed out"
        raise ResourceError(_describe_connect_error(found, error)) from None
    with watched(found, on_event, exit_note) as session:
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


def _is_for_this_machine(address: ClusterAddress) -> bool:
    """Return whether Ray is to be started on this machine alone, or was, and listens to it only."""
    if address.value == "local":
        return True
    running = find_running_cluster() if address.value == "auto" else address.value
    return running is not None and is_loopback_cluster(running)


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
