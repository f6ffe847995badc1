"""Compare Adam with PyTorch's."""

from __future__ import annotations

import pytest
import torch

from maml_ray.learning.adam import AdamState, adam_step


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_it_equals_pytorchs_adam(scale: float) -> None:
    rng = torch.Generator().manual_seed(0)
    theta = torch.randn(50, generator=rng, dtype=torch.float64)
    moments = AdamState(0, torch.zeros_like(theta), torch.zeros_like(theta))
    theirs = theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs])
    for step in range(30):
        gradient = scale * torch.randn(50, generator=rng, dtype=torch.float64)
        rate = 0.1 / (1 + step)
        theta, moments = adam_step(theta, gradient, moments, rate)
        optimizer.param_groups[0]["lr"], theirs.grad = rate, gradient
        optimizer.step()
        torch.testing.assert_close(theta, theirs.detach(), rtol=1e-12, atol=1e-13)
    kept = optimizer.state[theirs]
    assert moments.steps == int(kept["step"])
    torch.testing.assert_close(moments.first_moment, kept["exp_avg"])
    torch.testing.assert_close(moments.second_moment, kept["exp_avg_sq"])


def test_it_does_not_modify_its_arguments() -> None:
    given = [torch.full((2,), value) for value in (1.0, 2.0, 3.0, 4.0)]
    theta, gradient, first, second = (value.clone() for value in given)
    adam_step(theta, gradient, AdamState(3, first, second), 0.1)
    assert all(map(torch.equal, (theta, gradient, first, second), given))
