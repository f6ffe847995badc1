"""Turn probe results of a cluster into findings with fixes. Pure functions, no side effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from maml_ray.common.errors import ResourceError, escape_unprintable
from maml_ray.config.sections import ClusterSettings
from maml_ray.runtime.capacity import plan_resources

MUST_MATCH = ("ray", "python", "maml-ray")
"""Versions that must be equal on all machines for a run to work."""
AFFECT_RESULTS = ("torch", "numpy", "numba", "llvmlite", "mujoco", "gymnasium")
"""Packages that are required, and whose versions change the last bits of results."""


class Level(Enum):
    """Severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Attributes:
        level: its severity.
        subject: what was checked, in one word.
        message: what was found.
        remedy: how to fix it.
    """

    level: Level
    subject: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f": {self.remedy}" if self.remedy else ""
        return escape_unprintable(f"{self.level.value:8} {self.subject:10} {self.message}{remedy}")


@dataclass(frozen=True)
class NodeReport:
    """Software and memory of a node.

    Attributes:
        name: hostname and short id.
        versions: of packages, by name; None if the node did not answer.
        error: why the node did not answer.
        store_bytes: capacity of its object store.
        shm_bytes: capacity of its /dev/shm; None if it has none.
    """

    name: str
    versions: Mapping[str, str] | None = None
    error: str = ""
    store_bytes: int = 0
    shm_bytes: int | None = None


@dataclass(frozen=True)
class GpuReport:
    """The GPU as seen by a process to which Ray has assigned one.

    Attributes:
        name: of the GPU; None if PyTorch sees none.
        torch: version of PyTorch, including its build.
        error: why no such process answered.
    """

    name: str | None = None
    torch: str = ""
    error: str = ""


@dataclass(frozen=True)
class StorageReport:
    """Access to a marker file in the location of runs.

    Attributes:
        location: directory or URL.
        error: why the driver could not write, read or remove the file; empty if it could.
        node_errors: why a node could not, by its name.
        shared: the location is ``run.storage``, which all machines must reach.
    """

    location: str
    error: str = ""
    node_errors: Mapping[str, str] = field(default_factory=dict)
    shared: bool = True


def check_resources(settings: ClusterSettings, available: Mapping[str, float]) -> Finding:
    """Check whether the cluster has the resources that a run needs.

    Args:
        settings: of the run.
        available: the cluster's resources, as ``ray.cluster_resources()``.
    """
    try:
        plan = plan_resources(settings, available)
    except ResourceError as error:
        return Finding(Level.PROBLEM, "resources", str(error))
    cpus, gpus = available.get("CPU", 0), available.get("GPU", 0)
    total = f"the cluster has {cpus:.0f} CPUs and {gpus:.0f} GPUs"
    if cpus < settings.min_rollout_actors or plan.learner_gpus > gpus:
        return Finding(
            Level.WARNING,
            "resources",
            f"{total}; the autoscaler must add nodes",
            f"the run waits for them for at most {settings.start_timeout_s:.0f} s "
            "(cluster.start_timeout_s)",
        )
    requested = settings.rollout_actors
    message = f"{total}: {plan.rollout_actors} rollout actors, learner on {plan.learner_device}"
    if requested is not None and requested > plan.rollout_actors:
        return Finding(
            Level.WARNING,
            "resources",
            f"{message}, fewer than cluster.rollout_actors = {requested}",
            "the run starts with these and adds more as nodes join",
        )
    return Finding(Level.OK, "resources", message)


def check_versions(local: Mapping[str, str], nodes: Sequence[NodeReport]) -> list[Finding]:
    """Check whether all nodes run the local versions: one finding per problem, or a single OK."""
    findings = [
        Finding(
            Level.PROBLEM,
            "versions",
            f"{node.name} does not answer ({node.error})",
            "see its logs in the dashboard; installing a job's requirements takes a node minutes "
            "the first time",
        )
        for node in nodes
        if node.versions is None
    ]
    answered = [node for node in nodes if node.versions is not None]
    for package in (*MUST_MATCH, *AFFECT_RESULTS):
        findings += _compare_versions(package, local[package], answered)
    if not findings:
        versions = ", ".join(f"{name} {local[name]}" for name in (*MUST_MATCH, *AFFECT_RESULTS))
        count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
        findings = [Finding(Level.OK, "versions", f"{versions}, here and on {count}")]
    return findings


def _compare_versions(package: str, local: str, nodes: Sequence[NodeReport]) -> list[Finding]:
    """Return a finding for each other version of ``package``, with all nodes that have it."""
    others: dict[str, list[str]] = {}
    for node in nodes:
        version = (node.versions or {}).get(package, "")
        if version != local:
            others.setdefault(version, []).append(node.name)
    findings = []
    for version, names in sorted(others.items()):
        where = ", ".join(names)
        level, remedy = Level.PROBLEM, "use the same version everywhere"
        if not version:
            message = f"{package} is not installed on {where}"
            remedy = "install it there, or use maml-ray submit, which installs it"
        else:
            message = f"{package} is {version} on {where} and {local} here"
            if package in AFFECT_RESULTS:
                level = Level.WARNING
                remedy = f"results differ in their last bits; {remedy}"
        findings.append(Finding(level, "versions", message, remedy))
    return findings


def check_gpu(settings: ClusterSettings, gpus: int, report: GpuReport | None) -> Finding:
    """Check whether the learner gets a GPU from Ray that PyTorch can use.

    Args:
        settings: of the run.
        gpus: number of GPUs in the cluster.
        report: None if no process was asked.
    """
    if settings.learner_device == "cpu":
        return Finding(Level.OK, "gpu", "not requested (cluster.learner_device is cpu)")
    if gpus < 1:
        return Finding(Level.OK, "gpu", "the cluster has none; the learner uses CPUs")
    level = Level.PROBLEM if settings.learner_device == "cuda" else Level.WARNING
    if report is None or report.error:
        reason = report.error if report is not None else "not probed"
        return Finding(level, "gpu", f"no GPU is available ({reason})", "another job may use it")
    if report.name is None:
        return Finding(
            level,
            "gpu",
            f"Ray gives the learner a GPU, but PyTorch {report.torch} sees none",
            "install a CUDA build of PyTorch and the driver of the GPU there",
        )
    return Finding(Level.OK, "gpu", f"Ray has {gpus}, and the learner sees {report.name}")


def check_memory(nodes: Sequence[NodeReport], batch_bytes: int) -> list[Finding]:
    """Check whether a meta-batch fits the object stores, and these fit the shared memory."""
    findings = []
    for node in nodes:
        if node.shm_bytes is not None and 0 < node.shm_bytes < node.store_bytes:
            findings.append(
                Finding(
                    Level.WARNING,
                    "memory",
                    f"{node.name}: the object store has {_size(node.store_bytes)} but /dev/shm has "
                    f"{_size(node.shm_bytes)}, so Ray uses the disk, which is slow",
                    f"docker run --shm-size={node.store_bytes // 10**6}m, or an emptyDir with "
                    "medium: Memory at /dev/shm",
                )
            )
    store = sum(node.store_bytes for node in nodes)
    message = f"a meta-batch is about {_size(batch_bytes)}, the object stores hold {_size(store)}"
    if store and batch_bytes > store:
        findings.append(
            Finding(
                Level.PROBLEM,
                "memory",
                message,
                "lower meta_batch.tasks or meta_batch.episodes, or add nodes",
            )
        )
    return findings or [Finding(Level.OK, "memory", message)]


def check_storage(report: StorageReport) -> list[Finding]:
    """Check whether a run's files can be written, and read by other machines."""
    location = report.location
    key = "run.storage" if report.shared else "run.directory"
    if report.error:
        message = f"{location} is not writable ({report.error})"
        remedy = f"fix it, or set {key} to a writable location"
        return [Finding(Level.PROBLEM, "storage", message, remedy)]
    if not report.node_errors:
        return [Finding(Level.OK, "storage", f"{location} is writable, and readable by all nodes")]
    if report.shared:
        return [
            Finding(
                Level.PROBLEM,
                "storage",
                f"{location} is not accessible on {name} ({reason})",
                "give the node what it lacks: credentials, a package or a mount",
            )
            for name, reason in report.node_errors.items()
        ]
    return [
        Finding(
            Level.WARNING,
            "storage",
            f"{location} is on the driver's machine only, not on {', '.join(report.node_errors)}",
            "set run.storage to be able to resume the run after the loss of that machine",
        )
    ]


def check_upload(description: str, is_small_enough: bool) -> Finding:
    """Check the size of a job's upload."""
    if is_small_enough:
        return Finding(Level.OK, "upload", description)
    return Finding(
        Level.PROBLEM, "upload", description, "list what the job does not need in .rayignore"
    )


def check_video(error: str | None) -> Finding:
    """Check whether the machine that evaluates can render the video.

    Args:
        error: why it cannot and what to do; None if it can.
    """
    if error is None:
        return Finding(Level.OK, "video", "can be rendered here")
    return Finding(Level.WARNING, "video", f"{error}; or set evaluation.video=false")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.0f} MB"
