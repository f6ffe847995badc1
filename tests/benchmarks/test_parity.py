"""The parity check of a device: here between the two backends of the CPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from maml_ray.backends.autograd import AutogradBackend
from tests.benchmarks.parity import Parity, describe_parity, measure_parity


def test_both_backends_of_the_cpu_are_equal() -> None:
    results = measure_parity("cpu")
    assert len(results) == 6
    assert all(each.is_equal for each in results), describe_parity(results, "cpu")


def test_a_gradient_that_is_wrong_by_a_thousandth_is_different(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = AutogradBackend.value_and_grad

    def wrong(*arguments: Any) -> Any:
        loss, diagnostics, gradients = right(*arguments)
        return loss, diagnostics, {name: 1.002 * value for name, value in gradients.items()}

    monkeypatch.setattr(AutogradBackend, "value_and_grad", wrong)
    results = measure_parity("cpu")
    assert not any(each.is_equal for each in results)
    assert "DIFFERENT" in describe_parity(results, "cpu")[1]


def test_a_gradient_that_is_no_number_is_different() -> None:
    assert not Parity("ppo", torch.float32, math.nan).is_equal
