"""A slip in a settings file, an override or Python is answered with the right form of the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maml_ray.common.yaml_data import dump_inline, parse_yaml
from maml_ray.config.loading import load_settings
from maml_ray.config.section import by_key
from maml_ray.config.settings import Settings, SettingsError

LEAVES = dict(by_key(Settings, Settings().model_dump(mode="json")))
NULLABLE = sorted(key for key, value in LEAVES.items() if value is None)
NUMBERS = {
    key: value for key, value in LEAVES.items() if type(value) in (int, float) and 0 <= value < 1e6
}
FLAGS = {key: value for key, value in LEAVES.items() if isinstance(value, bool)}


def refusal(tmp_path: Path | None = None, text: str = "", **arguments: Any) -> str:
    path = None
    if tmp_path is not None:
        path = tmp_path / "deploy.yaml"
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(path, **arguments)
    return str(caught.value).removeprefix(f"{path}: ")


def advice(key: str, written: str) -> Any:
    """Return the value that the refusal of ``key=written`` says to write."""
    said = refusal(overrides=[f"{key}={written}"])
    head, _, form = said.partition(" is not allowed: write ")
    assert head.startswith(f"{key} = "), said
    form = form.removesuffix(" (seconds)").removesuffix(" (GiB)").partition(", without")[0]
    return parse_yaml(form, "the advice")


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_in_another_dress_is_shown_as_it_must_be_written(key: str) -> None:
    value = NUMBERS[key]
    plain = dump_inline(value)
    for written in (f'"{plain}"', f"'{plain}'", f"\u201c{plain}\u201d", f"{plain};", f"[{plain}]"):
        assert advice(key, written) == value
    assert advice(key, f"{plain} s" if key.endswith("_s") else f"{plain} x") == value
    for written in ("many", "{a: 1}", "inf", "true"):
        assert "write a" in refusal(overrides=[f"{key}={written}"])
    load_settings(overrides={key: value})  # what it says is accepted


@pytest.mark.parametrize("key", FLAGS)
def test_a_flag_in_other_words_is_shown_as_true_or_false(key: str) -> None:
    for word, value in (("0", False), ("'off'", False), ("No.", None), ("enable", True)):
        if value is None:
            assert "write true or false" in refusal(overrides=[f"{key}={word}"])
        else:
            assert advice(key, word) is value
    assert "write true" in refusal(overrides={key: "Yes"})


@pytest.mark.parametrize("key", NULLABLE)
def test_words_for_nothing_become_null(key: str) -> None:
    assert advice(key, "off") is None


@pytest.mark.parametrize(
    ("override", "form"),
    [
        ("outer.learning_rate='1e-3'", "0.001, without quotes"),
        ("outer.learning_rate=0,01", "0.01, with a point"),
        ("outer.learning_rate=10^-3", "0.001"),
        ("outer.learning_rate=\u22120.5", "-0.5, without quotes"),
        ("outer.clip=20%", "0.2"),
        ("outer.clip=1/4", "0.25"),
        ("run.iterations=1,000", "1000, without separators"),
        ("run.iterations=1 000 000", "1000000, without separators"),
        ("run.iterations=1k", "1000"),
        ("run.iterations=5e2", "500"),
        ("run.iterations=2.5", "a whole number"),
        ("run.seed=007", "7"),
        ("run.seed=010", "10"),
        ("cluster.stall_s=60s", "60 (seconds)"),
        ("cluster.stall_s=2 minutes", "120 (seconds)"),
        ("cluster.stall_s=1h30m", "5400 (seconds)"),
        ("cluster.stall_s=1:30", "90 (seconds)"),
        ("run.iterations=10^20", "100000000000000000000"),
        ("run.iterations='1__0'", "a whole number"),
        ("outer.clip=1_ %", "a number"),
        ("outer.clip=1e400%", "a number"),
        ("outer.clip=1e300/1e-300", "a number"),
        ("cluster.stall_s=1e400s", "a number"),
        ("cluster.stall_s=5 parsecs", "a number"),
        ("cluster.learner_memory_gib=8GB", "8 (GiB)"),
        ("cluster.learner_memory_gib=512 MiB", "0.5 (GiB)"),
        ("policy.hidden_sizes=64, 64", "[64, 64]"),
        ("policy.hidden_sizes=64x32", "[64, 32]"),
        ("policy.hidden_sizes=(64, 64)", "[64, 64]"),
        ("policy.hidden_sizes=6__4, 64", "a list, [..., ...]"),
        ("policy.hidden_sizes=64", "[64]"),
        ("policy.hidden_sizes={a: 64}", "a list, [..., ...]"),
        ("run.name=2024", '"2024", in quotes'),
        ("run.name=off", '"false", in quotes'),
        ("run=[{seed: 1}, {iterations: 2}]", "run: {seed: 1, iterations: 2}"),
        ("run=iterations:5", "run: {iterations: 5}"),
        ("task.options=speed_range = [0, 3]", "options: {speed_range: [0, 3]}"),
        ("run=5", "keys and values, {key: value}"),
        ("run.iterations=null", "a whole number, or leave the key out for the default"),
        ("task.ranges={g: 5..15}", "[5, 15]"),
        ("task.ranges={g: 5 to 15}", "[5, 15]"),
        ("task.ranges={g: 5}", "[low, high]"),
        ("inner.objective=Dice", "did you mean 'dice'?"),
    ],
)
def test_what_was_meant_is_shown(override: str, form: str) -> None:
    said = refusal(overrides=["task.env=Pendulum-v1", override])
    assert said.endswith(form if "?" in form else f" is not allowed: write {form}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run.iterations: 5\n", "line 1: write nested keys, run: {iterations: 5}"),
        (
            "outer:\n  trust_region.max_kl: 0.1\n",
            "line 2: write nested keys, outer: {trust_region: {max_kl: 0.1}}",
        ),
        ("run:iterations: 5\n", "run:iterations is not a setting; did you mean 'run.iterations'?"),
        ("run:\n\tseed: 5\n", "line 2: indent with spaces, not with a tab"),
        ("run:\n  seed: 1\n  seed: 2\n", "line 3: the key 'seed' is given twice"),
        ("- run: {seed: 1}\n", "must contain sections such as 'run:'"),
        ("run:\n  Iterations: 5\n", "did you mean 'run.iterations'?"),
        ("outer:\n  learning-rate: 1\n", "did you mean 'outer.learning_rate'?"),
    ],
)
def test_a_slip_in_a_file_is_shown_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.iterations:5", "write run.iterations=5"),
        ("run.iterations 5", "write run.iterations=5"),
        ("--run.iterations=5", "write run.iterations=5"),
        ("run.iterations", "write key.path=value"),
        ("run.iterations=", "run.iterations has no value: write run.iterations=VALUE"),
        ("outer.max_query_kl= ", "outer.max_query_kl has no value"),
        ("run.seed=5,outer.epochs=3", "sets run.seed and outer.epochs: write --set in front of"),
        ("run/iterations=5", "did you mean 'run.iterations'?"),
        ("run__iterations=5", "did you mean 'run.iterations'?"),
    ],
)
def test_a_slip_in_an_override_is_shown(override: str, said: str) -> None:
    assert said in refusal(overrides=[override])


def test_spaces_around_the_sign_and_underscores_in_numbers_are_read() -> None:
    found = load_settings(overrides=["run.iterations = 1_000", "outer.learning_rate= 1e-3"])
    assert (found.run.iterations, found.outer.learning_rate) == (1000, 0.001)
    sizes = load_settings(overrides={"policy.hidden_sizes": np.array([8, 4])}).policy.hidden_sizes
    assert sizes == (8, 4)


def test_numbers_that_yaml_1_1_reads_in_base_8_or_60_are_no_numbers() -> None:
    assert parse_yaml("[010, 1:30, 1:30.5, 0, -0, 0.5, 0x10, 09, 1_0, .5, -1.5e3]", "") == [
        *("010", "1:30", "1:30.5", 0, 0, 0.5, 16, "09", 10, 0.5, -1500.0)
    ]
