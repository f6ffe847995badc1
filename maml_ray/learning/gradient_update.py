"""The outer step by gradient: Adam, over epochs and mini-batches of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maml_ray.backends.dispatch import meta_gradient
from maml_ray.backends.microbatch import WHOLE, Passes
from maml_ray.backends.tensor_tree import selected
from maml_ray.common.seeding import Purpose, generator
from maml_ray.config.settings import Settings
from maml_ray.learning.adam import AdamState, adam_step
from maml_ray.learning.optimizer import OuterOptimizer, OuterStep
from maml_ray.learning.state import OptimizerState
from maml_ray.maml.distributions import Parameters, project, to_numpy
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import Diagnostics, MetaBatch, MetaObjective
from maml_ray.maml.meta_parameters import LOG_RATE
from maml_ray.policies.spec import PolicySpec


class _Place(NamedTuple):
    """Where the optimizer has been, to go back to: parameters (P,), all in one vector."""

    theta: Tensor
    moments: AdamState


class GradientUpdate(OuterOptimizer):
    """Adam down the meta-gradient; the inner steps are redone for every mini-batch."""

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        parameters: Parameters,
        passes: Passes = WHOLE,
    ) -> None:
        super().__init__(settings, spec, parameters, passes)
        self._moments = self._nothing_yet()
        self._decay = _joined(
            {
                # The penalty pulls to zero, which for the logarithm of a rate is no natural place.
                name: torch.full_like(
                    value, 0.0 if name.startswith(LOG_RATE) else settings.outer.weight_decay
                )
                for name, value in parameters.items()
            }
        )

    def update(self, batch: MetaBatch, version: int, *, order: Order) -> OuterStep:
        """``outer.epochs`` passes over the meta-batch, or fewer where the policies went far.

        The step that went too far is taken back, up to ``outer.max_rollbacks`` times: the update goes
        on from before it, at half the rate.
        """
        start_rate, left = self._learning_rate(version), self._settings.outer.max_rollbacks
        rate, steps = start_rate, 0
        first: tuple[Diagnostics, float] | None = None
        before: _Place | None = None
        for minibatch in self._minibatches(batch, version):
            loss, diagnostics, gradient = self._look(minibatch, order)
            if steps and self._far_enough(diagnostics):  # before the first step it is rounding
                if before is None:
                    break
                self._go_to(before)
                steps, rate, left = steps - 1, 0.5 * rate, left - 1
                loss, diagnostics, gradient = self._look(minibatch, order)
            before = self._here() if left else None
            norm = self._step(gradient, rate)
            steps += 1
            first = first or (diagnostics, norm)
        assert first is not None  # there is at least one epoch of one mini-batch
        return OuterStep(
            before=first[0],
            after=diagnostics,
            loss=float(loss),
            gradient_norm=first[1],
            steps=steps,
            learning_rate=start_rate,
        )

    def state(self) -> OptimizerState:
        """Adam's moments and its number of steps."""
        steps, *moments = self._moments
        return OptimizerState(steps, *(to_numpy(self._by_name(each)) for each in moments))

    def load(self, state: OptimizerState) -> None:
        """Go on from ``state``."""
        if state.steps == 0:
            self._moments = self._nothing_yet()
            return
        device = self._decay.device
        moments = (
            _joined({name: torch.tensor(values[name]) for name in self._parameters}).to(device)
            for values in (state.first_moments, state.second_moments)
        )
        self._moments = AdamState(state.steps, *moments)

    def _nothing_yet(self) -> AdamState:
        nothing = torch.zeros_like(_joined(self._parameters))
        return AdamState(0, nothing, nothing)

    def _look(self, minibatch: MetaBatch, order: Order) -> tuple[Tensor, Diagnostics, Parameters]:
        objective = MetaObjective(self._settings, self._spec, order)
        return meta_gradient(objective, self._parameters, minibatch, self._passes)

    def _here(self) -> _Place:
        return _Place(_joined(self._parameters), self._moments)

    def _go_to(self, place: _Place) -> None:
        with torch.no_grad():
            for name, value in self._by_name(place.theta).items():
                self._parameters[name].copy_(value)
        self._moments = place.moments

    def _step(self, gradient: Parameters, rate: float) -> float:
        """One step of Adam down ``gradient``; its norm before clipping."""
        theta = _joined(self._parameters)
        slope = _joined({name: gradient[name] for name in self._parameters})
        norm, limit = float(slope.norm()), self._settings.outer.max_gradient_norm
        if limit is not None and not norm <= limit:
            slope = slope * (limit / norm)
        self._go_to(_Place(*adam_step(theta, slope + self._decay * theta, self._moments, rate)))
        project(self._spec, self._parameters)
        return norm

    def _far_enough(self, diagnostics: Diagnostics) -> bool:
        """Whether the adapted policies are so far from their data that it says little more.

        Without this limit a rare update runs away: the further the policy has moved, the larger
        the ratios that the next step is computed from.
        """
        limit = self._settings.outer.max_query_kl
        return limit is not None and float(diagnostics.query_kl) > limit

    def _minibatches(self, batch: MetaBatch, version: int) -> Iterator[MetaBatch]:
        """The meta-batch, ``epochs`` times over, in mini-batches of whole tasks.

        What is left of an epoch after its last full mini-batch is a smaller one.
        """
        outer = self._settings.outer
        tasks = batch.credit.shape[0]
        size = min(outer.tasks_per_minibatch or tasks, tasks)
        rng = generator(self._settings.run.seed, Purpose.MINIBATCHES, version)
        for _ in range(outer.epochs):
            if size == tasks:
                yield batch
                continue
            order = torch.from_numpy(rng.permutation(tasks)).to(batch.credit.device)
            for start in range(0, tasks, size):
                yield selected(batch, order[start : start + size])

    def _learning_rate(self, version: int) -> float:
        """The outer rate of this update: constant, or a line from the first to the final one."""
        outer, last = self._settings.outer, self._settings.run.iterations - 1
        if outer.final_learning_rate is None or last <= 0:
            return outer.learning_rate
        done = min(version / last, 1.0)
        return outer.learning_rate + done * (outer.final_learning_rate - outer.learning_rate)

    def _by_name(self, vector: Tensor) -> Parameters:
        sizes = [value.numel() for value in self._parameters.values()]
        return {
            name: part.view(value.shape)
            for (name, value), part in zip(
                self._parameters.items(), vector.split(sizes), strict=True
            )
        }


def _joined(values: Parameters) -> Tensor:
    """All in one vector (P,)."""
    return torch.cat([value.detach().reshape(-1) for value in values.values()])
