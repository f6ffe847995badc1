"""One inner step for whatever policy and inner objective there are: by PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from maml_ray.config.settings import Settings
from maml_ray.maml.distributions import to_numpy, to_torch
from maml_ray.maml.inner_loop import adapt, plain_gradient
from maml_ray.maml.losses import Samples, inner_losses
from maml_ray.maml.meta_parameters import inner_rates, policy_part
from maml_ray.policies.spec import NumpyParameters, PolicySpec


def autograd_step(
    settings: Settings,
    spec: PolicySpec,
    parameters: Mapping[str, NDArray[np.float32]],
    samples: Sequence[NDArray[np.float32]],
) -> NumpyParameters:
    """What :func:`~maml_ray.backends.compiled_inner.compiled_step` gives; arguments likewise."""
    theta = to_torch(parameters)
    support = Samples(*(torch.tensor(field) for field in samples))
    losses = inner_losses(spec, settings.inner, (support,))
    rates = inner_rates(settings.inner, theta, torch.exp)
    with _one_thread():
        adapted, _ = adapt(
            policy_part(theta), losses, rates, order="first", gradient_of=plain_gradient
        )
    return to_numpy(adapted)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums rounded alike wherever a step is taken: several threads add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
