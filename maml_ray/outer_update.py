"""What the two ways of taking an outer step, by gradient and by trust region, have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from maml_ray.adaptation import Order
from maml_ray.meta_objective import Diagnostics, MetaBatch
from maml_ray.policy import NumpyParameters


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


@dataclass(frozen=True)
class OptimiserState:
    """What an optimiser remembers from step to step: Adam's moments; nothing for a trust region."""

    steps: int
    first_moments: NumpyParameters
    second_moments: NumpyParameters


class OuterOptimiser(Protocol):
    """Moves the meta-parameters, in place."""

    def update(self, batch: MetaBatch, version: int, *, order: Order) -> OuterStep:
        """One meta-update of the parameters of ``version`` from ``batch``."""

    def state(self) -> OptimiserState:
        """A copy of what it remembers."""

    def load(self, state: OptimiserState) -> None:
        """Go on from ``state``, to the last bit."""
