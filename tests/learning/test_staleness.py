"""Learning from data of the previous version: who collects what, and how the update corrects it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence as torch_kl

from maml_ray.backends.base import Backend
from maml_ray.backends.dispatch import make_backend
from maml_ray.config.sections import TrustRegionSettings
from maml_ray.config.settings import Settings
from maml_ray.kernels.types import Gaussian
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.off_policy import decouple_behavior
from maml_ray.learning.staleness import checkpoints_to_keep, collection_version
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.policies.spec import PolicySpec
from tests.learning_runs import Run, change, same, same_state, without_time
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.small_runs import settings as small


def asynchronous(settings: Settings, **outer: Any) -> Settings:
    """Settings with async collection, large updates and a loss of the behavior policies."""
    moving = {"learning_rate": 0.01, "inner_kl_coefficient": 1.0, "max_query_kl": None, **outer}
    return change(change(settings, "meta_batch", async_collection=True), "outer", **moving)


@pytest.fixture
def run(small_settings: Settings) -> Run:
    """A run after two updates: version 1 collects the next meta-batch."""
    return run_two_updates(asynchronous(small_settings))


def run_two_updates(settings: Settings) -> Run:
    run = Run(settings)
    for _ in range(2):
        run.learner.update(run.collect())
    return run


def backend_of(settings: Settings, spec: PolicySpec) -> Backend:
    return make_backend(settings, spec, torch.device("cpu"))


def double(tree: Any) -> Any:
    return meta_oracles.tree_map(lambda part: part.detach().double(), tree)


def stale_params(run: Run) -> dict[str, torch.Tensor]:
    """The parameters that collect the next meta-batch, in float64."""
    values = run.learner.collection_params().values
    return {name: torch.tensor(value).double() for name, value in values.items()}


def as_gaussian(policy: Any) -> Gaussian[torch.Tensor]:
    return Gaussian(policy.base_dist.loc.detach(), policy.base_dist.scale[0].log().detach())


def with_oracle_behavior(run: Run, batch: MetaBatch) -> list[MetaBatch]:
    """The tasks, with behavior policies that the oracle adapts from the stale parameters."""
    spec, tasks = run.learner.spec, []
    for task in meta_oracles.tasks_of(batch):
        theta, policies = meta_oracles.adapted(run.settings, spec, stale_params(run), task)
        query = meta_oracles.action_distribution(spec, theta, task.query.observations)
        support = tuple(map(as_gaussian, policies))
        tasks.append(task._replace(support_behavior=support, query_behavior=as_gaussian(query)))
    return tasks


def test_version_0_collects_twice_and_each_later_one_once() -> None:
    chosen = small(meta_batch={"async_collection": True})
    assert [collection_version(chosen.meta_batch, k) for k in range(5)] == [0, 0, 1, 2, 3]
    assert [collection_version(small().meta_batch, k) for k in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("async_collection", "keep", "kept"), [(False, 1, 1), (True, 1, 2), (True, 3, 3)]
)
def test_two_checkpoints_are_kept_if_the_last_but_one_may_be_the_best(
    async_collection: bool, keep: int, kept: int
) -> None:
    chosen = small(
        meta_batch={"async_collection": async_collection}, run={"keep_checkpoints": keep}
    )
    assert checkpoints_to_keep(chosen) == kept


def test_versions_parameters_and_staleness(small_settings: Settings) -> None:
    run, snapshots, seen = Run(asynchronous(small_settings)), [], []
    for _ in range(4):
        snapshots.append(run.learner.publish())
        rollouts = run.collect()
        seen.append(({task.version for task in rollouts}, run.learner.update(rollouts).staleness))
    assert seen == [({0}, 0), ({0}, 1), ({1}, 1), ({2}, 1)]
    next_with = run.learner.collection_params()
    assert next_with.version == 3
    assert same(next_with.values, snapshots[3].values)
    assert same(vars(next_with.normalizer), vars(snapshots[3].normalizer))
    assert run.learner.publish().version == 4


def test_without_async_collection_nothing_is_stale(small_settings: Settings) -> None:
    run = Run(small_settings)
    assert run.learner.update(run.collect()).staleness == 0
    assert run.learner.update(run.collect()).staleness == 0
    assert run.learner.state().stale_params is None


@pytest.mark.parametrize("version", [0, 2, 3])
def test_rollouts_of_the_wrong_version_are_refused(run: Run, version: int) -> None:
    rollouts = [replace(task, version=version) for task in run.collect()]
    with pytest.raises(ValueError, match=f"collected with version {version}, .* version 1"):
        run.learner.update(rollouts)


def test_observations_are_normalized_as_during_collection(run: Run) -> None:
    rollouts, normalizer = run.collect(), run.learner.collection_params().normalizer
    assert normalizer is not None
    assert not same(vars(normalizer), vars(run.learner.publish().normalizer))
    batch = run.learner.prepare(rollouts)
    for found, phase in ((batch.support[0], "support"), (batch.query, "query")):
        for index, task in enumerate(rollouts):
            seen = task.support[0] if phase == "support" else task.query
            expected = normalizer(seen.observations).reshape(-1, seen.observations.shape[-1])
            np.testing.assert_array_equal(found.observations[index].numpy(), expected)


def test_the_behavior_policies_are_those_of_the_stale_parameters(run: Run) -> None:
    batch = double(run.learner.prepare(run.collect()))
    today = double(dict(run.learner.parameters))
    for task, hand in zip(
        meta_oracles.tasks_of(batch), with_oracle_behavior(run, batch), strict=True
    ):
        pairs = zip(
            (*task.support_behavior, task.query_behavior),
            (*hand.support_behavior, hand.query_behavior),
            strict=True,
        )
        for found, expected in pairs:
            assert isinstance(found, Gaussian)
            assert isinstance(expected, Gaussian)
            torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found.log_std, expected.log_std, rtol=1e-5, atol=1e-5)
        # The current policies differ from them.
        _, now = meta_oracles.adapted(run.settings, run.learner.spec, today, task)
        behavior = task.support_behavior[0]
        assert isinstance(behavior, Gaussian)
        assert float((as_gaussian(now[0]).mean - behavior.mean).abs().max()) > 1e-3


def decoupled(run: Run, batch: MetaBatch, at: meta_oracles.Parameters) -> torch.Tensor:
    """The outer objective by hand: weighted by the behavior ratio, clipped around the policy."""
    settings, spec, losses = run.settings, run.learner.spec, []
    outer, now = settings.outer, double(dict(run.learner.parameters))

    def query_log_probs(
        theta: meta_oracles.Parameters, task: MetaBatch
    ) -> tuple[torch.Tensor, list[Any]]:
        adapted, policies = meta_oracles.adapted(settings, spec, theta, task)
        policy = meta_oracles.action_distribution(spec, adapted, task.query.observations)
        return meta_oracles.log_probs(policy, task.query), policies

    for task in with_oracle_behavior(run, batch):
        query, (new, policies) = task.query, query_log_probs(at, task)
        today = query_log_probs(now, task)[0].detach()
        weight, ratio = torch.exp(today - query.log_probs), torch.exp(new - today)
        gain = ratio * query.advantages
        if outer.objective == "ppo":
            bounded = torch.clamp(ratio, 1 - outer.clip, 1 + outer.clip) * query.advantages
            gain = torch.minimum(gain, bounded)
        if outer.objective == "reinforce":
            gain = ratio.detach() * new * query.advantages
        loss = -(weight * gain * query.weights).sum()
        for policy, old, support in zip(policies, task.support_behavior, task.support, strict=True):
            kl = torch_kl(meta_oracles.as_torch(old), policy) * support.weights.reshape(-1)
            if outer.objective == "ppo":
                loss = loss + outer.inner_kl_coefficient * kl.sum() / len(policies)
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("moved", [0.0, 0.05])
@pytest.mark.parametrize(
    ("objective", "inner"),
    [
        ("ppo", {}),
        ("ppo", {"objective": "dice"}),
        ("ppo", {"objective": "log_prob"}),
        ("ppo", {"parameters": "context", "learning_rate": 3.0}),
        ("trpo", {}),
        ("reinforce", {}),
    ],
    ids=str,
)
def test_the_gradient_of_stale_data_is_the_references(
    small_settings: Settings, objective: str, inner: dict[str, Any], moved: float
) -> None:
    """At the current parameters, and at moved ones, whose ratios are clipped."""
    chosen = change(small_settings, "inner", **inner)
    run = run_two_updates(asynchronous(chosen, objective=objective, clip=0.1))
    settings, spec = run.settings, run.learner.spec
    rollouts = run.collect()
    batch, today = double(run.learner.prepare(rollouts)), double(dict(run.learner.parameters))
    draw = torch.Generator().manual_seed(0)
    theta = {
        name: value + moved * torch.randn(value.shape, generator=draw, dtype=value.dtype)
        for name, value in today.items()
    }
    backend = backend_of(settings, spec)
    seen = decouple_behavior(backend, today, batch)
    _, diagnostics, found = backend.value_and_grad(theta, seen, "second")
    expected = oracles.gradient(lambda at: decoupled(run, batch, at), theta)
    assert oracles.relative_error(found, expected) < 1e-5  # the batch is of float32
    assert (float(diagnostics.clip_fraction) > 0.05) == (moved > 0.0)
    if not moved:
        assert float(diagnostics.query_kl) == pytest.approx(0.0, abs=1e-9)
        norm = run.learner.update(rollouts).gradient_norm
        assert norm == pytest.approx(float(oracles.flat(expected).norm()), rel=1e-3)


@pytest.mark.parametrize("objective", ["ppo", "trpo"])
def test_the_ratio_error_is_measured_from_the_behavior_policies(
    small_settings: Settings, objective: str
) -> None:
    """The current policies are far from the data; the recorded behavior policies are not."""
    run = run_two_updates(asynchronous(small_settings, objective=objective))
    rollouts = run.collect()
    batch, theta = double(run.learner.prepare(rollouts)), double(dict(run.learner.parameters))
    _, today, _ = backend_of(run.settings, run.learner.spec).value_and_grad(theta, batch, "second")
    assert float(today.max_ratio_error) > 1e-2
    off = [
        replace(task, query=replace(task.query, log_probs=task.query.log_probs + np.float32(0.1)))
        for task in rollouts
    ]
    other = Run(run.settings)
    other.learner.load(run.learner.state())
    assert run.learner.update(rollouts).collector_ratio_error < 1e-4
    error = other.learner.update(off).collector_ratio_error
    assert error == pytest.approx(1.0 - np.exp(-0.1), abs=1e-3)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_trust_region_is_around_the_current_parameters(
    small_settings: Settings, steps: int
) -> None:
    """Measured by the reference; from the behavior policies it would be far too large."""
    limits = TrustRegionSettings(max_kl=0.01)
    chosen = change(small_settings, "inner", steps=steps)
    run = run_two_updates(asynchronous(chosen, objective="trpo", trust_region=limits))
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


def test_a_skipped_update_keeps_the_versions_in_step(run: Run) -> None:
    rollouts = run.collect()
    failed = [replace(rollouts[0], failure="it fell over"), *rollouts[1:]]
    before = run.learner.publish()
    metrics = run.learner.update(failed)
    assert (metrics.skipped is not None, metrics.staleness, metrics.version) == (True, 1, 3)
    assert run.learner.collection_params().version == before.version == 2
    assert same(run.learner.collection_params().values, before.values)
    assert run.learner.update(run.collect()).skipped is None


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_loaded_learner_continues_as_one_never_interrupted(
    small_settings: Settings, at: int, normalize: bool
) -> None:
    settings = asynchronous(change(small_settings, "policy", normalize_observations=normalize))
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


def test_a_state_with_another_async_collection_is_refused(
    run: Run, small_settings: Settings
) -> None:
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
