"""Wrap the few parts of Ray's private API that have no public counterpart, each in one function."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from maml_ray.common.errors import ResourceError

TESTED_RAY = "2.60"
"""The newest release of Ray in which every attribute below is known to exist."""

DRAINING_NODES = "ray._private.state.state.get_draining_nodes"
ACTOR_TABLE = "ray._private.state.state.actor_table"
DASHBOARD_URL = "ray._private.worker.get_dashboard_url"
GLOBAL_NODE = "ray._private.worker._global_node"
FIND_ADDRESS = "ray._private.services.get_ray_address_from_environment"
FIND_CLUSTERS = "ray._private.services.find_gcs_addresses"
DEFAULT_EXCLUDES = "ray._private.ray_constants.get_runtime_env_default_excludes"
COMPILE_EXCLUDES = "ray._private.runtime_env.packaging._get_excludes"
TRAVEL_DIRECTORY = "ray._private.runtime_env.packaging._dir_travel"
TOKEN_SETUP = "ray._private.authentication.authentication_token_setup"
ENABLE_CLUSTER = "ray._private.ray_constants.ENABLE_RAY_CLUSTER"

_SILENT = logging.Logger("ray_internals", level=logging.CRITICAL + 1)


def find_internal(path: str) -> Any:
    """Return a private attribute of Ray by its dotted path.

    Raises:
        ResourceError: the installed Ray has no such attribute.
    """
    names = path.split(".")
    for split in range(len(names), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(names[:split]))
        except ImportError:
            continue
        for name in names[split:]:
            if not hasattr(value, name):
                break
            value = getattr(value, name)
        else:
            return value
        break
    raise ResourceError(
        f"Ray {ray.__version__} has no {path}, which maml_ray needs: "
        f"install 'ray<={TESTED_RAY}', or update maml_ray/runtime/ray_internals.py"
    )


def get_draining_nodes() -> Collection[str]:
    """Return the ids of nodes that are being drained, for example before a spot preemption.

    Stands in for a public list of draining nodes; Ray Train and Ray Data use the same call. Ray
    Client (``ray://``) has no such call: the result is empty, and a preemption is seen only when
    the node is gone.
    """
    if is_ray_client():
        return ()
    return tuple(find_internal(DRAINING_NODES)())


def get_unplaced_actors() -> Collection[str]:
    """Return the names of this job's actors for which no process has been started yet.

    Stands in for a public way to tell an actor that waits for a free CPU or GPU from one whose
    ``__init__`` is running. Over Ray Client there is none: the result is empty.
    """
    if is_ray_client():
        return ()
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    table = find_internal(ACTOR_TABLE)
    return tuple(
        actor["Name"]
        for state in ("DEPENDENCIES_UNREADY", "PENDING_CREATION")
        for actor in table(None, job, state).values()
        if not actor["Pid"]
    )


def get_dashboard_url() -> str | None:
    """Return the URL of the cluster's dashboard; None without one, or over Ray Client.

    Stands in for ``ray.init().dashboard_url`` where another program called ``ray.init``: calling
    it a second time would replace the SIGTERM handler.
    """
    if is_ray_client():
        return None
    url = find_internal(DASHBOARD_URL)()
    return f"http://{url}" if url else None


def find_running_cluster() -> str | None:
    """Return the address of the cluster that runs, or ran last, on this machine; None without one.

    Stands in for a public way to learn what ``ray.init("auto")`` would try for minutes to join.
    """
    try:
        return str(find_internal(FIND_ADDRESS)("auto", None))
    except ConnectionError:
        return None


def get_raylet_socket() -> str | None:
    """Return the path of the Unix socket of this machine's raylet; None over Ray Client.

    Stands in for a public way to notice the raylet's death, of which Ray does not tell a driver.
    """
    node = find_internal(GLOBAL_NODE)
    return None if node is None else str(node.raylet_socket_name)


def owns_cluster() -> bool:
    """Return whether this process started the Ray cluster, which then stops with it.

    Stands in for a public way to tell ``ray.init(address="local")`` from joining a cluster.
    """
    node = find_internal(GLOBAL_NODE)
    return node is not None and bool(node.head)


def is_loopback_cluster(address: str) -> bool:
    """Return whether a Ray of this machine has this very host:port, on the loopback interface.

    Stands in for a public way to tell it from one that has the machine's address and listens on the
    loopback interface as well.
    """
    exact = address.replace("localhost", "127.0.0.1")
    return exact.startswith(("127.0.0.1:", "[::1]:")) and exact in find_internal(FIND_CLUSTERS)()


@contextmanager
def loopback_kept() -> Iterator[None]:
    """Let the Ray that is started or joined inside the block keep its loopback address.

    Stands in for a public option: ``ray.init`` replaces 127.0.0.1 by the machine's address on
    Linux, and then opens some 15 ports to whoever reaches that; on macOS and Windows it never does.
    """
    find_internal(ENABLE_CLUSTER)
    module, _, name = ENABLE_CLUSTER.rpartition(".")
    constants = find_internal(module)
    original = getattr(constants, name)
    setattr(constants, name, False)
    try:
        yield
    finally:
        setattr(constants, name, original)


def for_each_uploaded_path(root: Path, visit: Callable[[Path], None]) -> None:
    """Call ``visit`` with every path under ``root`` that a Ray job would upload from there.

    Stands in for a dry run of Ray's ``working_dir`` upload, with its rules for .gitignore,
    .rayignore and default excludes.

    Raises:
        OSError: a directory cannot be read.
    """
    excludes = [find_internal(COMPILE_EXCLUDES)(root, find_internal(DEFAULT_EXCLUDES)())]
    travel = find_internal(TRAVEL_DIRECTORY)
    travel(root, excludes, visit, include_gitignore=True, logger=_SILENT)


def get_token_logger() -> logging.Logger:
    """Return the logger of what Ray says about its token at every start."""
    return logging.getLogger(TOKEN_SETUP)


def is_ray_client() -> bool:
    """Return whether this process is connected over Ray Client (``ray://``)."""
    return bool(ray.util.client.ray.is_connected())
