"""Choose the backend of a learner."""

from __future__ import annotations

import torch

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.backends.base import Backend
from maml_ray.backends.compiled import CompiledBackend
from maml_ray.backends.microbatch import make_microbatcher
from maml_ray.config.settings import Settings
from maml_ray.policies.spec import PolicySpec


def make_backend(
    settings: Settings, spec: PolicySpec, device: torch.device, *, threads: int = 1
) -> Backend:
    """Return the compiled backend on a CPU if it supports the settings, otherwise autograd.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        device: of the learner.
        threads: CPU threads to compute with.

    Raises:
        SettingsError: the outer objective is unknown.
    """
    kind: type[Backend] = AutogradBackend
    if device.type == "cpu" and CompiledBackend.supports(settings.inner, settings.outer, spec):
        kind = CompiledBackend
    microbatcher = make_microbatcher(device, settings, spec, threads=threads)
    return kind(settings.inner, settings.outer, spec, microbatcher)
