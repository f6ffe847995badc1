"""What a learner tells of an update, and what it needs to go on: without the learner.

The driver keeps both, and the checkpoints; it has no need of PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

from maml_ray.common.normalization import RunningStatistics
from maml_ray.common.seeding import Purpose, generator
from maml_ray.config.settings import Settings
from maml_ray.maml.meta_parameters import initial_meta_parameters
from maml_ray.policies.spec import NumpyParameters, PolicyParameters, PolicySpec


@dataclass(frozen=True)
class UpdateMetrics:
    """One meta-update in numbers.

    Attributes:
        version: of the parameters after the update.
        return_before: mean undiscounted return of the first support episodes; of the query
            episodes where there is no adaptation.
        return_after: mean undiscounted return of the query episodes.
        speed_before, speed_after: mean speed of the same episodes in m/s; None where the task
            tells none.
        loss: meta-loss on the last mini-batch looked at.
        gradient_norm: Euclidean norm of the first step's meta-gradient, before clipping.
        gradient_snr: of the meta-gradient over tasks; None but every ``outer.diagnose_every``.
        order_cosine: cosine between the second- and the first-order meta-gradient; likewise.
        inner_kl: KL between the policies that collected support data and today's, mean.
        query_kl: the same for the adapted policies on query data; where the data are of the version
            before, from the adapted policies before the update.
        clip_fraction: share of query steps whose ratio lies outside the clip range at the end.
        collector_ratio_error: largest ``|ratio - 1|`` on query data of the adapted policies that
            collected them: what the learner's differ from the actors'. Rounding, or a defect.
        entropy: of the adapted policies at query data, in nats.
        gradient_steps: steps of the optimizer; fewer than planned where the policies had moved as
            far as ``outer.max_query_kl`` allows, or where no step kept the trust region.
        learning_rate: the outer rate used; None for a trust region.
        env_steps: environment steps in the meta-batch.
        learn_s: seconds that the update took.
        skipped: why there was no update, and the parameters are as before; None where there was
            one. What could not be computed is NaN then.
        skipped_in_a_row: updates that were skipped in a row, this one included.
        discarded_episodes: broken simulations since the run began, each redrawn.
        staleness: how many versions behind the updated parameters those were that collected the
            meta-batch: 0, or 1 with ``meta_batch.async_collection``.
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


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers from step to step: Adam's moments; nothing for a trust region."""

    steps: int
    first_moments: NumpyParameters
    second_moments: NumpyParameters


@dataclass(frozen=True)
class LearnerState:
    """All that a learner needs to go on.

    Attributes:
        version: of the parameters: how many updates there were.
        parameters: by name.
        optimizer: its state.
        observations: statistics of all that was seen.
        skipped_in_a_row: updates that were skipped, up to now, for want of finite numbers.
        discarded_episodes: broken simulations since the run began, each redrawn.
        behind: what the next meta-batch is collected with, where it is the version before this one.
    """

    version: int
    parameters: NumpyParameters
    optimizer: OptimizerState
    observations: RunningStatistics
    skipped_in_a_row: int = 0
    discarded_episodes: int = 0
    behind: PolicyParameters | None = None


def initial_learner_state(settings: Settings, spec: PolicySpec) -> LearnerState:
    """Where a run begins: fresh parameters of the run's seed, and nothing seen yet."""
    rng = generator(settings.run.seed, Purpose.PARAMETERS)
    return LearnerState(
        version=0,
        parameters=initial_meta_parameters(spec, settings.inner, rng),
        optimizer=OptimizerState(0, {}, {}),
        observations=RunningStatistics.empty(spec.observation_size),
    )


def published(settings: Settings, state: LearnerState) -> PolicyParameters:
    """The policy of a learner's state, as it acts."""
    normalize = settings.policy.normalize_observations
    normalizer = state.observations.normalizer() if normalize else None
    return PolicyParameters(state.version, state.parameters, normalizer)


def collecting(settings: Settings, state: LearnerState) -> PolicyParameters:
    """What the meta-batch is collected with that a learner in ``state`` updates from next."""
    return state.behind or published(settings, state)
