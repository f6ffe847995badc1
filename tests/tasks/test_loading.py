"""Task distributions by name, and given in Python."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maml_ray.config.loading import dump_settings, validate_settings
from maml_ray.config.sections import TaskSettings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.tasks.families.half_cheetah import HalfCheetahBackwardTasks
from maml_ray.tasks.loading import import_modules, record_own_tasks, resolve_tasks
from maml_ray.tasks.registry import TASK_FAMILIES
from maml_ray.tasks.task import TaskDistribution
from tests.tasks.families import PendulumTasks


class NeedsArguments(PendulumTasks):
    def __init__(self, size: int) -> None:
        self.size = size


class Unfinished(TaskDistribution):
    pass


def test_built_in_names() -> None:
    assert set(TASK_FAMILIES) >= {"half-cheetah-backward"}
    for name in TASK_FAMILIES:
        assert isinstance(resolve_tasks(TaskSettings(name=name)), TaskDistribution)
    assert type(resolve_tasks(TaskSettings())) is HalfCheetahBackwardTasks


def test_a_class_of_ones_own() -> None:
    tasks = resolve_tasks(TaskSettings(name=f"{__name__}:PendulumTasks"))
    assert isinstance(tasks, PendulumTasks)
    first, second = tasks.sample(np.random.default_rng(0), 2)
    assert first != second
    env = tasks.make_vector_env(first, num_envs=3, horizon=4)
    env.reset(seed=0)
    truncations = [env.step(np.zeros((3, 1), np.float32))[3].all() for _ in range(4)]
    assert truncations == [False, False, False, True]
    gravities = [single.unwrapped.g for single in env.envs]  # type: ignore[attr-defined]
    assert gravities == [dict(first.parameters)["g"]] * 3
    env.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half-cheetah-backwards", "did you mean 'half-cheetah-backward'"),
        ("zzz", "built in: .*half-cheetah-backward"),
        ("module:", "not known"),
        (":Class", "not known"),
        ("no_such_module:Class", "there is no module no_such_module in .* on PYTHONPATH$"),
        ("no_such.module:Class", "there is no module no_such in .* on PYTHONPATH$"),
        (f"{__name__}.PendulumTasks", f"did you mean '{__name__}:PendulumTasks'"),
        ("tests.tasks.families:PendulumTask", r"families.py has no .*did you mean 'PendulumTasks'"),
        (".relative:Class", "cannot be loaded"),
        (f"{__name__}:Missing", "cannot be loaded.*Missing"),
        (f"{__name__}:np", "not a subclass"),
        ("maml_ray.tasks.task:Task", "not a subclass"),
        ("maml_ray.tasks.task:TaskDistribution", "task.name"),
        (f"{__name__}:Unfinished", "task.name"),
        (f"{__name__}:NeedsArguments", "task.name"),
        ("__main__:Mine", r"in the program itself.*maml_ray\.train\(tasks=Mine\)"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        resolve_tasks(TaskSettings(name=name))
    assert "task.name" in str(caught.value)


def test_a_misspelt_module_of_the_current_directory_is_suggested(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "walking_tasks.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"no module walking_task .*mean 'walking_tasks'"):
        resolve_tasks(TaskSettings(name="walking_task:Walks"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with pytest.raises(SettingsError, match=r"loaded: walking_tasks.py is in .*PYTHONPATH=\. bef"):
        resolve_tasks(TaskSettings(name="walking_tasks:Walks"))


class Leaves(PendulumTasks):
    def __init__(self) -> None:
        sys.exit(0)


def test_a_module_or_a_class_that_ends_the_program_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a command, such as check, would end as if all were well."""
    (tmp_path / "a_script.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        SettingsError, match=r"cannot be loaded: SystemExit: 0 \(.*script.py, line 2"
    ):
        resolve_tasks(TaskSettings(name="a_script:Walks"))
    with pytest.raises(SettingsError, match=r"--import a_script cannot be imported: SystemExit"):
        import_modules(["a_script"])
    with pytest.raises(SettingsError, match=r"task.env = 'a_script:Walk-v0'.*SystemExit: 0"):
        resolve_tasks(TaskSettings(name="a_script:Walk-v0", env="a_script:Walk-v0"))
    with pytest.raises(SettingsError, match=r"cannot be created .*SystemExit: 0 \(.*test_loading"):
        resolve_tasks(TaskSettings(name=f"{__name__}:Leaves"))
    with pytest.raises(SettingsError, match=r"without arguments \(SystemExit: 0 \(.*test_loading"):
        record_own_tasks(Settings(), Leaves)


def test_tasks_given_in_python_replace_those_of_the_settings() -> None:
    family = {"name": "half-cheetah-velocity", "options": {"speed_range": [0, 1]}, "horizon": 7}
    for own in (PendulumTasks, PendulumTasks()):
        settings = record_own_tasks(validate_settings({"task": family}), own)
        assert settings.task.name == "python:PendulumTasks"
        assert settings.task.horizon == 7
        assert not settings.task.options
        assert "name: python:PendulumTasks" in dump_settings(settings)
        tasks = resolve_tasks(settings.task, own)
        assert isinstance(tasks, PendulumTasks)
        assert (tasks is own) == (own is not PendulumTasks)
    assert record_own_tasks(settings, None) is settings


def test_parameters_of_tasks_given_in_python_can_be_observed() -> None:
    settings = record_own_tasks(Settings(), PendulumTasks)
    observed = settings.task.model_copy(update={"observe_parameters": True})
    tasks = resolve_tasks(observed, PendulumTasks)
    (task,) = tasks.sample(np.random.default_rng(0), 1)
    assert tasks.make_env(task, horizon=3).observation_space.shape == (4,)


def test_recorded_tasks_must_be_given_again() -> None:
    settings = record_own_tasks(Settings(), PendulumTasks)
    with pytest.raises(SettingsError) as caught:
        resolve_tasks(settings.task)
    assert "were given in Python" in str(caught.value)
    assert "maml_ray.load(RUN, tasks=PendulumTasks)" in str(caught.value)
    assert "maml_ray.train(resume=RUN, tasks=PendulumTasks)" in str(caught.value)


class HoldsLock(PendulumTasks):
    """Cannot be pickled once created, but its class can."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (int, "tasks = <class 'int'> is not allowed: give a subclass"),
        ("half-cheetah-direction", "tasks = 'half-cheetah-direction' is not allowed"),
        (lambda: PendulumTasks(), "is not allowed: give a subclass"),
        (TaskDistribution, "without arguments .*: give an instance, tasks=TaskDistribution"),
        (Unfinished, "without arguments .*: give an instance, tasks=Unfinished"),
        (NeedsArguments, "without arguments .*'size'.*: give an instance, tasks=NeedsArguments"),
        (HoldsLock(), "HoldsLock cannot be sent to rollout actors .*make_env"),
    ],
)
def test_what_is_no_task_distribution_is_refused_in_one_sentence(own: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        record_own_tasks(Settings(), own)


def test_a_class_may_create_what_cannot_be_sent() -> None:
    assert record_own_tasks(Settings(), HoldsLock).task.name == "python:HoldsLock"


FAR = """
from tests.tasks.families import PendulumTasks

class FarTasks(PendulumTasks): ...
"""


def test_tasks_are_sent_to_a_process_with_another_import_path(tmp_path: Path) -> None:
    """As from a notebook that has appended a folder to ``sys.path``."""
    (tmp_path / "far_tasks_of_a_test.py").write_text(FAR)
    send = (
        f"import pickle, sys; sys.path.append({str(tmp_path)!r})\n"
        "import far_tasks_of_a_test as far\n"
        "from maml_ray.tasks.loading import PickledTasks\n"
        "sys.stdout.buffer.write(pickle.dumps(PickledTasks.of(far.FarTasks())))"
    )
    sent = subprocess.run([sys.executable, "-c", send], check=True, capture_output=True).stdout
    receive = (
        "import sys, pickle; tasks = pickle.loads(sys.stdin.buffer.read()).load()\n"
        "assert type(tasks).__name__ == 'FarTasks'"
    )
    subprocess.run([sys.executable, "-c", receive], check=True, input=sent)
    with pytest.raises(ModuleNotFoundError, match="far_tasks_of_a_test"):
        replace(pickle.loads(sent), import_path=()).load()
