"""``maml-ray export`` and tasks by name on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import maml_ray
from maml_ray.persistence.run_dir import RunDir
from tests.bad_input.command_line import assert_refused, run
from tests.small_runs import run_of, settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return run_of(settings("half-cheetah-direction"), tmp_path_factory.mktemp("runs") / "direction")


def test_a_run_is_exported_next_to_its_report_and_checked(folder: RunDir) -> None:
    outcome = run("export", str(folder.path))
    assert outcome.code == 0, outcome.err
    path, *arrays, checked = outcome.out.splitlines()
    assert path == str(folder.path / "policy.onnx")
    assert arrays == [
        "input   observations (n, 17) float32",
        "output  actions (n, 6) float32",
        "output  action_std (6,) float32",
    ]
    assert checked.startswith("checked at 1,000 observations: largest difference")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    observations = np.random.default_rng(0).standard_normal((7, 17)).astype(np.float32)
    actions, _ = session.run(None, {"observations": observations})
    expected = maml_ray.load(folder.path).act(observations)
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-6)


def test_an_adapted_policy_is_exported_by_task_or_by_folder(folder: RunDir, tmp_path: Path) -> None:
    by_task = run("export", str(folder.path), "--task", "backward", "--format", "torchscript")
    assert by_task.code == 0, by_task.err
    assert by_task.out.startswith(str(folder.path / "policy-backward.pt"))
    adapted = run("adapt", str(folder.path), "--task", "backward")
    assert adapted.code == 0, adapted.err
    output = tmp_path / "mine.pt"
    by_folder = run("export", str(folder.path / "adapted" / "backward"), "--output", str(output))
    assert by_folder.code == 0, by_folder.err
    observations = np.random.default_rng(0).standard_normal((7, 17)).astype(np.float32)
    expected = maml_ray.load(folder.path).adapt("backward").act(observations)
    for path in (folder.path / "policy-backward.pt", output):
        with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
            actions, _ = torch.jit.load(path)(torch.tensor(observations))
        np.testing.assert_allclose(actions.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "tflite"], ["'tflite' is not known", "onnx and torchscript"]),
        (["--output", "policy.zip"], ["policy.zip", ".onnx", ".pt"]),
        (["--output", "missing/policy.onnx"], ["missing/policy.onnx", "existing directory"]),
        (["--task", "foward"], ["there are 'forward' and 'backward', not 'foward'"]),
        (["--task", '{"speed": 1}'], ['a task is {"direction": 1} or {"direction": -1}']),
        (["--task", "1"], ["not an object of numbers"]),
        (["--checkpoint", "99"], ["99"]),
    ],
)
def test_a_mistake_is_one_sentence(
    folder: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run("export", str(folder.path), *arguments), *words)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert_refused(run("export", str(tmp_path)), str(tmp_path))
