"""Connect to a Ray cluster, and plan which of its resources a run uses."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import ray

from maml_ray.common.errors import Interrupted, ResourceError
from maml_ray.config.settings import ClusterSettings, SettingsError
from maml_ray.runtime.ray_internals import get_token_logger, owns_cluster

CONNECT_TIMEOUT_S = 10.0
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


def is_local(address: str | None) -> bool:
    """Return whether :func:`connected` starts, or has started, Ray on this machine alone."""
    if ray.is_initialized():
        return owns_cluster()
    return address == "local" or (address is None and not os.environ.get("RAY_ADDRESS"))


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to Ray inside the block: the cluster at ``address``, this job's, or a local one.

    Without an address a submitted job joins its own cluster, and any other program starts Ray on
    this machine and stops it at the end. A program that has called ``ray.init`` itself keeps its
    connection.

    Raises:
        SettingsError: the address is malformed.
        ResourceError: there is no cluster at the address, its versions differ, or Ray cannot start.
        Interrupted: SIGTERM arrived while Ray was starting.
    """
    if ray.is_initialized():
        yield
        return
    if address not in (None, "auto", "local"):
        check_reachable(str(address))
    if address is None and not os.environ.get("RAY_ADDRESS"):
        address = "local"
    try:
        with _interrupted_by_sigterm(), _without_advice():
            if address is None:
                ray.init(logging_level=logging.WARNING)  # in a job Ray reads RAY_ADDRESS itself
            else:
                ray.init(address=address, logging_level=logging.WARNING)
    except Interrupted:
        raise
    except Exception as error:  # on a busy machine Ray raises Exception itself: "timed out"
        raise ResourceError(_describe_connect_error(address, error)) from None
    try:
        yield
    finally:
        with _sigterm_handler_restored():
            ray.shutdown()


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


def check_reachable(address: str) -> None:
    """Check an address within ``CONNECT_TIMEOUT_S``; ``ray.init`` would try for two minutes.

    Raises:
        SettingsError: the address is malformed.
        ResourceError: no server answers there.
    """
    target = address.removeprefix("ray://")
    host, separator, port = target.rpartition(":")
    if not (separator and host and port.isdigit()) or "/" in host:  # http:// is the dashboard
        raise SettingsError(
            f"cluster.address = {address!r} is not of the form host:port, ray://host:port or auto"
        )
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return  # a healthy cluster would refuse a plain channel
    options = (("grpc.enable_http_proxy", 0),)
    with grpc.insecure_channel(target, options=options) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            raise ResourceError(
                f"no Ray cluster answers at {address!r} within {CONNECT_TIMEOUT_S:.0f} seconds: "
                "check the address (ray start prints it) and that the port is open"
            ) from None


def _describe_connect_error(address: str | None, error: Exception) -> str:
    reason = " ".join(str(error).split())
    versions = _VERSIONS.search(str(error))
    if versions is not None:
        return _describe_versions(*versions.groups())
    if address == "auto" and isinstance(error, ConnectionError):
        return (
            "no Ray cluster runs on this machine: start one with 'ray start --head', "
            "or pass the address of one"
        )
    if "auth" in reason.lower() and "token" in reason.lower():
        return (
            f"the cluster at {address!r} requires a token: set RAY_AUTH_MODE=token ({reason[:200]})"
        )
    if address not in (None, "local") and os.environ.get("RAY_AUTH_MODE") != "token":
        reason += "; if it was started with a token, as 'ray start' does, set RAY_AUTH_MODE=token"
    goal = (
        "start Ray on this machine"
        if address == "local"
        else f"join the Ray cluster at {address!r}"
    )
    return f"cannot {goal}: {reason[-300:]}"


def _describe_versions(theirs: str, their_python: str, ours: str, our_python: str) -> str:
    return (
        f"the cluster runs Ray {theirs} on Python {their_python}, but this program runs Ray {ours} "
        f"on Python {our_python}: run it in an environment with the cluster's versions, or as a "
        "job on the cluster (maml-ray submit)"
    )
