"""The outer step by gradient: Adam, over epochs and mini-batches of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maml_ray.adaptation import Order
from maml_ray.batching import selected
from maml_ray.config import Settings
from maml_ray.meta_gradient import meta_gradient
from maml_ray.meta_objective import Diagnostics, MetaBatch
from maml_ray.meta_parameters import LOG_RATE
from maml_ray.outer_update import OptimiserState, OuterOptimiser, OuterStep
from maml_ray.passes import WHOLE, Passes
from maml_ray.policy import Parameters, PolicySpec, project, to_numpy
from maml_ray.seeding import Purpose, generator


class _Place(NamedTuple):
    """Where the optimiser has been, to go back to."""

    parameters: Parameters
    adam: OptimiserState


class GradientUpdate(OuterOptimiser):
    """Adam down the meta-gradient; the inner steps are redone for every mini-batch."""

    def __init__(
        self,
        settings: Settings,
        spec: PolicySpec,
        parameters: Parameters,
        passes: Passes = WHOLE,
    ) -> None:
        super().__init__(settings, spec, parameters, passes)
        self._adam = self._make_adam()

    def update(self, batch: MetaBatch, version: int, *, order: Order) -> OuterStep:
        """``outer.epochs`` passes over the meta-batch, or fewer where the policies went far.

        The step that went too far is taken back, up to ``outer.backtracks`` times: the update goes
        on from before it, at half the rate.
        """
        start_rate, left = self._learning_rate(version), self._settings.outer.backtracks
        rate, steps = start_rate, 0
        first: tuple[Diagnostics, float] | None = None
        before: _Place | None = None
        for minibatch in self._minibatches(batch, version):
            loss, diagnostics, gradient = self._look(minibatch, order)
            if steps and self._far_enough(diagnostics):  # before the first step it is rounding
                if before is None:
                    break
                self._go_back(before)
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

    def state(self) -> OptimiserState:
        """Adam's moments and its number of steps."""
        slots = {name: self._adam.state.get(p, {}) for name, p in self._parameters.items()}
        zeros = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        steps = {int(slot["step"]) for slot in slots.values() if slot} or {0}

        def moments(key: str) -> dict[str, Tensor]:
            return {name: slot.get(key, zeros[name]) for name, slot in slots.items()}

        return OptimiserState(
            steps=steps.pop(),
            first_moments=to_numpy(moments("exp_avg")),
            second_moments=to_numpy(moments("exp_avg_sq")),
        )

    def load(self, state: OptimiserState) -> None:
        """Go on from ``state``."""
        self._adam = self._make_adam()
        if state.steps == 0:
            return
        for name, parameter in self._parameters.items():
            device = parameter.device
            self._adam.state[parameter] = {
                "step": torch.tensor(float(state.steps)),
                "exp_avg": torch.tensor(state.first_moments[name], device=device),
                "exp_avg_sq": torch.tensor(state.second_moments[name], device=device),
            }

    def _look(self, minibatch: MetaBatch, order: Order) -> tuple[Tensor, Diagnostics, Parameters]:
        return meta_gradient(
            self._settings,
            self._spec,
            self._parameters,
            minibatch,
            order=order,
            passes=self._passes,
        )

    def _here(self) -> _Place:
        return _Place({n: p.detach().clone() for n, p in self._parameters.items()}, self.state())

    def _go_back(self, place: _Place) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(place.parameters[name])
        self.load(place.adam)

    def _step(self, gradient: Parameters, rate: float) -> float:
        """One step of the optimiser down ``gradient``; its norm before clipping."""
        for group in self._adam.param_groups:
            group["lr"] = rate
        for name, parameter in self._parameters.items():
            parameter.grad = gradient[name]
        norm = torch.nn.utils.get_total_norm(list(gradient.values()))
        limit = self._settings.outer.max_gradient_norm
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), limit, norm)
        self._adam.step()
        project(self._spec, self._parameters)
        return float(norm)

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

    def _make_adam(self) -> torch.optim.Adam:
        outer = self._settings.outer
        # The penalty pulls to zero, which for the logarithm of a rate is no natural place.
        rates = [p for name, p in self._parameters.items() if name.startswith(LOG_RATE)]
        policy = [p for name, p in self._parameters.items() if not name.startswith(LOG_RATE)]
        groups = [{"params": policy, "weight_decay": outer.weight_decay}]
        if rates:
            groups.append({"params": rates, "weight_decay": 0.0})
        return torch.optim.Adam(groups, lr=outer.learning_rate, fused=True)
