"""Full training runs: minutes per seed, outside ``make test`` (see ``make verify-backward``)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rich.console import Console

from maml_ray.config.loading import load_settings
from maml_ray.runs.train import train

DEPLOY = Path(__file__).parents[2] / "deploy.yaml"


@pytest.mark.learning
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_run_ends_above_800_after_one_adaptation_step(
    tmp_path: Path, seed: int
) -> None:
    settings = load_settings(DEPLOY, overrides=[f"run.seed={seed}"])
    start = time.monotonic()
    result = train(settings, run_dir=tmp_path / "run", console=Console(quiet=True))
    minutes = (time.monotonic() - start) / 60
    assert result.evaluation is not None
    for row in result.evaluation.rows:
        print(
            f"\nseed {seed}: {row.steps} steps, {row.actions:<10} {row.mean:7.1f} "
            f"({row.low:.1f} to {row.high:.1f}), {minutes:.1f} minutes",
            end="",
        )
    assert result.evaluation.row(1, "stochastic").mean >= 800.0


@pytest.mark.learning
@pytest.mark.timeout(1200)
def test_the_notebooks_hyperparameters_move_the_parameters(tmp_path: Path) -> None:
    """In the notebook they never changed: its ``.data`` cut the meta-gradient."""
    settings = load_settings(preset="notebook", overrides=["run.iterations=50"])
    result = train(settings, run_dir=tmp_path / "run", console=Console(quiet=True))
    from maml_ray.learning.learner import MetaLearner

    agent = result.load()
    start = MetaLearner(settings, agent.spec).publish().values
    moved = {name: float(abs(agent.parameters[name] - start[name]).max()) for name in start}
    print(moved)
    assert all(distance > 1e-3 for distance in moved.values())
