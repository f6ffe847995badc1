from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from maml_ray.config import Settings, load_settings
from maml_ray.learner import LearnerState, MetaLearner
from maml_ray.meta_objective import MetaBatch, meta_loss
from maml_ray.policy import LOG_STD
from maml_ray.rollout import Assignment, RolloutWorker, sample_tasks
from maml_ray.trajectories import TaskRollouts
from tests import oracles


def change(settings: Settings, section: str, **values: Any) -> Settings:
    """``settings`` with some values of one section changed."""
    part = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: part})


class Run:
    """A learner and the worker that serves it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.worker = RolloutWorker(settings)
        self.learner = MetaLearner(settings, self.worker.spec)

    def collect(self) -> list[TaskRollouts]:
        published, iteration = self.learner.publish(), self.learner.version
        tasks = sample_tasks(self.settings, self.worker.tasks, iteration)
        return [
            self.worker.roll_out(published, Assignment(iteration, i, task, published.version))[0]
            for i, task in enumerate(tasks)
        ]


@pytest.fixture
def run(small_settings: Settings) -> Run:
    return Run(small_settings)


def same(first: Any, second: Any) -> bool:
    """Equality of parameter dictionaries to the last bit."""
    return set(first) == set(second) and all(
        np.array_equal(np.asarray(first[name]), np.asarray(second[name])) for name in first
    )


def same_state(first: LearnerState, second: LearnerState) -> bool:
    return (
        (first.version, first.optimiser_steps) == (second.version, second.optimiser_steps)
        and same(first.parameters, second.parameters)
        and same(first.first_moments, second.first_moments)
        and same(first.second_moments, second.second_moments)
        and same(vars(first.observations), vars(second.observations))
    )


def without_time(metrics: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(metrics).items() if key != "learn_s"}


def test_an_update_tells_what_it_did(run: Run) -> None:
    rollouts = run.collect()
    metrics = run.learner.update(rollouts)
    assert metrics.version == run.learner.version == 1
    support = np.mean([task.support[0].rewards.sum(axis=1).mean() for task in rollouts])
    query = np.mean([task.query.rewards.sum(axis=1).mean() for task in rollouts])
    assert metrics.return_before == pytest.approx(support, rel=1e-5)
    assert metrics.return_after == pytest.approx(query, rel=1e-5)
    assert metrics.env_steps == 3 * 3 * 2 * 20
    assert metrics.gradient_norm > 0
    assert all(np.isfinite(value) for value in asdict(metrics).values())
    expected = 6 * 0.5 * np.log(2 * np.pi * np.e) + run.learner.parameters[LOG_STD].sum().item()
    assert metrics.entropy == pytest.approx(expected, rel=1e-5)


def test_the_learners_adapted_policies_are_the_actors(run: Run) -> None:
    """Before the first step every ratio is 1 and every KL is 0, up to rounding."""
    rollouts = run.collect()
    batch = run.learner.prepare(rollouts)
    _, diagnostics = meta_loss(run.settings, run.learner.spec, run.learner.parameters, batch)
    assert float(diagnostics.largest_ratio_error) < 1e-4
    assert abs(float(diagnostics.inner_kl)) < 1e-7
    assert abs(float(diagnostics.query_kl)) < 1e-6
    assert float(diagnostics.clip_fraction) == 0.0
    for _ in range(3):
        assert run.learner.update(run.collect()).collector_ratio_error < 1e-4


def test_the_gradient_of_real_data_is_the_references(run: Run) -> None:
    run.learner.update(run.collect())
    settings, spec = run.settings, run.learner.spec
    batch = oracles.tree_map(lambda part: part.double(), run.learner.prepare(run.collect()))
    theta = {name: value.detach().double() for name, value in run.learner.parameters.items()}
    actual = oracles.gradient(lambda t: meta_loss(settings, spec, t, batch)[0], theta)
    expected = oracles.gradient(lambda t: oracles.meta_loss(settings, spec, t, batch), theta)
    assert oracles.relative_error(actual, expected) < 1e-9


def test_changing_the_query_data_changes_the_update(run: Run) -> None:
    rollouts = run.collect()
    other = Run(run.settings)
    flipped = [
        replace(task, query=replace(task.query, rewards=-task.query.rewards)) for task in rollouts
    ]
    run.learner.update(rollouts)
    other.learner.update(flipped)
    assert not same(run.learner.publish().values, other.learner.publish().values)


def test_observations_seen_normalise_the_next_version_and_no_sooner(run: Run) -> None:
    first = run.learner.publish().normaliser
    assert first is not None
    assert (first.mean == 0).all()
    assert (first.scale == 1).all()
    rollouts = run.collect()
    run.learner.update(rollouts)
    seen = np.concatenate(
        [phase.observations.reshape(-1, 17) for t in rollouts for phase in (*t.support, t.query)]
    )
    second = run.learner.publish().normaliser
    assert second is not None
    np.testing.assert_allclose(second.mean, seen.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second.scale, 1 / seen.std(axis=0), rtol=1e-4)


def test_observations_are_left_alone_where_the_policy_wants_it(small_settings: Settings) -> None:
    run = Run(change(small_settings, "policy", normalise_observations=False))
    for _ in range(2):
        assert run.learner.update(run.collect()).collector_ratio_error < 1e-4
        assert run.learner.publish().normaliser is None


def test_the_order_of_arrival_does_not_matter(run: Run) -> None:
    rollouts, other = run.collect(), Run(run.settings)
    run.learner.update(rollouts)
    other.learner.update(rollouts[::-1])
    assert same_state(run.learner.state(), other.learner.state())


def duplicate(rollouts: list[TaskRollouts]) -> list[TaskRollouts]:
    return [*rollouts[:2], rollouts[1]]


def missing(rollouts: list[TaskRollouts]) -> list[TaskRollouts]:
    return rollouts[:2]


def too_many(rollouts: list[TaskRollouts]) -> list[TaskRollouts]:
    return [*rollouts, rollouts[0]]


def foreign(rollouts: list[TaskRollouts]) -> list[TaskRollouts]:
    return [*rollouts[:2], replace(rollouts[2], task_index=3)]


def stale(rollouts: list[TaskRollouts]) -> list[TaskRollouts]:
    return [*rollouts[:2], replace(rollouts[2], version=7)]


def one_step_short(rollouts: list[TaskRollouts]) -> list[TaskRollouts]:
    return [*rollouts[:2], replace(rollouts[2], support=rollouts[2].support[:1])]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (duplicate, r"0 to 2, each once; got \[0, 1, 1\]"),
        (missing, r"got \[0, 1\]"),
        (too_many, r"got \[0, 0, 1, 2\]"),
        (foreign, r"got \[0, 1, 3\]"),
        (stale, "task 2 was collected with version 7, the learner is at version 0"),
        (one_step_short, "task 2 has 1 support sets, inner.steps is 2"),
    ],
)
def test_rollouts_that_were_not_asked_for_are_refused(run: Run, mistake: Any, message: str) -> None:
    before = run.learner.state()
    with pytest.raises(ValueError, match=message):
        run.learner.update(mistake(run.collect()))
    assert same_state(run.learner.state(), before)


@pytest.mark.parametrize("tasks_per_minibatch", [None, 2])
def test_a_learner_loaded_goes_on_as_one_never_interrupted(
    small_settings: Settings, tasks_per_minibatch: int | None
) -> None:
    settings = change(
        small_settings,
        "outer",
        tasks_per_minibatch=tasks_per_minibatch,
        weight_decay=0.01,
        final_learning_rate=0.0,
    )
    whole, first, second = Run(settings), Run(settings), Run(settings)
    for _ in range(3):
        expected = whole.learner.update(whole.collect())
    first.learner.update(first.collect())
    second.learner.load(first.learner.state())
    assert same_state(second.learner.state(), first.learner.state())
    for _ in range(2):
        metrics = second.learner.update(second.collect())
    assert same_state(second.learner.state(), whole.learner.state())
    assert without_time(metrics) == without_time(expected)


def test_a_state_is_a_copy(run: Run) -> None:
    run.learner.update(run.collect())
    state = run.learner.state()
    saved = {name: value.copy() for name, value in state.parameters.items()}
    moments = {name: value.copy() for name, value in state.first_moments.items()}
    other = Run(run.settings)
    other.learner.load(state)
    other.learner.update(other.collect())
    run.learner.update(run.collect())
    assert same(state.parameters, saved)
    assert same(state.first_moments, moments)


def test_a_fresh_state_can_be_loaded(run: Run) -> None:
    run.learner.update(run.collect())
    fresh = MetaLearner(run.settings, run.learner.spec)
    run.learner.load(fresh.state())
    assert same_state(run.learner.state(), fresh.state())
    assert run.learner.state().optimiser_steps == 0


def test_the_state_of_another_policy_is_refused(run: Run) -> None:
    other = Run(change(run.settings, "policy", hidden_sizes=(4,)))
    with pytest.raises(ValueError, match="hidden_0"):
        run.learner.load(other.learner.state())


def test_published_parameters_are_a_copy(run: Run) -> None:
    published = run.learner.publish()
    saved = {name: value.copy() for name, value in published.values.items()}
    run.learner.update(run.collect())
    assert same(published.values, saved)
    assert published.version == 0


def test_the_seed_decides_the_first_parameters(run: Run) -> None:
    again = MetaLearner(run.settings, run.learner.spec)
    assert same(again.publish().values, run.learner.publish().values)
    other = MetaLearner(change(run.settings, "run", seed=9), run.learner.spec)
    assert not same(other.publish().values, run.learner.publish().values)


def numbered_batch(tasks: int) -> MetaBatch:
    """A batch in which every number of task ``i`` is ``i``."""
    settings = load_settings(overrides=[f"meta_batch.tasks={tasks}"])
    learner = MetaLearner(settings, Run(settings).worker.spec)
    rng = np.random.default_rng(0)
    parameters = {name: value.detach().double() for name, value in learner.parameters.items()}
    batch = oracles.random_meta_batch(settings, learner.spec, parameters, rng)
    return oracles.tree_map(
        lambda part: torch.arange(tasks).view(-1, *[1] * (part.ndim - 1)).expand_as(part), batch
    )


@pytest.mark.parametrize(("size", "sizes"), [(2, [2, 2, 1]), (5, [5]), (9, [5]), (1, [1] * 5)])
def test_minibatches_hold_each_task_once_an_epoch(size: int, sizes: list[int]) -> None:
    settings = load_settings(
        overrides=[f"outer.tasks_per_minibatch={size}", "outer.epochs=3", "meta_batch.tasks=5"]
    )
    learner = MetaLearner(settings, Run(settings).worker.spec)
    batches = list(learner._minibatches(numbered_batch(5)))
    assert [len(batch.query.weights) for batch in batches] == sizes * 3
    epochs = [
        [int(i) for batch in batches[n : n + len(sizes)] for i in batch.query.weights[:, 0]]
        for n in range(0, len(batches), len(sizes))
    ]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    if len(sizes) > 1:
        assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled anew
    for batch in batches:  # all parts of a task stay together
        assert torch.equal(batch.support[0].actions[:, 0, 0], batch.query.weights[:, 0])
        assert torch.equal(batch.collectors[0].mean[:, 0, 0], batch.query.weights[:, 0])
    again = list(learner._minibatches(numbered_batch(5)))
    assert all(
        torch.equal(a.query.weights, b.query.weights) for a, b in zip(batches, again, strict=True)
    )


def test_minibatches_are_shuffled_anew_by_each_version() -> None:
    settings = load_settings(overrides=["outer.tasks_per_minibatch=1", "meta_batch.tasks=5"])
    learner = MetaLearner(settings, Run(settings).worker.spec)

    def order(version: int) -> list[int]:
        learner.version = version
        return [int(batch.query.weights[0, 0]) for batch in learner._minibatches(numbered_batch(5))]

    assert len({tuple(order(version)) for version in range(4)}) == 4
    assert order(2) == order(2)


def test_minibatches_take_as_many_steps(small_settings: Settings) -> None:
    run = Run(change(small_settings, "outer", tasks_per_minibatch=2, epochs=3))
    run.learner.update(run.collect())
    assert run.learner.state().optimiser_steps == 2 * 3


def test_one_step_is_adam_on_the_meta_gradient(small_settings: Settings) -> None:
    """Adam's first step is ``rate * g / (|g| + eps)``; without clipping its scale is lost."""
    run = Run(change(small_settings, "outer", epochs=1, learning_rate=0.01))
    rollouts, spec = run.collect(), run.learner.spec
    before = {name: value.detach().clone() for name, value in run.learner.parameters.items()}
    batch = run.learner.prepare(rollouts)
    gradient = oracles.gradient(lambda t: meta_loss(run.settings, spec, t, batch)[0], before)
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
    moments = clipped.learner.state().first_moments
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


def test_the_notebooks_parameters_move() -> None:
    """The original's never did: its meta-gradient was cut."""
    settings = load_settings(preset="notebook", overrides=["task.horizon=20"])
    run = Run(settings)
    before = run.learner.publish().values
    metrics = run.learner.update(run.collect())
    assert metrics.gradient_norm > 0
    for name, value in run.learner.publish().values.items():
        assert (value != before[name]).any(), name


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("objective", ["ppo", "reinforce"])
def test_an_update_lowers_the_meta_loss_on_its_own_data(
    small_settings: Settings, objective: str, order: str
) -> None:
    settings = change(
        small_settings, "outer", objective=objective, order=order, epochs=5, learning_rate=1e-3
    )
    run = Run(settings)
    rollouts = run.collect()
    batch = run.learner.prepare(rollouts)

    def loss() -> float:
        value, _ = meta_loss(settings, run.learner.spec, run.learner.parameters, batch)
        return float(value.detach())

    before = loss()
    run.learner.update(rollouts)
    assert loss() < before - 1e-4


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


def test_an_update_takes_its_first_step_whatever_rounding_says_of_its_distance(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MetaLearner, "_far_enough", lambda self, diagnostics: True)
    run = Run(small_settings)
    assert run.learner.update(run.collect()).gradient_steps == 1
