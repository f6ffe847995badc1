"""A meta-batch that is put together as its tasks come, or all at once: the same one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from maml_ray.config.settings import Settings
from maml_ray.learning.batch_builder import MetaBatchBuilder
from tests.learning_runs import Run, change, same_state, without_time


@pytest.fixture
def run(small_settings: Settings) -> Run:
    run = Run(small_settings)
    run.learner.update(run.collect())  # so that observations are normalized
    return run


pytestmark = pytest.mark.usefixtures("backend_kind")
ORDERS = [(), (1,), (2, 0), (1, 2, 0), (1, 1, 0)]


@pytest.mark.parametrize("taken", ORDERS, ids=str)
@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("inner", {"objective": "ratio"}),  # the policies that collected by compiled loops
        ("inner", {"objective": "dice"}),  # by autograd, all tasks together
        ("inner", {"learn_inner_rates": True}),
        ("inner", {"parameters": "context", "learning_rate": 3.0}),
        ("inner", {"steps": 0}),
        ("outer", {"objective": "trpo"}),
        ("meta_batch", {"async_collection": True}),
    ],
    ids=str,
)
def test_what_is_taken_ahead_changes_no_bit_of_an_update(
    small_settings: Settings, section: str, values: dict[str, Any], taken: tuple[int, ...]
) -> None:
    ahead, at_once = (Run(change(small_settings, section, **values)) for _ in range(2))
    for _ in range(3):
        rollouts = ahead.collect()
        for index in taken:
            ahead.learner.prefetch([rollouts[index]])
        told = ahead.learner.update(rollouts[::-1])
        assert without_time(told) == without_time(at_once.learner.update(at_once.collect()))
        assert same_state(ahead.learner.state(), at_once.learner.state())


def test_what_was_taken_is_what_is_learned_from(run: Run) -> None:
    """It is not prepared again: what the update is given of these tasks tells figures alone."""
    start, rollouts = run.learner.state(), run.collect()
    spoilt = [replace(task, query_advantages=-task.query_advantages) for task in rollouts]
    run.learner.update(rollouts)
    expected = run.learner.state()
    run.learner.load(start)
    run.learner.prefetch(rollouts[:2])
    run.learner.update([*spoilt[:2], rollouts[2]])
    assert same_state(run.learner.state(), expected)


def test_what_was_taken_is_of_one_update_alone(run: Run) -> None:
    """After the update, and where the learner goes on from elsewhere, it is forgotten."""
    start, rollouts = run.learner.state(), run.collect()
    spoilt = [replace(task, query_advantages=-task.query_advantages) for task in rollouts]
    run.learner.update(rollouts)
    expected = run.learner.state()
    run.learner.load(start)
    run.learner.prefetch(spoilt)
    run.learner.load(start)
    run.learner.update(rollouts)
    assert same_state(run.learner.state(), expected)
    run.learner.update(run.collect())
    other = Run(run.settings)
    other.learner.load(expected)
    other.learner.update(other.collect())
    assert same_state(run.learner.state(), other.learner.state())


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"version": 7}, "task 1 was collected with version 7, the learner asked for version 1"),
        ({"task_index": 3}, "there is no task 3 of 3"),
        ({"task_index": -1}, "there is no task -1 of 3"),
        ({"support": ()}, "task 1 has 0 support sets, inner.steps is 2"),
    ],
)
def test_what_an_update_would_refuse_is_not_taken(
    run: Run, mistake: dict[str, Any], message: str
) -> None:
    rollouts = run.collect()
    with pytest.raises(ValueError, match=message):
        run.learner.prefetch([replace(rollouts[1], **mistake)])
    run.learner.update(rollouts)


def test_a_broken_task_that_was_taken_has_the_update_skipped_as_ever(run: Run) -> None:
    rollouts = run.collect()
    broken = [rollouts[0], replace(rollouts[1], failure="query: it fell apart"), rollouts[2]]
    before = run.learner.state()
    run.learner.prefetch(broken)
    told = run.learner.update(broken)
    assert told.skipped is not None
    assert "it fell apart" in told.skipped
    after = run.learner.state()
    expected = replace(before, version=after.version, obs_stats=after.obs_stats)
    assert same_state(after, expected)


def test_by_way_of_memory_that_a_device_can_read_the_meta_batch_is_the_same(run: Run) -> None:
    """As a GPU gets it, but for the device."""
    rollouts, published = run.collect(), run.learner.publish()
    learner = run.learner
    staged = MetaBatchBuilder(
        run.settings, learner.backend, learner.parameters, published.normalizer, staged=True
    )
    staged.add(rollouts[2])
    found, direct = staged.build(rollouts), learner.prepare(rollouts)
    for one, other in zip(tree_leaves(found), tree_leaves(direct), strict=True):
        assert torch.equal(one, other)
