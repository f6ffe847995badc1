"""A run's folder executes no code: modules that its record names are not imported unasked."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maml_ray.common.errors import UserError
from maml_ray.config.loading import load_settings, validate_settings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.loading import load
from maml_ray.evaluation.saved_policy import save_policy
from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.adapt import adapt_run
from maml_ray.runs.evaluate import evaluate_run
from maml_ray.runs.train import train
from maml_ray.runs.tune import tune_objective
from maml_ray.serving.served_policy import load_base_policy
from maml_ray.tasks.loading import import_modules, recorded_module, resolve_tasks
from tests.small_runs import run_of, settings

MODULE = "module_of_a_foreign_run"
SOURCE = """
from pathlib import Path
from maml_ray.tasks.families.point_navigation import PointNavigationTasks
Path(__file__).with_name("executed").touch()

class Tasks(PointNavigationTasks): ...
"""


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported, as with ``PYTHONPATH=.``."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if MODULE in name]:
        del sys.modules[name]


def foreign_run(folder: Path, tasks: str = f"{MODULE}:Tasks") -> RunDir:
    run = run_of(settings(), folder)
    text = run.settings.read_text(encoding="utf-8")
    run.settings.write_text(text.replace("name: point-navigation", f"name: {tasks}"))
    return run


def write_module(folder: Path) -> Path:
    (folder / f"{MODULE}.py").write_text(SOURCE)
    return folder / "executed"


def _save_and_load(run: RunDir) -> Agent:
    save_policy(load(run), run.path / "saved")
    return load(run.path / "saved")


USES = {
    "sample_tasks": lambda run: load(run).sample_tasks(1),
    "collect": lambda run: load(run).collect(),
    "adapt": lambda run: load(run).adapt({"x": 0.1, "y": 0.1}),
    "adapt_run": lambda run: adapt_run(run.path, {"x": 0.1, "y": 0.1}),
    "evaluate_run": evaluate_run,
    "a saved policy": lambda run: _save_and_load(run).sample_tasks(1),
    "resume": lambda run: train(resume=run),
    "train anew": lambda run: train(load(run).settings.replace("run.seed", 1)),
    "train its settings file": lambda run: train(run.settings),
    "tune": lambda run: tune_objective(load(run).settings),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_recorded_module_is_not_imported(use: Any, importable: Path) -> None:
    run, executed = foreign_run(importable / "run"), write_module(importable)
    with pytest.raises(UserError, match=f"trust {MODULE}, add --import {MODULE}") as refusal:
        use(run)
    assert f"in Python import {MODULE} first" in str(refusal.value)
    assert not executed.exists()
    assert load(run).act([[0.0, 0.0]]).shape == (1, 2)  # type: ignore[arg-type]
    served = load_base_policy(str(run))
    assert served.example_task is None


def test_a_module_that_the_user_has_named_is_used(importable: Path) -> None:
    run, executed = foreign_run(importable / "run"), write_module(importable)
    import_modules([MODULE], run)
    assert executed.exists()
    assert len(load(run).sample_tasks(2)) == 2
    assert _save_and_load(run).sample_tasks(1)
    assert load_base_policy(str(run)).example_task is not None


def test_a_module_in_the_folder_of_the_run_is_never_used(
    importable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = foreign_run(importable / "runs" / "theirs", f"runs.theirs.{MODULE}:Tasks")
    executed = write_module(run.path)
    with pytest.raises(SettingsError, match="is in the directory of the run"):
        import_modules([f"runs.theirs.{MODULE}"], run)
    monkeypatch.syspath_prepend(run.path)
    with pytest.raises(SettingsError, match="is in the directory of the run"):
        import_modules([MODULE], run)
    assert not executed.exists()
    __import__(MODULE)
    other = foreign_run(importable / "other")
    other.settings.rename(run.settings)
    with pytest.raises(SettingsError, match="is in the directory of the run"):
        load(run).sample_tasks(1)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"env": f"{MODULE}:Env-v0"}, f"add --import {MODULE}"),
        ({"name": f"{MODULE}.deeper:X"}, f"add --import {MODULE}.deeper"),
        ({"name": "maml_ray.tasks.gymnasium_tasks:GymnasiumTasks"}, "use task.env"),
        ({"name": "maml_ray.tasks.loading:ObservedParametersTasks"}, "use task.env"),
        ({"env": "GymV21Environment-v0", "options": {"env_id": f"{MODULE}:X"}}, "not made from"),
    ],
)
def test_other_ways_to_a_module_are_closed(task: Any, message: str, importable: Path) -> None:
    executed = write_module(importable)
    recorded = validate_settings({"task": task}, recorded=True)
    with pytest.raises(SettingsError, match=message):
        resolve_tasks(recorded.task)
    assert not executed.exists()


def test_what_is_built_in_needs_no_permission() -> None:
    for task in ({"name": "ant-velocity"}, {"env": "Pendulum-v1", "ranges": {"g": [5, 15]}}):
        recorded = validate_settings({"task": task}, recorded=True)
        assert recorded.task.recorded_in is not None
        assert resolve_tasks(recorded.task)
        assert recorded_module(recorded.task) is None


def test_settings_remember_where_they_were_read(tmp_path: Path) -> None:
    run = foreign_run(tmp_path / "run")
    folder = str(run.path)
    recorded = load_settings(run.settings, recorded=True)
    assert recorded.task.recorded_in == folder
    assert load_settings(run.settings).task.recorded_in == folder  # whoever names it
    assert pickle.loads(pickle.dumps(recorded)).task.recorded_in == folder
    assert recorded.replace("run.seed", 3).task.recorded_in == folder
    assert recorded.replace("task.name", "my_tasks:Mine").task.recorded_in is None
    written = Settings(**recorded.model_dump(mode="json"))
    assert written.task.recorded_in is None
    assert written == recorded
    assert written.task == recorded.task
    assert recorded.as_recorded_in(None) == recorded
    copy = tmp_path / "mine.yaml"
    copy.write_bytes(run.settings.read_bytes())
    assert load_settings(copy).task.recorded_in is None


def test_a_module_that_cannot_be_imported_is_one_sentence(importable: Path) -> None:
    (importable / f"{MODULE}.py").write_text("x = 1\nraise KeyError('no file')\n")
    with pytest.raises(SettingsError, match=rf"--import .*KeyError: .*{MODULE}.py, line 2"):
        import_modules([MODULE])
    with pytest.raises(SettingsError, match="no_such_module_at_all"):
        import_modules(["no_such_module_at_all"], importable)
