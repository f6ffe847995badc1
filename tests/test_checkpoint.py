from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from maml_ray.checkpoint import (
    BrokenCheckpoint,
    Checkpoint,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from maml_ray.errors import RunFolderError
from maml_ray.learner import LearnerState
from maml_ray.normalisation import RunningStatistics
from maml_ray.outer_update import OptimiserState
from maml_ray.policy import NumpyParameters, PolicySpec

SPEC = PolicySpec(3, 2, (4,), "tanh", 0.0, -3.0)


def checkpoint(iteration: int, spec: PolicySpec = SPEC) -> Checkpoint:
    rng = np.random.default_rng(iteration)

    def arrays() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        return {
            name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in spec.shapes().items()
        }

    seen = RunningStatistics(1e3, rng.standard_normal(3), rng.random(3))
    moved = OptimiserState(8 * iteration, arrays(), arrays())
    state = LearnerState(iteration, arrays(), moved, seen)
    return Checkpoint(iteration, 1000 * iteration, 1.5 * iteration, spec, state)


def dictionaries(point: Checkpoint) -> list[NumpyParameters]:
    state = point.learner
    return [state.parameters, state.optimiser.first_moments, state.optimiser.second_moments]


def assert_equal(one: Checkpoint, other: Checkpoint) -> None:
    counters = ("iteration", "total_env_steps", "elapsed_s", "spec")
    assert [getattr(one, name) for name in counters] == [getattr(other, name) for name in counters]
    assert one.learner.version == other.learner.version
    assert one.learner.optimiser.steps == other.learner.optimiser.steps
    assert one.learner.observations.count == other.learner.observations.count
    for name in ("mean", "squares"):
        found, wanted = (getattr(point.learner.observations, name) for point in (one, other))
        np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip(dictionaries(one), dictionaries(other), strict=True):
        assert set(found) == set(wanted)
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])


def test_what_is_saved_is_what_is_loaded_to_the_last_bit(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint(7), keep=3)
    assert_equal(load_checkpoint(path), checkpoint(7))


def test_what_kind_of_policy_it_is_is_kept(tmp_path: Path) -> None:
    kinds = (
        replace(SPEC, discrete=True, first_action=-2),
        replace(SPEC, action_scale=0.1, hidden_sizes=()),
    )
    for iteration, spec in enumerate(kinds, 1):
        path = save_checkpoint(tmp_path, checkpoint(iteration, spec), keep=3)
        assert_equal(load_checkpoint(path), checkpoint(iteration, spec))


def test_an_optimiser_that_remembers_nothing_is_saved(tmp_path: Path) -> None:
    full = checkpoint(3)
    state = replace(full.learner, optimiser=OptimiserState(0, {}, {}))
    path = save_checkpoint(tmp_path, replace(full, learner=state), keep=1)
    assert load_checkpoint(path).learner.optimiser == OptimiserState(0, {}, {})


def test_the_parameters_are_a_plain_safetensors_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint(1), keep=3)
    arrays = load_file(path / "parameters.safetensors")
    np.testing.assert_array_equal(arrays["log_std"], checkpoint(1).learner.parameters["log_std"])


def test_the_newest_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    for iteration in range(1, 6):
        save_checkpoint(tmp_path, checkpoint(iteration), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000004", "00000005"]
    newest, warnings = load_newest(tmp_path)
    assert (newest.iteration, warnings) == (5, [])


FILES = ["manifest.json", "parameters.safetensors", "learner.safetensors"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped", "empty"])
def test_a_harmed_checkpoint_is_recognised_and_the_one_before_it_used(
    tmp_path: Path, name: str, harm: str
) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=3)
    file = save_checkpoint(tmp_path, checkpoint(2), keep=3) / name
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    elif harm == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        middle = content.index(b"sha256") + 90 if name == "manifest.json" else len(content) - 3
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.write_bytes(b"")
    newest, warnings = load_newest(tmp_path)
    assert_equal(newest, checkpoint(1))
    assert len(warnings) == 1
    assert "00000002" in warnings[0]


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": 1}', "[" * 100_000])
def test_a_manifest_of_another_shape_is_refused_in_a_sentence(tmp_path: Path, content: str) -> None:
    path = save_checkpoint(tmp_path, checkpoint(1), keep=1)
    (path / "manifest.json").write_text(content)
    with pytest.raises(BrokenCheckpoint):
        load_checkpoint(path)


def test_another_format_version_is_refused_and_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint(1), keep=1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(BrokenCheckpoint, match="format 99"):
        load_checkpoint(path)


def test_a_checkpoint_half_written_by_a_killed_program_is_not_seen(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=3)
    torn = tmp_path / ".00000002.123.partial"
    torn.mkdir()
    (torn / "parameters.safetensors").write_bytes(b"half")
    assert load_newest(tmp_path)[0].iteration == 1


def test_saving_over_a_broken_checkpoint_mends_it(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint(3), keep=3)
    (path / "parameters.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, checkpoint(3), keep=3)
    assert_equal(load_checkpoint(path), checkpoint(3))


def test_no_checkpoint_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no checkpoint"):
        load_newest(tmp_path / "nowhere")
