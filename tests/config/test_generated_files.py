"""deploy.yaml, docs/settings.md and the JSON schema are what the settings' definitions give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maml_ray.common.yaml_data import parse_yaml
from maml_ray.config.loading import load_settings, validate_settings
from maml_ray.config.presets import PRESETS
from maml_ray.config.reference import find, json_schema, sections
from maml_ray.config.section import dotted_keys
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.config.template import commented_yaml, format_value
from tests.config.generated_files import DEPLOY, DOCS, ROOT, generated_files

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize(
    "path", generated_files(), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_a_committed_file_is_what_is_generated(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated_files()[path], "run make settings"


def test_every_setting_and_section_has_a_description() -> None:
    for section in sections():
        assert section.description.endswith("."), section.key
        assert section.settings, section.key
        for setting in section.settings:
            assert setting.description.endswith("."), setting.key
            assert "|" not in setting.description + setting.allowed


def test_the_reference_names_every_key() -> None:
    described = [setting.key for section in sections() for setting in section.settings]
    assert sorted(described) == sorted(dotted_keys(Settings))
    page = DOCS.read_text(encoding="utf-8")
    assert all(f"## {section.key}\n" in page for section in sections())


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_a_commented_file_loads_back(tmp_path: Path, preset: str | None) -> None:
    settings = load_settings(preset=preset)
    path = tmp_path / "deploy.yaml"
    path.write_text(commented_yaml(settings), encoding="utf-8")
    assert load_settings(path) == settings
    assert max(map(len, path.read_text().splitlines())) <= 100


def test_a_value_too_long_for_its_comment_follows_it() -> None:
    settings = validate_settings({"run": {"directory": "/mnt/" + "x" * 40}})
    lines = commented_yaml(settings).splitlines()
    at = next(i for i, line in enumerate(lines) if "/mnt/" in line)
    assert lines[at - 1].startswith("  # Parent of the run directories")
    assert lines[at] == f"  directory: {settings.run.directory}"


@given(st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20))
def test_a_value_reads_back_unchanged(value: float | str) -> None:
    assert parse_yaml(f"[{format_value(value)}]", "here") == [value]


@pytest.mark.parametrize(
    ("value", "text"),
    [(6e-3, "6.0e-3"), (1.25e-7, "1.25e-7"), (-0.001, "-1.0e-3"), (0.01, "0.01"), (0.0, "0.0")],
)
def test_small_numbers_have_an_exponent(value: float, text: str) -> None:
    assert format_value(value) == text


def test_the_schema_is_a_schema_and_accepts_deploy_yaml_and_the_presets() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    VALIDATOR.validate(parse_yaml(DEPLOY.read_text(encoding="utf-8"), "deploy.yaml"))
    for preset in PRESETS:
        VALIDATOR.validate(load_settings(preset=preset).model_dump(mode="json"))
    VALIDATOR.validate({"run": None, "outer": {"learning_rate": 1}})


WRONG: list[dict[str, Any]] = [
    {"outter": {}},
    {"outer": {"epoch": 4}},
    {"outer": {"trust_region": {"max_kls": 1}}},
    {"outer": {"trust_region": None}},
    {"outer": {"epochs": 0}},
    {"outer": {"epochs": "4"}},
    {"outer": {"order": "third"}},
    {"outer": 5},
    {"run": {"seed": 2**63}},
    {"run": {"name": "a/b"}},
    {"run": {"preset": "notebok"}},
    {"policy": {"hidden_sizes": [8, 0]}},
    {"policy": {"hidden_sizes": 64}},
    {"cluster": {"straggler_factor": 1}},
    {"advantages": {"normalize": "yes"}},
]


@pytest.mark.parametrize("data", WRONG, ids=str)
def test_the_schema_refuses_what_the_settings_refuse(data: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(data)
    with pytest.raises(SettingsError):
        validate_settings(data)


def test_deploy_yaml_names_the_schema_for_editors() -> None:
    first = DEPLOY.read_text(encoding="utf-8").splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert (DEPLOY.parent / name).is_file()


def test_a_key_is_found_with_the_presets_that_set_it() -> None:
    setting: Any = find("inner.learning_rate")
    assert (setting.allowed, setting.default) == ("number > 0", "0.01")
    assert setting.in_presets()["direction"] == "2.0"
    clip: Any = find("outer.clip")
    assert "direction" not in clip.in_presets()
    section: Any = find("outer.trust_region")
    assert section.settings[0].key == "outer.trust_region.max_kl"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("outer.epoch", "did you mean 'outer.epochs'?"),
        ("epochs", "did you mean 'outer.epochs'?"),
        ("tasks", "did you mean 'meta_batch.tasks' or 'evaluation.tasks'?"),
        ("zzz", "sections: run, task, policy"),
        ("", "sections: run, task, policy"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(key: str, hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        find(key)
    assert hint in str(caught.value)


def test_a_former_key_finds_the_present_one() -> None:
    with pytest.warns(FutureWarning, match="outer.backtracks is now outer.max_rollbacks"):
        assert find("outer.backtracks").key == "outer.max_rollbacks"
