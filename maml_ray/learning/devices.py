"""Where the learner computes."""

from __future__ import annotations

import torch


def select_device(planned: str, *, insisted: bool) -> tuple[torch.device, str]:
    """The learner's device, and a remark where it is not the planned one.

    Args:
        planned: ``"cuda"`` where Ray has given the learner a GPU, else ``"cpu"``.
        insisted: whether the settings ask for a GPU and nothing else.

    Raises:
        RuntimeError: a GPU is insisted on, and PyTorch sees none.
    """
    if planned == "cpu" or torch.cuda.is_available():
        return torch.device(planned), ""
    blind = f"Ray gives the learner a GPU, but PyTorch {torch.__version__} sees none"
    if insisted:
        raise RuntimeError(
            f"{blind}: install a CUDA build of PyTorch, or set cluster.learner_device=cpu"
        )
    return torch.device("cpu"), f" ({blind})"


def device_name(device: torch.device) -> str:
    """Of a GPU, as its maker calls it."""
    return torch.cuda.get_device_name(device)
