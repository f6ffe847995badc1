"""Probe a cluster: run a function on every node with a time limit.

:mod:`maml_ray.jobs.doctor` interprets the results.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from maml_ray.common.locations import expand_path
from maml_ray.common.versions import versions
from maml_ray.config.sections import TaskSettings
from maml_ray.config.settings import Settings
from maml_ray.jobs import doctor
from maml_ray.jobs.doctor import Finding, GpuReport, NodeReport, StorageReport
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.persistence.run_storage import check_locations, storage_location
from maml_ray.persistence.storage import call_with_timeout, open_storage
from maml_ray.rollouts.first_steps import try_first_steps
from maml_ray.runtime.actor_handle import describe_error
from maml_ray.tasks.loading import resolve_tasks

VIDEO_TIMEOUT_S = 60.0
"""Seconds to import a task and render an image of it, which may hang if OpenGL is broken."""
_RENDER_SCRIPT = """
import json, sys
from maml_ray.config.sections import TaskSettings
from maml_ray.evaluation.video import VideoUnavailable, check_rendering
from maml_ray.tasks.loading import resolve_tasks
task = TaskSettings.model_validate_json(sys.argv[1])
try:
    check_rendering(resolve_tasks(task), task.horizon)
except VideoUnavailable as error:
    sys.exit(str(error))
"""


def run_checks(settings: Settings, deadline_s: float) -> Iterator[Finding]:
    """Check the connected cluster, yielding each finding as soon as it is known.

    Args:
        settings: of a run to be started later.
        deadline_s: seconds for the nodes to answer each probe.

    Raises:
        SettingsError: the tasks or their environment cannot be used on this machine.
    """
    try_first_steps(settings, resolve_tasks(settings.task))
    available = ray.cluster_resources()
    yield doctor.check_resources(settings.cluster, available)
    nodes = probe_nodes(deadline_s)
    yield from doctor.check_versions(local_versions(), nodes)
    gpus = int(available.get("GPU", 0))
    uses_gpu = gpus > 0 and settings.cluster.learner_device != "cpu"
    yield doctor.check_gpu(settings.cluster, gpus, probe_gpu(deadline_s) if uses_gpu else None)
    yield from doctor.check_memory(nodes, meta_batch_bytes(settings))
    yield from doctor.check_storage(probe_storage(settings, deadline_s))
    yield doctor.check_video(probe_video(settings.task) if settings.evaluation.video else None)


def local_versions() -> Mapping[str, str]:
    """Return the versions of this process that :func:`probe_nodes` returns of the nodes."""
    local = versions()
    return {name: local[name] for name in (*doctor.MUST_MATCH, *doctor.AFFECT_RESULTS)}


def probe_nodes(deadline_s: float) -> list[NodeReport]:
    """Return software and memory of every node, or why it did not answer."""
    names = (*doctor.MUST_MATCH, *doctor.AFFECT_RESULTS)
    answers = run_on_nodes(_make_node_probe(), (names,), deadline_s)
    reports = []
    for node in alive_nodes():
        name, resources = node_name(node), node.get("Resources", {})
        store = int(resources.get("object_store_memory", 0))
        answer = answers.get(node["NodeID"], "it joined during the probe")
        if isinstance(answer, str):
            reports.append(NodeReport(name, error=answer, store_bytes=store))
        else:
            reports.append(NodeReport(name, answer["versions"], "", store, answer["shm_bytes"]))
    return reports


def probe_gpu(deadline_s: float) -> GpuReport:
    """Return the GPU that a process sees to which Ray has assigned one."""

    def gpu_name() -> tuple[str | None, str]:
        import torch

        name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
        return name, str(torch.__version__)

    answer = _await_answer(_start_task(gpu_name, num_cpus=0, num_gpus=1), deadline_s)
    return GpuReport(error=answer) if isinstance(answer, str) else GpuReport(*answer)


def probe_storage(settings: Settings, deadline_s: float) -> StorageReport:
    """Write a marker where runs are kept, have every node read it and write one, remove them."""
    check_locations(settings)
    stored = storage_location(settings.run)
    shared = stored is not None
    location = stored or str(expand_path(settings.run.directory, "run.directory").absolute())
    created = [] if shared else _missing_directories(Path(location))
    folder = f".doctor-{secrets.token_hex(4)}"
    storage = open_storage(location)
    has_other_nodes = len(alive_nodes()) > 1
    try:
        call_with_timeout(deadline_s, lambda: storage.write(f"{folder}/driver", folder.encode()))
        errors = _probe_storage_on_nodes(location, folder, deadline_s) if has_other_nodes else {}
        call_with_timeout(deadline_s, lambda: storage.remove(folder))
    except OSError as error:
        return StorageReport(location, " ".join(str(error).split())[:300], shared=shared)
    finally:
        for path in created:
            with suppress(OSError):  # not created, or in use by a run meanwhile
                path.rmdir()
    return StorageReport(location, "", errors, shared)


def probe_video(task: TaskSettings, deadline_s: float = VIDEO_TIMEOUT_S) -> str | None:
    """Return why no video of the task can be recorded on this machine; None if it can."""
    command = [sys.executable, "-c", _RENDER_SCRIPT, task.model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        process = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=deadline_s,
        )
    except subprocess.TimeoutExpired:
        return f"no video: no image was rendered within {deadline_s:.0f} s"
    if process.returncode == 0:
        return None
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"no video: exit code {process.returncode}"


def meta_batch_bytes(settings: Settings) -> int:
    """Return the approximate size of the trajectories of one iteration."""
    spec, batch = policy_spec(settings), settings.meta_batch
    steps = batch.tasks * batch.episodes * settings.task.horizon * (settings.inner.steps + 1)
    return steps * 4 * (spec.observation_size + spec.action_size + 3)


def alive_nodes() -> list[dict[str, Any]]:
    """Return the nodes of the cluster that are alive, sorted by address."""
    nodes = [node for node in ray.nodes() if node.get("Alive", False)]
    return sorted(nodes, key=lambda node: (str(node.get("NodeManagerAddress")), node["NodeID"]))


def node_name(node: Mapping[str, Any]) -> str:
    """Return the hostname and short id of a node."""
    return f"{node.get('NodeManagerHostname', '?')} (node {str(node['NodeID'])[:8]})"


def run_on_nodes(
    function: Callable[..., Any], arguments: Sequence[Any], deadline_s: float
) -> dict[str, Any]:
    """Return the result of ``function`` on every node by its id, or a string with the error."""
    refs = {}
    for node in alive_nodes():
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        refs[node["NodeID"]] = _start_task(
            function, *arguments, num_cpus=0, scheduling_strategy=on_node
        )
    end = time.monotonic() + deadline_s
    return {
        node_id: _await_answer(ref, max(0.0, end - time.monotonic()), deadline_s)
        for node_id, ref in refs.items()
    }


def _start_task(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    task: Any = ray.remote(function)
    name = f"doctor[{function.__name__.strip('_')}]"
    # One retry, for a worker that was still being stopped after an earlier probe timed out.
    return task.options(name=name, max_retries=1, **options).remote(*arguments)


def _await_answer(ref: Any, wait_s: float, deadline_s: float | None = None) -> Any:
    """Return the result of a task, or a string with the error."""
    if not ray.wait([ref], timeout=wait_s)[0]:
        ray.cancel(ref, force=True)
        return f"no answer within {wait_s if deadline_s is None else deadline_s:.0f} s"
    try:
        return ray.get(ref, timeout=10.0)
    except RayError as error:
        return describe_error(error)


def _make_node_probe() -> Callable[..., dict[str, Any]]:
    """Return a function that is pickled by value, so that nodes without maml_ray can run it."""

    def node_report(names: Sequence[str]) -> dict[str, Any]:
        import os
        import platform
        from importlib import metadata

        found = {"python": platform.python_version()}
        for name in names:
            if name in found:
                continue
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = ""
        try:  # a job imports maml_ray from its upload, without metadata
            from maml_ray.common.versions import own_version

            found["maml-ray"] = own_version()
        except ImportError:
            found["maml-ray"] = ""
        shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
        return {
            "versions": found,
            "shm_bytes": None if shm is None else shm.f_frsize * shm.f_blocks,
        }

    return node_report


def _probe_storage_on_nodes(location: str, folder: str, deadline_s: float) -> dict[str, str]:
    """Return, by name, why nodes cannot read the driver's marker or write their own."""

    def marker(location: str, folder: str) -> str | None:
        import ray

        from maml_ray.persistence.storage import open_storage

        storage, name = open_storage(location), ray.get_runtime_context().get_node_id()
        try:
            if storage.read(f"{folder}/driver") != folder.encode():
                return "the driver's marker file has other content"
            storage.write(f"{folder}/{name}", b"")
        except FileNotFoundError:
            return "the driver's marker file is not there"
        except OSError as error:
            return str(error)[:200]
        return None

    answers = run_on_nodes(marker, (location, folder), deadline_s)
    names = {node["NodeID"]: node_name(node) for node in alive_nodes()}
    return {
        names.get(node_id, node_id): answer
        for node_id, answer in answers.items()
        if answer is not None
    }


def _missing_directories(path: Path) -> list[Path]:
    """Return the directories that writing to ``path`` would create, the innermost first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    return missing
