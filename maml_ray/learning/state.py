"""Define the learner's state and the metrics of an update, without PyTorch.

The driver keeps and checkpoints them, and does not import PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from maml_ray.common.normalization import RunningStatistics
from maml_ray.common.seeding import Purpose, generator
from maml_ray.config.sections import PolicySettings
from maml_ray.config.settings import Settings
from maml_ray.maml.meta_parameters import initial_meta_parameters
from maml_ray.policies.spec import NumpyParameters, PolicyParameters, PolicySpec


@dataclass(frozen=True)
class UpdateMetrics:
    """Metrics of one meta-update; the field names are keys of ``metrics.jsonl``.

    Attributes:
        version: parameter version after the update.
        return_before: mean undiscounted return of the first support episodes; of the query
            episodes if there are no inner steps.
        return_after: mean undiscounted return of the query episodes.
        speed_before, speed_after: mean speed of the same episodes in m/s; None if the environment
            reports no speed.
        loss: meta-loss of the updated parameters on the whole meta-batch.
        gradient_norm: Euclidean norm of the first step's meta-gradient, before clipping.
        gradient_snr: signal-to-noise ratio of the meta-gradient over tasks; None except every
            ``outer.diagnose_every`` updates.
        order_cosine: cosine between the second- and the first-order meta-gradient; None likewise.
        inner_kl: mean KL on support data from the collecting to the updated policies.
        query_kl: mean KL on query data from the collecting to the updated adapted policies; for
            data one version old, from the adapted policies before the update.
        clip_fraction: share of query steps whose ratio is outside the clip range after the update.
        collector_ratio_error: largest ``|ratio - 1|`` on query data between the learner's and the
            actors' copies of the adapted policies that collected them: rounding, or a bug.
        entropy: mean entropy of the updated adapted policies on query data, in nats.
        gradient_steps: optimizer steps that were kept; fewer than planned, perhaps none, if
            ``outer.max_query_kl`` was exceeded or no step satisfied the trust region.
        learning_rate: outer learning rate of the first step; None for a trust region.
        env_steps: environment steps in the meta-batch.
        learn_s: duration of the update in seconds.
        skipped: reason why the update was skipped and the parameters are unchanged, or None. What
            could not be computed is NaN then.
        skipped_in_a_row: consecutive skipped updates, this one included.
        discarded_episodes: failed episodes since the run began, each collected again.
        staleness: versions between the parameters that collected the meta-batch and the updated
            ones: 0, or 1 with ``meta_batch.async_collection``.
        infos_before, infos_after: means of the same episodes' ``task.info_metrics`` by name; None
            if no environment reports it. Their keys in ``metrics.jsonl`` are ``NAME_before`` and
            ``NAME_after``.
    """

    version: int
    return_before: float
    return_after: float
    speed_before: float | None
    speed_after: float | None
    loss: float
    gradient_norm: float
    gradient_snr: float | None
    order_cosine: float | None
    inner_kl: float
    query_kl: float
    clip_fraction: float
    collector_ratio_error: float
    entropy: float
    gradient_steps: int
    learning_rate: float | None
    env_steps: int
    learn_s: float
    skipped: str | None = None
    skipped_in_a_row: int = 0
    discarded_episodes: int = 0
    staleness: int = 0
    infos_before: Mapping[str, float | None] = field(default_factory=dict)
    infos_after: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerState:
    """State of the outer optimizer: Adam's step count and moments; empty for a trust region."""

    steps: int
    first_moments: NumpyParameters
    second_moments: NumpyParameters


@dataclass(frozen=True)
class LearnerState:
    """Everything that a learner needs to resume bit for bit.

    Attributes:
        version: parameter version: the number of updates so far.
        parameters: arrays by name.
        optimizer: state of the outer optimizer.
        obs_stats: statistics of all observations so far.
        skipped_in_a_row: consecutive updates skipped up to now.
        discarded_episodes: failed episodes since the run began, each collected again.
        stale_params: policy of the previous version, if it collects the next meta-batch; None if
            the current version does.
    """

    version: int
    parameters: NumpyParameters
    optimizer: OptimizerState
    obs_stats: RunningStatistics
    skipped_in_a_row: int = 0
    discarded_episodes: int = 0
    stale_params: PolicyParameters | None = None


def initial_learner_state(settings: Settings, spec: PolicySpec) -> LearnerState:
    """Return the state at the start of a run: parameters drawn from the run's seed."""
    rng = generator(settings.run.seed, Purpose.PARAMETERS)
    return LearnerState(
        version=0,
        parameters=initial_meta_parameters(spec, settings.inner, rng),
        optimizer=OptimizerState(0, {}, {}),
        obs_stats=RunningStatistics.empty(spec.observation_size),
    )


def policy_snapshot(settings: PolicySettings, state: LearnerState) -> PolicyParameters:
    """Return the current policy of a learner, as the rollout actors receive it."""
    normalizer = state.obs_stats.normalizer() if settings.normalize_observations else None
    return PolicyParameters(state.version, state.parameters, normalizer)


def collection_params(settings: PolicySettings, state: LearnerState) -> PolicyParameters:
    """Return the policy that collects the meta-batch of the learner's next update."""
    return state.stale_params or policy_snapshot(settings, state)
