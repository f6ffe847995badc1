from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import meta_loss
from maml_ray.policies.spec import LOG_STD
from maml_ray.rollouts.trajectories import TaskRollouts
from tests.learning_runs import Run, change, rewarded, same, same_state, without_time
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles


@pytest.fixture
def run(small_settings: Settings) -> Run:
    return Run(small_settings)


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
    assert metrics.skipped is None
    told = {key: value for key, value in asdict(metrics).items() if key != "skipped"}
    assert (told.pop("infos_before"), told.pop("infos_after")) == ({}, {})
    assert all(np.isfinite(value) for value in told.values())
    before = [task.support[0].speeds for task in rollouts]
    after = [task.query.speeds for task in rollouts]
    assert metrics.speed_before == pytest.approx(np.mean(before), rel=1e-5)  # type: ignore[arg-type]
    assert metrics.speed_after == pytest.approx(np.mean(after), rel=1e-5)  # type: ignore[arg-type]


def test_the_entropy_told_is_that_of_the_adapted_policies(small_settings: Settings) -> None:
    run = Run(change(small_settings, "outer", epochs=1))
    rollouts = run.collect()
    batch, spec = run.learner.prepare(rollouts), run.learner.spec
    told = run.learner.update(rollouts).entropy
    theta = {name: value.detach().clone() for name, value in run.learner.parameters.items()}
    log_stds = [
        meta_oracles.adapted(run.settings, spec, theta, task)[0][LOG_STD].detach()
        for task in meta_oracles.tasks_of(batch)
    ]
    expected = 6 * 0.5 * np.log(2 * np.pi * np.e) + float(torch.stack(log_stds).sum()) / 3
    assert told == pytest.approx(expected, rel=1e-5)


def test_the_learners_adapted_policies_are_the_actors(run: Run) -> None:
    """Before the first step every ratio is 1 and every KL is 0, up to rounding."""
    rollouts = run.collect()
    batch = run.learner.prepare(rollouts)
    parameters = run.learner.parameters
    _, diagnostics = meta_loss(
        meta_oracles.objective(run.settings, run.learner.spec, "second"), parameters, batch
    )
    assert float(diagnostics.max_ratio_error) < 1e-4
    assert abs(float(diagnostics.inner_kl)) < 1e-7
    assert abs(float(diagnostics.query_kl)) < 1e-6
    assert float(diagnostics.clip_fraction) == 0.0
    for _ in range(3):
        assert run.learner.update(run.collect()).collector_ratio_error < 1e-4


def test_the_gradient_of_real_data_is_the_references(run: Run) -> None:
    run.learner.update(run.collect())
    settings, spec = run.settings, run.learner.spec
    batch = meta_oracles.tree_map(lambda part: part.double(), run.learner.prepare(run.collect()))
    theta = {name: value.detach().double() for name, value in run.learner.parameters.items()}
    actual = oracles.gradient(
        lambda t: meta_loss(meta_oracles.objective(settings, spec, "second"), t, batch)[0], theta
    )
    expected = oracles.gradient(lambda t: meta_oracles.meta_loss(settings, spec, t, batch), theta)
    assert oracles.relative_error(actual, expected) < 1e-9


def test_changing_the_query_data_changes_the_update(run: Run) -> None:
    rollouts = run.collect()
    other = Run(run.settings)
    flipped = [rewarded(run.settings, task, -task.query.rewards) for task in rollouts]
    run.learner.update(rollouts)
    other.learner.update(flipped)
    assert not same(run.learner.publish().values, other.learner.publish().values)


def test_observations_seen_normalize_the_next_version_and_no_sooner(run: Run) -> None:
    first = run.learner.publish().normalizer
    assert first is not None
    assert (first.mean == 0).all()
    assert (first.scale == 1).all()
    rollouts = run.collect()
    run.learner.update(rollouts)
    seen = np.concatenate(
        [phase.observations.reshape(-1, 17) for t in rollouts for phase in (*t.support, t.query)]
    )
    second = run.learner.publish().normalizer
    assert second is not None
    np.testing.assert_allclose(second.mean, seen.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second.scale, 1 / seen.std(axis=0), rtol=1e-4)


def test_observations_are_left_alone_where_the_policy_wants_it(small_settings: Settings) -> None:
    run = Run(change(small_settings, "policy", normalize_observations=False))
    for _ in range(2):
        assert run.learner.update(run.collect()).collector_ratio_error < 1e-4
        assert run.learner.publish().normalizer is None


def test_the_order_of_arrival_does_not_matter(run: Run) -> None:
    rollouts, other = run.collect(), Run(run.settings)
    run.learner.update(rollouts)
    other.learner.update(rollouts[::-1])
    assert same_state(run.learner.state(), other.learner.state())


@pytest.mark.parametrize("learn_inner_rates", [False, True])
@pytest.mark.parametrize(
    ("objective", "tasks_per_minibatch"), [("ppo", None), ("ppo", 2), ("trpo", None)]
)
def test_a_learner_loaded_goes_on_as_one_never_interrupted(
    small_settings: Settings,
    objective: str,
    tasks_per_minibatch: int | None,
    learn_inner_rates: bool,
) -> None:
    settings = change(
        change(small_settings, "inner", learn_inner_rates=learn_inner_rates),
        "outer",
        objective=objective,
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
    moments = {name: value.copy() for name, value in state.optimizer.first_moments.items()}
    other = Run(run.settings)
    other.learner.load(state)
    other.learner.update(other.collect())
    run.learner.update(run.collect())
    assert same(state.parameters, saved)
    assert same(state.optimizer.first_moments, moments)


def test_a_fresh_state_can_be_loaded(run: Run) -> None:
    run.learner.update(run.collect())
    fresh = MetaLearner(run.settings, run.learner.spec)
    run.learner.load(fresh.state())
    assert same_state(run.learner.state(), fresh.state())
    assert run.learner.state().optimizer.steps == 0


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
@pytest.mark.parametrize("objective", ["ppo", "trpo", "reinforce"])
def test_an_update_lowers_the_meta_loss_on_its_own_data(
    small_settings: Settings, objective: str, order: str
) -> None:
    settings = change(
        small_settings, "outer", objective=objective, order=order, epochs=5, learning_rate=1e-3
    )
    run = Run(settings)
    rollouts = run.collect()
    batch = run.learner.prepare(rollouts)
    if objective == "reinforce":  # whose weights are constants: the ratios' loss has its gradient
        settings = change(settings, "outer", objective="trpo")

    def loss() -> float:
        value, _ = meta_loss(
            meta_oracles.objective(settings, run.learner.spec, "second"),
            run.learner.parameters,
            batch,
        )
        return float(value.detach())

    before = loss()
    run.learner.update(rollouts)
    assert loss() < before - 1e-4


ORDERS: list[Order] = ["first", "second"]


def gradient_norm(run: Run, rollouts: list[TaskRollouts], order: Order) -> float:
    batch, spec = run.learner.prepare(rollouts), run.learner.spec
    gradient = oracles.gradient(
        lambda theta: meta_loss(meta_oracles.objective(run.settings, spec, order), theta, batch)[0],
        run.learner.parameters,
    )
    return float(oracles.flat(gradient).norm())


def test_hybrid_is_first_order_for_so_many_iterations_and_second_order_from_then_on(
    small_settings: Settings,
) -> None:
    """Each update's gradient is that of the one order and not of the other."""
    settings = change(small_settings, "outer", order="hybrid", first_order_iterations=2)
    run, orders = Run(settings), []
    for _ in range(4):
        rollouts = run.collect()
        norms = {order: gradient_norm(run, rollouts, order) for order in ORDERS}
        assert norms["first"] != pytest.approx(norms["second"], rel=1e-3)
        told = run.learner.update(rollouts).gradient_norm
        orders += [order for order in ORDERS if told == pytest.approx(norms[order], rel=1e-4)]
    assert orders == ["first", "first", "second", "second"]


@pytest.mark.parametrize("order", ORDERS)
def test_hybrid_ends_where_the_pure_order_does_as_long_as_it_keeps_to_it(
    small_settings: Settings, order: str
) -> None:
    first = 9 if order == "first" else 0
    hybrid = change(small_settings, "outer", order="hybrid", first_order_iterations=first)
    one, other = Run(hybrid), Run(change(small_settings, "outer", order=order))
    for _ in range(2):
        one.learner.update(one.collect())
        other.learner.update(other.collect())
    assert same_state(one.learner.state(), other.learner.state())
