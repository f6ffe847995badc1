"""An inner step as whoever acts takes it: numbers, and no graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from maml_ray.backends.compiled_inner import alone, compiled_step
from maml_ray.backends.coverage import is_covered
from maml_ray.common.normalization import Normalizer
from maml_ray.config.settings import Settings
from maml_ray.policies.spec import NumpyParameters, PolicySpec
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.samples import sample_arrays
from maml_ray.rollouts.trajectories import Trajectories

InnerStep = Callable[
    [Mapping[str, NDArray[np.float32]], Sequence[NDArray[np.float32]]], NumpyParameters
]
"""From all meta-parameters, on one task's samples, to all of them; learned rates stay."""


def inner_step_of(settings: Settings, spec: PolicySpec) -> InnerStep:
    """How an inner step is taken: by the compiled loops, or by autograd where they cover less."""
    if is_covered(settings, spec):
        kind = compiled_step
    else:  # only now: who needs no PyTorch starts sooner, and takes half the memory
        from maml_ray.backends.autograd import autograd_step as kind

    def step(
        parameters: Mapping[str, NDArray[np.float32]], samples: Sequence[NDArray[np.float32]]
    ) -> NumpyParameters:
        return {**parameters, **kind(settings, spec, parameters, samples)}

    return step


def adapt_policy(
    settings: Settings,
    spec: PolicySpec,
    parameters: Mapping[str, NDArray[np.float32]],
    support: Trajectories,
    normalizer: Normalizer | None,
) -> NumpyParameters:
    """One inner step on ``support``, which a policy of ``parameters`` has collected.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        parameters: all that is learned; what is given back holds as much.
        support: of one task.
        normalizer: of observations, that the policy collected with.
    """
    step = inner_step_of(settings, spec)
    with alone():  # sums rounded as a rollout actor rounds them
        estimates = compute_advantages(support, settings.advantages)
        return step(parameters, sample_arrays(support, estimates, normalizer))
