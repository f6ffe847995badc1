"""Settings under the keys of earlier versions, from everywhere that settings come from."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from maml_ray.config import loading
from maml_ray.config.loading import dump_settings, load_settings, validate_settings
from maml_ray.config.presets import PRESETS, Preset
from maml_ray.config.renamed_keys import RENAMED_KEYS, RenamedKeyWarning
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.evaluation.loading import load
from tests.bad_input.command_line import run
from tests.config.test_settings import write
from tests.small_runs import run_of
from tests.small_runs import settings as small

VALUES: dict[str, Any] = {
    "meta_batch.overlap": True,
    "policy.normalise_observations": False,
    "advantages.normalise": False,
    "inner.learn_rates": True,
    "outer.backtracks": 4,
    "outer.sampling_coefficient": 0.25,
}
"""A value other than the default for each former key."""

every_key = pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())


def value_at(settings: Settings, path: str) -> Any:
    section, key = path.split(".")
    return getattr(getattr(settings, section), key)


def nested(path: str, value: Any) -> dict[str, Any]:
    section, key = path.split(".")
    return {section: {key: value}}


@contextmanager
def warns_once(message: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [str(each.message) for each in caught] == [message]
    assert issubclass(caught[0].category, RenamedKeyWarning)


def test_every_former_key_is_tried_here() -> None:
    assert VALUES.keys() == RENAMED_KEYS.keys()


@every_key
def test_a_former_key_has_moved_within_its_section(old: str, new: str) -> None:
    assert old.split(".")[0] == new.split(".")[0]
    assert value_at(Settings(), new) != VALUES[old]
    with pytest.raises(AttributeError):
        value_at(Settings(), old)


@every_key
def test_a_former_key_in_a_file(tmp_path: Path, old: str, new: str) -> None:
    path = write(tmp_path, json.dumps(nested(old, VALUES[old])))
    with warns_once(f"{path}: {old} is now {new}"):
        settings = load_settings(path)
    assert value_at(settings, new) == VALUES[old]
    assert settings == validate_settings(nested(new, VALUES[old]))
    assert old.split(".")[1] not in dump_settings(settings).split()


@every_key
def test_a_former_key_in_an_override(tmp_path: Path, old: str, new: str) -> None:
    """Which wins over the present key in the file below it."""
    path = write(tmp_path, json.dumps(nested(new, value_at(Settings(), new))))
    with warns_once(f"{old} is now {new}"):
        settings = load_settings(path, overrides=[f"{old}={json.dumps(VALUES[old])}"])
    assert value_at(settings, new) == VALUES[old]


@every_key
def test_a_former_key_in_a_dict(old: str, new: str) -> None:
    with warns_once(f"{old} is now {new}"):
        settings = validate_settings(nested(old, VALUES[old]))
    assert value_at(settings, new) == VALUES[old]


@every_key
def test_a_former_key_in_a_trial_of_a_sweep(old: str, new: str) -> None:
    with warns_once(f"{old} is now {new}"):
        settings = Settings().replace({old: VALUES[old], "run.seed": 5})
    assert value_at(settings, new) == VALUES[old]
    with pytest.raises(SettingsError, match=f"{old} is the former name of {new}"):
        Settings().replace({old: VALUES[old], new: VALUES[old]})


@every_key
def test_a_former_key_in_a_preset(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    former = Preset("", "", nested(old, VALUES[old]))
    monkeypatch.setattr(loading, "PRESETS", {**PRESETS, "rllib": former})
    with warns_once(f"preset rllib: {old} is now {new}"):
        settings = load_settings(preset="rllib")
    assert value_at(settings, new) == VALUES[old]


@every_key
def test_the_record_of_a_run_is_read_without_a_warning(tmp_path: Path, old: str, new: str) -> None:
    """It was written by an earlier version, and nobody is to edit it."""
    path = write(tmp_path, json.dumps(nested(old, VALUES[old])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = load_settings(path, recorded=True)
        assert settings == validate_settings(nested(old, VALUES[old]), recorded=True)
    assert value_at(settings, new) == VALUES[old]


def test_a_run_from_before_actions_had_bounds_keeps_sending_them_as_they_are(
    tmp_path: Path,
) -> None:
    folder = run_of(small("half-cheetah-direction"), tmp_path / "run")
    text = folder.settings.read_text(encoding="utf-8")
    assert "  action_bounds: null\n" in text
    old = text.replace("  action_bounds: null\n", "").replace("preset: null", "preset: finn2017")
    path = write(tmp_path, old)
    assert load_settings(path, recorded=True).policy.action_bounds == "none"
    assert load_settings(folder.settings, recorded=True).policy.action_bounds is None
    assert load_settings(write(tmp_path, "policy: {}")).policy.action_bounds is None


def test_a_run_folder_of_an_earlier_version_is_loaded_without_a_warning(tmp_path: Path) -> None:
    folder = run_of(small(policy={"normalize_observations": False}), tmp_path / "run")
    text = folder.settings.read_text(encoding="utf-8")
    for old, new in RENAMED_KEYS.items():
        assert f"  {new.split('.')[1]}: " in text
        text = text.replace(f"  {new.split('.')[1]}: ", f"  {old.split('.')[1]}: ")
    folder.settings.write_text(text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RenamedKeyWarning)
        agent = load(folder.path)
        assert not agent.settings.policy.normalize_observations
    outcome = run("adapt", str(folder.path), "--task", "{}")
    assert "is now" not in outcome.err


@every_key
def test_both_keys_together_are_refused_in_a_sentence(tmp_path: Path, old: str, new: str) -> None:
    section, key = old.split(".")
    both = {section: {key: VALUES[old], new.split(".")[1]: VALUES[old]}}
    sentence = f"{old} is the former name of {new}: give only {new}"
    with pytest.raises(SettingsError, match=f"^{sentence}$"):
        validate_settings(both)
    path = write(tmp_path, json.dumps(both))
    outcome = run("check", str(path))
    assert (outcome.code, outcome.err) == (2, f"maml-ray: {path}: {sentence}\n")


def without_status(err: str) -> str:
    """Without what a check says that it does, on a machine that takes long over it."""
    return re.sub(r"trying the tasks( \(\d+ s\))?\n", "", err)


@every_key
def test_the_command_line_says_the_present_key_in_one_line(
    tmp_path: Path, old: str, new: str
) -> None:
    path = write(tmp_path, json.dumps(nested(old, VALUES[old])))
    outcome = run("check", str(path))
    assert (outcome.code, without_status(outcome.err)) == (
        0,
        f"maml-ray: {path}: {old} is now {new}\n",
    )
    assert f"  {new.split('.')[1]}: " in outcome.out
    outcome = run("check", "--set", f"{old}={json.dumps(VALUES[old])}")
    assert (outcome.code, without_status(outcome.err)) == (0, f"maml-ray: {old} is now {new}\n")


@pytest.mark.parametrize(
    ("text", "line", "form"),
    [
        ("run:\n  seed: 1\nrun.iterations: 5\n", 3, "run: {iterations: 5}"),
        ("outer.trust_region.max_kl: 0.1\n", 1, "outer: {trust_region: {max_kl: 0.1}}"),
    ],
)
def test_keys_that_are_not_nested_are_shown_nested(
    tmp_path: Path, text: str, line: int, form: str
) -> None:
    path = write(tmp_path, text)
    outcome = run("check", str(path))
    key = text.splitlines()[line - 1].split(":")[0]
    sentence = f"line {line}: write nested keys, {form}, not {key}\n"
    assert (outcome.code, outcome.err) == (2, f"maml-ray: {path}: {sentence}")
    with pytest.raises(SettingsError, match=r"write nested keys, run: \{iterations: 5\}"):
        validate_settings({"run.iterations": 5})
