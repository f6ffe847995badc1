"""The outer step by gradient: Adam, mini-batches, limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.adam_optimizer import AdamOptimizer
from maml_ray.learning.state import UpdateMetrics
from maml_ray.maml.distributions import to_torch
from maml_ray.maml.meta_objective import Diagnostics, MetaBatch, meta_loss
from maml_ray.maml.meta_parameters import LOG_RATE, initial_meta_parameters
from maml_ray.policies.spec import LOG_STD, PolicySpec
from tests.learning_runs import Run, change, same, same_state
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.oracles.meta import Parameters

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


def test_the_annealing_may_be_shorter_or_longer_than_the_run(small_settings: Settings) -> None:
    """After it the final rate stays: what a run that is resumed for longer trains with."""
    settings = change(small_settings, "outer", learning_rate=0.01, final_learning_rate=0.002)
    for length, expected in ((3, [0.01, 0.006, 0.002, 0.002]), (9, [0.01, 0.009, 0.008, 0.007])):
        run = Run(change(settings, "outer", anneal_iterations=length))
        rates = [run.learner.update(run.collect()).learning_rate for _ in range(4)]
        assert rates == pytest.approx(expected)


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


LIMIT = 0.02
"""Of the KL, in the tests below."""


@pytest.mark.parametrize("limit", [LIMIT, None])
def test_an_update_ends_before_a_step_that_goes_too_far(
    small_settings: Settings, limit: float | None
) -> None:
    outer = {"epochs": 40, "max_query_kl": limit, "max_rollbacks": 0}
    run = Run(with_rate(small_settings, 0.01, **outer))
    rollouts = run.collect()
    metrics = run.learner.update(rollouts)
    if limit is None:
        assert metrics.gradient_steps == 40
        assert metrics.query_kl > 0.1
        return
    taken = metrics.gradient_steps
    assert 1 <= taken < 40
    assert metrics.query_kl <= LIMIT
    for steps in (taken, taken + 1):  # one more would have gone too far
        free = Run(with_rate(small_settings, 0.01, epochs=steps, max_query_kl=None))
        kl = free.learner.update(rollouts).query_kl
        assert same_state(free.learner.state(), run.learner.state()) == (steps == taken)
        assert (kl <= LIMIT) == (steps == taken)


@dataclass(frozen=True)
class Update:
    """An update in float64: a learner's meta-batch, and its parameters before and after."""

    run: Run
    batch: MetaBatch
    before: Parameters
    after: Parameters
    metrics: UpdateMetrics

    @classmethod
    def of(cls, settings: Settings) -> Update:
        run = Run(settings)
        rollouts = run.collect()
        batch, before = double(run.learner.prepare(rollouts)), double(run.learner.parameters)
        metrics = run.learner.update(rollouts)
        return cls(run, batch, before, double(run.learner.parameters), metrics)

    def kl(self) -> float:
        settings, spec = self.run.settings, self.run.learner.spec
        args = (settings, spec, self.before, self.after, self.batch)
        return float(meta_oracles.adapted_kl(*args).detach())


def double(tree: Any) -> Any:
    return meta_oracles.tree_map(lambda part: part.detach().double(), tree)


@pytest.mark.parametrize("outer", [{}, {"tasks_per_minibatch": 1}, {"objective": "trpo"}])
@pytest.mark.parametrize("inner", ["ratio", "log_prob", "dice"])
def test_the_metrics_are_those_of_the_new_parameters_on_the_whole_meta_batch(
    small_settings: Settings, inner: str, outer: dict[str, Any]
) -> None:
    """By the reference, which adapts from them anew; one step has moved them, too."""
    settings = change(small_settings, "inner", objective=inner)
    update = Update.of(with_rate(settings, 0.02, epochs=1, max_query_kl=None, **outer))
    found, spec = update.metrics, update.run.learner.spec
    assert found.query_kl == pytest.approx(update.kl(), rel=1e-3)
    assert found.query_kl > 1e-3
    loss = meta_oracles.meta_loss(update.run.settings, spec, update.after, update.batch)
    assert found.loss == pytest.approx(float(loss.detach()), abs=1e-5)
    inner_kls, entropies, ratios = [], [], []
    for task in meta_oracles.tasks_of(update.batch):
        theta, policies = meta_oracles.adapted(update.run.settings, spec, update.after, task)
        query, taken = task.query, task.query.weights > 0
        policy = meta_oracles.action_distribution(spec, theta, query.observations)
        ratios.append((meta_oracles.log_probs(policy, query) - query.log_probs)[taken].exp())
        entropies.append(policy.entropy()[taken.flatten()].mean())
        _, collectors = meta_oracles.adapted(update.run.settings, spec, update.before, task)
        for old, new, support in zip(collectors, policies, task.support, strict=True):
            kl = torch.distributions.kl_divergence(old, new)
            inner_kls.append(kl[support.weights.flatten() > 0].mean())
    outside = (torch.stack(ratios) - 1).abs() > settings.outer.clip
    assert found.clip_fraction == pytest.approx(float(outside.double().mean()), abs=1e-3)
    assert found.inner_kl == pytest.approx(float(torch.stack(inner_kls).mean().detach()), rel=1e-3)
    assert found.entropy == pytest.approx(float(torch.stack(entropies).mean().detach()), rel=1e-5)


@pytest.mark.parametrize("tasks_per_minibatch", [1, 2, None])
@pytest.mark.parametrize("max_rollbacks", [0, 5])
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_however_large_the_rate_the_new_parameters_keep_the_limit(
    small_settings: Settings, rate: float, max_rollbacks: int, tasks_per_minibatch: int | None
) -> None:
    """By the reference; if no step does, nothing has moved, Adam's moments neither."""
    settings = with_rate(
        small_settings,
        rate,
        max_rollbacks=max_rollbacks,
        epochs=3,
        tasks_per_minibatch=tasks_per_minibatch,
    )
    update = Update.of(settings)
    assert update.kl() <= LIMIT * (1 + 1e-3)
    assert update.metrics.query_kl == pytest.approx(update.kl(), rel=1e-2, abs=1e-6)
    assert update.metrics.skipped is None
    state = update.run.learner.state()
    assert state.optimizer.steps == update.metrics.gradient_steps
    if not update.metrics.gradient_steps:
        assert same(state.parameters, initial_of(settings))
        assert not any(value.any() for value in state.optimizer.first_moments.values())
    assert (update.metrics.gradient_steps > 0) == (max_rollbacks > 0)


def initial_of(settings: Settings) -> Any:
    return Run(settings).learner.state().parameters


def with_rate(settings: Settings, rate: float, **outer: Any) -> Settings:
    return change(
        settings,
        "outer",
        **{"learning_rate": rate, "final_learning_rate": None, "max_query_kl": LIMIT, **outer},
    )


def test_a_step_that_went_too_far_is_taken_back_and_taken_at_half_the_rate(
    small_settings: Settings,
) -> None:
    """What is left is the first step within the limit, to the bit as if it had been the first."""
    tried = Run(with_rate(small_settings, 1.0, epochs=1, max_rollbacks=9))
    rollouts = tried.collect()
    told = tried.learner.update(rollouts)
    assert (told.gradient_steps, told.learning_rate) == (1, 1.0)
    for halvings in range(9):
        once = Run(with_rate(small_settings, 0.5**halvings, epochs=1, max_query_kl=None))
        alone = once.learner.update(rollouts)
        if alone.query_kl <= LIMIT:
            break
    assert halvings > 1
    assert same_state(tried.learner.state(), once.learner.state())
    assert (told.gradient_norm, told.query_kl) == (alone.gradient_norm, alone.query_kl)
    # One rollback fewer than it needs is none at all: nothing has moved.
    short = Run(with_rate(small_settings, 1.0, epochs=1, max_rollbacks=halvings - 1))
    before = short.learner.publish().values
    assert short.learner.update(rollouts).gradient_steps == 0
    assert same(short.learner.publish().values, before)


def test_the_whole_meta_batch_has_the_last_word(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mini-batch finds a step too long, but all together find the third and the second."""
    settings = with_rate(small_settings, 1e-4, epochs=1, tasks_per_minibatch=1, max_rollbacks=0)
    run = Run(settings)
    value, kls = run.learner.backend.value, iter([2 * LIMIT, 1.5 * LIMIT, 0.5 * LIMIT])

    def measured(*arguments: Any) -> tuple[torch.Tensor, Diagnostics]:
        loss, diagnostics = value(*arguments)
        return loss, diagnostics._replace(query_kl=torch.tensor(next(kls)))

    monkeypatch.setattr(run.learner.backend, "value", measured)
    metrics = run.learner.update(run.collect())
    assert metrics.gradient_steps == 1
    assert metrics.query_kl == pytest.approx(0.5 * LIMIT)
    assert run.learner.state().optimizer.steps == 1
    assert next(kls, None) is None


@pytest.mark.parametrize("seed", [4, 5])
def test_with_rollbacks_an_update_makes_use_of_its_epochs(
    small_settings: Settings, seed: int
) -> None:
    settings = change(small_settings, "run", seed=seed)
    steps = []
    for rollbacks in (0, 30):
        run = Run(with_rate(settings, 0.5, epochs=40, max_rollbacks=rollbacks))
        metrics = run.learner.update(run.collect())
        assert metrics.query_kl <= LIMIT
        steps.append(metrics.gradient_steps)
    assert steps[0] == 0
    assert steps[1] > 5  # 40 here; half of the 40 - 30 that every machine takes


def test_weight_decay_pulls_the_policy_to_zero_and_leaves_the_rates_alone() -> None:
    """With no gradient at all, Adam's penalty is the only thing that moves a parameter."""
    settings = with_rate(
        load_settings(overrides=["inner.learn_inner_rates=true", "meta_batch.tasks=3"]),
        1e-3,
        weight_decay=0.1,
        inner_kl_coefficient=0.0,
        tasks_per_minibatch=None,
        max_query_kl=None,
    )
    parameters = fresh(settings)
    backend = AutogradBackend(settings.inner, settings.outer, SPEC)
    update = AdamOptimizer(settings, parameters, backend)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    batch = meta_oracles.tree_map(
        torch.Tensor.float,
        oracles.random_meta_batch(settings, SPEC, double(before), np.random.default_rng(0)),
    )
    unrewarded = [
        samples._replace(advantages=torch.zeros_like(samples.advantages))
        for samples in (*batch.support, batch.query)
    ]
    batch = batch._replace(support=tuple(unrewarded[:-1]), query=unrewarded[-1])
    update.update(batch, 0, order="second")
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
