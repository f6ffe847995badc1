from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from maml_ray.common.errors import RunDirError, RunWarning
from maml_ray.common.normalization import Normalizer, RunningStatistics
from maml_ray.learning.state import LearnerState, OptimizerState
from maml_ray.persistence.checkpoint_format import (
    Checkpoint,
    CorruptCheckpoint,
    checkpoint_files,
    load_checkpoint,
    max_array_bytes,
)
from maml_ray.persistence.checkpoint_store import (
    CheckpointScore,
    load_named_checkpoint,
    load_newest_checkpoint,
    read_best_score,
    save_checkpoint,
)
from maml_ray.persistence.storage import MAX_READ_BYTES, LocalStorage
from maml_ray.policies.spec import NumpyParameters, PolicyParameters, PolicySpec
from tests.memory import memory_below

pytestmark = pytest.mark.filterwarnings("ignore::maml_ray.common.errors.RunWarning")
FOLDER = "checkpoints"
SPEC = PolicySpec(3, 2, (4,), "tanh", 0.0, -3.0)


def checkpoint(iteration: int, spec: PolicySpec = SPEC) -> Checkpoint:
    rng = np.random.default_rng(iteration)

    def arrays() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        return {
            name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in spec.shapes().items()
        }

    seen = RunningStatistics(1e3, rng.standard_normal(3), rng.random(3))
    moved = OptimizerState(8 * iteration, arrays(), arrays())
    state = LearnerState(iteration, arrays(), moved, seen)
    return Checkpoint(iteration, 1000 * iteration, 1.5 * iteration, spec, state)


def dictionaries(point: Checkpoint) -> list[NumpyParameters]:
    state = point.learner
    return [state.parameters, state.optimizer.first_moments, state.optimizer.second_moments]


def assert_equal(one: Checkpoint, other: Checkpoint) -> None:
    counters = ("iteration", "total_env_steps", "elapsed_s", "spec")
    assert [getattr(one, name) for name in counters] == [getattr(other, name) for name in counters]
    assert one.learner.version == other.learner.version
    assert one.learner.optimizer.steps == other.learner.optimizer.steps
    assert one.learner.obs_stats.count == other.learner.obs_stats.count
    for name in ("mean", "squares"):
        found, wanted = (getattr(point.learner.obs_stats, name) for point in (one, other))
        np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip(dictionaries(one), dictionaries(other), strict=True):
        assert set(found) == set(wanted)
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def test_save_and_load_round_trip_to_the_last_bit(storage: LocalStorage) -> None:
    state = replace(checkpoint(7).learner, skipped_in_a_row=2, discarded_episodes=5)
    point = replace(checkpoint(7), learner=state)
    loaded = load_checkpoint(storage, save_checkpoint(storage, point, keep=3))
    assert_equal(loaded, point)
    assert (loaded.learner.skipped_in_a_row, loaded.learner.discarded_episodes) == (2, 5)


def manifest_of(point: Checkpoint) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(checkpoint_files(point)["manifest.json"])
    return manifest


@pytest.mark.parametrize("normalize", [True, False])
def test_stale_params_round_trip_to_the_last_bit(storage: LocalStorage, normalize: bool) -> None:
    before, seen = checkpoint(6).learner, checkpoint(6).learner.obs_stats
    stale = PolicyParameters(6, before.parameters, seen.normalizer() if normalize else None)
    point = replace(checkpoint(7), learner=replace(checkpoint(7).learner, stale_params=stale))
    loaded = load_checkpoint(storage, save_checkpoint(storage, point, keep=3))
    assert_equal(loaded, point)
    found = loaded.learner.stale_params
    assert found is not None
    assert found.version == 6
    assert set(found.values) == set(stale.values)
    for name, value in stale.values.items():
        np.testing.assert_array_equal(found.values[name], value)
    if stale.normalizer is None:
        assert found.normalizer is None
        return
    assert isinstance(found.normalizer, Normalizer)
    for name, constant in vars(stale.normalizer).items():
        np.testing.assert_array_equal(getattr(found.normalizer, name), constant)
    assert manifest_of(point)["format"] == 3  # a reader of format 2 alone must refuse it


def test_without_stale_params_the_format_is_2_with_its_old_keys(
    storage: LocalStorage,
) -> None:
    manifest = manifest_of(checkpoint(7))
    assert manifest["format"] == 2
    assert set(manifest) == {
        *("format", "iteration", "version", "optimiser_steps", "observations_seen"),
        *("total_env_steps", "elapsed_s", "skipped_in_a_row", "discarded_episodes"),
        *("policy", "sha256", "seal"),
    }
    name = save_checkpoint(storage, checkpoint(7), keep=3)
    assert set(load_file(storage.path / name / "learner.safetensors")) == {
        *(f"{moment}/{part}" for moment in ("first", "second") for part in SPEC.shapes()),
        *("observations/mean", "observations/squares"),
    }
    assert load_checkpoint(storage, name).learner.stale_params is None


def test_the_kind_of_policy_is_saved(storage: LocalStorage) -> None:
    kinds = (
        replace(SPEC, discrete=True, first_action=-2),
        replace(SPEC, action_scale=0.1, hidden_sizes=()),
    )
    for iteration, spec in enumerate(kinds, 1):
        name = save_checkpoint(storage, checkpoint(iteration, spec), keep=3)
        assert_equal(load_checkpoint(storage, name), checkpoint(iteration, spec))


def test_an_empty_optimizer_state_is_saved(storage: LocalStorage) -> None:
    full = checkpoint(3)
    state = replace(full.learner, optimizer=OptimizerState(0, {}, {}))
    name = save_checkpoint(storage, replace(full, learner=state), keep=1)
    assert load_checkpoint(storage, name).learner.optimizer == OptimizerState(0, {}, {})


def test_the_parameters_are_a_plain_safetensors_file(storage: LocalStorage) -> None:
    name = save_checkpoint(storage, checkpoint(1), keep=3)
    arrays = load_file(storage.path / name / "parameters.safetensors")
    np.testing.assert_array_equal(arrays["log_std"], checkpoint(1).learner.parameters["log_std"])


def test_only_the_newest_are_kept(storage: LocalStorage) -> None:
    for iteration in range(1, 6):
        save_checkpoint(storage, checkpoint(iteration), keep=2)
    assert storage.names(FOLDER) == ["00000004", "00000005"]
    newest, warnings = load_newest_checkpoint(storage)
    assert (newest.iteration, warnings) == (5, [])


def test_the_best_is_kept_with_the_newest_and_can_be_loaded(storage: LocalStorage) -> None:
    values = [1.0, 5.0, 3.0, 4.0, 2.0, 0.0]
    for iteration in range(1, 7):
        known = [CheckpointScore(i, v) for i, v in enumerate(values[: iteration - 1], 1)]
        save_checkpoint(storage, checkpoint(iteration), keep=2, scores=known)
    assert storage.names(FOLDER) == ["00000002", "00000005", "00000006", "best.json"]
    assert read_best_score(storage) == CheckpointScore(2, 5.0)
    assert [
        load_named_checkpoint(storage, which)[0].iteration for which in ("best", "newest", "5")
    ] == [
        2,
        6,
        5,
    ]


def test_the_score_of_a_missing_checkpoint_is_ignored(storage: LocalStorage) -> None:
    save_checkpoint(storage, checkpoint(10), keep=2)
    save_checkpoint(storage, checkpoint(20), keep=2, scores=[CheckpointScore(13, 9.0)])
    assert read_best_score(storage) is None
    save_checkpoint(
        storage, checkpoint(30), keep=2, scores=[CheckpointScore(13, 9.0), CheckpointScore(20, 1.0)]
    )
    assert read_best_score(storage) == CheckpointScore(20, 1.0)


class Forgetful(LocalStorage):
    """A directory whose best.json cannot be read at times."""

    fails = False

    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes:
        if self.fails and name.endswith("best.json"):
            raise OSError(5, "Input/output error")
        return super().read(name, max_bytes)


def test_a_best_file_that_cannot_be_read_fails_the_save_and_loses_nothing(
    tmp_path: Path,
) -> None:
    storage = Forgetful(tmp_path)
    for iteration in (1, 2, 3):
        scores = [CheckpointScore(1, 9.0)] if iteration == 2 else []
        save_checkpoint(storage, checkpoint(iteration), keep=1, scores=scores)
    storage.fails = True
    with pytest.raises(OSError, match="Input/output"):
        save_checkpoint(storage, checkpoint(4), keep=1, scores=[CheckpointScore(3, 1.0)])
    with pytest.raises(RunDirError, match="cannot read"):
        load_named_checkpoint(storage, "best")
    storage.fails = False
    save_checkpoint(storage, checkpoint(4), keep=1, scores=[CheckpointScore(3, 1.0)])
    assert storage.names(FOLDER) == ["00000001", "00000004", "best.json"]
    assert read_best_score(storage) == CheckpointScore(1, 9.0)


def test_storage_that_fails_while_the_best_is_looked_for_is_told(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: str) -> list[str]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage, "names", fail)
    with pytest.raises(RunDirError, match=r"cannot read .*Input/output error"):
        load_named_checkpoint(storage, "best")


@pytest.mark.parametrize("note", [b"torn", b'{"iteration": 2, "score": NaN}', b"[1]", b"\xff"])
def test_a_corrupt_best_file_is_rewritten_from_the_known_scores(
    storage: LocalStorage, note: bytes
) -> None:
    scores = [CheckpointScore(1, 9.0), CheckpointScore(2, 1.0), CheckpointScore(17, 99.0)]
    save_checkpoint(storage, checkpoint(1), keep=1)
    save_checkpoint(storage, checkpoint(2), keep=1, scores=scores[:1])
    storage.write(f"{FOLDER}/best.json", note)
    save_checkpoint(storage, checkpoint(3), keep=1, scores=scores)
    assert read_best_score(storage) == CheckpointScore(1, 9.0)
    assert storage.names(FOLDER) == ["00000001", "00000003", "best.json"]


def test_a_best_checkpoint_that_is_gone_is_replaced(storage: LocalStorage) -> None:
    for iteration in (1, 2, 3):
        save_checkpoint(storage, checkpoint(iteration), keep=3, scores=[CheckpointScore(1, 9.0)])
    storage.remove(f"{FOLDER}/00000001")
    save_checkpoint(
        storage, checkpoint(4), keep=3, scores=[CheckpointScore(1, 9.0), CheckpointScore(3, 1.0)]
    )
    assert read_best_score(storage) == CheckpointScore(3, 1.0)


def test_corrupt_ones_do_not_count_among_those_kept(storage: LocalStorage) -> None:
    for iteration in (1, 2, 3, 4):
        save_checkpoint(storage, checkpoint(iteration), keep=4)
    for iteration in (3, 4):
        (storage.path / FOLDER / f"0000000{iteration}" / "learner.safetensors").write_bytes(b"")
    save_checkpoint(storage, checkpoint(6), keep=2)
    assert storage.names(FOLDER) == ["00000002", "00000006"]


@pytest.mark.parametrize("which", ["7", "last", "best", "-1", "²", "9" * 30])
def test_a_missing_checkpoint_is_an_error(storage: LocalStorage, which: str) -> None:
    save_checkpoint(storage, checkpoint(1), keep=2)
    with pytest.raises(RunDirError):
        load_named_checkpoint(storage, which)


FILES = ["manifest.json", "parameters.safetensors", "learner.safetensors"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "folder", "empty"])
def test_a_corrupt_checkpoint_is_detected_and_the_previous_one_used(
    storage: LocalStorage, name: str, damage: str
) -> None:
    save_checkpoint(storage, checkpoint(1), keep=3)
    file = storage.path / save_checkpoint(storage, checkpoint(2), keep=3) / name
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "empty":
        file.write_bytes(b"")
    with pytest.warns(RunWarning, match=r"00000002.*; checkpoint 1 is used$"):
        newest, warnings = load_newest_checkpoint(storage)
    assert_equal(newest, checkpoint(1))
    assert len(warnings) == 1
    assert "00000002" in warnings[0]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_checkpoint_that_is_too_large_is_not_read(
    storage: LocalStorage, name: str
) -> None:
    """Its size is known from the policy's, so that gigabytes are not read to find it damaged."""
    save_checkpoint(storage, checkpoint(1), keep=3)
    file = storage.path / save_checkpoint(storage, checkpoint(2), keep=3) / name
    with file.open("r+b") as sparse:
        sparse.truncate(6_000_000_000)
    with pytest.warns(RunWarning, match=f"{name}|manifest") as caught, memory_below(5_000_000):
        assert_equal(load_newest_checkpoint(storage)[0], checkpoint(1))
    assert "it has 6,000,000,000 bytes, and at most" in str(caught[0].message)


@pytest.mark.parametrize("sizes", [(), (100, 100), (2000, 2000)])
def test_files_of_whole_checkpoints_are_within_the_bound(sizes: tuple[int, ...]) -> None:
    """With all that they can hold: moments and a previous version, all of learned rates, too."""
    spec = PolicySpec(1, 1, sizes, "tanh", 0.0, -3.0)
    arrays = {
        f"{kind}{name}": np.zeros(shape, np.float32)
        for name, shape in spec.shapes().items()
        for kind in ("", "a rate with a long name of ")
    }
    seen = RunningStatistics(1.0, np.zeros(1), np.zeros(1))
    stale = PolicyParameters(1, arrays, seen.normalizer())
    state = LearnerState(1, arrays, OptimizerState(1, arrays, arrays), seen, stale_params=stale)
    files = checkpoint_files(Checkpoint(1, 1, 1.0, spec, state))
    assert max(map(len, files.values())) < max_array_bytes(spec)


def test_a_damaged_record_of_the_best_is_said_to_be(storage: LocalStorage) -> None:
    save_checkpoint(storage, checkpoint(1), keep=3)
    with pytest.raises(RunDirError, match="its best is not known yet"):
        load_named_checkpoint(storage, "best")
    storage.write(f"{FOLDER}/best.json", b"{")
    with pytest.raises(RunDirError, match=r"best\.json is damaged"):
        load_named_checkpoint(storage, "best")


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_altered_bit_is_detected(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("altered"))
    save_checkpoint(storage, checkpoint(1), keep=3)
    file = storage.path / save_checkpoint(storage, checkpoint(2), keep=3) / name
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "longer"]))
    if how == "flip":
        content[position] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[position:]
    else:
        content[position:position] = data.draw(st.binary(min_size=1, max_size=9))
    file.write_bytes(content)
    newest, warnings = load_newest_checkpoint(storage)
    if name == "manifest.json" and newest.iteration == 2:  # white space means nothing in JSON
        assert_equal(newest, checkpoint(2))
    else:
        assert_equal(newest, checkpoint(1))
        assert len(warnings) == 1


class Trap:
    """An object whose unpickling creates a directory."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


def test_no_content_of_a_file_is_executed(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = checkpoint_files(checkpoint(2))
    payload = pickle.dumps(Trap())
    manifest = json.loads(files["manifest.json"])
    manifest["sha256"]["learner.safetensors"] = hashlib.sha256(payload).hexdigest()
    del manifest["seal"]
    sealed = json.dumps(manifest, sort_keys=True).encode()
    manifest["seal"] = hashlib.sha256(sealed).hexdigest()
    folder = "checkpoints/00000002"
    storage.write(f"{folder}/parameters.safetensors", files["parameters.safetensors"])
    storage.write(f"{folder}/learner.safetensors", payload)
    storage.write(f"{folder}/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(CorruptCheckpoint, match="does not hold a checkpoint"):
        load_checkpoint(storage, folder)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": "2"}', "[" * 100_000])
def test_a_manifest_of_another_shape_is_an_error(storage: LocalStorage, content: str) -> None:
    name = save_checkpoint(storage, checkpoint(1), keep=1)
    (storage.path / name / "manifest.json").write_text(content)
    with pytest.raises(CorruptCheckpoint):
        load_checkpoint(storage, name)


def test_another_format_version_is_refused_and_named(storage: LocalStorage) -> None:
    save_checkpoint(storage, checkpoint(1), keep=3)
    name = save_checkpoint(storage, checkpoint(2), keep=3)
    file = storage.path / name / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(RunDirError, match="format 99"):
        load_newest_checkpoint(storage)


def test_saving_over_a_corrupt_checkpoint_repairs_it(storage: LocalStorage) -> None:
    name = save_checkpoint(storage, checkpoint(3), keep=3)
    (storage.path / name / "parameters.safetensors").write_bytes(b"")
    save_checkpoint(storage, checkpoint(3), keep=3)
    assert_equal(load_checkpoint(storage, name), checkpoint(3))


class Busy(LocalStorage):
    """The storage of a run that saves a checkpoint whenever the newest one is about to be read."""

    left = 0

    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes:
        if self.left and name.endswith("manifest.json"):
            self.left -= 1
            newest = int(name.split("/")[1])
            save_checkpoint(LocalStorage(self.path), checkpoint(newest + 1), keep=1)
        return super().read(name, max_bytes)


@pytest.mark.parametrize("times", [1, 3])
def test_checkpoints_replaced_during_a_load_are_followed(tmp_path: Path, times: int) -> None:
    storage = Busy(tmp_path)
    save_checkpoint(storage, checkpoint(1), keep=1)
    storage.left = times
    found, warnings = load_newest_checkpoint(storage)
    assert_equal(found, checkpoint(1 + times))
    assert warnings == []


def test_a_load_that_is_always_too_slow_ends_with_an_error(tmp_path: Path) -> None:
    storage = Busy(tmp_path)
    save_checkpoint(storage, checkpoint(1), keep=1)
    storage.left = 1000
    with pytest.raises(RunDirError, match="no checkpoint that can be read"):
        load_newest_checkpoint(storage)


def test_no_checkpoint_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no checkpoint"):
        load_newest_checkpoint(LocalStorage(tmp_path / "nowhere"))
