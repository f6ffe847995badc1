"""Test Ray Tune: the documented sweep, and the resources and settings of a trial."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import maml_ray
from maml_ray.common.errors import ResourceError, UserError
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.runs.tune import tune_objective
from tests.docs.pages import python_block
from tests.small_ray import small_ray


@pytest.fixture
def ray_of_two_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start Ray for one test: Tune's actors and a full cluster would disturb other tests."""
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    ray.shutdown()
    with small_ray():
        yield


@pytest.mark.cluster
@pytest.mark.ray
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_the_documented_sweep_stops_bad_trials_and_finds_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(python_block("sweeps.md", "tune_objective"), names)
    results, best = names["results"], names["best"]
    assert not results.errors
    rows = {one.config["inner.learning_rate"]: one for one in results}
    assert set(rows) == {0.002, 0.05, 0.2}
    lengths = {rate: one.metrics["training_iteration"] for rate, one in rows.items()}
    assert max(lengths.values()) == 12
    assert min(lengths.values()) < 12, "nothing was stopped early"
    assert best.metrics["return_after"] == max(one.metrics["return_after"] for one in results)
    for rate, one in rows.items():
        folder = Path(one.metrics["run_folder"])
        assert folder.parent == tmp_path / "runs"
        settings = maml_ray.load_settings(folder / "settings.yaml")
        assert settings.inner.learning_rate == rate
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        reported = one.metrics["iteration"]
        assert lines[reported]["return_after"] == one.metrics["return_after"]
    assert names["agent"].settings.inner.learning_rate == best.config["inner.learning_rate"]
    assert names["agent"].act(np.zeros(2)).shape == (2,)


@pytest.mark.parametrize(
    ("cluster", "resources"),
    [
        ({}, {"CPU": 1.0}),
        ({"rollout_actors": 3}, {"CPU": 3.0}),
        ({"rollout_actors": 2, "learner_device": "cuda"}, {"CPU": 2.0, "GPU": 1.0}),
    ],
)
def test_a_trial_requests_the_resources_of_its_actors(
    cluster: dict[str, Any], resources: dict[str, float]
) -> None:
    asked = tune_objective(validate_settings({"cluster": cluster}))._resources
    assert asked.required_resources == resources
    assert asked.head_bundle_is_empty  # the trial's own process waits without a CPU


def test_a_cluster_that_has_gone_is_refused_before_tune_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("maml_ray.runtime.connection.address.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ResourceError, match=r"127\.0\.0\.1:1' \(RAY_ADDRESS\).*unset RAY_ADDRESS"):
        tune_objective()


def test_a_missing_extra_is_reported_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(ray, "tune", raising=False)
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    with pytest.raises(UserError, match=r"pip install 'maml-ray\[tune\]'"):
        tune_objective()


def test_a_config_names_settings_by_their_path() -> None:
    settings = Settings().replace(
        {"inner.learning_rate": np.float64(0.5), "inner.steps": np.int64(2), "run.seed": 7},
    )
    assert (settings.inner.learning_rate, settings.inner.steps, settings.run.seed) == (0.5, 2, 7)
    assert settings.outer == Settings().outer
    for wrong in (
        {"inner.learning_rat": 0.5},
        {"inner": 3},
        {"learning_rate": 1},
        {"inner.steps": 9},
    ):
        with pytest.raises(SettingsError, match=r"inner|learning_rate"):
            Settings().replace(wrong)
