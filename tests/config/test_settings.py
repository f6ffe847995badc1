from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maml_ray.config.loading import MAX_FILE_BYTES, dump_settings, load_settings, validate_settings
from maml_ray.config.settings import Settings, SettingsError


def write(folder: Path, text: str) -> Path:
    path = folder / "deploy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["", "# nothing\n", "run:\nouter:\n", "{}", "---\n"])
def test_an_empty_file_gives_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_settings(write(tmp_path, text)) == Settings() == load_settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(SettingsError, match=r"seed stays 0: settings\.replace"):
        Settings().run.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"outter": {}}, ["outter", "not a setting", "did you mean 'outer'"]),
        ({"outer": {"epoch": 4}}, ["outer.epoch", "did you mean 'outer.epochs'"]),
        ({"inner": {"zzz": 1}}, ["inner.zzz", "steps", "learning_rate", "objective", "l2"]),
        ({"zzz": 1}, ["zzz", "run", "task", "policy", "cluster"]),
        ({"inner": {"a": 1, "b": 1, "c": 1}}, ["and 2 more"]),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(data: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        validate_settings(data)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        ("run", "seed", -1, "greater than or equal to 0"),
        ("run", "seed", 2**63, "less than 9223372036854775808"),
        ("run", "seed", True, "whole number"),
        ("run", "seed", "7", "write 7"),
        ("run", "iterations", 0, "greater than or equal to 1"),
        ("run", "iterations", 1.5, "whole number"),
        ("run", "name", "a/b", "pattern"),
        ("run", "name", "../up", "pattern"),
        ("run", "directory", "", "at least 1"),
        ("policy", "activation", "gelu", "'tanh' or 'relu'"),
        ("policy", "hidden_sizes", 64, "write [64]"),
        ("policy", "hidden_sizes", [8] * 17, "at most 16"),
        ("policy", "min_log_std", 1.0, "initial_log_std"),
        ("policy", "min_log_std", -21, "greater than or equal to -20"),
        ("policy", "initial_log_std", float("nan"), ""),
        ("meta_batch", "tasks", True, "whole number"),
        ("advantages", "discount", 1.01, "less than or equal to 1"),
        ("advantages", "discount", float("nan"), ""),
        ("advantages", "normalize", 1, "write true"),
        ("advantages", "normalize", "yes", "write true"),
        ("inner", "steps", 6, "less than or equal to 5"),
        ("inner", "learning_rate", 0, "greater than 0"),
        ("inner", "learning_rate", float("inf"), "finite"),
        ("inner", "learning_rate", float("nan"), ""),
        ("outer", "objective", "", "at least 1"),
        ("outer", "tasks_per_minibatch", 0, "greater than or equal to 1"),
        ("cluster", "learner_device", "tpu", "'auto', 'cpu' or 'cuda'"),
    ],
)
def test_wrong_values_are_refused_by_name(
    section: str, key: str, value: object, allowed: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        validate_settings({section: {key: value}})
    message = str(caught.value)
    assert f"{section}.{key}" in message
    assert allowed in message
    assert repr(value)[:40] in message
    assert "\n" not in message


def test_a_list_element_is_named_by_its_place() -> None:
    with pytest.raises(SettingsError, match=r"policy\.hidden_sizes\.1 = 0 "):
        validate_settings({"policy": {"hidden_sizes": [8, 0]}})


def test_a_section_that_is_not_a_section_is_refused() -> None:
    with pytest.raises(SettingsError, match="outer = 5"):
        validate_settings({"outer": 5})


def test_whole_numbers_pass_for_real_ones() -> None:
    assert validate_settings({"inner": {"learning_rate": 1}}).inner.learning_rate == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run:\n  seed: 1\n  seed: 2\n", ["line 3", "'seed'", "twice"]),
        ("run:\n  seed: 1\nrun:\n  seed: 2\n", ["line 3", "'run'", "twice"]),
        ("run: &a {seed: 1}\nouter: *a\n", ["line 2", "aliases"]),
        ("- run\n- outer\n", ["sections", "['run', 'outer']"]),
        ("just words", ["sections", "'just words'"]),
        ("run: {seed: 1", ["not valid YAML"]),
        ("run: !!python/object:os.system {}", ["line 1", "tags", "python/object"]),
        ("? [a, b]\n: 1\n", ["deploy.yaml"]),
        ("{{a: 1}: 2}", ["deploy.yaml"]),
        ("run: !!bool perhaps", ["deploy.yaml"]),
        ("run: !!int ''", ["deploy.yaml"]),
        ("run: !!timestamp 5", ["deploy.yaml"]),
        ("run: !!map [[a, b]]", ["deploy.yaml"]),
        ("run: {seed: " + "9" * 5000 + "}", ["deploy.yaml"]),
        ("[" * 5000, ["deploy.yaml"]),
        ("run: {directory: 2024-01-01}", []),
        ("run: {directory: !!binary aGVsbG8=}", ["line 1", "tags", "binary"]),
        ("run: !!set {a, b}", ["line 1", "tags", "set"]),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, text)
    if not words:  # not a mistake: a date is only text here
        assert load_settings(path).run.directory == "2024-01-01"
        return
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_too_large_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(SettingsError, match="at most 100,000 are read"):
        load_settings(path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_bytes(b"run: {name: \xff\xfe}")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.yaml.*No such file"):
        load_settings(tmp_path / "missing.yaml")
    with pytest.raises(SettingsError, match="directory"):
        load_settings(tmp_path)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", ".1e-2", "0.001", "+1e-3"])
def test_scientific_notation_is_a_number(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"outer:\n  learning_rate: {text}\n")
    assert load_settings(path).outer.learning_rate == 1e-3
    overridden = load_settings(overrides=[f"outer.learning_rate={text}"])
    assert overridden.outer.learning_rate == 1e-3


def test_overrides_take_any_plain_value() -> None:
    settings = load_settings(
        overrides=["policy.hidden_sizes=[8, 4]", "outer.max_gradient_norm=null", "run.name=a"]
    )
    assert settings.policy.hidden_sizes == (8, 4)
    assert settings.outer.max_gradient_norm is None
    assert settings.run.name == "a"


@pytest.mark.parametrize("override", ["outer.epochs", "=3", "outer..epochs=3", ".=1", ""])
def test_malformed_overrides_are_refused(override: str) -> None:
    with pytest.raises(SettingsError, match=r"key\.path=value"):
        load_settings(overrides=[override])


@pytest.mark.parametrize("override", ["outer.epochs=[", "outer.epochs=*a", "a.b.c.d=1", "run=3"])
def test_wrong_overrides_are_refused(override: str) -> None:
    with pytest.raises(SettingsError):
        load_settings(overrides=[override])


names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z") | st.sampled_from(
    ["1e5", "7", "0x1f", "1.5", "2024-01-01", "no", "null", "true", "1_000", "12e03"]
)
small_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
)
counts = st.integers(1, 10**9)
positives = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
valid_settings = st.fixed_dictionaries(
    {},
    optional={
        "run": st.fixed_dictionaries(
            {},
            optional={
                "name": names,
                "seed": st.integers(0, 2**63 - 1),
                "directory": small_text | names,
            },
        ),
        "task": st.fixed_dictionaries(
            {}, optional={"name": small_text, "horizon": st.integers(1, 10**6)}
        ),
        "policy": st.fixed_dictionaries(
            {},
            optional={
                "hidden_sizes": st.lists(st.integers(1, 2000), max_size=16),
                "initial_log_std": st.floats(-3, 5),
                "activation": st.sampled_from(["tanh", "relu"]),
            },
        ),
        "outer": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": positives,
                "final_learning_rate": st.none() | positives,
                "tasks_per_minibatch": st.none() | counts,
            },
        ),
        "evaluation": st.fixed_dictionaries({}, optional={"video": st.booleans()}),
    },
)


@given(data=valid_settings)
def test_dumped_settings_load_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    settings = validate_settings(data)
    path = tmp_path_factory.mktemp("dump") / "settings.yaml"
    path.write_text(dump_settings(settings), encoding="utf-8")
    assert load_settings(path) == settings


def test_the_log_std_floor_is_checked_against_the_start_even_where_it_is_the_default() -> None:
    # Default floor: -3. A start below it would begin where no gradient passes.
    with pytest.raises(SettingsError, match="log_std"):
        validate_settings({"policy": {"initial_log_std": -4.0}})


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**400)
    | st.floats()
    | st.text()
    | st.binary(max_size=4)
)
sections = list(Settings.model_fields)
fields = sorted(
    {name for section in sections for name in getattr(Settings(), section).model_dump()}
)
keys = st.sampled_from([*sections, *fields, "[key]", "", "null"]) | st.text() | st.integers()
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(data=st.dictionaries(keys, anything, max_size=3))
def test_whatever_is_given_is_settings_or_a_settings_error(data: dict[Any, Any]) -> None:
    try:
        settings = validate_settings(data)
    except SettingsError:
        return
    json.dumps(settings.model_dump(mode="json"), allow_nan=False)


@given(text=st.text(alphabet="run:sed{}[]?!&*-<>|'\"\n 1e.,#%", max_size=30))
def test_whatever_a_file_holds_is_settings_or_a_settings_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "deploy.yaml"
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(SettingsError):
        load_settings(path)


def test_the_key_of_an_error_is_not_confused_by_odd_names() -> None:
    with pytest.raises(SettingsError, match="not a setting"):
        validate_settings({"[key]": 1})
