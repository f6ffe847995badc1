from __future__ import annotations

import pytest
import torch

from maml_ray.learning.devices import select_device


@pytest.mark.parametrize(
    ("planned", "there", "device"),
    [("cpu", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_the_planned_device_is_taken_where_it_works(
    monkeypatch: pytest.MonkeyPatch, planned: str, there: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert select_device(planned, insisted=False) == (torch.device(device), "")


def test_a_gpu_that_pytorch_cannot_see_is_done_without_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, remark = select_device("cuda", insisted=False)
    assert device.type == "cpu"
    assert "PyTorch" in remark


def test_or_refused_where_it_was_insisted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="learner_device=cpu"):
        select_device("cuda", insisted=True)
