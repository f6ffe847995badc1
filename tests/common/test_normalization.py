from __future__ import annotations

import numpy as np
import torch

from maml_ray.common.normalization import LIMIT, RunningStatistics
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.maml.distributions import distribution, to_torch
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.samples import make_samples


def observations(n: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, 3)) * [0.1, 5.0, 40.0] + [1.0, -2.0, 1000.0]).astype(np.float32)


def test_merging_in_parts_gives_the_statistics_of_the_whole() -> None:
    parts = [observations(n, seed) for seed, n in enumerate((1, 7, 300, 2))]
    running = RunningStatistics.empty(3)
    for part in parts:
        running = running.merged(part)
    whole = np.concatenate(parts).astype(np.float64)
    assert running.count == len(whole)
    np.testing.assert_allclose(running.mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(running.squares / running.count, whole.var(axis=0), rtol=1e-9)


def test_nothing_seen_is_the_identity_and_an_empty_batch_changes_nothing() -> None:
    empty = RunningStatistics.empty(3)
    some = np.array([[1.0, -2.0, 3.0]], dtype=np.float32)
    np.testing.assert_array_equal(empty.normalizer()(some), some)
    assert empty.merged(some[:0]) is empty


def test_normalized_observations_have_mean_zero_and_variance_one() -> None:
    seen = observations(5000)
    normalized = RunningStatistics.empty(3).merged(seen).normalizer()(seen)
    np.testing.assert_allclose(normalized.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(normalized.std(axis=0), 1.0, atol=1e-3)


def test_spikes_are_clipped_and_a_constant_does_not_divide_by_zero() -> None:
    constant = np.full((10, 3), 2.0, dtype=np.float32)
    normalizer = RunningStatistics.empty(3).merged(constant).normalizer()
    np.testing.assert_array_equal(normalizer(constant), 0.0)
    assert np.abs(normalizer(constant + 1e6)).max() == LIMIT


def test_the_input_is_not_written_to() -> None:
    seen = observations(4)
    before = seen.copy()
    RunningStatistics.empty(3).merged(seen).normalizer()(seen)
    np.testing.assert_array_equal(seen, before)


def updated_learner(settings: Settings) -> tuple[MetaLearner, RolloutWorker]:
    worker = RolloutWorker(settings)
    learner = MetaLearner(settings, worker.spec)
    learner.update(rollouts(learner, worker, settings))
    return learner, worker


def rollouts(learner: MetaLearner, worker: RolloutWorker, settings: Settings) -> list:  # type: ignore[type-arg]
    theta, iteration = learner.publish(), learner.version
    return [
        worker.roll_out(theta, Assignment(iteration, index, task, iteration))[0]
        for index, task in enumerate(sample_tasks(settings, worker.tasks, iteration))
    ]


def test_the_statistics_are_those_of_all_phases_of_an_iteration(small_settings: Settings) -> None:
    worker = RolloutWorker(small_settings)
    learner = MetaLearner(small_settings, worker.spec)
    batch = rollouts(learner, worker, small_settings)
    learner.update(batch)
    phases = [phase for task in batch for phase in (*task.support, task.query)]
    seen = np.concatenate([phase.observations.reshape(-1, 17) for phase in phases])
    state = learner.state().obs_stats
    assert state.count == len(seen)
    np.testing.assert_allclose(state.mean, seen.astype(np.float64).mean(axis=0), atol=1e-9)


def test_actors_and_learner_see_the_same_normalized_observations(small_settings: Settings) -> None:
    """After the first update the constants are no longer the identity: ratios must still be 1."""
    learner, worker = updated_learner(small_settings)
    assert not np.allclose(learner.publish().normalizer.scale, 1.0)  # type: ignore[union-attr]
    metrics = learner.update(rollouts(learner, worker, small_settings))
    assert metrics.collector_ratio_error < 1e-4


def test_the_numpy_policy_normalizes_as_the_samples_are(small_settings: Settings) -> None:
    learner, worker = updated_learner(small_settings)
    theta = learner.publish()
    query = rollouts(learner, worker, small_settings)[0].query
    samples = make_samples(
        query, compute_advantages(query, small_settings.advantages), theta.normalizer
    )
    observations = torch.from_numpy(samples.observations)
    by_torch = distribution(worker.spec, to_torch(theta.values), observations)[0]
    by_numpy = NumpyPolicy(worker.spec, theta.values, theta.normalizer).forward(query.observations)
    np.testing.assert_allclose(by_numpy.reshape(by_torch.shape), by_torch, atol=1e-5)


def test_it_is_a_setting(small_settings: Settings) -> None:
    policy = small_settings.policy.model_copy(update={"normalize_observations": False})
    learner, _ = updated_learner(small_settings.model_copy(update={"policy": policy}))
    assert learner.publish().normalizer is None
    assert torch.isfinite(learner.parameters["log_std"]).all()
