"""Update meta-parameters with Adam, over epochs and mini-batches of tasks."""

from __future__ import annotations

from collections.abc import Iterator
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


class _Snapshot(NamedTuple):
    """Parameters (P,) and Adam's moments, to roll back to."""

    theta: Tensor
    moments: AdamState


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
        """Take ``outer.epochs`` passes over the meta-batch, or stop at ``outer.max_query_kl``.

        A step that exceeds this KL is rolled back up to ``outer.max_rollbacks`` times: the update
        continues from before it, at half the learning rate.
        """
        outer = self._settings.outer
        start_rate, rollbacks = self._learning_rate(version), outer.max_rollbacks
        rate, steps = start_rate, 0
        first: tuple[Diagnostics, float] | None = None
        before: _Snapshot | None = None
        for minibatch in self._minibatches(batch, version):
            loss, diagnostics, gradient = self._value_and_grad(minibatch, order)
            if steps and self._exceeds_kl(diagnostics):  # before the first step it is rounding
                if before is None:
                    break
                self._restore(before)
                steps, rate, rollbacks = steps - 1, 0.5 * rate, rollbacks - 1
                loss, diagnostics, gradient = self._value_and_grad(minibatch, order)
            before = _Snapshot(self._theta(), self._moments) if rollbacks else None
            norm = self._step(gradient, rate)
            steps += 1
            first = first or (diagnostics, norm)
        assert first is not None  # there is at least one epoch of one mini-batch
        return UpdateResult(
            before=first[0],
            after=diagnostics,
            loss=float(loss),
            gradient_norm=first[1],
            steps=steps,
            learning_rate=start_rate,
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

    def _value_and_grad(
        self, minibatch: MetaBatch, order: Order
    ) -> tuple[Tensor, Diagnostics, Parameters]:
        return self._backend.value_and_grad(self._parameters, minibatch, order)

    def _restore(self, snapshot: _Snapshot) -> None:
        with torch.no_grad():
            for name, value in unravel(snapshot.theta, self._parameters).items():
                self._parameters[name].copy_(value)
        self._moments = snapshot.moments

    def _step(self, gradient: Parameters, rate: float) -> float:
        """Take one step of Adam down ``gradient``; return its norm before clipping."""
        theta = self._theta()
        vector = ravel(gradient[name] for name in self._parameters)
        norm, limit = float(vector.norm()), self._settings.outer.max_gradient_norm
        if limit is not None and not norm <= limit:
            vector = vector * (limit / norm)
        moved = adam_step(theta, vector + self._decay * theta, self._moments, rate)
        self._restore(_Snapshot(*moved))
        project(self._backend.spec, self._parameters)
        return norm

    def _exceeds_kl(self, diagnostics: Diagnostics) -> bool:
        """Return whether the adapted policies are further than ``max_query_kl`` from their data.

        Without this limit training occasionally diverges: the further the policy has moved, the
        larger are the ratios that the next step is computed from.
        """
        limit = self._settings.outer.max_query_kl
        return limit is not None and float(diagnostics.query_kl) > limit

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
        """Return the outer rate of this update: constant, or linear from the first to the final."""
        outer, last = self._settings.outer, self._settings.run.iterations - 1
        if outer.final_learning_rate is None or last <= 0:
            return outer.learning_rate
        progress = min(version / last, 1.0)
        return outer.learning_rate + progress * (outer.final_learning_rate - outer.learning_rate)
