"""The parts of a natural-gradient step: conjugate gradient, Fisher product, the step's length."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maml_ray.backends.dispatch import make_backend
from maml_ray.config.sections import TrustRegionSettings
from maml_ray.config.settings import Settings
from maml_ray.learning.trust_region import conjugate_gradient, natural_step
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.policies.spec import PolicySpec
from tests.backends.test_meta_gradient import (
    GAUSSIAN,
    ORDERS,
    PARTS,
    POLICIES,
    make_settings,
    problem,
)
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.oracles.meta import Parameters


def symmetric(eigenvalues: list[float], rng: np.random.Generator) -> Tensor:
    """A matrix of these eigenvalues and random eigenvectors."""
    basis = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))[0]
    return torch.from_numpy(basis @ np.diag(eigenvalues) @ basis.T)


def times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda vector: matrix @ vector


@given(
    eigenvalues=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=10),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_conjugate_gradient_solves_the_system(
    eigenvalues: list[float], seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    matrix = symmetric(eigenvalues, rng)
    target = scale * torch.from_numpy(rng.standard_normal(len(eigenvalues)))
    found = conjugate_gradient(times(matrix), target, iterations=3 * len(eigenvalues))
    expected = np.linalg.solve(matrix.numpy(), target.numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3 * np.abs(expected).max())
    assert float((matrix @ found - target).norm() / target.norm()) <= 1.1e-5


@pytest.mark.parametrize("different", [1, 2, 3])
def test_it_takes_as_many_iterations_as_there_are_different_eigenvalues(different: int) -> None:
    rng = np.random.default_rng(0)
    matrix = symmetric(([1.0, 4.0, 0.3][:different] * 9)[:9], rng)
    target = torch.from_numpy(rng.standard_normal(9))
    expected = torch.linalg.solve(matrix, target)

    def error(iterations: int) -> float:
        found = conjugate_gradient(times(matrix), target, iterations=iterations)
        return float((found - expected).norm() / expected.norm())

    assert error(different) < 1e-12
    if different > 1:
        assert error(different - 1) > 1e-3


def test_its_first_iterate_is_the_best_along_the_target() -> None:
    rng = np.random.default_rng(1)
    matrix = symmetric([0.5, 1.0, 7.0], rng)
    target = torch.from_numpy(rng.standard_normal(3))
    length = (target @ target) / (target @ matrix @ target)
    found = conjugate_gradient(times(matrix), target, iterations=1)
    torch.testing.assert_close(found, length * target)


@pytest.mark.parametrize(
    "product", [lambda v: -v, lambda v: 0 * v, lambda v: v * math.nan, lambda v: v * math.inf]
)
def test_without_positive_curvature_there_is_no_solution_and_no_nan(
    product: Callable[[Tensor], Tensor],
) -> None:
    target = torch.tensor([1.0, -2.0]).double()
    found = conjugate_gradient(product, target, iterations=5)
    assert torch.isfinite(found).all()
    step = natural_step(target, product, TrustRegionSettings(damping=0.0))
    assert torch.equal(step, torch.zeros(2).double())


def test_it_is_called_once_an_iteration_and_not_behind_the_solution() -> None:
    calls = []

    def product(vector: Tensor) -> Tensor:
        calls.append(vector)
        return 2.0 * vector

    found = conjugate_gradient(product, torch.ones(4), iterations=10)
    assert len(calls) == 1
    torch.testing.assert_close(found, torch.full((4,), 0.5))


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("max_kl", [0.01, 2.0])
def test_the_step_on_a_quadratic_in_closed_form(max_kl: float, damping: float) -> None:
    """``-sqrt(2 kl / (g F^-1 g)) F^-1 g``, where ``1/2 s F s`` is ``kl`` exactly."""
    rng = np.random.default_rng(2)
    fisher = symmetric([0.2, 1.0, 3.0, 8.0], rng)
    damped = fisher + damping * torch.eye(4).double()
    gradient = torch.from_numpy(rng.standard_normal(4))
    settings = TrustRegionSettings(max_kl=max_kl, damping=damping, cg_iterations=20)
    step = natural_step(gradient, times(fisher), settings)
    direction = torch.linalg.solve(damped, gradient)
    expected = -math.sqrt(2 * max_kl / float(gradient @ direction)) * direction
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)
    assert float(0.5 * step @ damped @ step) == pytest.approx(max_kl, rel=1e-9)
    assert float(step @ gradient) < 0
    # However long the gradient is, the step is as long as its KL allows.
    again = natural_step(1e3 * gradient, times(fisher), settings)
    torch.testing.assert_close(again, step, rtol=1e-6, atol=1e-9)


def test_a_step_cut_short_by_its_iterations_still_has_its_kl() -> None:
    rng = np.random.default_rng(2)
    fisher = symmetric([0.2, 1.0, 3.0, 8.0], rng)
    settings = TrustRegionSettings(max_kl=0.5, damping=0.0, cg_iterations=2)
    step = natural_step(torch.from_numpy(rng.standard_normal(4)), times(fisher), settings)
    assert float(0.5 * step @ fisher @ step) == pytest.approx(0.5, rel=1e-9)


def test_without_a_gradient_there_is_no_step() -> None:
    step = natural_step(torch.zeros(3), lambda v: v, TrustRegionSettings())
    assert torch.equal(step, torch.zeros(3))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_gives_no_step(wrong: float) -> None:
    gradient = torch.tensor([1.0, wrong, 0.0])
    assert torch.equal(natural_step(gradient, lambda v: v, TrustRegionSettings()), torch.zeros(3))


# The Fisher matrix of the adapted policies


def leaves_of(parameters: Parameters) -> Parameters:
    return {name: value.clone().requires_grad_() for name, value in parameters.items()}


def fisher_product(
    settings: Settings, spec: PolicySpec, parameters: Parameters, batch: MetaBatch, order: Order
) -> Callable[[Tensor], Tensor]:
    """That of the backend that a learner on a CPU would choose."""
    backend = make_backend(settings, spec, torch.device("cpu"))
    return backend.linearize(parameters, batch, order).fisher_product


def hessian_product(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    order: Order,
    vector: Tensor,
) -> Tensor:
    """Of the reference's mean KL at zero, by differentiating it twice."""
    theta = leaves_of(parameters)
    kl = meta_oracles.adapted_kl(settings, spec, parameters, theta, batch, order)
    slopes = torch.autograd.grad(
        kl, list(theta.values()), create_graph=True, materialize_grads=True
    )
    slope = torch.cat([part.reshape(-1) for part in slopes])
    assert float(slope.detach().norm()) < 1e-10  # at the minimum
    product = torch.autograd.grad(slope @ vector, list(theta.values()), materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in product])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sampling", [0.0, 0.7])  # without it by hand, for Gaussians and ratios
@pytest.mark.parametrize(
    ("inner", "steps"), [("ratio", 0), ("ratio", 1), ("ratio", 2), ("dice", 1), ("dice", 2)]
)
@pytest.mark.usefixtures("backend_kind")
@pytest.mark.parametrize("spec", POLICIES)
def test_the_fisher_product_is_the_hessian_of_the_kl_after_adaptation(
    spec: PolicySpec, inner: str, steps: int, sampling: float, order: Order
) -> None:
    """With learned rates: with respect to their logarithms, too."""
    check_fisher_product(
        make_settings("trpo", inner, steps, learn_inner_rates=True, e_maml_coefficient=sampling),
        spec,
        order,
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
@pytest.mark.usefixtures("backend_kind")
@pytest.mark.parametrize("spec", POLICIES)
def test_the_fisher_product_with_inner_steps_on_a_part(
    spec: PolicySpec, part: dict[str, Any], steps: int, order: Order
) -> None:
    check_fisher_product(make_settings("trpo", "ratio", steps, **part), spec, order)


def check_fisher_product(settings: Settings, spec: PolicySpec, order: Order) -> None:
    parameters, batch = problem(settings, spec)
    product = fisher_product(settings, spec, parameters, batch, order)
    rng = np.random.default_rng(3)
    for _ in range(2):
        vector = torch.from_numpy(rng.standard_normal(len(oracles.flat(parameters))))
        expected = hessian_product(settings, spec, parameters, batch, order, vector)
        error = float((product(vector) - expected).norm() / expected.norm())
        assert error < 1e-9


@pytest.mark.usefixtures("backend_kind")
@pytest.mark.parametrize("spec", POLICIES)
def test_the_fisher_matrix_is_linear_symmetric_and_not_negative(spec: PolicySpec) -> None:
    settings = make_settings("trpo", "ratio", 1, learn_inner_rates=True)
    parameters, batch = problem(settings, spec)
    product = fisher_product(settings, spec, parameters, batch, "second")
    size = len(oracles.flat(parameters))
    matrix = torch.stack([product(row) for row in torch.eye(size).double()])
    torch.testing.assert_close(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-10
    vector = torch.from_numpy(np.random.default_rng(4).standard_normal(size))
    torch.testing.assert_close(product(vector), matrix @ vector)
    torch.testing.assert_close(product(-3.0 * vector), -3.0 * (matrix @ vector))


@pytest.mark.usefixtures("backend_kind")
def test_its_second_order_differs_from_its_first() -> None:
    settings = make_settings("trpo")
    parameters, batch = problem(settings)
    vector = torch.ones(len(oracles.flat(parameters))).double()
    second, first = (
        fisher_product(settings, GAUSSIAN, parameters, batch, order)(vector) for order in ORDERS
    )
    assert float((second - first).norm() / first.norm()) > 1e-2
