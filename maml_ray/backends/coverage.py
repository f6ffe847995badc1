"""Which settings have their derivatives written down by hand."""

from __future__ import annotations

from maml_ray.config.settings import Settings
from maml_ray.policies.spec import PolicySpec


def is_covered(settings: Settings, spec: PolicySpec) -> bool:
    """Whether the analytic and the compiled gradients cover these; autograd covers all."""
    return (
        not spec.discrete
        and settings.inner.objective in ("ratio", "log_prob")
        and settings.outer.e_maml_coefficient == 0.0
    )
