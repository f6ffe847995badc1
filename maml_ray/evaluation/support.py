"""Find the support set of each inner step of an agent, check it and take the step.

For :meth:`maml_ray.Agent.adapt`, which is made of these functions.

Axes: K episodes, C numbers of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.backends.inner_step import adapt_policy
from maml_ray.common.errors import UserError
from maml_ray.common.normalization import Normalizer
from maml_ray.common.numbers import check_whole_number
from maml_ray.common.seeding import Purpose, seed_sequence
from maml_ray.config.sections import InnerSettings
from maml_ray.config.settings import Settings
from maml_ray.policies.context import context_offsets
from maml_ray.policies.spec import NumpyParameters, PolicySpec
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.trajectories import Trajectories

if TYPE_CHECKING:
    from maml_ray.evaluation.agent import Agent, WantedTask

CollectSupport = Callable[["Agent"], Trajectories]
"""Collects a support set with the agent that it is called with."""
Support = Trajectories | Sequence[Trajectories] | CollectSupport
"""One support set, one per inner step, or a function that collects one with the agent it gets."""
_SUPPORT_STREAM = 2
"""Second word of the key of the random streams of support data; 0 and 1 are measurements."""


def support_seeds(seed: int) -> Iterator[np.random.SeedSequence]:
    """Yield the random stream of the support set of each inner step of a simulated adaptation."""
    return (seed_sequence(seed, Purpose.EVALUATION, _SUPPORT_STREAM, step) for step in count())


def in_simulation(
    task: WantedTask, episodes: int | None, seed: int, simulations: EnvCache
) -> CollectSupport:
    """Return a function that collects a new support set of ``task`` whenever it is called."""
    seeds = support_seeds(seed)
    return lambda agent: agent.collect_support(
        task, episodes=episodes, seed=next(seeds), simulations=simulations
    )


def support_source(
    support: Support, steps: int | None, default_steps: int
) -> tuple[CollectSupport, int]:
    """Return what to call before each inner step for its support set, and the number of steps.

    Args:
        support: support sets, or a function that collects them.
        steps: number of inner steps; None for as many as support sets, or ``default_steps``.
        default_steps: number of steps for a function.

    Raises:
        UserError: ``support`` is neither, or ``steps`` is not the number of support sets.
    """
    if callable(support):
        return support, steps or default_steps
    sets = [support] if isinstance(support, Trajectories) else support
    if not isinstance(sets, Sequence) or not sets:
        raise UserError(
            f"support = {support!r:.80} is not allowed: give agent.collect_support(task), a list "
            "of support sets, a function that collects one with an agent, or a task"
        )
    if steps not in (None, len(sets)):
        raise UserError(
            f"steps = {steps} needs {steps} support sets, got {len(sets)}: each inner step takes "
            "data of the policy before it; give a task, or a function that collects a support set "
            "with the agent that it is called with"
        )
    given = iter(sets)
    return lambda agent: next(given), len(sets)


def support_offsets(settings: Settings, episodes: int | None) -> NDArray[np.float32] | None:
    """Return the context of each support episode, (K, C); None without a context.

    Args:
        settings: settings of the run.
        episodes: K; as in training if None.

    Raises:
        UserError: ``episodes`` is not a whole number, or too few to move a context by.
    """
    episodes = number_of_episodes(settings, episodes)
    if settings.inner.parameters != "context":
        return None
    return context_offsets(episodes, settings.inner.context_size)


def number_of_episodes(settings: Settings, episodes: int | None) -> int:
    """Return ``episodes``, or the size of a support set in training if it is None.

    Raises:
        UserError: it is not a whole number of 1 or more.
    """
    if episodes is None:
        return settings.meta_batch.episodes
    check_whole_number("episodes", episodes, least=1)
    return episodes


def take_inner_step(
    settings: Settings,
    spec: PolicySpec,
    parameters: Mapping[str, NDArray[np.float32]],
    normalizer: Normalizer | None,
    support: Any,
    steps_before: int,
) -> NumpyParameters:
    """Return the parameters after one inner step.

    Args:
        settings: settings of the run.
        spec: the policy's sizes.
        parameters: before the step, of the policy that collected ``support``.
        normalizer: of observations; None for none.
        support: what was given for a support set.
        steps_before: inner steps that led to ``parameters``.

    Raises:
        UserError: ``support`` is none or does not fit the policy, or the parameters after the step
            are not finite.
    """
    inner = settings.inner
    check_support(inner, spec, support)
    after = adapt_policy(
        inner, settings.advantages, spec, parameters, support, normalizer, steps_before
    )
    if not all(np.isfinite(value).all() for value in after.values()):
        raise UserError(
            "the adapted parameters are not finite: lower inner.learning_rate "
            f"({inner.learning_rate:g})"
        )
    return after


def check_support(inner: InnerSettings, spec: PolicySpec, support: Any) -> None:
    """Reject what is no support set of a policy, before a kernel reads its arrays.

    Args:
        inner: settings of the inner loop.
        spec: the policy's sizes.
        support: what was given for a support set.

    Raises:
        UserError: it is none, or does not fit the policy.
    """
    if not isinstance(support, Trajectories):
        raise UserError(
            f"a support set is maml_ray.Trajectories, from agent.collect_support, got "
            f"{support!r:.80}"
        )
    sizes = support.observations.shape[2], support.actions.shape[2]
    expected = spec.observation_size, spec.recorded_action_size
    if sizes != expected:
        raise UserError(
            f"the support set has observations of size {sizes[0]} and actions of size "
            f"{sizes[1]}, the policy {expected[0]} and {expected[1]}"
        )
    if not support.mask.any():
        raise UserError("the support set has no steps")
    _check_offsets(inner, support.context_offsets)
    read = ["observations", "actions", "rewards"]
    if inner.parameters != "context":  # its step compares returns, whatever was probable
        read.append("log_probs")
    for name in read:
        if not np.isfinite(getattr(support, name)[support.mask]).all():
            raise UserError(f"the {name} of the support set are not all finite")


def _check_offsets(inner: InnerSettings, offsets: NDArray[np.float32] | None) -> None:
    """Reject episodes that tell nothing of a context, or that acted with one that there is not."""
    if inner.parameters != "context":
        if offsets is not None:
            raise UserError(
                "the support set has context_offsets, and this policy has no context "
                f"(inner.parameters = {inner.parameters}): leave them out"
            )
    elif offsets is None:
        raise UserError(
            "the support set has no context_offsets: this policy adapts a context, and each "
            "support episode acts with its own: collect them with agent.collect_support(task), "
            "or with agent.support_agents()"
        )
    elif offsets.shape[1] != inner.context_size or not np.isfinite(offsets).all():
        raise UserError(
            f"context_offsets must be {inner.context_size} finite numbers for each episode, as "
            f"agent.context_offsets() returns them, got shape {offsets.shape}"
        )
    elif offsets.sum(axis=0).any() or not offsets.any():
        raise UserError(
            "context_offsets must come in pairs, one episode with a number of the context raised "
            "and one with it lowered as much: of an episode that was lost leave out its pair, too"
        )
