"""Looking at a cluster: questions to every node, each with a deadline. What it means is told by
:mod:`maml_ray.jobs.doctor`.
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

from maml_ray.common.versions import versions
from maml_ray.config.settings import Settings
from maml_ray.jobs import doctor
from maml_ray.jobs.doctor import Finding, GpuSeen, NodeSeen, StorageSeen
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.persistence.storage import call_with_timeout, open_storage
from maml_ray.runtime.actor_handle import describe_error

VIDEO_S = 30.0
"""Deadline for a picture: where OpenGL is broken it may hang."""
_PICTURE = "import mujoco; c = mujoco.GLContext(64, 64); c.make_current(); c.free()"


def examine(settings: Settings, deadline_s: float) -> Iterator[Finding]:
    """Everything about the cluster that this program is connected to, as it is found out.

    Args:
        settings: of a run that is to be; nothing of it is begun.
        deadline_s: for the nodes' answers to each question.
    """
    available = ray.cluster_resources()
    yield doctor.judge_resources(settings.cluster, available)
    nodes = see_nodes(deadline_s)
    yield from doctor.judge_versions(own_versions(), nodes)
    gpus = int(available.get("GPU", 0))
    asked = gpus > 0 and settings.cluster.learner_device != "cpu"
    yield doctor.judge_gpu(settings.cluster, gpus, see_gpu(deadline_s) if asked else None)
    yield from doctor.judge_memory(nodes, batch_bytes(settings))
    yield from doctor.judge_storage(see_storage(settings, deadline_s))
    yield doctor.judge_video(see_video() if settings.evaluation.video else None)


def own_versions() -> Mapping[str, str]:
    """Versions of this program, as :func:`see_nodes` has those of the nodes."""
    own = versions()
    return {name: own[name] for name in (*doctor.EXACT, *doctor.BITS)}


def see_nodes(deadline_s: float) -> list[NodeSeen]:
    """What every node says of itself; those that do not answer are told by name."""
    names = (*doctor.EXACT, *doctor.BITS)
    answers = ask_nodes(_self_portrait(), (names,), deadline_s)
    seen = []
    for node in living_nodes():
        name, resources = node_name(node), node.get("Resources", {})
        store = int(resources.get("object_store_memory", 0))
        answer = answers.get(node["NodeID"], "it joined while the others were asked")
        if isinstance(answer, str):
            seen.append(NodeSeen(name, silence=answer, store_bytes=store))
        else:
            seen.append(NodeSeen(name, answer["versions"], "", store, answer["shm_bytes"]))
    return seen


def see_gpu(deadline_s: float) -> GpuSeen:
    """What a process with a GPU of Ray's sees of it."""

    def look() -> tuple[str | None, str]:
        import torch

        there = torch.cuda.is_available()
        return (torch.cuda.get_device_name(0) if there else None), str(torch.__version__)

    ref = _remote(look, num_cpus=0, num_gpus=1)
    answer = _answer(ref, deadline_s)
    return GpuSeen(silence=answer) if isinstance(answer, str) else GpuSeen(*answer)


def see_storage(settings: Settings, deadline_s: float) -> StorageSeen:
    """Write a marker where runs are kept, have every node read it and write one, remove them."""
    shared = settings.run.storage is not None
    place = settings.run.storage or os.path.abspath(settings.run.directory)
    made = [] if shared else _missing(Path(place))
    folder = f".doctor-{secrets.token_hex(4)}"
    storage = open_storage(place)
    others = len(living_nodes()) > 1
    try:
        call_with_timeout(deadline_s, lambda: storage.write(f"{folder}/driver", folder.encode()))
        away = _storage_of_nodes(place, folder, deadline_s) if others else {}
        call_with_timeout(deadline_s, lambda: storage.remove(folder))
    except OSError as error:
        return StorageSeen(place, " ".join(str(error).split())[:300], shared=shared)
    finally:
        for path in made:
            with suppress(OSError):  # not there, or not empty any more: somebody's run
                path.rmdir()
    return StorageSeen(place, "", away, shared)


def see_video(deadline_s: float = VIDEO_S) -> str | None:
    """Why no picture can be made on this machine; None where one can."""
    environment = dict(os.environ)
    if sys.platform == "linux" and not environment.get("DISPLAY"):
        environment.setdefault("MUJOCO_GL", "egl")
    command = [sys.executable, "-c", _PICTURE]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=deadline_s
        )
    except subprocess.TimeoutExpired:
        return f"OpenGL has not answered within {deadline_s:.0f} s"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else f"it ended with code {done.returncode}"


def batch_bytes(settings: Settings) -> int:
    """About how large the trajectories of one iteration are."""
    spec, batch = policy_spec(settings), settings.meta_batch
    steps = batch.tasks * batch.episodes * settings.task.horizon * (settings.inner.steps + 1)
    return steps * 4 * (spec.observation_size + spec.action_size + 3)


def living_nodes() -> list[dict[str, Any]]:
    """The cluster's nodes, in the order of their addresses."""
    nodes = [node for node in ray.nodes() if node.get("Alive", False)]
    return sorted(nodes, key=lambda node: (str(node.get("NodeManagerAddress")), node["NodeID"]))


def node_name(node: Mapping[str, Any]) -> str:
    """A node, for people."""
    return f"{node.get('NodeManagerHostname', '?')} (node {str(node['NodeID'])[:8]})"


def ask_nodes(
    question: Callable[..., Any], arguments: Sequence[Any], deadline_s: float
) -> dict[str, Any]:
    """The answer of every living node by its id; a string says why there is none."""
    refs = {}
    for node in living_nodes():
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        refs[node["NodeID"]] = _remote(question, *arguments, num_cpus=0, scheduling_strategy=where)
    end = time.monotonic() + deadline_s
    return {
        node_id: _answer(ref, max(0.0, end - time.monotonic()), deadline_s)
        for node_id, ref in refs.items()
    }


def _remote(question: Callable[..., Any], *arguments: Any, **options: Any) -> ray.ObjectRef[Any]:
    remote: Any = ray.remote(question)
    name = f"doctor[{question.__name__.strip('_')}]"
    # Once more where the worker was still ending with a question that was given up.
    asked: ray.ObjectRef[Any] = remote.options(name=name, max_retries=1, **options).remote(
        *arguments
    )
    return asked


def _answer(ref: ray.ObjectRef[Any], wait_s: float, deadline_s: float | None = None) -> Any:
    """An answer, or why there is none."""
    if not ray.wait([ref], timeout=wait_s)[0]:
        ray.cancel(ref, force=True)
        return f"nothing within {wait_s if deadline_s is None else deadline_s:.0f} s"
    try:
        return ray.get(ref, timeout=10.0)
    except RayError as error:
        return describe_error(error)


def _self_portrait() -> Callable[..., dict[str, Any]]:
    """A question that is sent as code: a node without this package answers it too."""

    def portrait(names: Sequence[str]) -> dict[str, Any]:
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
        try:  # a job's upload is not installed, and is what is imported
            from maml_ray.common.versions import own_version

            found["maml-ray"] = own_version()
        except ImportError:
            found["maml-ray"] = ""
        shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
        return {
            "versions": found,
            "shm_bytes": None if shm is None else shm.f_frsize * shm.f_blocks,
        }

    return portrait


def _storage_of_nodes(place: str, folder: str, deadline_s: float) -> dict[str, str]:
    """Which nodes cannot read the driver's marker or write their own, and why."""

    def marker(place: str, folder: str) -> str | None:
        import ray

        from maml_ray.persistence.storage import open_storage

        storage, name = open_storage(place), ray.get_runtime_context().get_node_id()
        try:
            if storage.read(f"{folder}/driver") != folder.encode():
                return "another file is there"
            storage.write(f"{folder}/{name}", b"")
        except FileNotFoundError:
            return "the driver's marker file is not there"
        except OSError as error:
            return str(error)[:200]
        return None

    answers = ask_nodes(marker, (place, folder), deadline_s)
    names = {node["NodeID"]: node_name(node) for node in living_nodes()}
    return {
        names.get(node_id, node_id): answer
        for node_id, answer in answers.items()
        if answer is not None
    }


def _missing(path: Path) -> list[Path]:
    """The folders that writing to ``path`` makes, the innermost first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    return missing
