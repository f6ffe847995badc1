"""A context is a bias that has moved, for a whole policy or row by row of a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maml_ray.common.normalization import Normalizer
from maml_ray.maml.distributions import to_numpy
from maml_ray.policies.context import context_shifts, with_context
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import NumpyParameters, PolicySpec
from tests.oracles import naive as oracles

TANH = PolicySpec(4, 3, (8, 5), "tanh", 0.0, -3.0)
RELU = replace(TANH, activation="relu", hidden_sizes=(8,), discrete=True)
OFFSETS = np.random.default_rng(2).standard_normal((5, 2)).astype(np.float32)
CONTEXT = np.array([0.4, -0.8], np.float32)


def parameters_of(spec: PolicySpec) -> NumpyParameters:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 2)).astype(np.float32)
    return {**to_numpy(oracles.random_parameters(spec, rng)), "context_weight": weight}


@pytest.mark.parametrize("before", [np.zeros(2, np.float32), CONTEXT], ids=["first", "later"])
def test_the_bias_holds_what_the_context_has_done(before: np.ndarray) -> None:
    """Also after earlier steps, whose context is among the parameters: W tanh(z)."""
    start = parameters_of(TANH)
    weight, bias = start["context_weight"], start["hidden_0.bias"]
    parameters = {**start, "hidden_0.bias": bias + weight @ np.tanh(before), "context": before}
    if not before.any():
        del parameters["context"]
    for context in OFFSETS:
        moved = with_context(TANH, parameters, context)
        expected = bias + weight @ np.tanh(context)
        np.testing.assert_allclose(moved.pop("hidden_0.bias"), expected, atol=1e-6)
        np.testing.assert_allclose(moved.pop("context"), context)
        assert all(moved[name] is start[name] for name in moved)
        assert set(moved) == set(start) - {"hidden_0.bias"}


@pytest.mark.parametrize("mean", [None, 0.5, 1e6])
@pytest.mark.parametrize("spec", [TANH, RELU], ids=["tanh", "relu"])
def test_each_row_is_that_of_a_policy_with_a_context_of_its_own(
    spec: PolicySpec, mean: float | None
) -> None:
    """Also where observations are normalized, in float64 if float32 would lose them."""
    parameters = {**parameters_of(spec), "context": CONTEXT}
    normalizer = None
    if mean is not None:
        wide = np.float64 if mean > 1.0 else np.float32
        normalizer = Normalizer(np.full(4, mean, wide), np.full(4, 2.0, np.float32))
        assert normalizer.needs_float64 == (mean > 1.0)
    observations = (mean or 0.0) + np.random.default_rng(1).standard_normal((5, 4))
    if normalizer is None or not normalizer.needs_float64:
        observations = observations.astype(np.float32)
    shifts = context_shifts(spec, parameters, OFFSETS)
    found = NumpyPolicy(spec, parameters, normalizer, shifts).forward(observations)
    unmoved = NumpyPolicy(spec, parameters, normalizer).forward(observations)
    for k, offset in enumerate(OFFSETS):
        alone = NumpyPolicy(spec, with_context(spec, parameters, offset), normalizer)
        np.testing.assert_allclose(found[k], alone.forward(observations[k]), rtol=1e-5, atol=1e-5)
        assert np.abs(found[k] - unmoved[k]).max() > 1e-2


@pytest.mark.parametrize("shape", [(4,), (4, 4), (6, 4), (2, 5, 4)])
def test_another_number_of_rows_is_refused(shape: tuple[int, ...]) -> None:
    parameters = parameters_of(TANH)
    policy = NumpyPolicy(TANH, parameters, None, context_shifts(TANH, parameters, OFFSETS))
    with pytest.raises(ValueError, match="a policy of 5 rows was given"):
        policy.forward(np.zeros(shape, np.float32))
