from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maml_ray.maml.inner_loop import Order, adapt, plain_gradient

Parameters = dict[str, Tensor]
RATE = 0.3


def quadratic(center: float) -> Callable[[Parameters], tuple[Tensor, Tensor]]:
    """``1/2 |theta - c|^2`` over all parameters, and its center beside it."""

    def loss(theta: Parameters) -> tuple[Tensor, Tensor]:
        squares = torch.stack([((value - center) ** 2).sum() for value in theta.values()])
        return 0.5 * squares.sum(), torch.tensor(center)

    return loss


def start() -> Parameters:
    return {
        "a": torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True),
        "b": torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True),
    }


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("order", "factor"), [("second", 2), ("first", 1)])
def test_meta_gradient_of_a_quadratic_in_closed_form(steps: int, order: Order, factor: int) -> None:
    theta, center = start(), 0.7
    adapted, _ = adapt(theta, [quadratic(center)] * steps, RATE, order=order)
    loss, _ = quadratic(center)(adapted)
    loss.backward()
    for name, value in theta.items():
        moved = center + (1 - RATE) ** steps * (value.detach() - center)
        torch.testing.assert_close(adapted[name].detach(), moved)
        expected = (1 - RATE) ** (factor * steps) * (value.detach() - center)
        torch.testing.assert_close(value.grad, expected)


def test_each_step_uses_its_own_loss_in_order() -> None:
    adapted, aux = adapt(start(), [quadratic(1.0), quadratic(-5.0)], RATE)
    once = 1.0 + (1 - RATE) * (torch.tensor([1.0, -2.0]).double() - 1.0)
    torch.testing.assert_close(adapted["a"].detach(), -5.0 + (1 - RATE) * (once + 5.0))
    assert [float(value) for value in aux] == [1.0, -5.0]


@pytest.mark.parametrize("order", ["second", "first"])
def test_the_input_is_not_written_to(order: Order) -> None:
    theta = start()
    given, saved = dict(theta), {name: value.detach().clone() for name, value in theta.items()}
    adapted, _ = adapt(theta, [quadratic(0.0)] * 2, RATE, order=order)
    assert set(theta) == set(given)
    for name, value in saved.items():
        assert theta[name] is given[name]
        assert theta[name].requires_grad
        assert theta[name].grad is None
        torch.testing.assert_close(theta[name].detach(), value, rtol=0, atol=0)
        assert adapted[name].data_ptr() != theta[name].data_ptr()


def test_no_steps_change_nothing() -> None:
    theta = start()
    losses: list[Callable[[Parameters], tuple[Tensor, Tensor]]] = []
    adapted, aux = adapt(theta, losses, RATE)
    assert aux == ()
    assert all(adapted[name] is theta[name] for name in theta)


def test_works_for_parameters_without_gradients() -> None:
    theta = {name: value.detach() for name, value in start().items()}
    adapted, _ = adapt(theta, [quadratic(0.0)], RATE, order="first")
    torch.testing.assert_close(adapted["b"], torch.tensor([[2.1]]).double())
    assert not adapted["b"].requires_grad


def test_first_and_second_order_take_the_same_step() -> None:
    first, _ = adapt(start(), [quadratic(0.2)] * 3, RATE, order="first")
    second, _ = adapt(start(), [quadratic(0.2)] * 3, RATE, order="second")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_plain_gradient_takes_the_same_step_to_the_last_bit(steps: int) -> None:
    theta, losses = start(), [quadratic(0.2)] * steps
    expected, aux = adapt(theta, losses, RATE, order="first")
    with torch.no_grad():
        adapted, plain_aux = adapt(theta, losses, RATE, order="first", gradient_of=plain_gradient)
    assert all(torch.equal(adapted[name], expected[name]) for name in theta)
    assert plain_aux == aux


def test_parameters_that_a_loss_does_not_read_stay_as_they_are_by_the_plain_gradient() -> None:
    adapted, _ = adapt(
        start(), [lambda theta: (theta["a"].sum(), None)], RATE, gradient_of=plain_gradient
    )
    assert torch.equal(adapted["b"], start()["b"])
