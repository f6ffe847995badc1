"""One version behind: who collects what, and a learner that judges it by who collected it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence as torch_kl

from maml_ray.backends.dispatch import meta_gradient
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings, SettingsError, TrustRegionSettings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.off_policy import recentered
from maml_ray.learning.staleness import checkpoints_to_keep, collection_version
from maml_ray.maml.distributions import Gaussian
from maml_ray.maml.meta_objective import MetaBatch, MetaObjective
from tests.learning_runs import Run, change, same, same_state, without_time
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.small_runs import settings as small


def overlapped(settings: Settings, **outer: Any) -> Settings:
    """Overlapped, with updates that move far, and a loss that knows who collected."""
    moving = {"learning_rate": 0.01, "inner_kl_coefficient": 1.0, "max_query_kl": None, **outer}
    return change(change(settings, "meta_batch", async_collection=True), "outer", **moving)


@pytest.fixture
def run(small_settings: Settings) -> Run:
    """After two updates: the next meta-batch is collected with version 1."""
    return begun(overlapped(small_settings))


def begun(settings: Settings) -> Run:
    run = Run(settings)
    for _ in range(2):
        run.learner.update(run.collect())
    return run


def double(tree: Any) -> Any:
    return meta_oracles.tree_map(lambda part: part.detach().double(), tree)


def behind(run: Run) -> dict[str, torch.Tensor]:
    """The parameters that collect next, in float64."""
    values = run.learner.collection_params().values
    return {name: torch.tensor(value).double() for name, value in values.items()}


def as_gaussian(policy: Any) -> Gaussian:
    return Gaussian(policy.base_dist.loc.detach(), policy.base_dist.scale[0].log().detach())


def by_hand(run: Run, batch: MetaBatch) -> list[MetaBatch]:
    """The tasks, with collectors that the oracle has adapted from the parameters behind."""
    spec, tasks = run.learner.spec, []
    for task in meta_oracles.tasks_of(batch):
        theta, policies = meta_oracles.adapted(run.settings, spec, behind(run), task)
        query = meta_oracles.action_distribution(spec, theta, task.query.observations)
        collectors = tuple(map(as_gaussian, policies))
        tasks.append(task._replace(collectors=collectors, query_collector=as_gaussian(query)))
    return tasks


def test_the_first_version_collects_twice_and_each_later_one_once() -> None:
    chosen = small(meta_batch={"async_collection": True})
    assert [collection_version(chosen.meta_batch, k) for k in range(5)] == [0, 0, 1, 2, 3]
    assert [collection_version(small().meta_batch, k) for k in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("async_collection", "keep", "kept"), [(False, 1, 1), (True, 1, 2), (True, 3, 3)]
)
def test_two_checkpoints_are_kept_where_the_last_but_one_may_be_the_best(
    async_collection: bool, keep: int, kept: int
) -> None:
    chosen = small(
        meta_batch={"async_collection": async_collection}, run={"keep_checkpoints": keep}
    )
    assert checkpoints_to_keep(chosen) == kept


@pytest.mark.parametrize("objective", ["dice", "log_prob"])
def test_inner_steps_without_a_ratio_are_refused(objective: str) -> None:
    behind = {"meta_batch": {"async_collection": True}}
    validate_settings({"inner": {"objective": objective}})
    validate_settings({**behind, "inner": {"objective": objective, "steps": 0}})
    with pytest.raises(
        SettingsError, match=rf"inner\.objective = '{objective}' .*async_collection"
    ):
        validate_settings({**behind, "inner": {"objective": objective}})


def test_versions_parameters_and_staleness(small_settings: Settings) -> None:
    run, published, told = Run(overlapped(small_settings)), [], []
    for _ in range(4):
        published.append(run.learner.publish())
        rollouts = run.collect()
        told.append(({task.version for task in rollouts}, run.learner.update(rollouts).staleness))
    assert told == [({0}, 0), ({0}, 1), ({1}, 1), ({2}, 1)]
    next_with = run.learner.collection_params()
    assert next_with.version == 3
    assert same(next_with.values, published[3].values)
    assert same(vars(next_with.normalizer), vars(published[3].normalizer))
    assert run.learner.publish().version == 4


def test_without_overlap_nothing_is_stale(small_settings: Settings) -> None:
    run = Run(small_settings)
    assert run.learner.update(run.collect()).staleness == 0
    assert run.learner.update(run.collect()).staleness == 0
    assert run.learner.state().stale_params is None


@pytest.mark.parametrize("version", [0, 2, 3])
def test_rollouts_of_another_version_than_was_asked_for_are_refused(run: Run, version: int) -> None:
    rollouts = [replace(task, version=version) for task in run.collect()]
    with pytest.raises(ValueError, match=f"collected with version {version}, .* version 1"):
        run.learner.update(rollouts)


def test_observations_are_normalized_as_they_were_when_they_were_seen(run: Run) -> None:
    rollouts, normalizer = run.collect(), run.learner.collection_params().normalizer
    assert normalizer is not None
    assert not same(vars(normalizer), vars(run.learner.publish().normalizer))
    batch = run.learner.prepare(rollouts)
    for found, phase in ((batch.support[0], "support"), (batch.query, "query")):
        for index, task in enumerate(rollouts):
            seen = task.support[0] if phase == "support" else task.query
            expected = normalizer(seen.observations).reshape(-1, seen.observations.shape[-1])
            np.testing.assert_array_equal(found.observations[index].numpy(), expected)


def test_the_collectors_are_those_of_the_version_behind(run: Run) -> None:
    batch = double(run.learner.prepare(run.collect()))
    today = double(dict(run.learner.parameters))
    for task, hand in zip(meta_oracles.tasks_of(batch), by_hand(run, batch), strict=True):
        pairs = zip(
            (*task.collectors, task.query_collector),
            (*hand.collectors, hand.query_collector),
            strict=True,
        )
        for found, expected in pairs:
            assert isinstance(found, Gaussian)
            assert isinstance(expected, Gaussian)
            torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found.log_std, expected.log_std, rtol=1e-5, atol=1e-5)
        # ... which is something else than what today's would be.
        _, now = meta_oracles.adapted(run.settings, run.learner.spec, today, task)
        collector = task.collectors[0]
        assert isinstance(collector, Gaussian)
        assert float((as_gaussian(now[0]).mean - collector.mean).abs().max()) > 1e-3


def decoupled(run: Run, batch: MetaBatch, at: meta_oracles.Parameters) -> torch.Tensor:
    """The outer objective by hand: weighed by the ratio to who collected, clipped around today."""
    settings, spec, losses = run.settings, run.learner.spec, []
    outer, now = settings.outer, double(dict(run.learner.parameters))

    def query_log_probs(
        theta: meta_oracles.Parameters, task: MetaBatch
    ) -> tuple[torch.Tensor, list[Any]]:
        adapted, policies = meta_oracles.adapted(settings, spec, theta, task)
        policy = meta_oracles.action_distribution(spec, adapted, task.query.observations)
        return meta_oracles.log_probs(policy, task.query), policies

    for task in by_hand(run, batch):
        query, (new, policies) = task.query, query_log_probs(at, task)
        today = query_log_probs(now, task)[0].detach()
        weight, ratio = torch.exp(today - query.log_probs), torch.exp(new - today)
        gain = ratio * query.advantages
        if outer.objective == "ppo":
            bounded = torch.clamp(ratio, 1 - outer.clip, 1 + outer.clip) * query.advantages
            gain = torch.minimum(gain, bounded)
        if outer.objective == "reinforce":
            gain = new * query.advantages
        loss = -(weight * gain * query.weights).sum()
        for policy, old, support in zip(policies, task.collectors, task.support, strict=True):
            kl = torch_kl(meta_oracles.as_torch(old), policy) * support.weights.reshape(-1)
            if outer.objective == "ppo":
                loss = loss + outer.inner_kl_coefficient * kl.sum() / len(policies)
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("moved", [0.0, 0.05])
@pytest.mark.parametrize("objective", ["ppo", "trpo", "reinforce"])
def test_the_gradient_of_stale_data_is_the_references(
    small_settings: Settings, objective: str, moved: float
) -> None:
    """At today's parameters, and at some that an update has moved, where ratios are clipped."""
    run = begun(overlapped(small_settings, objective=objective, clip=0.1))
    settings, spec = run.settings, run.learner.spec
    rollouts = run.collect()
    batch, today = double(run.learner.prepare(rollouts)), double(dict(run.learner.parameters))
    draw = torch.Generator().manual_seed(0)
    theta = {
        name: value + moved * torch.randn(value.shape, generator=draw, dtype=value.dtype)
        for name, value in today.items()
    }
    seen = recentered(settings, spec, today, batch)
    _, told, found = meta_gradient(MetaObjective(settings, spec, "second"), theta, seen)
    expected = oracles.gradient(lambda at: decoupled(run, batch, at), theta)
    assert oracles.relative_error(found, expected) < 1e-5  # the batch is of float32
    assert (float(told.clip_fraction) > 0.05) == (moved > 0.0)
    if not moved:
        assert float(told.query_kl) == pytest.approx(0.0, abs=1e-9)
        norm = run.learner.update(rollouts).gradient_norm
        assert norm == pytest.approx(float(oracles.flat(expected).norm()), rel=1e-3)


@pytest.mark.parametrize("objective", ["ppo", "trpo"])
def test_that_the_learner_knows_who_collected_stays_a_check(
    small_settings: Settings, objective: str
) -> None:
    """Today's policies are far from the data; those that the learner takes for theirs are not."""
    run = begun(overlapped(small_settings, objective=objective))
    rollouts = run.collect()
    batch, theta = double(run.learner.prepare(rollouts)), double(dict(run.learner.parameters))
    _, today, _ = meta_gradient(
        MetaObjective(run.settings, run.learner.spec, "second"), theta, batch
    )
    assert float(today.largest_ratio_error) > 1e-2
    off = [
        replace(task, query=replace(task.query, log_probs=task.query.log_probs + np.float32(0.1)))
        for task in rollouts
    ]
    other = Run(run.settings)
    other.learner.load(run.learner.state())
    assert run.learner.update(rollouts).collector_ratio_error < 1e-4
    told = other.learner.update(off).collector_ratio_error
    assert told == pytest.approx(1.0 - np.exp(-0.1), abs=1e-3)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_trust_region_is_around_todays_parameters(small_settings: Settings, steps: int) -> None:
    """Measured by the reference; from the policies that collected it would be far too large."""
    limits = TrustRegionSettings(max_kl=0.01)
    chosen = change(small_settings, "inner", steps=steps)
    run = begun(overlapped(chosen, objective="trpo", trust_region=limits))
    rollouts = run.collect()
    batch, before = double(run.learner.prepare(rollouts)), double(dict(run.learner.parameters))
    metrics = run.learner.update(rollouts)
    after = double(dict(run.learner.parameters))
    spec = run.learner.spec
    kl = float(meta_oracles.adapted_kl(run.settings, spec, before, after, batch).detach())
    assert metrics.gradient_steps == 1
    assert 0.003 < kl <= 0.01 * (1 + 1e-3)
    assert metrics.query_kl == pytest.approx(kl, rel=1e-2)
    losses = [
        float(meta_oracles.meta_loss(run.settings, spec, theta, batch).detach())
        for theta in (before, after)
    ]
    assert losses[1] < losses[0] - 1e-4


def test_an_update_that_is_skipped_leaves_the_versions_in_step(run: Run) -> None:
    rollouts = run.collect()
    broken = [replace(rollouts[0], failure="it fell over"), *rollouts[1:]]
    before = run.learner.publish()
    told = run.learner.update(broken)
    assert (told.skipped is not None, told.staleness, told.version) == (True, 1, 3)
    assert run.learner.collection_params().version == before.version == 2
    assert same(run.learner.collection_params().values, before.values)
    assert run.learner.update(run.collect()).skipped is None


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_learner_loaded_goes_on_as_one_never_interrupted(
    small_settings: Settings, at: int, normalize: bool
) -> None:
    settings = overlapped(change(small_settings, "policy", normalize_observations=normalize))
    whole, first, second = Run(settings), Run(settings), Run(settings)
    for _ in range(4):
        expected = whole.learner.update(whole.collect())
    for _ in range(at):
        first.learner.update(first.collect())
    second.learner.load(first.learner.state())
    for _ in range(4 - at):
        metrics = second.learner.update(second.collect())
    assert same_state(second.learner.state(), whole.learner.state())
    assert without_time(metrics) == without_time(expected)


def test_a_state_of_the_other_kind_is_refused(run: Run, small_settings: Settings) -> None:
    fresh = Run(small_settings)
    fresh.learner.update(fresh.collect())
    spec = run.learner.spec
    with pytest.raises(
        ValueError, match=r"of version 1, .* of version 0: meta_batch.async_collection"
    ):
        MetaLearner(run.settings, spec).load(fresh.learner.state())
    with pytest.raises(
        ValueError, match=r"of version 1, .* of version 2: meta_batch.async_collection"
    ):
        MetaLearner(small_settings, spec).load(run.learner.state())
