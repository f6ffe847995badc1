"""Warn of actions that an untrained policy mostly samples beyond their bounds."""

from __future__ import annotations

import math

import numpy as np

from maml_ray.policies.spec import PolicySpec

_OFTEN = 0.5
"""Share of samples beyond a bound that is worth a warning. Of a standard normal distribution, 32%
lie beyond -1 and 1, which is usual with clipped actions."""


def bounds_warning(spec: PolicySpec) -> str | None:
    """Return a sentence if most of what an untrained policy samples is beyond a bound.

    Its mean actions are near zero, see :func:`maml_ray.policies.spec.initial_parameters`.
    """
    shares = shares_beyond_bounds(spec)
    if not shares or max(shares) < _OFTEN or spec.action_bounds is None:
        return None
    worst, bounds = shares.index(max(shares)), spec.action_bounds
    effect, remedy = {
        "clip": ("is clipped", "policy.action_bounds=rescale maps [-1, 1] to the bounds"),
        "rescale": ("is clipped", "lower policy.initial_log_std or policy.action_scale"),
        "none": ("is sent unclipped", "policy.action_bounds=clip or rescale keeps them inside"),
    }[bounds.mode]
    return (
        f"{max(shares):.0%} of what the untrained policy samples for action {worst + 1} of "
        f"{spec.action_size} lies outside its bounds, [{bounds.low[worst]:g}, "
        f"{bounds.high[worst]:g}], and {effect}: {remedy}"
    )


def shares_beyond_bounds(spec: PolicySpec) -> list[float]:
    """Return the share of an untrained policy's samples beyond the bounds, for each action."""
    if spec.action_bounds is None:
        return []
    to_env = spec.action_map
    std = math.exp(max(spec.initial_log_std, spec.min_log_std))
    spreads = (to_env.factor.astype(np.float64) * std * math.sqrt(2.0)).tolist()
    columns = zip(
        to_env.offset.tolist(),
        spreads,
        spec.action_bounds.low,
        spec.action_bounds.high,
        strict=True,
    )
    return [
        0.5 * (math.erfc((high - mean) / spread) + math.erfc((mean - low) / spread))
        if spread
        else 0.0
        for mean, spread, low, high in columns
    ]
