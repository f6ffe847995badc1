"""What the two ways of taking an outer step, by gradient and by trust region, have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from maml_ray.backends.microbatch import WHOLE, Passes
from maml_ray.config.settings import Settings
from maml_ray.learning.state import OptimizerState
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import Diagnostics, MetaBatch
from maml_ray.policies.spec import PolicySpec


@dataclass(frozen=True)
class OuterStep:
    """One meta-update as it went.

    Attributes:
        before: diagnostics at the parameters before the update, of the first mini-batch.
        after: the last diagnostics that were looked at.
        loss: of the last mini-batch that was looked at.
        gradient_norm: Euclidean norm of the first meta-gradient, before clipping.
        steps: steps taken.
        learning_rate: of Adam; None where there is none.
    """

    before: Diagnostics
    after: Diagnostics
    loss: float
    gradient_norm: float
    steps: int
    learning_rate: float | None


class OuterOptimizer(ABC):
    """Moves the meta-parameters, in place.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        parameters: leaves.
        passes: in which tasks go through the arithmetic.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        parameters: Parameters,
        passes: Passes = WHOLE,
    ) -> None:
        self._settings = settings
        self._spec = spec
        self._parameters = parameters
        self._passes = passes

    @abstractmethod
    def update(self, batch: MetaBatch, version: int, *, order: Order) -> OuterStep:
        """One meta-update of the parameters of ``version`` from ``batch``."""

    @abstractmethod
    def state(self) -> OptimizerState:
        """A copy of what it remembers."""

    @abstractmethod
    def load(self, state: OptimizerState) -> None:
        """Go on from ``state``, to the last bit."""
