"""Parameters in rows of whole vectors: what pads them is nobody's business."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maml_ray.kernels import fisher, inner_step, meta_gradient
from maml_ray.kernels.inner_step import KernelConfig
from maml_ray.kernels.layout import layer_views, network_length
from maml_ray.kernels.types import Gaussian, Samples

SIZES = (5, 9, 19, 3)
Array = NDArray[Any]


def test_each_number_of_a_layer_has_a_place_of_its_own() -> None:
    network = np.zeros(network_length(SIZES))
    views = layer_views(SIZES, network)
    assert [(weight.shape, bias.shape) for weight, bias in views] == [
        ((9, 5), (9,)),
        ((19, 9), (19,)),
        ((3, 19), (3,)),
    ]
    for layer in views:
        for view in layer:
            view += 1.0
    used = 9 * 6 + 19 * 10 + 3 * 20
    assert sorted(network) == [0.0] * (len(network) - used) + [1.0] * used


@pytest.mark.parametrize("relu", [False, True])
def test_what_is_in_the_padding_changes_no_bit(relu: bool) -> None:
    """Steps, gradients and products: a number that is none would spread to all that it meets."""
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((2, *view.shape)) for view in flat_views(zeros())]
    results = [results_at(relu, *packed(values, fill)) for fill in (0.0, np.nan)]
    for clean, spoilt in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(spoilt, clean)


def zeros() -> Array:
    return np.zeros(network_length(SIZES) + SIZES[-1])


def flat_views(parameters: Array) -> list[Array]:
    """Weights, biases and log standard deviations."""
    return [
        *(view for layer in layer_views(SIZES, parameters) for view in layer),
        parameters[-SIZES[-1] :],
    ]


def packed(values: list[Array], fill: float) -> tuple[Array, Array]:
    """Parameters and a direction, with ``fill`` wherever neither has a number."""
    both = zeros() + fill, zeros() + fill
    for i, parameters in enumerate(both):
        for view, value in zip(flat_views(parameters), values, strict=True):
            view[...] = 0.3 * value[i]
    return both


def results_at(relu: bool, parameters: Array, direction: Array) -> list[Array]:
    """All that the kernels make of some samples, in more than one block."""
    rng, shape = np.random.default_rng(1), (3, 101)
    samples = Samples(
        observations=rng.standard_normal((303, SIZES[0])),
        actions=rng.standard_normal((303, SIZES[-1])),
        log_probs=rng.standard_normal(shape) - 3.0,
        advantages=rng.standard_normal(shape),
        weights=np.full(shape, 1.0 / 303.0),
    )
    behavior: Gaussian[Any] = Gaussian(rng.standard_normal((303, SIZES[-1])), np.zeros(SIZES[-1]))
    config = KernelConfig(np.array(SIZES), relu, -2.0, True, 0.01, True)
    rates = np.full_like(parameters, 0.1)
    step = inner_step.take_step(config, parameters, rates, samples)
    query = meta_gradient.evaluate_query(config, step.adapted, samples)
    slopes = rng.standard_normal(303)
    pulled = [
        meta_gradient.query_vjp(config, step.adapted, samples, query, slopes),
        inner_step.step_jvp(config, step, samples, rates, direction, direction),
        *inner_step.step_vjp(config, step, samples, rates, direction, 0.5, behavior),
        fisher.fisher_product(config, step.adapted, samples, query, direction),
    ]
    arrays = [step.adapted, step.grads, *pulled]
    return [query.mean, query.log_probs, *(view for one in arrays for view in flat_views(one))]
