"""Training and held-out tasks of a range: the same distribution, no task in common."""

from __future__ import annotations

import numpy as np
import pytest

from maml_ray.config.sections import TaskSettings
from maml_ray.tasks.held_out import uniform_held_out, uniform_training
from maml_ray.tasks.loading import resolve_tasks

COUNT = 200_000
RANGES = {
    "half-cheetah-velocity": (0.0, 2.0),
    "ant-velocity": (0.0, 3.0),
    "point-navigation": (-0.5, 0.5),
    "Pendulum-v1": (5.0, 15.0),
}
"""First range of each built-in family that has one, and of a Gymnasium environment."""


def drawn(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted training and held-out numbers."""
    trained = uniform_training(np.random.default_rng(0), low, high, COUNT)
    held_out = uniform_held_out(np.random.default_rng(1), low, high, COUNT)
    return np.sort(trained), np.sort(held_out)


@pytest.mark.parametrize(("low", "high"), RANGES.values())
def test_both_have_the_same_distribution(low: float, high: float) -> None:
    width, middle = high - low, (low + high) / 2
    trained, held_out = drawn(low, high)
    for numbers in (trained, held_out):
        # The standard error of the mean is 0.0006 of the range.
        assert numbers.mean() == pytest.approx(middle, abs=0.003 * width)
    assert held_out.std() == pytest.approx(trained.std(), rel=0.01)
    quantiles = np.abs(trained - held_out)
    assert quantiles.max() < 0.045 * width  # two cells, and how many draws a block happens to get


def test_mean_and_deviation_are_those_of_the_cells() -> None:
    """Closed form: of a block, training has cells 0, 1, 3 and 4, evaluation has cell 2."""
    blocks = 0.1 * np.arange(10)[:, None]
    for numbers, cells in zip(drawn(0.0, 1.0), ([0, 1, 3, 4], [2]), strict=True):
        centers = blocks + 0.02 * (np.array(cells) + 0.5)
        assert centers.mean() == pytest.approx(0.5, abs=1e-12)
        assert numbers.mean() == pytest.approx(centers.mean(), abs=0.003)
        variance = centers.var() + 0.02**2 / 12
        assert numbers.var() == pytest.approx(variance, rel=0.01)


@pytest.mark.parametrize(("low", "high"), RANGES.values())
def test_training_reaches_both_ends_and_evaluation_comes_close(low: float, high: float) -> None:
    width = high - low
    trained, held_out = drawn(low, high)
    assert low <= trained[0] < low + 0.001 * width
    assert high - 0.001 * width < trained[-1] <= high
    assert held_out[0] == pytest.approx(low + 0.04 * width, abs=0.001 * width)
    assert held_out[-1] == pytest.approx(high - 0.04 * width, abs=0.001 * width)


@pytest.mark.parametrize("name", RANGES)
def test_every_family_with_a_range_holds_out_the_same_cells(name: str) -> None:
    low, high = RANGES[name]
    chosen = {"env": name, "ranges": {"g": [low, high]}} if name[0].isupper() else {"name": name}
    tasks = resolve_tasks(TaskSettings.model_validate(chosen))
    cells = []
    for draw in (tasks.sample, tasks.sample_held_out):
        first = [task.parameters[0][1] for task in draw(np.random.default_rng(2), 2000)]
        cells.append(set(np.floor((np.array(first) - low) / (high - low) * 50).astype(int)))
    assert cells[0] | cells[1] == set(range(50))
    assert cells[1] == set(range(2, 50, 5))
    assert not cells[0] & cells[1]
