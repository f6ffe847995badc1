"""Update meta-parameters with Adam, over epochs and mini-batches of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from maml_ray.backends.base import Backend
from maml_ray.backends.tensor_tree import ravel, select_rows, unravel
from maml_ray.common.seeding import Purpose, generator
from maml_ray.config.settings import Settings
from maml_ray.learning.adam import AdamState, adam_step
from maml_ray.learning.optimizer import OuterOptimizer, UpdateResult
from maml_ray.learning.state import OptimizerState
from maml_ray.maml.distributions import Parameters, project, to_numpy
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import Diagnostics, MetaBatch
from maml_ray.maml.meta_parameters import LOG_RATE


class _Step(NamedTuple):
    """A step that was taken, to take it back or to retry it.

    Attributes:
        theta: parameters (P,) before it.
        moments: Adam's, before it.
        gradient: (P,) that it went down.
    """

    theta: Tensor
    moments: AdamState
    gradient: Tensor


@dataclass
class _Descent:
    """The course of one update.

    Attributes:
        rate: of the next step.
        rollbacks: how many more steps may be retried at half the rate.
        steps: taken and not taken back.
    """

    rate: float
    rollbacks: int
    steps: list[_Step] = field(default_factory=list)


class AdamOptimizer(OuterOptimizer):
    """Take Adam steps down the meta-gradient; every mini-batch repeats the inner steps."""

    def __init__(self, settings: Settings, parameters: Parameters, backend: Backend) -> None:
        super().__init__(settings, parameters, backend)
        zeros = torch.zeros_like(self._theta())
        self._moments = AdamState(0, zeros, zeros)
        decay = settings.outer.weight_decay
        self._decay = ravel(
            # Zero means nothing to the logarithm of a rate, so no penalty pulls it there.
            torch.full_like(value, 0.0 if name.startswith(LOG_RATE) else decay).detach()
            for name, value in parameters.items()
        )

    def update(self, batch: MetaBatch, version: int, *, order: Order) -> UpdateResult:
        """Take ``outer.epochs`` passes over the meta-batch, within ``outer.max_query_kl``.

        A step whose result exceeds this KL is taken back and retried at half the rate. After
        ``outer.max_rollbacks`` retries the update ends before such a step. The KL is that of the
        whole meta-batch, measured after the last step and wherever the next mini-batch's exceeds
        the limit.
        """
        rate = self._learning_rate(version)
        descent = _Descent(rate, self._settings.outer.max_rollbacks)
        before, norm = self._descend(descent, batch, version, order)
        loss, after = self._settle(descent, batch, order)
        return UpdateResult(
            before=before,
            after=after,
            loss=float(loss),
            gradient_norm=norm,
            steps=len(descent.steps),
            learning_rate=rate,
        )

    def state(self) -> OptimizerState:
        """Return Adam's number of steps and moments."""
        steps, *moments = self._moments
        return OptimizerState(
            steps, *(to_numpy(unravel(each, self._parameters)) for each in moments)
        )

    def load(self, state: OptimizerState) -> None:
        """Resume from ``state``, bit for bit."""
        if state.steps == 0:
            zeros = torch.zeros_like(self._theta())
            self._moments = AdamState(0, zeros, zeros)
            return
        first, second = (
            ravel(torch.tensor(values[name]) for name in self._parameters).to(self._decay.device)
            for values in (state.first_moments, state.second_moments)
        )
        self._moments = AdamState(state.steps, first, second)

    def _theta(self) -> Tensor:
        """Return a copy of the parameters (P,)."""
        return ravel(value.detach() for value in self._parameters.values())

    def _descend(
        self, descent: _Descent, batch: MetaBatch, version: int, order: Order
    ) -> tuple[Diagnostics, float]:
        """Take the update's steps; return the first one's diagnostics and norm of the gradient."""
        first: tuple[Diagnostics, float] | None = None
        for minibatch in self._minibatches(batch, version):
            diagnostics, gradient = self._evaluate(minibatch, order)
            first = first or (diagnostics, float(gradient.norm()))
            if descent.steps and self._exceeds_kl(diagnostics):
                taken, rate = len(descent.steps), descent.rate
                self._settle(descent, batch, order)
                if len(descent.steps) < taken:
                    return first
                if descent.rate < rate:
                    _, gradient = self._evaluate(minibatch, order)
            self._step(descent, gradient)
        assert first is not None  # there is at least one epoch of one mini-batch
        return first

    def _settle(
        self, descent: _Descent, batch: MetaBatch, order: Order
    ) -> tuple[Tensor, Diagnostics]:
        """Take back or retry the last steps until the limit holds for the whole meta-batch.

        Mini-batches may have seen too little of the KL of more than one step.

        Returns:
            Its loss () and diagnostics.
        """
        while True:
            loss, diagnostics = self._backend.value(self._parameters, batch, order)
            if not (descent.steps and self._exceeds_kl(diagnostics)):
                return loss, diagnostics
            self._take_back(descent)

    def _evaluate(self, minibatch: MetaBatch, order: Order) -> tuple[Diagnostics, Tensor]:
        """Return diagnostics at the parameters, and the meta-gradient (P,)."""
        _, diagnostics, gradient = self._backend.value_and_grad(self._parameters, minibatch, order)
        return diagnostics, ravel(gradient[name] for name in self._parameters)

    def _step(self, descent: _Descent, gradient: Tensor) -> None:
        """Take one step of Adam down ``gradient`` (P,), clipped and with the weight decay."""
        theta = self._theta()
        descent.steps.append(_Step(theta, self._moments, gradient))
        norm, limit = float(gradient.norm()), self._settings.outer.max_gradient_norm
        if limit is not None and not norm <= limit:
            gradient = gradient * (limit / norm)
        gradient = gradient + self._decay * theta
        self._assign(*adam_step(theta, gradient, self._moments, descent.rate))
        project(self._backend.spec, self._parameters)

    def _take_back(self, descent: _Descent) -> None:
        """Take the last step back, and retry it at half the rate if a rollback is left."""
        last = descent.steps.pop()
        self._assign(last.theta, last.moments)
        if descent.rollbacks:
            descent.rate, descent.rollbacks = 0.5 * descent.rate, descent.rollbacks - 1
            self._step(descent, last.gradient)

    def _assign(self, theta: Tensor, moments: AdamState) -> None:
        with torch.no_grad():
            for name, value in unravel(theta, self._parameters).items():
                self._parameters[name].copy_(value)
        self._moments = moments

    def _exceeds_kl(self, diagnostics: Diagnostics) -> bool:
        """Return whether the adapted policies are further than ``max_query_kl`` from their data.

        Without this limit training occasionally diverges: the further the policy has moved, the
        larger are the ratios that the next step is computed from.
        """
        limit = self._settings.outer.max_query_kl
        return limit is not None and not float(diagnostics.query_kl) <= limit  # NaN does, too

    def _minibatches(self, batch: MetaBatch, version: int) -> Iterator[MetaBatch]:
        """Iterate ``epochs`` times over the meta-batch, in mini-batches of whole tasks.

        The last mini-batch of an epoch may be smaller.
        """
        outer = self._settings.outer
        tasks = len(batch.task_advantage)
        size = min(outer.tasks_per_minibatch or tasks, tasks)
        rng = generator(self._settings.run.seed, Purpose.MINIBATCHES, version)
        for _ in range(outer.epochs):
            if size == tasks:
                yield batch
                continue
            order = torch.from_numpy(rng.permutation(tasks)).to(batch.task_advantage.device)
            for start in range(0, tasks, size):
                yield select_rows(batch, order[start : start + size])

    def _learning_rate(self, version: int) -> float:
        """Return the outer rate of this update: constant, or linear down to the final one."""
        outer, last = self._settings.outer, self._settings.annealed_over - 1
        if outer.final_learning_rate is None or last <= 0:
            return outer.learning_rate
        progress = min(version / last, 1.0)
        return outer.learning_rate + progress * (outer.final_learning_rate - outer.learning_rate)
