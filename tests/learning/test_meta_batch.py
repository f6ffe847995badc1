"""From rollouts to a meta-batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from maml_ray.backends.tensor_tree import select_rows
from maml_ray.config.settings import Settings
from maml_ray.maml.meta_parameters import policy_part
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.trajectories import TaskRollouts
from tests.learning_runs import Run, change, same_state
from tests.oracles import meta as meta_oracles


@pytest.fixture
def run(small_settings: Settings) -> Run:
    return Run(small_settings)


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
        (stale, "task 2 was collected with version 7, the learner asked for version 0"),
        (one_step_short, "task 2 has 1 support sets, inner.steps is 2"),
    ],
)
def test_rollouts_that_were_not_asked_for_are_refused(run: Run, mistake: Any, message: str) -> None:
    before = run.learner.state()
    with pytest.raises(ValueError, match=message):
        run.learner.update(mistake(run.collect()))
    assert same_state(run.learner.state(), before)


def test_samples_are_the_tasks_in_their_order_and_the_phases_in_theirs(run: Run) -> None:
    run.learner.update(run.collect())  # so that observations are normalized
    rollouts, normalizer = run.collect(), run.learner.publish().normalizer
    assert normalizer is not None
    batch = run.learner.prepare(rollouts)
    assert batch.query.log_probs.shape == (3, 2, 20)
    for index, task in enumerate(rollouts):
        pairs = zip((*batch.support, batch.query), (*task.support, task.query), strict=True)
        for samples, phase in pairs:
            np.testing.assert_array_equal(
                samples.observations[index].numpy(), normalizer(phase.observations).reshape(40, 17)
            )
            np.testing.assert_array_equal(
                samples.actions[index].numpy(), phase.actions.reshape(40, 6)
            )
            np.testing.assert_array_equal(samples.log_probs[index].numpy(), phase.log_probs)
            np.testing.assert_array_equal(
                samples.advantages[index].numpy(),
                compute_advantages(phase, run.settings.advantages),
            )


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize(
    "inner",
    [
        {"objective": "ratio"},  # by hand
        {"objective": "dice"},  # by autograd
        {"parameters": "context", "learning_rate": 3.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("learn_inner_rates", [False, True])
def test_collectors_are_the_policies_that_collected(
    small_settings: Settings, learn_inner_rates: bool, inner: dict[str, Any], steps: int
) -> None:
    """Today's and its adaptations, by the reference; they carry no graph."""
    run = Run(
        change(small_settings, "inner", learn_inner_rates=learn_inner_rates, steps=steps, **inner)
    )
    run.learner.update(run.collect())
    batch = run.learner.prepare(run.collect())
    theta = {name: value.detach() for name, value in run.learner.parameters.items()}
    for task in meta_oracles.tasks_of(batch):
        after, policies = meta_oracles.adapted(run.settings, run.learner.spec, theta, task)
        assert set(after) == set(policy_part(theta))
        query = meta_oracles.action_distribution(run.learner.spec, after, task.query.observations)
        found = (*task.support_behavior, task.query_behavior)
        for ours, theirs in zip(found, (*policies, query), strict=True):
            torch.testing.assert_close(
                meta_oracles.as_torch(ours).base_dist.mean,
                theirs.base_dist.mean.detach(),
                rtol=1e-4,
                atol=1e-5,
            )
            torch.testing.assert_close(
                meta_oracles.as_torch(ours).base_dist.stddev.detach(),
                theirs.base_dist.stddev.detach(),
                rtol=1e-4,
                atol=1e-5,
            )
            assert not any(part.requires_grad for part in ours)


@pytest.mark.usefixtures("backend_kind")
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_context_has_the_mean_of_its_steps_gradients_and_no_support_samples(
    small_settings: Settings, steps: int
) -> None:
    """By a loop over pairs of episodes; the learner adapts as its workers did."""
    settings = change(small_settings, "meta_batch", episodes=4)
    context = {"parameters": "context", "context_size": 2, "learning_rate": 3.0}
    run = Run(change(settings, "inner", steps=steps, **context))
    for _ in range(2):
        assert run.learner.update(run.collect()).collector_ratio_error < 1e-4
    rollouts = run.collect()
    batch = run.learner.prepare(rollouts)
    assert (len(batch.support), len(batch.support_behavior)) == (0, 0)
    expected = np.zeros((3, 2))
    for task in rollouts:
        for support in task.support:
            raised_first, lowered_first, raised, lowered = support.rewards.sum(axis=1) / 20
            expected[task.task_index] += (raised_first - lowered_first) / 4, (raised - lowered) / 4
    np.testing.assert_allclose(
        batch.context_gradient, expected / max(steps, 1), rtol=1e-4, atol=1e-5
    )


def test_the_learner_reads_only_outcomes_of_a_contexts_support_episodes(
    small_settings: Settings,
) -> None:
    settings = change(small_settings, "meta_batch", episodes=4)
    context = {"parameters": "context", "learning_rate": 3.0}
    settings = change(settings, "inner", **context)
    whole, outcomes = Run(settings), Run(settings)
    for _ in range(2):
        rollouts = whole.collect()
        sent = [task.with_support_outcomes() for task in rollouts]
        assert all(phase.observations.size == 0 for task in sent for phase in task.support)
        mine, theirs = outcomes.learner.update(sent), whole.learner.update(rollouts)
        assert replace(mine, learn_s=0.0) == replace(theirs, learn_s=0.0)
        assert same_state(outcomes.learner.state(), whole.learner.state())


def with_returns(rollouts: list[TaskRollouts], wanted: list[float]) -> list[TaskRollouts]:
    """Queries whose mean return is ``wanted``, task by task; support left alone."""
    changed = []
    for task, value in zip(rollouts, wanted, strict=True):
        rewards = np.zeros_like(task.query.rewards)
        rewards[:, 3] = value + np.array([1.0, -1.0])
        changed.append(replace(task, query=replace(task.query, rewards=rewards)))
    return changed


def test_credit_is_how_much_better_than_the_others_a_task_went_after_adaptation(run: Run) -> None:
    rollouts = run.collect()
    batch = run.learner.prepare(with_returns(rollouts, [1.0, 2.0, 6.0]))
    deviation = float(np.std([1.0, 2.0, 6.0]))
    expected = torch.tensor([-2.0, -1.0, 3.0]) / deviation
    torch.testing.assert_close(batch.task_advantage, expected.float())
    alike = run.learner.prepare(with_returns(rollouts, [5.0, 5.0, 5.0]))
    torch.testing.assert_close(alike.task_advantage, torch.zeros(3))


def test_selected_tasks_are_whole(run: Run) -> None:
    batch = run.learner.prepare(run.collect())
    some = select_rows(batch, torch.tensor([2, 0]))
    for found, all_of_them in zip(
        torch.utils._pytree.tree_leaves(some), torch.utils._pytree.tree_leaves(batch), strict=True
    ):
        assert torch.equal(found[0], all_of_them[2])
        assert torch.equal(found[1], all_of_them[0])
        assert len(found) == 2
