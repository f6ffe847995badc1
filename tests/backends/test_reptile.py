"""Reptile: the meta-gradient is the mean way from the adapted parameters back to their start."""

from __future__ import annotations

import pytest
import torch

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.backends.base import Backend
from maml_ray.backends.compiled import CompiledBackend
from maml_ray.config.settings import Settings
from maml_ray.maml.inner_loop import Order
from maml_ray.policies.spec import PolicySpec
from tests.backends.test_agreement import SPECS, backend, check, problem, settings_of
from tests.learning_runs import Run, change
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles

KINDS: list[type[Backend]] = [AutogradBackend, CompiledBackend]


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("inner", ["ratio", "log_prob"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_both_backends_agree(spec: PolicySpec, inner: str, steps: int, order: Order) -> None:
    settings = settings_of("reptile", inner, steps)
    check(settings, spec, *problem(settings, spec), order)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_meta_gradient_is_the_mean_of_the_ways_back(kind: type[Backend], steps: int) -> None:
    """Against an explicit loop; the loss is that of ratios on query data."""
    settings, spec = settings_of("reptile", steps=steps), SPECS["tanh"]
    parameters, batch = problem(settings, spec)
    ways, losses = [], []
    for task in meta_oracles.tasks_of(batch):
        adapted, _ = meta_oracles.adapted(settings, spec, parameters, task)
        policy = meta_oracles.action_distribution(spec, adapted, task.query.observations)
        ratio = torch.exp(meta_oracles.log_probs(policy, task.query) - task.query.log_probs)
        losses.append(-(ratio * task.query.advantages * task.query.weights).sum().detach())
        ways.append(oracles.flat(parameters) - oracles.flat(adapted))
    found = backend(kind, settings, spec)
    loss, _, gradient = found.value_and_grad(parameters, batch, "second")
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    torch.testing.assert_close(oracles.flat(gradient), torch.stack(ways).mean(0))
    torch.testing.assert_close(found.per_task_grads(parameters, batch, "first"), torch.stack(ways))
    torch.testing.assert_close(found.value(parameters, batch, "second")[0], loss)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_the_inner_rate_times_the_policy_gradient(kind: type[Backend]) -> None:
    """On the support data, averaged over tasks: joint training of all tasks."""
    settings, spec = settings_of("reptile", steps=1, l2=0.0), SPECS["tanh"]
    parameters, batch = problem(settings, spec)

    def joint_loss(theta: meta_oracles.Parameters) -> torch.Tensor:
        losses = []
        for task in meta_oracles.tasks_of(batch):
            (support,) = task.support
            policy = meta_oracles.action_distribution(spec, theta, support.observations)
            ratio = torch.exp(meta_oracles.log_probs(policy, support) - support.log_probs)
            losses.append(-(ratio * support.advantages * support.weights).sum())
        return torch.stack(losses).mean()

    rate = settings.inner.learning_rate
    expected = {k: rate * v for k, v in oracles.gradient(joint_loss, parameters).items()}
    found = backend(kind, settings, spec).value_and_grad(parameters, batch, "second")[2]
    torch.testing.assert_close(found, expected)


def test_an_update_goes_towards_the_adapted_parameters(small_settings: Settings) -> None:
    """Adam's first step has the length of its rate, in the direction of the mean of all tasks."""
    settings = change(small_settings, "inner", steps=2)
    outer = {"objective": "reptile", "epochs": 1, "max_query_kl": None, "learning_rate": 1e-3}
    run = Run(change(settings, "outer", **outer))
    before = {name: value.detach().clone() for name, value in run.learner.parameters.items()}
    rollouts = run.collect()
    batch = run.learner.prepare(rollouts)
    gradient = run.learner.backend.value_and_grad(before, batch, "first")[2]
    metrics = run.learner.update(rollouts)
    assert metrics.gradient_steps == 1
    for name, value in run.learner.parameters.items():
        large = gradient[name].abs() > 1e-4
        step = (value.detach() - before[name])[large]
        torch.testing.assert_close(step, -1e-3 * gradient[name][large].sign(), rtol=0.02, atol=0)
