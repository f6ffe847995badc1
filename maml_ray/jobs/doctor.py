"""From what was seen of a cluster to what a person is told of it: values, no side effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from maml_ray.common.errors import ResourceError, escape_unprintable
from maml_ray.config.settings import ClusterSettings
from maml_ray.runtime.ray_session import plan_resources

EXACT = ("ray", "python", "maml-ray")
"""What has to be the same on all machines for a run to work."""
BITS = ("torch", "numpy", "scipy", "numba", "llvmlite", "mujoco", "gymnasium")
"""What has to be there, and the same for the same results to the last bit."""


class Level(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Attributes:
        level: how bad it is.
        subject: what was looked at, in a word.
        told: what was seen.
        remedy: what to do about it.
    """

    level: Level
    subject: str
    told: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f": {self.remedy}" if self.remedy else ""
        return escape_unprintable(f"{self.level.value:8} {self.subject:10} {self.told}{remedy}")


@dataclass(frozen=True)
class NodeSeen:
    """What a node says of itself.

    Attributes:
        name: for people.
        versions: of packages, by name; None where the node did not answer.
        silence: why it did not, where it did not.
        store_bytes: of its object store.
        shm_bytes: of its shared memory; None where it has no such file system.
    """

    name: str
    versions: Mapping[str, str] | None = None
    silence: str = ""
    store_bytes: int = 0
    shm_bytes: int | None = None


@dataclass(frozen=True)
class GpuSeen:
    """What a process that Ray has given a GPU sees of it.

    Attributes:
        name: of the GPU, as PyTorch has it; None where PyTorch sees none.
        torch: its version, which tells the build.
        silence: why nothing was seen, where no such process answered.
    """

    name: str | None = None
    torch: str = ""
    silence: str = ""


@dataclass(frozen=True)
class StorageSeen:
    """A marker file that the driver wrote where a run is kept.

    Attributes:
        place: where that is.
        error: why the driver could not write, read or remove it; empty where it could.
        away: why a node could not, by its name.
        shared: whether ``run.storage`` says that it is one place for all machines.
    """

    place: str
    error: str = ""
    away: Mapping[str, str] = field(default_factory=dict)
    shared: bool = True


def judge_resources(settings: ClusterSettings, available: Mapping[str, float]) -> Finding:
    """Whether there is what a run asks for.

    Args:
        settings: what is asked for.
        available: what the cluster has, as ``ray.cluster_resources()``.
    """
    try:
        plan = plan_resources(settings, available)
    except ResourceError as error:
        return Finding(Level.PROBLEM, "resources", str(error))
    cpus, gpus = available.get("CPU", 0), available.get("GPU", 0)
    there = f"the cluster has {cpus:.0f} CPUs and {gpus:.0f} GPUs"
    if cpus < settings.min_rollout_actors or plan.learner_gpus > gpus:
        return Finding(
            Level.WARNING,
            "resources",
            f"{there}; more is asked for, which its autoscaler is to bring",
            f"the run waits for it, at most {settings.start_timeout_s:.0f} s "
            "(cluster.start_timeout_s)",
        )
    asked = settings.rollout_actors
    told = f"{there}: {plan.rollout_actors} rollout actors, learner on {plan.learner_device}"
    if asked is not None and asked > plan.rollout_actors:
        return Finding(
            Level.WARNING,
            "resources",
            f"{told}, of cluster.rollout_actors = {asked}",
            "the run begins with fewer, and takes more when nodes come",
        )
    return Finding(Level.OK, "resources", told)


def judge_versions(own: Mapping[str, str], nodes: Sequence[NodeSeen]) -> list[Finding]:
    """Whether all machines run the same; a line for each thing that is wrong, or one."""
    findings = [
        Finding(
            Level.PROBLEM,
            "versions",
            f"{node.name} does not answer ({node.silence})",
            "see its logs in the dashboard; a node that installs a job's requirements needs "
            "minutes the first time",
        )
        for node in nodes
        if node.versions is None
    ]
    answered = [node for node in nodes if node.versions is not None]
    for package in (*EXACT, *BITS):
        findings += _compare(package, own[package], answered)
    if not findings:
        told = ", ".join(f"{package} {own[package]}" for package in (*EXACT, *BITS))
        count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
        findings = [Finding(Level.OK, "versions", f"{told}, here and on {count}")]
    return findings


def _compare(package: str, own: str, nodes: Sequence[NodeSeen]) -> list[Finding]:
    """``package`` on all nodes, nodes of the same version in one line."""
    others: dict[str, list[str]] = {}
    for node in nodes:
        version = (node.versions or {}).get(package, "")
        if version != own:
            others.setdefault(version, []).append(node.name)
    findings = []
    for version, names in sorted(others.items()):
        where = ", ".join(names)
        if not version:
            told, level = f"{package} is not there on {where}", Level.PROBLEM
            remedy = "install it there, or use maml-ray submit, which brings it along"
        else:
            told = f"{package} is {version} on {where} and {own} here"
            level = Level.PROBLEM if package in EXACT else Level.WARNING
            remedy = (
                "use the same everywhere"
                if package in EXACT
                else "results differ in their last bits; use the same everywhere"
            )
        findings.append(Finding(level, "versions", told, remedy))
    return findings


def judge_gpu(settings: ClusterSettings, gpus: int, seen: GpuSeen | None) -> Finding:
    """Whether the learner gets the GPU that it is to have, by Ray's account and by PyTorch's."""
    if settings.learner_device == "cpu":
        return Finding(Level.OK, "gpu", "not asked for (cluster.learner_device is cpu)")
    if gpus < 1:
        return Finding(Level.OK, "gpu", "the cluster has none; the learner computes on CPUs")
    insisted = settings.learner_device == "cuda"
    bad = Level.PROBLEM if insisted else Level.WARNING
    if seen is None or seen.silence:
        why = seen.silence if seen is not None else "nobody was asked"
        return Finding(bad, "gpu", f"no GPU could be had ({why})", "another job may have it")
    if seen.name is None:
        return Finding(
            bad,
            "gpu",
            f"Ray gives the learner a GPU, but PyTorch {seen.torch} sees none",
            "install a CUDA build of PyTorch and the driver of the GPU there",
        )
    return Finding(Level.OK, "gpu", f"Ray has {gpus}, and the learner sees {seen.name}")


def judge_memory(nodes: Sequence[NodeSeen], batch_bytes: int) -> list[Finding]:
    """Whether a meta-batch fits the object stores, and they fit the shared memory."""
    findings = []
    for node in nodes:
        if node.shm_bytes is not None and 0 < node.shm_bytes < node.store_bytes:
            findings.append(
                Finding(
                    Level.WARNING,
                    "memory",
                    f"{node.name}: the object store is to hold {_size(node.store_bytes)} and "
                    f"/dev/shm has {_size(node.shm_bytes)}: Ray uses the disk, which is slow",
                    f"docker run --shm-size={node.store_bytes // 10**6}m, or an emptyDir with "
                    "medium: Memory at /dev/shm",
                )
            )
    store = sum(node.store_bytes for node in nodes)
    asked = f"a meta-batch is about {_size(batch_bytes)}, the object stores hold {_size(store)}"
    if store and batch_bytes > store:
        findings.append(
            Finding(
                Level.PROBLEM,
                "memory",
                asked,
                "lower meta_batch.tasks or meta_batch.episodes, or add nodes",
            )
        )
    return findings or [Finding(Level.OK, "memory", asked)]


def judge_storage(seen: StorageSeen) -> list[Finding]:
    """Whether a run's files can be kept, and found again from another machine."""
    key = "run.storage" if seen.shared else "run.directory"
    if seen.error:
        told = f"{seen.place} cannot be written ({seen.error})"
        remedy = f"mend it, or set {key} to a place that can"
        return [Finding(Level.PROBLEM, "storage", told, remedy)]
    if not seen.away:
        return [Finding(Level.OK, "storage", f"{seen.place} can be written, and read by all nodes")]
    if seen.shared:
        return [
            Finding(
                Level.PROBLEM,
                "storage",
                f"{seen.place} is not at hand on {name} ({why})",
                "give the node what it needs for it: credentials, the package, a mount",
            )
            for name, why in seen.away.items()
        ]
    return [
        Finding(
            Level.WARNING,
            "storage",
            f"{seen.place} is on the driver's machine alone, not on {', '.join(seen.away)}",
            "a run that is to go on after that machine's end needs run.storage",
        )
    ]


def judge_upload(described: str, fits: bool) -> Finding:
    """Whether what a job sends is small enough."""
    if fits:
        return Finding(Level.OK, "upload", described)
    return Finding(
        Level.PROBLEM, "upload", described, "name what a job does not need in .rayignore"
    )


def judge_video(error: str | None) -> Finding:
    """Whether the machine that evaluates can make the video."""
    if error is None:
        return Finding(Level.OK, "video", "can be made here")
    return Finding(
        Level.WARNING,
        "video",
        f"cannot be made here ({error})",
        "install OpenGL (Debian: apt-get install libegl1 libgl1), or set evaluation.video=false",
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.0f} MB"
