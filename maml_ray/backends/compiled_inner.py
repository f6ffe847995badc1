"""One task's inner step by the compiled loops, on NumPy arrays; and how the loops are told things.

Axes: Q parameters of the policy, flat, in the policy's own order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from maml_ray.config.settings import Settings
from maml_ray.kernels import inner_step
from maml_ray.kernels.gaussian import PPO, REINFORCE, TRPO
from maml_ray.kernels.inner_step import Data, Rules
from maml_ray.maml.meta_parameters import inner_rates
from maml_ray.policies.spec import PolicySpec

Array = NDArray[Any]
_BLAS = ThreadpoolController()  # looked up once, behind the import of the loops, which load it

_OBJECTIVES = {"ppo": PPO, "trpo": TRPO, "reinforce": REINFORCE}


def compiled_step(
    settings: Settings, spec: PolicySpec, parameters: Mapping[str, Array], samples: Sequence[Array]
) -> dict[str, Array]:
    """The policy's parameters after one inner step on one task.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        parameters: all that is learned.
        samples: of the support data, from :func:`~maml_ray.rollouts.samples.sample_arrays`.
    """
    theta, rates = flat(spec, parameters), rates_of(settings, spec, parameters)
    # Copies: the loops are compiled once more for arrays that are read-only, as Ray's are.
    support = Data(*(np.array(field).reshape(1, -1) for field in samples))
    with alone():
        steps = inner_step.steps_taken(rules_of(settings, spec), theta, rates, support)
    return named(spec, steps.thetas[1])


def rules_of(settings: Settings, spec: PolicySpec, *, second: bool = False) -> Rules:
    """What is asked of the loops; whether to differentiate through the inner steps."""
    outer = settings.outer
    return Rules(
        sizes=np.array((spec.observation_size, *spec.hidden_sizes, spec.action_size)),
        relu=spec.activation == "relu",
        floor=spec.min_log_std,
        ratio=settings.inner.objective == "ratio",
        l2=settings.inner.l2,
        objective=_OBJECTIVES[outer.objective],
        clip=outer.clip,
        kl=outer.inner_kl_coefficient if outer.objective == "ppo" else 0.0,
        second=second,
    )


def rates_of(settings: Settings, spec: PolicySpec, parameters: Mapping[str, Array]) -> Array:
    """The inner rates (Q,)."""
    with np.errstate(over="ignore"):  # a rate that explodes is found by what it leads to
        rates = inner_rates(settings.inner, parameters, np.exp)
        if not isinstance(rates, float):
            return flat(spec, rates)
        return np.full_like(flat(spec, parameters), rates)


def flat(spec: PolicySpec, parameters: Mapping[str, Array]) -> Array:
    """(Q,) in the policy's own order, whatever order a file gave them in."""
    return np.concatenate([parameters[name].reshape(-1) for name in spec.shapes()])


def named(spec: PolicySpec, values: Array) -> dict[str, Array]:
    """Numbers (Q,), by name: views."""
    found: dict[str, Array] = {}
    start = 0
    for name, shape in spec.shapes().items():
        count = math.prod(shape)
        found[name] = values[start : start + count].reshape(shape)
        start += count
    return found


def alone() -> AbstractContextManager[Any]:
    """Matrix products on the thread that asks for them: a block is too small to be shared out.

    And a loop's bits do not depend on how many threads its process may have.
    """
    limited: AbstractContextManager[Any] = _BLAS.limit(limits=1, user_api="blas")
    return limited
