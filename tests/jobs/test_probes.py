"""Probes of a real cluster of one node."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.jobs import probes
from maml_ray.jobs.doctor import Level

pytestmark = pytest.mark.usefixtures("local_ray")


def settings(**run: Any) -> Settings:
    return validate_settings({"run": run, "task": {"horizon": 20}})


def test_every_node_tells_its_versions_and_its_memory() -> None:
    (seen,) = probes.probe_nodes(60.0)
    assert seen.versions == probes.local_versions()
    assert seen.versions["python"] == platform.python_version()
    assert seen.store_bytes == pytest.approx(150_000_000, rel=0.1)
    if os.path.isdir("/dev/shm"):
        shm = os.statvfs("/dev/shm")
        assert seen.shm_bytes == shm.f_frsize * shm.f_blocks


def test_a_node_that_does_not_answer_in_time_is_reported(tmp_path: Path) -> None:
    def never(path: str) -> None:

        while not os.path.exists(path):
            time.sleep(0.05)

    answers = probes.run_on_nodes(never, (str(tmp_path / "end"),), 1.0)
    (tmp_path / "end").touch()
    assert list(answers.values()) == ["no answer within 1 s"]


def test_a_question_that_fails_is_answered_with_its_reason() -> None:
    def broken() -> None:
        raise ValueError("no such thing")

    (answer,) = probes.run_on_nodes(broken, (), 60.0).values()
    assert answer == "ValueError: no such thing"


def test_a_gpu_that_nobody_has_is_waited_for_no_longer_than_the_deadline() -> None:
    assert probes.probe_gpu(0.2).error.startswith("no answer within")


def test_the_storage_s_marker_leaves_no_trace(tmp_path: Path) -> None:
    seen = probes.probe_storage(settings(directory=str(tmp_path / "deep" / "runs")), 30.0)
    assert (seen.error, seen.node_errors, seen.shared) == ("", {}, False)
    assert not list(tmp_path.iterdir())
    seen = probes.probe_storage(settings(storage=f"file://{tmp_path}"), 30.0)
    assert (seen.error, seen.shared) == ("", True)
    assert not list(tmp_path.iterdir())


def test_a_node_reads_the_driver_s_marker_and_writes_its_own(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "driver").write_text("f")
    assert probes._probe_storage_on_nodes(str(tmp_path), "f", 60.0) == {}
    node = ray.get_runtime_context().get_node_id()
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"driver", node}
    (why,) = probes._probe_storage_on_nodes(str(tmp_path), "g", 60.0).values()
    assert why == "the driver's marker file is not there"


@pytest.mark.parametrize("shared", [False, True])
def test_storage_that_cannot_be_written_is_reported(tmp_path: Path, shared: bool) -> None:
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "runs")
    seen = probes.probe_storage(settings(**{"storage" if shared else "directory": place}), 30.0)
    assert "Not a directory" in seen.error


def test_a_machine_without_opengl_says_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    assert probes.probe_video(settings().task) == (
        "no video: MUJOCO_GL=nonsense names no OpenGL library: set it to egl, osmesa or glfw"
    )
    monkeypatch.setattr(probes, "_RENDER_SCRIPT", "raise RuntimeError('no EGL here')")
    assert probes.probe_video(settings().task) == "RuntimeError: no EGL here"
    monkeypatch.setattr(probes, "_RENDER_SCRIPT", "import time; time.sleep(60)")
    assert "no image was rendered within 0 s" in str(probes.probe_video(settings().task, 0.2))
    monkeypatch.setattr(probes, "_RENDER_SCRIPT", "pass")
    assert probes.probe_video(settings().task) is None


def test_a_meta_batch_s_size_is_that_of_its_arrays() -> None:
    chosen = settings()
    steps = 10 * 10 * 20 * 2
    assert probes.meta_batch_bytes(chosen) == steps * 4 * (17 + 6 + 3)


def test_all_of_it_is_one_line_each(tmp_path: Path) -> None:
    findings = list(probes.run_checks(settings(directory=str(tmp_path)), 60.0))
    subjects = [finding.subject for finding in findings]
    assert subjects == ["resources", "versions", "gpu", "memory", "storage", "video"]
    assert all(finding.level is not Level.PROBLEM for finding in findings)


def test_a_node_without_this_package_answers_too(tmp_path: Path) -> None:
    """The question travels as code: unpickled in a Python that has none of our modules."""
    file = tmp_path / "question"
    file.write_bytes(ray.cloudpickle.dumps(probes._make_node_probe()))
    program = (
        "import sys, cloudpickle\n"
        "sys.modules['maml_ray'] = None\n"
        f"question = cloudpickle.load(open({str(file)!r}, 'rb'))\n"
        "print(question(['python', 'numpy', 'nonsense'])['versions'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "'maml-ray': ''" in done.stdout, done.stderr
    assert f"'python': '{platform.python_version()}'" in done.stdout
    assert "'nonsense': ''" in done.stdout
