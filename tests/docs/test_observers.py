"""The observers of the page on observers work, and log every iteration.

Weights & Biases and MLflow are used, offline, where they are installed; elsewhere stand-ins with
the signatures of the functions that the page calls.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.docs.pages import FOLDER, fences
from tests.runs.fake_training import FakeTraining

ITERATIONS = 20


def installed(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


class StandInRun:
    """A run of Weights & Biases (0.31)."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.finished = False

    def log(
        self, data: dict[str, Any], step: int | None = None, commit: bool | None = None
    ) -> None:
        assert step == len(self.rows)
        self.rows.append(data)

    def alert(
        self, title: str, text: str, level: Any = None, wait_duration: Any = None
    ) -> None: ...

    def finish(self, exit_code: int | None = None) -> None:
        self.finished = True


class StandInWandb(ModuleType):
    """What the page uses of ``wandb`` (0.31)."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[tuple[dict[str, Any], StandInRun]] = []

    def init(
        self,
        entity: str | None = None,
        project: str | None = None,
        dir: Any = None,
        id: str | None = None,
        name: str | None = None,
        notes: str | None = None,
        tags: Any = None,
        config: dict[str, Any] | str | None = None,
        *,
        resume: bool | str | None = None,
    ) -> StandInRun:
        assert isinstance(config, dict)
        self.runs.append((config, StandInRun()))
        return self.runs[-1][1]


class StandInMlflow(ModuleType):
    """What the page uses of ``mlflow`` (3.17)."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.params: dict[str, Any] = {}
        self.metrics: list[dict[str, float]] = []
        self.ended = False

    def set_experiment(
        self, experiment_name: str | None = None, experiment_id: str | None = None
    ) -> None:
        assert experiment_name == "maml-ray"

    def start_run(
        self,
        run_id: str | None = None,
        experiment_id: str | None = None,
        run_name: str | None = None,
        nested: bool = False,
    ) -> None: ...

    def log_params(
        self, params: dict[str, Any], synchronous: bool | None = None, run_id: str | None = None
    ) -> None:
        self.params |= params

    def log_metrics(
        self, metrics: dict[str, float], step: int | None = None, synchronous: bool | None = None
    ) -> None:
        assert step == len(self.metrics)
        self.metrics.append({key: float(value) for key, value in metrics.items()})

    def end_run(self, status: str = "FINISHED") -> None:
        self.ended = True


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run the page's first block, and those with a marker; training and evaluation are quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("maml_ray.runs.train.train_on_ray", FakeTraining())
    monkeypatch.setattr("maml_ray.runs.train.compile_ahead", lambda *callbacks: None)
    monkeypatch.setattr("maml_ray.runs.train.evaluate_run", lambda *run, **keywords: None)
    names: dict[str, Any] = {"__name__": "__main__"}

    def run(marker: str) -> None:
        first, *others = fences(FOLDER / "observers.md", "python")
        for block in [first, *(other for other in others if marker in other.code)]:
            exec(compile(block.code, str(block), "exec"), names)

    return run


def test_the_first_example_prints_the_best_returns(
    page: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    page("class BestReturn")
    printed = capsys.readouterr().out
    assert printed.count("best return so far") == ITERATIONS, "made-up returns grow"
    assert "warning" not in printed


@pytest.mark.parametrize(("marker", "kind"), [("LivePlot()", bytes), ("class LiveEntropy", Figure)])
def test_a_live_plot_is_one_output(
    page: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, marker: str, kind: type
) -> None:
    outputs: list[Any] = []
    updates: list[Any] = []

    def display(content: Any, *, display_id: bool) -> Any:
        outputs.append(content)
        return SimpleNamespace(update=updates.append)

    monkeypatch.setattr("IPython.display.display", display)
    page(marker)
    assert len(outputs) == 1
    last = updates[-1]
    assert isinstance(getattr(last, "data", last), kind)


def test_the_example_for_weights_and_biases(
    page: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in, real = StandInWandb(), installed("wandb")
    if real is None:
        monkeypatch.setitem(sys.modules, "wandb", stand_in)
        page("class WandbObserver")
        ((config, run),) = stand_in.runs
        assert config["run"]["iterations"] == ITERATIONS
        assert [row["iteration"] for row in run.rows] == list(range(ITERATIONS))
        assert run.finished
    else:
        assert_same_parameters(stand_in.init, real.init)
        for name in ("log", "alert", "finish"):
            assert_same_parameters(getattr(StandInRun, name), getattr(real.Run, name))
        monkeypatch.setenv("WANDB_MODE", "offline")
        page("class WandbObserver")
        (file,) = Path("wandb").glob("offline-run-*/run-*.wandb")
        assert b"return_after" in file.read_bytes()
    assert "WandbObserver failed" not in capsys.readouterr().out


def test_the_example_for_mlflow(
    page: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in, real = StandInMlflow(), installed("mlflow")
    if real is None:
        monkeypatch.setitem(sys.modules, "mlflow", stand_in)
        page("class MlflowObserver")
        assert stand_in.params["run.iterations"] == ITERATIONS
        assert len(stand_in.metrics) == ITERATIONS
        assert "return_after" in stand_in.metrics[-1]
        assert stand_in.ended
    else:
        for name in ("set_experiment", "start_run", "log_params", "log_metrics", "end_run"):
            assert_same_parameters(getattr(stand_in, name), getattr(real, name))
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        real.set_tracking_uri((tmp_path / "mlruns").as_uri())
        page("class MlflowObserver")
        (metric,) = Path("mlruns").glob("*/*/metrics/return_after")
        assert len(metric.read_text().splitlines()) == ITERATIONS
    assert "MlflowObserver failed" not in capsys.readouterr().out


def assert_same_parameters(ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    """Check that a stand-in's parameters are the real function's, in the same order."""
    own = [name for name in inspect.signature(ours).parameters if name != "self"]
    real = [name for name in inspect.signature(theirs).parameters if name != "self"]
    assert [name for name in real if name in own] == own
    assert own[:1] == real[:1]
