"""Findings from made-up reports, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from maml_ray.config.sections import ClusterSettings
from maml_ray.jobs.doctor import (
    Finding,
    GpuReport,
    Level,
    NodeReport,
    StorageReport,
    check_gpu,
    check_memory,
    check_resources,
    check_storage,
    check_upload,
    check_versions,
    check_video,
)

OWN = {
    "ray": "2.60.0",
    "python": "3.11.7",
    "maml-ray": "0.1.0",
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "numba": "0.68.1",
    "llvmlite": "0.50.0",
    "mujoco": "3.10.0",
    "gymnasium": "1.4.0",
}


def asked(**settings: Any) -> ClusterSettings:
    return ClusterSettings.model_validate(settings)


def node(name: str = "a", **versions: str) -> NodeReport:
    return NodeReport(name, {**OWN, **{key.replace("_", "-"): v for key, v in versions.items()}})


def levels(findings: list[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


@pytest.mark.parametrize(
    ("settings", "available", "level", "words"),
    [
        ({}, {"CPU": 4.0}, Level.OK, "4 CPUs and 0 GPUs: 4 rollout actors, learner on cpu"),
        ({}, {"CPU": 2.0, "GPU": 1.0}, Level.OK, "learner on cuda"),
        (
            {"rollout_actors": 8},
            {"CPU": 2.0},
            Level.WARNING,
            "than cluster.rollout_actors = 8",
        ),
        ({"min_rollout_actors": 3}, {"CPU": 2.0}, Level.PROBLEM, "min_rollout_actors is 3"),
        ({}, {}, Level.PROBLEM, "has 0 CPUs"),
        ({"autoscaler": True}, {}, Level.WARNING, "at most 600 s (cluster.start_timeout_s)"),
        ({"learner_device": "cuda"}, {"CPU": 2.0}, Level.PROBLEM, "no GPU"),
        (
            {"learner_device": "cuda", "autoscaler": True},
            {"CPU": 2.0},
            Level.WARNING,
            "the autoscaler must add nodes",
        ),
    ],
)
def test_resources(
    settings: dict[str, Any], available: Mapping[str, float], level: Level, words: str
) -> None:
    finding = check_resources(asked(**settings), available)
    assert finding.level is level
    assert words in str(finding)


def test_the_same_versions_everywhere_are_one_line() -> None:
    (finding,) = check_versions(OWN, [node("a"), node("b")])
    assert finding.level is Level.OK
    assert "ray 2.60.0" in finding.message
    assert "2 nodes" in finding.message


@pytest.mark.parametrize(
    ("versions", "level", "words"),
    [
        ({"maml_ray": "0.0.9"}, Level.PROBLEM, "maml-ray is 0.0.9 on b and 0.1.0 here"),
        ({"maml_ray": ""}, Level.PROBLEM, "maml-ray is not installed on b"),
        ({"mujoco": ""}, Level.PROBLEM, "mujoco is not installed on b"),
        ({"torch": "2.12.0"}, Level.WARNING, "last bits"),
        ({"ray": "2.59.0"}, Level.PROBLEM, "ray is 2.59.0 on b"),
    ],
)
def test_another_version_is_reported_with_its_node(
    versions: dict[str, str], level: Level, words: str
) -> None:
    (finding,) = check_versions(OWN, [node("a"), node("b", **versions)])
    assert finding.level is level
    assert words in str(finding)


def test_nodes_of_the_same_other_version_share_a_line() -> None:
    odd = [node(name, numpy="2.0.0") for name in ("b", "c")]
    (finding,) = check_versions(OWN, [node("a"), *odd])
    assert "2.0.0 on b, c" in finding.message


def test_a_node_that_does_not_answer_is_reported_by_name_and_the_others_are_checked() -> None:
    silent = NodeReport("gone (node 1234)", None, "no answer within 60 s")
    findings = check_versions(OWN, [silent, node("b", torch="1")])
    assert levels(findings) == [Level.PROBLEM, Level.WARNING]
    assert "gone (node 1234) does not answer (no answer within 60 s)" in findings[0].message


@pytest.mark.parametrize(
    ("device", "gpus", "seen", "level", "words"),
    [
        ("cpu", 1, None, Level.OK, "not requested"),
        ("auto", 0, None, Level.OK, "the learner uses CPUs"),
        ("auto", 2, GpuReport("H100", "2.13"), Level.OK, "Ray has 2, and the learner sees H100"),
        ("auto", 1, GpuReport(None, "2.13.0+cpu"), Level.WARNING, "PyTorch 2.13.0+cpu sees none"),
        ("cuda", 1, GpuReport(None, "2.13.0+cpu"), Level.PROBLEM, "CUDA build"),
        ("cuda", 1, GpuReport(error="no answer within 9 s"), Level.PROBLEM, "no answer within 9 s"),
    ],
)
def test_the_learner_s_gpu(
    device: str, gpus: int, seen: GpuReport | None, level: Level, words: str
) -> None:
    finding = check_gpu(asked(learner_device=device), gpus, seen)
    assert finding.level is level
    assert words in str(finding)


def test_shared_memory_smaller_than_the_object_store_is_reported_with_docker_s_option() -> None:
    roomy = NodeReport("a", OWN, "", 2 * 10**9, 4 * 10**9)
    tight = NodeReport("b", OWN, "", 2 * 10**9, 64 * 10**6)
    mac = NodeReport("c", OWN, "", 2 * 10**9, None)
    assert levels(check_memory([roomy, mac], 10**6)) == [Level.OK]
    (finding,) = check_memory([roomy, tight, mac], 10**6)
    assert finding.level is Level.WARNING
    assert finding.message.startswith("b: ")
    assert "--shm-size=2000m" in finding.remedy


def test_a_meta_batch_that_no_store_holds_is_a_problem() -> None:
    nodes = [NodeReport("a", OWN, "", 10**9, None)] * 2
    assert levels(check_memory(nodes, 2 * 10**9)) == [Level.OK]
    (finding,) = check_memory(nodes, 2 * 10**9 + 1)
    assert finding.level is Level.PROBLEM
    assert "meta_batch.tasks" in finding.remedy


@pytest.mark.parametrize(
    ("seen", "level", "words"),
    [
        (StorageReport("s3://b"), Level.OK, "readable by all nodes"),
        (StorageReport("s3://b", "denied"), Level.PROBLEM, "(denied): fix it, or set run.storage"),
        (StorageReport("/r", "full", shared=False), Level.PROBLEM, "set run.directory"),
        (
            StorageReport("s3://b", "", {"n": "no key"}),
            Level.PROBLEM,
            "accessible on n (no key)",
        ),
        (StorageReport("/r", "", {"n": "x"}, shared=False), Level.WARNING, "set run.storage"),
    ],
)
def test_storage(seen: StorageReport, level: Level, words: str) -> None:
    (finding,) = check_storage(seen)
    assert finding.level is level
    assert words in str(finding)


def test_uploads_and_videos() -> None:
    assert check_upload("1 MB", is_small_enough=True).level is Level.OK
    assert ".rayignore" in str(check_upload("11 MB", is_small_enough=False))
    assert check_upload("11 MB", is_small_enough=False).level is Level.PROBLEM
    assert check_video(None).level is Level.OK
    assert check_video("no EGL").level is Level.WARNING
    assert "evaluation.video=false" in str(check_video("no EGL"))


def test_a_finding_is_one_line_whatever_a_node_is_called() -> None:
    finding = Finding(Level.WARNING, "versions", "a\nb\x1b[2J", "mend it")
    assert "\n" not in str(finding)
    assert "\x1b" not in str(finding)
    assert str(finding).startswith("warning ")
    assert str(finding).endswith(": mend it")
