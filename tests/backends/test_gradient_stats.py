"""Signal and noise of the meta-gradient, and what its second order adds."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.backends.base import Backend
from maml_ray.backends.compiled import CompiledBackend
from maml_ray.backends.gradient_stats import GradientStats, gradient_stats
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.records import FaultCounts, IterationRecord, IterationTimings
from maml_ray.persistence.run_dir import RunDir
from maml_ray.policies.spec import PolicySpec
from maml_ray.reporting.metrics_log import MetricsLog
from tests.backends.test_meta_gradient import (
    GAUSSIAN,
    ORDERS,
    POLICIES,
    everything,
    make_settings,
    meta_gradient,
    problem,
)
from tests.learning_runs import Run, change
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.oracles.meta import Parameters


def stats_of(
    settings: Settings, spec: PolicySpec, parameters: Parameters, batch: MetaBatch
) -> GradientStats:
    backend = AutogradBackend(settings.inner, settings.outer, spec)
    return gradient_stats(backend, parameters, batch)


def gradients_one_by_one(
    settings: Settings, spec: PolicySpec, parameters: Parameters, batch: MetaBatch, order: Order
) -> list[Tensor]:
    """The reference's, task by task."""
    return [
        oracles.flat(
            oracles.gradient(
                partial(reference, settings, spec, task, order),
                parameters,
            )
        )
        for task in meta_oracles.tasks_of(batch)
    ]


def reference(
    settings: Settings, spec: PolicySpec, task: MetaBatch, order: Order, theta: Parameters
) -> Tensor:
    return meta_oracles.task_loss(settings, spec, theta, task, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("outer", ["ppo", "trpo"])
@pytest.mark.parametrize("spec", POLICIES)
def test_task_gradients_are_the_references_and_their_mean_the_batchs(
    spec: PolicySpec, outer: str, order: Order
) -> None:
    settings = everything(outer, "ratio", 2)
    parameters, batch = problem(settings, spec)
    backend = AutogradBackend(settings.inner, settings.outer, spec)
    found = backend.per_task_grads(parameters, batch, order)
    expected = torch.stack(gradients_one_by_one(settings, spec, parameters, batch, order))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    whole = oracles.flat(meta_gradient(settings, spec, parameters, batch, order))
    torch.testing.assert_close(found.mean(dim=0), whole, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("part", ["all", "context"])
@pytest.mark.parametrize("kind", [AutogradBackend, CompiledBackend])
def test_per_task_gradients_of_each_backend(kind: type[Backend], part: str, order: Order) -> None:
    settings = make_settings("ppo", "ratio", 2, learn_inner_rates=True, parameters=part)
    parameters, batch = problem(settings)
    backend = kind(settings.inner, settings.outer, GAUSSIAN)
    found = backend.per_task_grads(parameters, batch, order)
    expected = torch.stack(gradients_one_by_one(settings, GAUSSIAN, parameters, batch, order))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 2])
def test_signal_to_noise_and_cosine_are_those_of_a_loop_over_tasks(steps: int) -> None:
    settings = everything("ppo", "ratio", steps)
    parameters, batch = problem(settings)
    second, first = (
        [g.numpy() for g in gradients_one_by_one(settings, GAUSSIAN, parameters, batch, order)]
        for order in ORDERS
    )
    mean, other = np.mean(second, axis=0), np.mean(first, axis=0)
    variance = sum(float(((g - mean) ** 2).sum()) for g in second) / (3 - 1)
    found = stats_of(settings, GAUSSIAN, parameters, batch)
    assert found.snr == pytest.approx(np.linalg.norm(mean) / math.sqrt(variance / 3))
    cosine = float(mean @ other) / (np.linalg.norm(mean) * np.linalg.norm(other))
    assert found.order_cosine == pytest.approx(cosine)
    assert cosine < 0.999


def test_without_inner_steps_the_orders_are_one() -> None:
    settings = everything("ppo", "ratio", 0)
    parameters, batch = problem(settings)
    assert stats_of(settings, GAUSSIAN, parameters, batch).order_cosine == pytest.approx(1)


def test_of_a_single_task_there_is_no_noise_to_tell() -> None:
    settings = everything("ppo", "ratio", 1)
    parameters, batch = problem(settings)
    one = meta_oracles.tree_map(lambda part: part[:1], batch)
    found = stats_of(settings, GAUSSIAN, parameters, one)
    assert found.snr is None
    assert math.isfinite(found.order_cosine)


def test_looking_changes_nothing(small_settings: Settings) -> None:
    looking = Run(change(small_settings, "outer", diagnose_every=1))
    not_looking = Run(change(small_settings, "outer", diagnose_every=None))
    for _ in range(2):
        one = looking.learner.update(looking.collect())
        other = not_looking.learner.update(not_looking.collect())
        assert one.loss == other.loss
        assert one.gradient_snr is not None
        assert one.order_cosine is not None
        assert other.gradient_snr is other.order_cosine is None


@pytest.mark.parametrize("objective", ["ppo", "trpo"])
def test_the_update_tells_them_every_so_many_iterations(
    small_settings: Settings, objective: str
) -> None:
    run = Run(change(small_settings, "outer", diagnose_every=3, objective=objective))
    told = []
    for _ in range(5):
        rollouts = run.collect()
        settings, spec = run.settings, run.learner.spec
        expected = stats_of(settings, spec, run.learner.parameters, run.learner.prepare(rollouts))
        metrics = run.learner.update(rollouts)
        told.append(metrics.gradient_snr is not None)
        assert told[-1] == (metrics.order_cosine is not None)
        if told[-1]:  # of the parameters that collected the data
            assert metrics.gradient_snr == pytest.approx(expected.snr, rel=1e-4)
            assert metrics.order_cosine == pytest.approx(expected.order_cosine, rel=1e-4)
    assert told == [True, False, False, True, False]


def parse_metrics(settings: Settings, folder: RunDir, iterations: int) -> list[dict[str, Any]]:
    """A short run's rows, written and read back."""
    run, log = Run(settings), MetricsLog(folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    log.on_start(None)  # type: ignore[arg-type]
    for iteration in range(iterations):
        log.on_iteration(
            IterationRecord(
                iteration=iteration,
                iterations=iterations,
                update=run.learner.update(run.collect()),
                timings=IterationTimings(1.0, 0.5, 0.1, 0.2),
                total_env_steps=10 * (iteration + 1),
                elapsed_s=1.0,
                faults=FaultCounts(2, 10, 0, 0, 10, 0, 0, 0, 0),
            )
        )
    log.close()
    return read_metrics(folder.metrics)


def scalars(folder: RunDir, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_between_looks_the_row_holds_null_and_tensorboard_nothing(
    small_settings: Settings, tmp_path: Path
) -> None:
    settings = change(small_settings, "outer", diagnose_every=2, objective="trpo")
    folder = RunDir(tmp_path / "run")
    rows = parse_metrics(settings, folder, 3)
    raw = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert rows == raw
    for key, tag in (
        ("gradient_snr", "4 losses/gradient_snr"),
        ("order_cosine", "4 losses/order_cosine"),
    ):
        assert [row[key] is None for row in rows] == [False, True, False]
        points = scalars(folder, tag)
        assert [step for step, _ in points] == [0, 2]
        assert [value for _, value in points] == pytest.approx([rows[0][key], rows[2][key]])
    assert [row["learning_rate"] for row in rows] == [None] * 3  # a trust region has none
    assert scalars(folder, "4 losses/learning_rate") == []
    speeds = [value for _, value in scalars(folder, "1 returns by iteration/speed_after")]
    assert speeds == pytest.approx([row["speed_after"] for row in rows])


def test_a_cosine_is_told_of_the_smallest_meta_batch(small_settings: Settings) -> None:
    run = Run(change(change(small_settings, "meta_batch", tasks=1), "outer", diagnose_every=1))
    metrics = run.learner.update(run.collect())
    assert metrics.gradient_snr is None
    assert metrics.order_cosine is not None


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_looks_are_some_iterations_apart(every: float) -> None:
    with pytest.raises(ValueError, match=r"outer\.diagnose_every"):
        validate_settings({"outer": {"diagnose_every": every}})
