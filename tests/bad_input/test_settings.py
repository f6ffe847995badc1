"""A deploy.yaml with one thing wrong: a sentence that names it, or settings that come back."""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maml_ray.config.loading import MAX_FILE_BYTES, dump_settings, load_settings, validate_settings
from maml_ray.config.presets import PRESETS
from maml_ray.config.settings import Settings, SettingsError
from tests.bad_input.odd import (
    AS_YAML,
    DEFAULTS,
    PLACES,
    WORDS,
    anything,
    as_yaml,
    misspelt,
    trees,
    yaml_values,
)

SENTENCE = 1000
"""Characters of the longest sentence that a person would read."""
FACTOR = int(os.environ.get("FUZZ", "1"))
"""On the number of cases, for a long night: `make fuzz`."""


def cases(number: int) -> settings:
    return settings(max_examples=number * FACTOR)


def put(tree: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    at = tree
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return tree


def assert_a_sentence(message: str, *names: str, any_of: tuple[str, ...] = ("",)) -> None:
    assert message.isprintable(), message
    assert len(message) < SENTENCE
    assert all(name in message for name in names), (names, message)
    assert any(name in message for name in any_of), (any_of, message)


def assert_comes_back(found: Settings, folder: Path) -> None:
    again = folder / "again.yaml"
    again.write_text(dump_settings(found), encoding="utf-8")
    assert load_settings(again) == found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


def assert_named_or_settings(data: Any, place: tuple[str, ...], folder: Path) -> None:
    try:
        found = validate_settings(data)
    except SettingsError as error:
        # A value may be wrong because of another: min_log_std above initial_log_std.
        assert_a_sentence(str(error), place[0])
        return
    assert_comes_back(found, folder)


@cases(1500)
@given(place=st.sampled_from(PLACES), value=anything)
def test_one_value_is_wrong(folder: Path, place: tuple[str, ...], value: Any) -> None:
    assert_named_or_settings(put(DEFAULTS, place, value), place, folder)


@cases(300)
@given(data=st.data(), place=st.sampled_from(PLACES))
def test_one_key_is_wrong(data: st.DataObject, place: tuple[str, ...]) -> None:
    key = data.draw(misspelt(place[-1]))
    siblings = [name for name in PLACES if name[:-1] == place[:-1]]
    assume((*place[:-1], key) not in siblings)
    tree = put(DEFAULTS, (*place[:-1], key), 1)
    if place[:-1] == ("task", "options"):
        return
    with pytest.raises(SettingsError) as caught:
        validate_settings(tree)
    assert_a_sentence(str(caught.value))
    shown = key if key.isprintable() and len(key) <= 60 else repr(key)[:50]
    assert_a_sentence(str(caught.value), ".".join((*place[:-1], shown)))


@cases(1000)
@given(place=st.sampled_from(PLACES), value=yaml_values)
def test_one_value_is_odd_yaml(folder: Path, place: tuple[str, ...], value: str) -> None:
    lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(place)]
    text = "\n".join(lines) + f" {value}\n"
    file = folder / "deploy.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = load_settings(file)
    except SettingsError as error:
        assert_a_sentence(str(error), str(file), any_of=("line", place[0]))
        return
    assert_comes_back(found, folder)


@pytest.mark.parametrize("kind", AS_YAML)
def test_every_oddity_behind_a_number_is_refused(folder: Path, kind: str) -> None:
    file = folder / "deploy.yaml"
    file.write_text(f"run:\n  seed: {AS_YAML[kind]}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert_a_sentence(str(caught.value), str(file))
    assert "line" in str(caught.value) or "run" in str(caught.value)


@cases(400)
@given(
    content=st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode("latin-1", "replace"))
)
def test_any_bytes(folder: Path, content: bytes) -> None:
    file = folder / "deploy.yaml"
    file.write_bytes(content)
    try:
        found = load_settings(file)
    except SettingsError as error:
        assert_a_sentence(str(error), str(file))
        return
    assert_comes_back(found, folder)


@cases(300)
@given(data=st.data(), end=st.integers(0, 3000))
def test_a_damaged_file(folder: Path, data: st.DataObject, end: int) -> None:
    text = dump_settings(Settings())
    end = min(end, len(text))
    odd = data.draw(st.sampled_from([*"\t\0\r{[]}:,&*!|>'\"%@`#-?\ufeff", "\n\n  ", *WORDS]))
    file = folder / "deploy.yaml"
    file.write_text(text[:end] + odd + text[end:], encoding="utf-8", errors="surrogatepass")
    try:
        found = load_settings(file)
    except SettingsError as error:
        assert_a_sentence(str(error), str(file))
        return
    assert_comes_back(found, folder)


def test_a_mark_at_the_start_and_other_line_ends_are_read(folder: Path) -> None:
    file = folder / "deploy.yaml"
    for text in ("\ufeffrun:\n  seed: 7\n", "run:\r\n  seed: 7\r\n", "run:\r  seed: 7\r"):
        file.write_bytes(text.encode())
        assert load_settings(file).run.seed == 7
    file.write_bytes("run:\n  name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(file)


@cases(600)
@given(place=st.sampled_from(PLACES), value=yaml_values | trees.map(repr) | st.text(max_size=20))
def test_an_override_is_wrong(folder: Path, place: tuple[str, ...], value: str) -> None:
    key = ".".join(place)
    try:
        found = load_settings(overrides=[f"{key}={value}"])
    except SettingsError as error:
        assert_a_sentence(str(error), place[0])
        return
    assert_comes_back(found, folder)


@cases(300)
@given(
    override=st.text(max_size=30) | st.sampled_from(WORDS) | st.just(".".join("a" * 20_000) + "=1")
)
def test_any_text_as_an_override(override: str) -> None:
    try:
        load_settings(overrides=[override])
    except SettingsError as error:
        assert_a_sentence(str(error))


@cases(200)
@given(preset=st.text(max_size=20) | st.sampled_from(WORDS), inside=anything)
def test_any_preset(preset: str, inside: Any) -> None:
    assume(preset not in PRESETS)  # hypothesis reads the sources, and tries their words
    for arguments in ({"preset": preset}, {"overrides": [f"run.preset={as_yaml(preset)}"]}):
        with pytest.raises(SettingsError) as caught:
            load_settings(**arguments)
        assert_a_sentence(str(caught.value), "preset")


def refused(path: Path | str) -> str:
    began = time.monotonic()
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert time.monotonic() - began < 5.0, "refused, but after too long a time"
    assert_a_sentence(str(caught.value))
    return str(caught.value)


def test_a_hundred_megabytes_are_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    with file.open("wb") as hole:
        hole.truncate(100_000_000)
    assert f"at most {MAX_FILE_BYTES:,} are read" in refused(file)


def test_the_largest_file_is_read_in_a_moment(tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(("a: {b: c}\n" * MAX_FILE_BYTES)[:MAX_FILE_BYTES])
    refused(file)
    file.write_text("[" * MAX_FILE_BYTES)
    refused(file)
    file.write_text("\n".join(f"k{n}: [1, 2]" for n in range(MAX_FILE_BYTES // 15)))
    refused(file)


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    assert "not a regular file" in refused(pipe)
    assert "not a regular file" in refused("/dev/zero")
    assert "not a regular file" in refused("/dev/null")
    assert "directory" in refused(tmp_path) or "regular" in refused(tmp_path)
    assert "symbolic links" in refused(loop)
    assert "name" in refused(tmp_path / ("x" * 300))
    assert "name" in refused("a\0b")
    assert "name" in refused("\udfff\ud800")
