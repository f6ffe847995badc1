"""Define the interface of a backend: how the learner computes a meta-gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from maml_ray.backends.microbatch import SINGLE_CHUNK, Microbatcher
from maml_ray.config.sections import InnerSettings, OuterSettings
from maml_ray.kernels.types import Samples
from maml_ray.maml.distributions import ActionDistribution, Parameters
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.losses import outer_objective
from maml_ray.maml.meta_objective import Diagnostics, MetaBatch, MetaObjective
from maml_ray.policies.spec import PolicySpec

FisherProduct = Callable[[Tensor], Tensor]
"""From a vector (P,) to its product (P,) with a matrix."""


class Linearization(NamedTuple):
    """The meta-objective to first order at some parameters, and the adapted policies' KL to second.

    Attributes:
        loss: the meta-loss ().
        diagnostics: beside it.
        gradient: of the loss, by name.
        fisher_product: with the Hessian of the adapted policies' mean KL at zero, ``J^T F J``, with
            J the derivative of the adapted policies' outputs at the query data by the
            meta-parameters, inner steps included, and F the Fisher matrix of those outputs: exact,
            without third derivatives.
    """

    loss: Tensor
    diagnostics: Diagnostics
    gradient: Parameters
    fisher_product: FisherProduct


class Backend(ABC):
    """Compute the meta-objective of :mod:`~maml_ray.maml.meta_objective` and its derivatives.

    Every result is a mean over the N tasks of the batch, however it is divided into chunks.
    ``parameters`` are the meta-parameters by name; P is their total number.

    Args:
        inner: settings of the adaptation.
        outer: settings of the loss after adaptation.
        spec: the policy's sizes.
        microbatcher: divides the tasks into chunks.

    Attributes:
        tasks_are_independent: results of a task have the same bits whichever tasks share its chunk,
            so that :meth:`behavior_policies` can be computed task by task.

    Raises:
        SettingsError: the outer objective is unknown.
        ValueError: the backend does not support these settings.
    """

    tasks_are_independent: bool

    def __init__(
        self,
        inner: InnerSettings,
        outer: OuterSettings,
        spec: PolicySpec,
        microbatcher: Microbatcher = SINGLE_CHUNK,
    ) -> None:
        outer_objective(outer.objective)
        if not self.supports(inner, outer, spec):
            raise ValueError(f"{type(self).__name__} does not support {inner}, {outer}, {spec}")
        self.inner, self.outer, self.spec = inner, outer, spec
        self.microbatcher = microbatcher

    @staticmethod
    @abstractmethod
    def supports(inner: InnerSettings, outer: OuterSettings, spec: PolicySpec) -> bool:
        """Return whether the backend can compute these settings' objective for this policy."""

    @abstractmethod
    def value(
        self, parameters: Parameters, batch: MetaBatch, order: Order
    ) -> tuple[Tensor, Diagnostics]:
        """Return the meta-loss () and its diagnostics."""

    @abstractmethod
    def value_and_grad(
        self, parameters: Parameters, batch: MetaBatch, order: Order
    ) -> tuple[Tensor, Diagnostics, Parameters]:
        """Return the meta-loss (), its diagnostics and its gradient by name."""

    @abstractmethod
    def per_task_grads(self, parameters: Parameters, batch: MetaBatch, order: Order) -> Tensor:
        """Return the meta-gradient (N, P) of every task."""

    @abstractmethod
    def linearize(self, parameters: Parameters, batch: MetaBatch, order: Order) -> Linearization:
        """Return what a trust region needs to know of the objective at ``parameters``."""

    @abstractmethod
    def behavior_policies(
        self,
        parameters: Parameters,
        support: tuple[Samples[Tensor], ...],
        query: Samples[Tensor],
        context_gradient: Tensor,
    ) -> tuple[tuple[ActionDistribution, ...], ActionDistribution]:
        """Return the action distributions, without a graph, that ``parameters`` lead to.

        Those before each inner step at its support samples, if it has any, and the adapted one at
        the query samples: the behavior policies, if ``parameters`` collected the data. The data are
        those of a :class:`~maml_ray.maml.meta_objective.MetaBatch`.
        """

    @abstractmethod
    def warm_up(self) -> None:
        """Do ahead of the first update what it would wait for: imports and compilation."""

    def _objective(self, order: Order) -> MetaObjective:
        return MetaObjective(self.inner, self.outer, self.spec, order)
