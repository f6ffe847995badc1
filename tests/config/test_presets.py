from __future__ import annotations

from pathlib import Path

import pytest

from maml_ray.config.loading import dump_settings, load_settings
from maml_ray.config.presets import PRESETS
from maml_ray.config.settings import Settings, SettingsError
from tests.config.test_settings import write


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset: str) -> None:
    assert load_settings(preset=preset) != Settings()


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'notebok'.*did you mean 'notebook'"):
        load_settings(preset="notebok")


def test_a_file_may_name_its_preset(tmp_path: Path) -> None:
    path = write(tmp_path, "run: {preset: promp2019, seed: 4}\nouter: {epochs: 7}\n")
    settings = load_settings(path)
    assert settings.run.preset == "promp2019"
    assert settings.outer.epochs == 7
    assert settings.outer.inner_kl_coefficient == 5e-4
    assert settings == load_settings(preset="promp2019", overrides=["run.seed=4", "outer.epochs=7"])
    again = write(tmp_path, dump_settings(settings))
    assert load_settings(again) == settings


def test_a_preset_does_not_drown_in_a_complete_file(tmp_path: Path) -> None:
    """deploy.yaml spells out every setting: nothing of a preset under it would be left."""
    path = write(tmp_path, dump_settings(Settings()))
    with pytest.raises(SettingsError, match=r"run\.preset = null, but the command has 'rllib'"):
        load_settings(path, preset="rllib")
    with pytest.raises(SettingsError, match="'no-such' is not known"):
        load_settings(write(tmp_path, "run: {preset: no-such}"))


def test_the_papers_differ_in_what_silently_changes_the_results() -> None:
    finn, promp, rllib, torch = (
        load_settings(preset=name) for name in ("finn2017", "promp2019", "rllib", "maml-rl-torch")
    )
    scales = [settings.policy.action_scale for settings in (finn, promp, rllib, torch)]
    assert scales == [1.0, 0.1, 1.0, 0.1]
    bounds = [settings.policy.action_bounds for settings in (finn, promp, rllib, torch)]
    assert bounds == ["rescale", "rescale", "none", "rescale"]
    assert [settings.task.horizon for settings in (finn, promp, rllib, torch)] == [
        200,
        100,
        100,
        100,
    ]
    torsos = [settings.task.options["torso_position"] for settings in (finn, promp, rllib, torch)]
    assert torsos == [True, False, False, True]
    assert [settings.meta_batch.tasks for settings in (finn, promp, rllib, torch)] == [
        40,
        40,
        31,
        40,
    ]
    assert [s.outer.objective for s in (finn, promp, rllib, torch)] == [
        "trpo",
        "ppo",
        "ppo",
        "trpo",
    ]
    fastest = [
        load_settings(preset=f"{name}-velocity").task.options["speed_range"][1]
        for name in ("finn2017", "promp2019", "maml-rl-torch")
    ]
    assert fastest == [2.0, 3.0, 2.0]


def test_preset_then_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "outer: {learning_rate: 0.25, epochs: 7}\nmeta_batch:\n")
    settings = load_settings(path, preset="notebook", overrides=["outer.epochs=9", "run.seed=5"])
    assert settings.outer.objective == "reinforce"  # the preset's
    assert settings.meta_batch.tasks == 4  # an empty section takes nothing away
    assert settings.outer.learning_rate == 0.25  # the file's
    assert settings.outer.epochs == 9  # the command line's
    assert settings.run.seed == 5
    assert settings.task == Settings().task  # nobody's: the default
