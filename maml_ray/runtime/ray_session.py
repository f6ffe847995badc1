"""Reaching a Ray cluster, and what a run takes of it."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import ray

from maml_ray.common.errors import Interrupted, ResourceError
from maml_ray.config.settings import ClusterSettings, SettingsError

CONNECT_TIMEOUT_S = 10.0
_VERSIONS = re.compile(
    r"cluster was started with:\s*Ray: (\S+)\s*Python: (\S+)\s*"
    r"This process on .*? was started with:\s*Ray: (\S+)\s*Python: (\S+)",
    re.DOTALL,
)
"""How Ray tells that a driver's versions are not those of its cluster."""


@dataclass(frozen=True)
class ResourcePlan:
    """How a run divides a cluster.

    Attributes:
        rollout_actors: how many rollout actors there is room for now, one CPU each.
        learner_gpus: 1 if the learner takes a GPU, else 0.
        learner_device: ``"cuda"`` or ``"cpu"``.
    """

    rollout_actors: int
    learner_gpus: int
    learner_device: str


def plan_resources(settings: ClusterSettings, available: Mapping[str, float]) -> ResourcePlan:
    """Fit the settings' wishes to the cluster's resources, as ``ray.cluster_resources()`` has them.

    The learner asks for no CPU: it and the actors take turns. (With ``meta_batch.async_collection`` they do
    not, and ``cluster.rollout_actors`` says how many CPUs are left to it.) With
    ``cluster.autoscaler`` what is not there may come, and is waited for; ``auto`` takes a GPU that
    is there now.

    Raises:
        ResourceError: more is asked for than there is.
    """
    cpus, gpus = int(available.get("CPU", 0)), int(available.get("GPU", 0))
    least, most = settings.min_rollout_actors, settings.rollout_actors
    growing = "; or set cluster.autoscaler=true if it adds them by itself"
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


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray for the time of a run: the cluster at ``address``, this job's, or a local one.

    Without an address a submitted job joins its own cluster, and any other program starts Ray on
    this machine and stops it at the end. A program that has called ``ray.init`` itself keeps its
    connection.

    Raises:
        SettingsError: the address is none.
        ResourceError: there is no cluster at the address, its versions are others, or Ray cannot
            be started.
        Interrupted: SIGTERM came while Ray was starting.
    """
    if ray.is_initialized():
        yield
        return
    if address not in (None, "auto", "local"):
        check_reachable(str(address))
    if address is None and not os.environ.get("RAY_ADDRESS"):
        address = "local"
    try:
        with _sigterm_heard():
            if address is None:
                ray.init(logging_level=logging.WARNING)  # a job's settings come from Ray itself
            else:
                ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ResourceError(_explain(address, error)) from None
    try:
        yield
    finally:
        with _handler_kept():
            ray.shutdown()


@contextmanager
def _handler_kept() -> Iterator[None]:
    """The program's own handler of SIGTERM comes back after Ray's start, and after its end.

    At its start Ray puts one in its place that leaves with code 15, at its end it takes all away,
    below Python, where only setting the handler anew helps.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _sigterm_heard() -> Iterator[None]:
    """Raise :class:`Interrupted` for a SIGTERM that comes while Ray starts.

    Ray's handler leaves by an exception, which is lost where Python drops exceptions, in a
    destructor: so what came is noted beside it.
    """
    with _handler_kept(), _signals_noted() as came:
        try:
            yield
        except SystemExit as leaving:
            if leaving.code != signal.SIGTERM:
                raise
            raise Interrupted(signal.SIGTERM) from None
        if signal.SIGTERM in came():
            raise Interrupted(signal.SIGTERM)


@contextmanager
def _signals_noted() -> Iterator[Callable[[], bytes]]:
    """Tells the numbers of the signals that have come, whatever their handlers made of them.

    In a thread other than the main one, where Python handles none, nothing comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: b""
        return
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def came() -> bytes:
        try:
            return os.read(reading, 4096)
        except BlockingIOError:
            return b""

    try:
        yield came
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


def check_reachable(address: str) -> None:
    """Refuse within seconds what ``ray.init`` would try for two minutes.

    Raises:
        SettingsError: it is no address.
        ResourceError: nobody listens there.
    """
    target = address.removeprefix("ray://")
    host, separator, port = target.rpartition(":")
    if not (separator and host and port.isdigit()) or "/" in host:  # http:// is the dashboard's
        raise SettingsError(
            f"cluster.address = {address!r} is not of the form host:port, ray://host:port or auto"
        )
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return  # a plain channel would be refused by a healthy cluster
    options = (("grpc.enable_http_proxy", 0),)
    with grpc.insecure_channel(target, options=options) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            raise ResourceError(
                f"no Ray cluster answers at {address!r} within {CONNECT_TIMEOUT_S:.0f} seconds: "
                "check the address (ray start prints it) and that the port is open"
            ) from None


def _explain(address: str | None, error: Exception) -> str:
    reason = " ".join(str(error).split())
    versions = _VERSIONS.search(str(error))
    if versions is not None:
        return _explain_versions(*versions.groups())
    if address == "auto" and isinstance(error, ConnectionError):
        return (
            "no Ray cluster runs on this machine: start one with 'ray start --head', "
            "or give the address of one"
        )
    if "auth" in reason.lower() and "token" in reason.lower():
        return f"the cluster at {address!r} wants a token: set RAY_AUTH_MODE=token ({reason[:200]})"
    if address not in (None, "local") and os.environ.get("RAY_AUTH_MODE") != "token":
        reason += "; if it was started with a token, as 'ray start' does, set RAY_AUTH_MODE=token"
    where = (
        "start Ray on this machine"
        if address == "local"
        else f"join the Ray cluster at {address!r}"
    )
    return f"cannot {where}: {reason[-300:]}"


def _explain_versions(theirs: str, their_python: str, ours: str, our_python: str) -> str:
    return (
        f"the cluster runs Ray {theirs} on Python {their_python}, and this program Ray {ours} on "
        f"Python {our_python}, which must be the same: run it in an environment like the "
        "cluster's, or there, as a job (maml-ray submit)"
    )
