from __future__ import annotations

import pytest
import torch

from maml_ray.learning.devices import select_device


@pytest.mark.parametrize(
    ("assigned", "available", "device"),
    [("cpu", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_the_assigned_device_is_used_if_it_works(
    monkeypatch: pytest.MonkeyPatch, assigned: str, available: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert select_device(assigned, require_gpu=False) == (torch.device(device), "")


def test_a_gpu_that_pytorch_cannot_see_is_replaced_by_the_cpu_with_a_remark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, remark = select_device("cuda", require_gpu=False)
    assert device.type == "cpu"
    assert "PyTorch" in remark


def test_a_required_gpu_that_is_not_seen_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="learner_device=cpu"):
        select_device("cuda", require_gpu=True)
