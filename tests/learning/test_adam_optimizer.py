"""The outer step by gradient: Adam, mini-batches, limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.adam_optimizer import AdamOptimizer
from maml_ray.maml.distributions import to_torch
from maml_ray.maml.meta_objective import MetaBatch, meta_loss
from maml_ray.maml.meta_parameters import LOG_RATE, initial_meta_parameters
from maml_ray.policies.spec import LOG_STD, PolicySpec
from tests.learning_runs import Run, change, same, same_state
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles

SPEC = PolicySpec(3, 2, (4,), "tanh", 0.0, -3.0)


@pytest.fixture
def run(small_settings: Settings) -> Run:
    return Run(small_settings)


def fresh(settings: Settings) -> dict[str, torch.Tensor]:
    values = initial_meta_parameters(SPEC, settings.inner, np.random.default_rng(0))
    return {name: value.requires_grad_() for name, value in to_torch(values).items()}


def optimizer_of(settings: Settings) -> AdamOptimizer:
    backend = AutogradBackend(settings.inner, settings.outer, SPEC)
    return AdamOptimizer(settings, fresh(settings), backend)


def numbered_batch(tasks: int) -> MetaBatch:
    """A batch in which every number of task ``i`` is ``i``."""
    settings = load_settings(overrides=[f"meta_batch.tasks={tasks}"])
    rng = np.random.default_rng(0)
    parameters = oracles.random_parameters(SPEC, rng)
    batch = oracles.random_meta_batch(settings, SPEC, parameters, rng)
    return meta_oracles.tree_map(
        lambda part: torch.arange(tasks).view(-1, *[1] * (part.ndim - 1)).expand_as(part), batch
    )


@pytest.mark.parametrize(("size", "sizes"), [(2, [2, 2, 1]), (5, [5]), (9, [5]), (1, [1] * 5)])
def test_minibatches_hold_each_task_once_an_epoch(size: int, sizes: list[int]) -> None:
    settings = load_settings(
        overrides=[f"outer.tasks_per_minibatch={size}", "outer.epochs=3", "meta_batch.tasks=5"]
    )
    update = optimizer_of(settings)
    batches = list(update._minibatches(numbered_batch(5), 0))
    assert [len(batch.task_advantage) for batch in batches] == sizes * 3
    epochs = [
        [int(i) for batch in batches[n : n + len(sizes)] for i in batch.task_advantage]
        for n in range(0, len(batches), len(sizes))
    ]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    if len(sizes) > 1:
        assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled anew
    for batch in batches:  # all parts of a task stay together
        assert torch.equal(batch.support[0].actions[:, 0, 0], batch.task_advantage)
        assert torch.equal(batch.support_behavior[0][0][:, 0, 0], batch.task_advantage)
        assert torch.equal(batch.query_behavior[0][:, 0, 0], batch.task_advantage)
        assert torch.equal(batch.query.weights[:, 0, 0], batch.task_advantage)
    again = list(update._minibatches(numbered_batch(5), 0))
    assert all(
        torch.equal(a.task_advantage, b.task_advantage) for a, b in zip(batches, again, strict=True)
    )


def test_minibatches_are_shuffled_anew_by_each_version() -> None:
    settings = load_settings(overrides=["outer.tasks_per_minibatch=1", "meta_batch.tasks=5"])
    update, batch = optimizer_of(settings), numbered_batch(5)

    def order(version: int) -> list[int]:
        return [int(one.task_advantage[0]) for one in update._minibatches(batch, version)]

    assert len({tuple(order(version)) for version in range(4)}) == 4
    assert order(2) == order(2)


def test_minibatches_take_as_many_steps(small_settings: Settings) -> None:
    run = Run(change(small_settings, "outer", tasks_per_minibatch=2, epochs=3))
    run.learner.update(run.collect())
    assert run.learner.state().optimizer.steps == 2 * 3


def test_one_step_is_adam_on_the_meta_gradient(small_settings: Settings) -> None:
    """Adam's first step is ``rate * g / (|g| + eps)``; without clipping its scale is lost."""
    run = Run(change(small_settings, "outer", epochs=1, learning_rate=0.01))
    rollouts, spec = run.collect(), run.learner.spec
    before = {name: value.detach().clone() for name, value in run.learner.parameters.items()}
    batch = run.learner.prepare(rollouts)
    gradient = oracles.gradient(
        lambda t: meta_loss(meta_oracles.objective(run.settings, spec, "second"), t, batch)[0],
        before,
    )
    metrics = run.learner.update(rollouts)
    assert metrics.gradient_norm == pytest.approx(float(oracles.flat(gradient).norm()), rel=1e-4)
    for name, slope in gradient.items():
        expected = before[name] - 0.01 * slope / (slope.abs() + 1e-8)
        torch.testing.assert_close(
            run.learner.parameters[name].detach(), expected, rtol=1e-4, atol=1e-5
        )


def test_gradients_are_clipped_to_their_norm(small_settings: Settings) -> None:
    free = Run(change(small_settings, "outer", epochs=1))
    rollouts = free.collect()
    norm = free.learner.update(rollouts).gradient_norm
    limit = norm / 4
    clipped = Run(change(small_settings, "outer", epochs=1, max_gradient_norm=limit))
    assert clipped.learner.update(rollouts).gradient_norm == pytest.approx(norm)  # before clipping
    # Adam's first moment after one step is a tenth of the gradient that it was given.
    moments = clipped.learner.state().optimizer.first_moments
    given = 10 * np.sqrt(sum(float(np.sum(np.square(value))) for value in moments.values()))
    assert given == pytest.approx(limit, rel=1e-4)
    loose = Run(change(small_settings, "outer", epochs=1, max_gradient_norm=4 * norm))
    loose.learner.update(rollouts)
    assert same(loose.learner.publish().values, free.learner.publish().values)


def test_the_learning_rate_runs_down_a_line(small_settings: Settings) -> None:
    settings = change(small_settings, "outer", learning_rate=0.01, final_learning_rate=0.002)
    run = Run(change(settings, "run", iterations=5))
    rates = [run.learner.update(run.collect()).learning_rate for _ in range(6)]
    assert rates == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002, 0.002])


def test_the_learning_rate_stays_without_a_final_one(small_settings: Settings) -> None:
    settings = change(small_settings, "outer", learning_rate=0.01, final_learning_rate=None)
    run = Run(settings)
    assert [run.learner.update(run.collect()).learning_rate for _ in range(2)] == [0.01, 0.01]


def test_a_run_of_one_iteration_has_the_first_rate(small_settings: Settings) -> None:
    settings = change(small_settings, "outer", learning_rate=0.01, final_learning_rate=0.0)
    run = Run(change(settings, "run", iterations=1))
    assert run.learner.update(run.collect()).learning_rate == 0.01


def test_the_rate_told_is_the_rate_used(small_settings: Settings) -> None:
    settings = change(small_settings, "outer", final_learning_rate=0.0)
    run = Run(change(settings, "run", iterations=2))
    run.learner.update(run.collect())
    before = run.learner.publish().values
    assert run.learner.update(run.collect()).learning_rate == 0.0
    assert same(run.learner.publish().values, before)


def test_log_std_stays_on_or_above_its_floor(small_settings: Settings) -> None:
    settings = change(small_settings, "policy", initial_log_std=-0.5, min_log_std=-0.5)
    run = Run(change(settings, "outer", learning_rate=0.1))
    for _ in range(3):
        run.learner.update(run.collect())
        assert float(run.learner.parameters[LOG_STD].detach().min()) >= -0.5


@pytest.mark.parametrize("limit", [0.02, None])
def test_an_update_that_has_moved_too_far_takes_no_more_steps(
    small_settings: Settings, limit: float | None
) -> None:
    settings = change(
        small_settings,
        "outer",
        learning_rate=0.01,
        final_learning_rate=None,
        epochs=40,
        max_query_kl=limit,
    )
    run = Run(settings)
    metrics = run.learner.update(run.collect())
    if limit is None:
        assert metrics.gradient_steps == 40
        assert metrics.query_kl > 0.1
    else:
        assert 1 <= metrics.gradient_steps < 40
        assert 0.02 < metrics.query_kl < 0.1


def with_rate(settings: Settings, rate: float, **outer: Any) -> Settings:
    return change(
        settings,
        "outer",
        **{"learning_rate": rate, "final_learning_rate": None, "max_query_kl": 0.02, **outer},
    )


@pytest.mark.parametrize(("epochs", "max_rollbacks"), [(3, 9), (40, 2)])
def test_a_step_that_went_too_far_is_taken_back_and_taken_at_half_the_rate(
    small_settings: Settings, epochs: int, max_rollbacks: int
) -> None:
    """At a rate so large that each of the first steps goes too far, up to that of a quarter.

    What is left is that one step, as if it had been the first; no other follows, either since the
    epochs are over or since it went too far as well and nothing more is taken back.
    """
    tried = Run(with_rate(small_settings, 2.0, epochs=epochs, max_rollbacks=max_rollbacks))
    plain = Run(with_rate(small_settings, 0.5, epochs=1))
    rollouts = tried.collect()
    told, expected = tried.learner.update(rollouts), plain.learner.update(rollouts)
    assert (told.gradient_steps, told.learning_rate) == (1, 2.0)
    assert same_state(tried.learner.state(), plain.learner.state())
    assert told.gradient_norm == expected.gradient_norm
    # It is the only one at a quarter: the two before it did go too far.
    for rate in (2.0, 1.0):
        once = Run(with_rate(small_settings, rate, epochs=2, max_query_kl=None))
        assert once.learner.update(rollouts).query_kl > 0.02


@pytest.mark.parametrize("seed", [4, 6])  # others end within rounding of 40 - 30 steps
def test_with_rollbacks_an_update_makes_use_of_its_epochs(
    small_settings: Settings, seed: int
) -> None:
    settings = change(small_settings, "run", seed=seed)
    run = Run(with_rate(settings, 2.0, epochs=40, max_rollbacks=30))
    metrics = run.learner.update(run.collect())
    assert metrics.gradient_steps > 10
    assert metrics.query_kl <= 0.02


def test_an_update_takes_its_first_step_whatever_rounding_says_of_its_distance(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdamOptimizer, "_exceeds_kl", lambda self, diagnostics: True)
    run = Run(small_settings)
    assert run.learner.update(run.collect()).gradient_steps == 1


def test_weight_decay_pulls_the_policy_to_zero_and_leaves_the_rates_alone() -> None:
    """With no gradient at all, Adam's penalty is the only thing that moves a parameter."""
    settings = load_settings(
        overrides=["outer.weight_decay=0.1", "inner.learn_inner_rates=true", "meta_batch.tasks=3"]
    )
    parameters = fresh(settings)
    backend = AutogradBackend(settings.inner, settings.outer, SPEC)
    update = AdamOptimizer(settings, parameters, backend)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    update._step({name: torch.zeros_like(value) for name, value in parameters.items()}, 1e-3)
    for name, value in parameters.items():
        if name.startswith(LOG_RATE):
            assert torch.equal(value.detach(), before[name]), name
        else:
            moving = before[name] != 0
            assert (value.detach().abs() < before[name].abs())[moving].all(), name
    assert (parameters["hidden_0.weight"].detach() != before["hidden_0.weight"]).all()


def test_the_state_of_adam_is_that_of_its_own_steps(small_settings: Settings) -> None:
    """First and second moments after one step: a tenth of g, a thousandth of g squared."""
    run = Run(change(small_settings, "outer", epochs=1))
    rollouts = run.collect()
    batch, spec = run.learner.prepare(rollouts), run.learner.spec
    before = {name: value.detach().clone() for name, value in run.learner.parameters.items()}
    gradient = oracles.gradient(
        lambda t: meta_loss(meta_oracles.objective(run.settings, spec, "second"), t, batch)[0],
        before,
    )
    run.learner.update(rollouts)
    state = run.learner.state().optimizer
    assert state.steps == 1
    for name, slope in gradient.items():
        np.testing.assert_allclose(state.first_moments[name], 0.1 * slope, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(
            state.second_moments[name], 0.001 * slope**2, rtol=1e-3, atol=1e-9
        )
