"""MAML-TRPO's update on real data: the KL holds, the loss falls, or nothing has moved."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maml_ray.backends.base import Backend, Linearization
from maml_ray.config.sections import TrustRegionSettings
from maml_ray.config.settings import Settings
from maml_ray.learning.state import OptimizerState
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import Diagnostics, MetaBatch
from maml_ray.policies.spec import LOG_STD
from maml_ray.rollouts.trajectories import TaskRollouts
from tests.learning_runs import Run, change, rewarded, same
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.oracles.meta import Parameters


def by_trust_region(settings: Settings, **limits: Any) -> Settings:
    return change(settings, "outer", objective="trpo", trust_region=TrustRegionSettings(**limits))


def double(tree: Any) -> Any:
    return meta_oracles.tree_map(lambda part: part.detach().double(), tree)


def loss_at(run: Run, theta: Parameters, batch: MetaBatch) -> float:
    return float(meta_oracles.meta_loss(run.settings, run.learner.spec, theta, batch).detach())


@pytest.mark.parametrize("learn_inner_rates", [False, True])
@pytest.mark.parametrize(("steps", "inner"), [(0, "ratio"), (1, "ratio"), (2, "dice")])
@pytest.mark.parametrize("max_kl", [1e-3, 0.02])
def test_the_kl_holds_and_the_loss_falls(
    small_settings: Settings, max_kl: float, steps: int, inner: str, learn_inner_rates: bool
) -> None:
    """Measured by the reference, which adapts anew from the parameters before and after."""
    settings = change(
        small_settings, "inner", steps=steps, objective=inner, learn_inner_rates=learn_inner_rates
    )
    run = Run(by_trust_region(settings, max_kl=max_kl))
    for _ in range(2):
        rollouts = run.collect()
        batch, before = double(run.learner.prepare(rollouts)), double(run.learner.parameters)
        metrics = run.learner.update(rollouts)
        after = double(run.learner.parameters)
        kl = float(
            meta_oracles.adapted_kl(run.settings, run.learner.spec, before, after, batch).detach()
        )
        assert metrics.gradient_steps == 1
        assert 0.3 * max_kl < kl <= max_kl * (1 + 1e-3)
        assert metrics.query_kl == pytest.approx(kl, rel=1e-2)
        assert loss_at(run, after, batch) < loss_at(run, before, batch) - 1e-4
        assert metrics.loss == pytest.approx(loss_at(run, after, batch), abs=1e-4)
        assert metrics.collector_ratio_error < 1e-4
        assert metrics.learning_rate is None


def test_a_short_step_has_the_kl_it_was_made_for(small_settings: Settings) -> None:
    """To second order: nothing is shortened, and the bound is all but reached."""
    run = Run(by_trust_region(small_settings, max_kl=1e-4, damping=0.0))
    rollouts = run.collect()
    batch, before = double(run.learner.prepare(rollouts)), double(run.learner.parameters)
    metrics = run.learner.update(rollouts)
    after = double(run.learner.parameters)
    kl = meta_oracles.adapted_kl(run.settings, run.learner.spec, before, after, batch)
    shortened = round(math.log(float(kl.detach()) / 1e-4) / math.log(0.64))
    assert metrics.gradient_steps == 1
    assert shortened <= 1
    assert float(kl.detach()) == pytest.approx(1e-4 * 0.64**shortened, rel=0.1)


@pytest.mark.parametrize("max_kl", [1.0, 1e3, 1e9])
def test_however_far_it_may_go_the_loss_falls_or_nothing_moves(
    small_settings: Settings, max_kl: float
) -> None:
    run = Run(by_trust_region(small_settings, max_kl=max_kl))
    rollouts = run.collect()
    batch, before = double(run.learner.prepare(rollouts)), run.learner.publish().values
    old = loss_at(run, double(run.learner.parameters), batch)
    metrics = run.learner.update(rollouts)
    if metrics.gradient_steps:
        assert loss_at(run, double(run.learner.parameters), batch) < old
    else:
        assert same(run.learner.publish().values, before)


Script = Callable[[int, float, float], tuple[float, float]]
"""From a candidate's number, the loss before the step and the KL's bound to its loss and KL."""


class ScriptedBackend:
    """Replaces the values of candidates by those of a script.

    ``seen`` are the parameters that were evaluated, those before the step first.
    """

    def __init__(self, backend: Backend, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Tensor] = []
        self._script = script
        self._start = 0.0
        self._value, self._linearize = backend.value, backend.linearize
        monkeypatch.setattr(backend, "value", self.value)
        monkeypatch.setattr(backend, "linearize", self.linearize)

    def linearize(self, parameters: Parameters, batch: MetaBatch, order: Order) -> Linearization:
        linear = self._linearize(parameters, batch, order)
        self.seen.append(oracles.flat(parameters))
        self._start = float(linear.loss)
        return linear

    def value(
        self, parameters: Parameters, batch: MetaBatch, order: Order
    ) -> tuple[Tensor, Diagnostics]:
        _, diagnostics = self._value(parameters, batch, order)
        loss, kl = self._script(len(self.seen) - 1, self._start, 0.02)
        self.seen.append(oracles.flat(parameters))
        return torch.tensor(loss), diagnostics._replace(query_kl=torch.tensor(kl))


def scripted_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, script: Script
) -> tuple[Run, list[TaskRollouts], ScriptedBackend]:
    run = Run(by_trust_region(settings, max_kl=0.02, backtrack_ratio=0.5))
    return run, run.collect(), ScriptedBackend(run.learner.backend, script, monkeypatch)


REFUSED: dict[str, Script] = {
    "not lower": lambda n, start, limit: (start, 0.0),
    "higher": lambda n, start, limit: (start + 1.0, 0.0),
    "too far": lambda n, start, limit: (start - 1.0, 1.01 * limit),
    "loss is NaN": lambda n, start, limit: (math.nan, 0.0),
    "KL is NaN": lambda n, start, limit: (start - 1.0, math.nan),
    "loss is infinite": lambda n, start, limit: (math.inf, 0.0),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_where_no_candidate_will_do_the_parameters_come_back_to_the_bit(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    run, rollouts, scripted = scripted_run(small_settings, monkeypatch, REFUSED[reason])
    before = run.learner.publish().values
    metrics = run.learner.update(rollouts)
    assert len(scripted.seen) == 1 + 15
    assert metrics.gradient_steps == 0
    assert same(run.learner.publish().values, before)
    assert metrics.query_kl < 1e-6  # of the parameters that are kept
    assert math.isfinite(metrics.loss)
    assert run.learner.version == 1


def test_the_step_is_shortened_until_a_candidate_will_do(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = list(REFUSED.values())

    def script(number: int, start: float, limit: float) -> tuple[float, float]:
        return (start - 1e-3, limit) if number == 6 else answers[number](number, start, limit)

    run, rollouts, scripted = scripted_run(small_settings, monkeypatch, script)
    metrics = run.learner.update(rollouts)
    assert (metrics.gradient_steps, len(scripted.seen)) == (1, 8)
    start, candidates = scripted.seen[0].double(), scripted.seen[1:]
    whole = candidates[0].double() - start
    for number, candidate in enumerate(candidates):
        torch.testing.assert_close(
            candidate.double() - start, 0.5**number * whole, rtol=1e-2, atol=1e-6
        )
    assert torch.equal(oracles.flat(run.learner.parameters), candidates[-1])
    assert metrics.query_kl == pytest.approx(0.02)


def with_query_rewards(
    settings: Settings, rollouts: list[TaskRollouts], value: float
) -> list[TaskRollouts]:
    return [rewarded(settings, task, np.full_like(task.query.rewards, value)) for task in rollouts]


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_data_that_say_nothing_move_nothing(small_settings: Settings, value: float) -> None:
    """No advantage at all, or numbers that are none."""
    settings = change(small_settings, "advantages", normalize=False, baseline="zero")
    run = Run(by_trust_region(settings))
    before = run.learner.publish().values
    metrics = run.learner.update(with_query_rewards(run.settings, run.collect(), value))
    assert metrics.gradient_steps == 0
    assert same(run.learner.publish().values, before)


def test_log_std_stays_on_or_above_its_floor(small_settings: Settings) -> None:
    settings = change(small_settings, "policy", initial_log_std=-0.5, min_log_std=-0.5)
    run = Run(by_trust_region(settings, max_kl=0.5))
    for _ in range(3):
        run.learner.update(run.collect())
        assert float(run.learner.parameters[LOG_STD].detach().min()) >= -0.5


def test_it_remembers_nothing_and_asks_for_no_epochs(small_settings: Settings) -> None:
    settings = by_trust_region(small_settings)
    one = Run(settings)
    other = Run(change(settings, "outer", epochs=7, tasks_per_minibatch=1, learning_rate=9.0))
    rollouts = one.collect()
    one.learner.update(rollouts)
    other.learner.update(rollouts)
    assert same(one.learner.publish().values, other.learner.publish().values)
    assert one.learner.state().optimizer == OptimizerState(0, {}, {})
