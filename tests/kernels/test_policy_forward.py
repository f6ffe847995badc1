"""The policy's network as a kernel, against numpy's arithmetic in twice the precision."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from maml_ray.common.normalization import Normalizer
from maml_ray.kernels.policy_forward import PackedMLP, mlp_forward

Layers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]

networks = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 19), min_size=2, max_size=5),
        "relu": st.booleans(),
        "seed": st.integers(0, 2**32),
    }
)


def numbers(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


def layers_of(sizes: Sequence[int], rng: np.random.Generator) -> Layers:
    return [
        (numbers(rng, outputs, inputs) / np.float32(np.sqrt(inputs)), numbers(rng, outputs))
        for inputs, outputs in pairwise(sizes)
    ]


def in_float64(
    layers: Layers, relu: bool, observations: NDArray[Any], shifts: Any = 0.0
) -> NDArray[np.float64]:
    hidden = observations.astype(np.float64)
    for layer, (weights, biases) in enumerate(layers):
        if layer > 0:
            hidden = np.maximum(hidden, 0.0) if relu else np.tanh(hidden)
        hidden = hidden @ weights.T.astype(np.float64) + biases
        if layer == 0:
            hidden = hidden + shifts
    return hidden


@given(network=networks, rows=st.integers(1, 7), normalized=st.booleans(), shifted=st.booleans())
def test_outputs_are_those_of_numpy(
    network: Any, rows: int, normalized: bool, shifted: bool
) -> None:
    rng = np.random.default_rng(network["seed"])
    sizes, relu = network["sizes"], network["relu"]
    layers, observations = layers_of(sizes, rng), 3.0 * numbers(rng, rows, sizes[0])
    normalizer = None
    inputs = observations.astype(np.float64)
    if normalized:  # 3 * 5 is beyond the limit often enough
        scale = np.float32(5.0) * np.abs(numbers(rng, sizes[0]))
        normalizer = Normalizer(numbers(rng, sizes[0]), scale)
        inputs = np.clip((inputs - normalizer.mean) * normalizer.scale, -10.0, 10.0)
    shifts = numbers(rng, rows, sizes[1]) if shifted else None
    actual = PackedMLP.from_layers(layers, relu, normalizer, shifts).forward(observations)
    expected = in_float64(layers, relu, inputs, 0.0 if shifts is None else shifts)
    assert actual.dtype == np.float32
    assert actual.shape == (rows, sizes[-1])
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


@given(network=networks, rows=st.integers(2, 12), data=st.data())
def test_a_row_does_not_depend_on_the_rows_beside_it(network: Any, rows: int, data: Any) -> None:
    rng = np.random.default_rng(network["seed"])
    mlp = PackedMLP.from_layers(layers_of(network["sizes"], rng), network["relu"], None)
    observations = numbers(rng, rows, network["sizes"][0])
    every = mlp.forward(observations)
    chosen = data.draw(st.permutations(range(rows)))[: data.draw(st.integers(1, rows))]
    np.testing.assert_array_equal(mlp.forward(observations[chosen]), every[chosen])


def test_a_normalizer_clips_and_without_one_nothing_does() -> None:
    identity = [(np.eye(3, dtype=np.float32), np.zeros(3, np.float32))]
    observations = np.array([1000.0, -1000.0, 1.5], np.float32)
    normalizer = Normalizer(np.full(3, 0.5, np.float32), np.full(3, 2.0, np.float32))
    actual = PackedMLP.from_layers(identity, False, normalizer).forward(observations)
    np.testing.assert_array_equal(actual, [10.0, -10.0, 2.0])
    actual = PackedMLP.from_layers(identity, False, None).forward(observations)
    np.testing.assert_array_equal(actual, observations)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
def test_an_observation_that_is_no_number_spoils_its_own_row_alone(
    relu: bool, normalized: bool
) -> None:
    rng = np.random.default_rng(0)
    normalizer = Normalizer(numbers(rng, 5), np.ones(5, np.float32)) if normalized else None
    mlp = PackedMLP.from_layers(layers_of((5, 9, 9, 3), rng), relu, normalizer)
    observations = numbers(rng, 5, 5)
    sound = mlp.forward(observations)
    observations[[1, 4], 2] = np.nan
    actual = mlp.forward(observations)
    assert np.isnan(actual[[1, 4]]).all()
    np.testing.assert_array_equal(actual[[0, 2, 3]], sound[[0, 2, 3]])


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("array", ["weight", "bias"])
def test_a_parameter_that_is_no_number_is_seen_in_the_outputs(
    relu: bool, layer: int, array: str
) -> None:
    rng = np.random.default_rng(0)
    layers = layers_of((5, 9, 9, 3), rng)
    spoilt = layers[layer][0][0] if array == "weight" else layers[layer][1]
    spoilt[0] = np.nan
    actual = PackedMLP.from_layers(layers, relu, None).forward(numbers(rng, 4, 5))
    assert np.isnan(actual[:, 0]).all()


def test_shifts_of_another_layer_are_refused() -> None:
    """A kernel would read beyond the end of their rows."""
    layers = layers_of((4, 8, 2), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"shifts must have shape \(K, 8\), got \(3, 7\)"):
        PackedMLP.from_layers(layers, False, None, np.zeros((3, 7), np.float32))


def test_batches_of_all_kinds_are_taken_and_compiled_once() -> None:
    rng = np.random.default_rng(0)
    mlp = PackedMLP.from_layers(layers_of((4, 8, 2), rng), False, None)
    observations = numbers(rng, 3, 2, 4)
    actual = mlp.forward(observations)
    assert actual.shape == (3, 2, 2)
    before = list(mlp_forward.signatures)  # type: ignore[attr-defined]
    locked = observations.copy()
    locked.setflags(write=False)
    kinds: list[Any] = [locked, observations.astype(np.float64), np.asfortranarray(observations)]
    for kind in kinds:
        np.testing.assert_array_equal(mlp.forward(kind), actual)
    np.testing.assert_array_equal(mlp.forward(observations[1, 1]), actual[1, 1])
    assert mlp.forward(observations[:0]).shape == (0, 2, 2)
    assert mlp_forward.signatures == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 8), ()])
def test_observations_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    mlp = PackedMLP.from_layers(layers_of((4, 2), np.random.default_rng(0)), False, None)
    with pytest.raises(ValueError, match="observations must have size 4, got"):
        mlp.forward(np.zeros(shape, np.float32))
