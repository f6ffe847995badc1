"""Settings made and changed in Python: the same checks and sentences as for a file."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maml_ray.config import sections, settings
from maml_ray.config.loading import load_settings, validate_settings
from maml_ray.config.settings import SettingsError

# Plain data for sections, which the constructors accept and type checkers do not.
Settings: Any = settings.Settings
OuterSettings: Any = sections.OuterSettings
PolicySettings: Any = sections.PolicySettings
RunSettings: Any = sections.RunSettings


def test_the_constructor_takes_what_a_file_may_hold() -> None:
    made = Settings(outer={"epochs": 4}, policy=PolicySettings(hidden_sizes=[8, 4]))
    assert made == validate_settings({"outer": {"epochs": 4}, "policy": {"hidden_sizes": [8, 4]}})
    assert made.policy.hidden_sizes == (8, 4)
    assert OuterSettings(learning_rate=1).learning_rate == 1.0
    assert OuterSettings(epochs=np.int64(3)).epochs == 3
    assert RunSettings(directory=Path("runs/a")).directory == "runs/a"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Settings(outer={"epochs": 0}),
            "outer.epochs = 0 is not allowed: input should be greater than or equal to 1",
        ),
        (
            lambda: OuterSettings(epochs=0),
            "epochs = 0 is not allowed: input should be greater than or equal to 1",
        ),
        (
            lambda: OuterSettings(trust_region={"max_kls": 1}),
            "trust_region.max_kls is not a setting; did you mean 'trust_region.max_kl'?",
        ),
        (lambda: Settings(runs=1), "runs is not a setting; did you mean 'run'?"),
        (lambda: Settings(run={"seed": "7"}), "run.seed = '7' is not allowed: write 7"),
        (lambda: Settings(run=[1]), "run = [1] is not allowed"),
        (lambda: Settings(run=object()), "run = <object object"),
        (lambda: Settings(outer={"learning_rate": float("nan")}), "outer.learning_rate = nan"),
        (lambda: Settings(meta_batch={"tasks": 10**6}), "meta_batch.tasks = 1000000"),
    ],
)
def test_a_wrong_argument_is_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make()
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_an_unknown_keyword_names_those_that_exist() -> None:
    with pytest.raises(SettingsError, match="foo is not a setting; known keys: run, task, policy"):
        Settings(foo=1)


def test_settings_are_replaced_by_key() -> None:
    settings = load_settings(preset="direction")
    assert settings.replace("outer.epochs", 4) == load_settings(
        preset="direction", overrides=["outer.epochs=4"]
    )
    both = settings.replace({"outer.epochs": 4, "outer.trust_region.max_kl": np.float64(0.5)})
    assert both.outer == settings.outer.model_copy(
        update={
            "epochs": 4,
            "trust_region": settings.outer.trust_region.model_copy(update={"max_kl": 0.5}),
        }
    )
    assert settings.outer.epochs == 8


def test_a_section_is_merged_and_a_setting_replaced() -> None:
    settings = load_settings(preset="finn2017-velocity")
    changed = settings.replace("outer", {"epochs": 3, "trust_region": {"damping": 0.5}})
    assert changed.outer.objective == "trpo"
    assert changed.outer.trust_region.max_kl == 0.01
    assert (changed.outer.epochs, changed.outer.trust_region.damping) == (3, 0.5)
    options = settings.replace("task.options", {"speed_range": [0.0, 1.0]}).task.options
    assert options == {"speed_range": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("outer.epochs", 0, "outer.epochs = 0 is not allowed"),
        ("outer.epoch", 1, "outer.epoch is not a setting; did you mean 'outer.epochs'?"),
        ("outer.epochs.x", 1, "outer.epochs.x is not a setting: epochs has no keys"),
        ("outer", 1, "outer = 1 is not allowed"),
        ("run", None, "run = None is not allowed"),
        ("", 1, "is not a setting"),
        ("run.preset", "direction", "use --preset NAME, or preset=NAME in Python"),
    ],
)
def test_a_wrong_replacement_is_one_sentence(key: str, value: Any, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings().replace(key, value)
    assert words in str(caught.value)


def test_a_replacement_needs_a_key_and_a_value_or_a_mapping() -> None:
    for arguments in (("outer.epochs",), ({"outer.epochs": 4}, 5)):
        with pytest.raises(TypeError, match=r"replace\(\"outer.epochs\", 4\)"):
            Settings().replace(*arguments)


def test_a_former_key_is_replaced_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="outer.backtracks is now outer.max_rollbacks"):
        assert Settings().replace("outer.backtracks", 2).outer.max_rollbacks == 2


@pytest.mark.parametrize(
    "overrides",
    [
        {"outer.epochs": 4, "run": {"seed": 3}},
        {"outer": {"epochs": 4}, "run.seed": np.int64(3)},
        ["outer.epochs=4", "run.seed=3"],
    ],
)
def test_overrides_are_a_mapping_or_a_list(overrides: Any) -> None:
    settings = load_settings(preset="direction", overrides=overrides)
    assert settings == load_settings(preset="direction").replace({"outer.epochs": 4, "run.seed": 3})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("outer.epochs=4", "write a list of strings or a mapping"),
        ({"outer..epochs": 4}, "cannot read the setting 'outer..epochs'"),
        ({"outer.epoch": 4}, "did you mean 'outer.epochs'"),
        ({"run.preset": "velocity"}, "use --preset NAME"),
    ],
)
def test_wrong_overrides_are_one_sentence(overrides: Any, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides=overrides)
    assert words in str(caught.value)


def test_the_repr_shows_what_differs() -> None:
    assert repr(Settings()) == (
        "Settings(run.name='half-cheetah-backward', task.name='half-cheetah-backward')"
    )
    assert repr(Settings(outer={"trust_region": {"max_kl": 0.5}})).endswith(
        ", outer.trust_region.max_kl=0.5)"
    )
    assert repr(OuterSettings(epochs=4)) == "OuterSettings(epochs=4)"


def test_the_repr_of_a_preset_shows_what_differs_from_it() -> None:
    shown = "run.name='direction', task.name='half-cheetah-direction', run.preset='direction'"
    settings = load_settings(preset="direction")
    assert repr(settings) == f"Settings({shown})"
    assert repr(settings.replace("outer.epochs", 1)) == f"Settings({shown}, outer.epochs=1)"
    assert repr(settings.replace("inner.l2", 0.5)) == f"Settings({shown}, inner.l2=0.5)"
    assert settings.differences()["outer.epochs"] == 8
    assert "run.seed" not in settings.differences()


def test_a_notebook_shows_a_table_of_what_differs() -> None:
    table = Settings(run={"directory": "<runs>"})._repr_html_()
    assert "<td>run.directory</td><td>&#x27;&lt;runs&gt;&#x27;</td>" in table
    assert table.count("<tr>") == 2
    assert "<tr>" not in Settings()._repr_html_()


def test_settings_are_copied_compared_and_pickled() -> None:
    settings = load_settings(preset="velocity")
    for same in (
        pickle.loads(pickle.dumps(settings)),
        copy.deepcopy(settings),
        settings.model_copy(),
        Settings(**settings.model_dump()),
    ):
        assert same == settings
        assert same.model_dump() == settings.model_dump()
    assert settings != settings.replace("run.seed", 1)
    assert Settings(run={"seed": 1}).model_fields_set == {"run"}
