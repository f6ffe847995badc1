"""Define the interface of an outer optimizer: from a meta-batch to updated meta-parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from maml_ray.backends.base import Backend
from maml_ray.config.settings import Settings
from maml_ray.learning.state import OptimizerState
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import Diagnostics, MetaBatch


@dataclass(frozen=True)
class UpdateResult:
    """The outcome of one meta-update.

    Attributes:
        before: diagnostics of the first mini-batch, at the parameters before the update.
        after: diagnostics of the whole meta-batch, at the parameters after the update.
        loss: of the whole meta-batch, at the parameters after the update.
        gradient_norm: Euclidean norm of the first meta-gradient, before clipping.
        steps: steps taken, without those that were taken back.
        learning_rate: outer learning rate of the first step; None for a trust region.
    """

    before: Diagnostics
    after: Diagnostics
    loss: float
    gradient_norm: float
    steps: int
    learning_rate: float | None


class OuterOptimizer(ABC):
    """Update meta-parameters in place.

    Args:
        settings: of the run.
        parameters: meta-parameters by name: leaf tensors.
        backend: computes the meta-gradient.
    """

    def __init__(self, settings: Settings, parameters: Parameters, backend: Backend) -> None:
        self._settings = settings
        self._parameters = parameters
        self._backend = backend

    @abstractmethod
    def update(self, batch: MetaBatch, version: int, *, order: Order) -> UpdateResult:
        """Update the parameters, of ``version``, from ``batch``."""

    @abstractmethod
    def state(self) -> OptimizerState:
        """Return a copy of the optimizer's state."""

    @abstractmethod
    def load(self, state: OptimizerState) -> None:
        """Resume from ``state``, bit for bit."""
