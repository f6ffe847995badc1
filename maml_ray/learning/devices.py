"""Choose the device that the learner computes on."""

from __future__ import annotations

import torch


def select_device(assigned: str, *, require_gpu: bool) -> tuple[torch.device, str]:
    """Return the learner's device, and a remark if it is not the assigned one.

    Args:
        assigned: ``"cuda"`` if Ray has assigned a GPU to the learner, else ``"cpu"``.
        require_gpu: raise instead of falling back to the CPU.

    Raises:
        RuntimeError: a GPU is required, but PyTorch sees none.
    """
    if assigned == "cpu" or torch.cuda.is_available():
        return torch.device(assigned), ""
    reason = f"Ray gives the learner a GPU, but PyTorch {torch.__version__} sees none"
    if require_gpu:
        raise RuntimeError(
            f"{reason}: install a CUDA build of PyTorch, or set cluster.learner_device=cpu"
        )
    return torch.device("cpu"), f" ({reason})"
