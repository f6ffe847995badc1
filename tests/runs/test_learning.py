"""Full training runs: minutes per seed, outside ``make test`` (see ``make verify-backward``)."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from maml_ray.config.loading import load_settings
from maml_ray.evaluation.intervals import format_interval, mean_interval
from maml_ray.runs.train import train

DEPLOY = Path(__file__).parents[2] / "deploy.yaml"
THOROUGH = {"evaluation.tasks": 20, "evaluation.episodes": 20}


@pytest.mark.learning
@pytest.mark.timeout(3600)
def test_the_default_run_returns_1000_and_loses_nothing_by_its_adaptation_step(
    tmp_path: Path,
) -> None:
    returns = []
    for seed in (0, 1, 2):
        settings = load_settings(DEPLOY, overrides={"run.seed": seed, **THOROUGH})
        start = time.monotonic()
        result = train(settings, run_dir=tmp_path / f"run-{seed}", console=Console(quiet=True))
        minutes = (time.monotonic() - start) / 60
        assert result.evaluation is not None
        for row in result.evaluation.rows:
            print(
                f"\nseed {seed}: {row.steps} steps, {row.actions:<10} {row.mean:7.1f} "
                f"({format_interval(row.low, row.high)}), {minutes:.1f} minutes",
                end="",
            )
        returns.append([result.evaluation.row(steps, "stochastic").mean for steps in (0, 1)])
    before, after = np.transpose(returns)
    gain = after - before
    low, high = mean_interval(gain) or (None, None)
    print(
        f"\nafter the step minus before, mean of {len(gain)} seeds: {gain.mean():+.1f}, "
        f"95% interval {format_interval(low, high)}"
    )
    assert after.min() >= 1000.0
    assert gain.mean() >= -0.01 * before.mean()  # on another CPU the seeds' noise differs


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
