"""The policy, the inner loop and the outer objective once more: from scratch, task by task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as torch_kl

from maml_ray.config.settings import Settings
from maml_ray.kernels.types import Samples
from maml_ray.maml.distributions import ActionDistribution, Categorical
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import MetaBatch, MetaObjective
from maml_ray.policies.spec import PolicySpec

Parameters = dict[str, Tensor]
Tree = TypeVar("Tree")


def objective(settings: Settings, spec: PolicySpec, order: Order = "second") -> MetaObjective:
    """The objective under test, of a run's settings."""
    return MetaObjective(settings.inner, settings.outer, spec, order)


def action_distribution(spec: PolicySpec, parameters: Parameters, observations: Tensor) -> Any:
    """The policy, written out with torch.distributions."""
    hidden = observations
    for layer in range(len(spec.hidden_sizes)):
        hidden = hidden @ parameters[f"hidden_{layer}.weight"].T
        hidden = hidden + parameters[f"hidden_{layer}.bias"]
        hidden = torch.tanh(hidden) if spec.activation == "tanh" else torch.relu(hidden)
    if spec.discrete:
        logits = hidden @ parameters["logits.weight"].T + parameters["logits.bias"]
        return torch.distributions.Categorical(logits=logits)
    mean = hidden @ parameters["mean.weight"].T + parameters["mean.bias"]
    std = torch.exp(torch.clamp(parameters["log_std"], min=spec.min_log_std)).expand_as(mean)
    return Independent(Normal(mean, std), 1)


def as_torch(policy: ActionDistribution) -> Any:
    """The same distribution of torch.distributions."""
    if isinstance(policy, Categorical):
        return torch.distributions.Categorical(logits=policy.log_probs)
    return Independent(Normal(policy.mean, policy.log_std.exp().expand_as(policy.mean)), 1)


def log_probs(policy: Any, samples: Samples[Tensor]) -> Tensor:
    """Of one task's actions: (K, T)."""
    discrete = isinstance(policy, torch.distributions.Categorical)
    taken = samples.actions[:, 0] if discrete else samples.actions
    result: Tensor = policy.log_prob(taken).reshape(samples.weights.shape)
    return result


class StopGradient:
    """The identity without a derivative: what passed the first time round passes ever after.

    Finite differences then see a constant where differentiation does. Each round begins with
    :meth:`rewind` and asks for the same things in the same order.
    """

    def __init__(self) -> None:
        self._passed: list[Tensor] = []
        self._place = 0

    def rewind(self) -> None:
        self._place = 0

    def __call__(self, value: Tensor) -> Tensor:
        if self._place == len(self._passed):
            self._passed.append(value.detach().clone())
        self._place += 1
        return self._passed[self._place - 1]


Stop = Callable[[Tensor], Tensor]


def score(kind: str, new: Tensor, samples: Samples[Tensor], stop: Stop = Tensor.detach) -> Tensor:
    """What an inner loss multiplies the advantages with (K, T)."""
    ratio = torch.exp(new - samples.log_probs)
    if kind == "ratio":
        return ratio
    if kind == "log_prob":
        return stop(ratio) * new
    result = torch.zeros_like(new)
    anchors = stop(new)
    for episode in range(new.shape[0]):  # DiCE: box of all up to here, less box of all before
        before = torch.ones_like(new[0, 0])
        for step in range(new.shape[1]):
            if samples.weights[episode, step] > 0:
                up_to = before * torch.exp(new[episode, step] - anchors[episode, step])
                result[episode, step] = up_to - before
                before = up_to
    return stop(ratio) * result


def adapted(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    task: MetaBatch,
    order: str = "second",
    stop: Stop = Tensor.detach,
) -> tuple[Parameters, list[Any]]:
    """One task's parameters after ``torch.autograd.grad(create_graph=True)``; policies before."""
    inner = settings.inner
    if inner.parameters == "context":
        return _adapted_context(settings, parameters, task), []
    policies = []
    theta = {name: value for name, value in parameters.items() if "/" not in name}
    theta = {k: v if v.requires_grad else v.clone().requires_grad_() for k, v in theta.items()}
    for support in task.support:
        policies.append(action_distribution(spec, theta, support.observations))
        kept = score(inner.objective, log_probs(policies[-1], support), support, stop)
        loss = -(kept * support.advantages * support.weights).sum()
        for value in theta.values():
            loss = loss + inner.l2 * (value**2).sum()
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        if order == "first":
            slopes = tuple(stop(slope) for slope in slopes)
        moved = {}
        for (name, value), slope in zip(theta.items(), slopes, strict=True):
            if inner.parameters == "head" and not name.startswith(("mean.", "logits.")):
                moved[name] = value
                continue
            rate = inner.learning_rate
            if inner.learn_inner_rates:
                rate = torch.exp(parameters[f"log_inner_rate/{name}"])  # type: ignore[assignment]
            moved[name] = value - rate * slope
        theta = moved
    return theta, policies


def _adapted_context(settings: Settings, parameters: Parameters, task: MetaBatch) -> Parameters:
    """The same where tanh of a context is a further input, and the context follows data alone."""
    rate: Tensor | float = settings.inner.learning_rate
    if settings.inner.learn_inner_rates:
        rate = torch.exp(parameters["log_inner_rate/context"])
    shift = (parameters["context_weight"] * torch.tanh(rate * task.context_gradient)).sum(1)
    policy = {name: v for name, v in parameters.items() if "/" not in name}
    del policy["context_weight"]
    return {**policy, "hidden_0.bias": policy["hidden_0.bias"] + shift}


def meta_loss(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    batch: MetaBatch,
    order: str = "second",
    stop: Stop = Tensor.detach,
) -> Tensor:
    """The outer objective, task by task."""
    losses = [task_loss(settings, spec, parameters, task, order, stop) for task in tasks_of(batch)]
    return torch.stack(losses).mean()


def task_loss(
    settings: Settings,
    spec: PolicySpec,
    parameters: Parameters,
    task: MetaBatch,
    order: str = "second",
    stop: Stop = Tensor.detach,
) -> Tensor:
    """Adapt, then the outer loss."""
    outer, query = settings.outer, task.query
    theta, policies = adapted(settings, spec, parameters, task, order, stop)
    new = log_probs(action_distribution(spec, theta, query.observations), query)
    ratio = torch.exp(new - query.log_probs)
    gain = (stop(ratio) * new if outer.objective == "reinforce" else ratio) * query.advantages
    if outer.objective == "ppo":
        bounded = torch.clamp(ratio, 1 - outer.clip, 1 + outer.clip)
        gain = torch.minimum(gain, bounded * query.advantages)
    loss = -(gain * query.weights).sum()
    for policy, old, support in zip(policies, task.support_behavior, task.support, strict=True):
        if outer.objective == "ppo":
            kl = (torch_kl(as_torch(old), policy) * support.weights.reshape(-1)).sum()
            loss = loss + outer.inner_kl_coefficient * kl / len(policies)
        made = torch.exp(log_probs(policy, support) - support.log_probs)
        loss = (
            loss - outer.e_maml_coefficient * task.task_advantage * (made * support.weights).sum()
        )
    return loss


def adapted_kl(
    settings: Settings,
    spec: PolicySpec,
    old: Parameters,
    new: Parameters,
    batch: MetaBatch,
    order: str = "second",
) -> Tensor:
    """Mean KL over tasks and query steps, from the policies adapted from ``old`` to ``new``'s."""
    kls = []
    for task in tasks_of(batch):
        before, after = (
            action_distribution(
                spec,
                adapted(settings, spec, theta, task, order)[0],
                task.query.observations,
            )
            for theta in (old, new)
        )
        kls.append((torch_kl(before, after) * task.query.weights.reshape(-1)).sum())
    return torch.stack(kls).mean()


def tasks_of(batch: MetaBatch) -> list[MetaBatch]:
    """The tasks of a batch, one by one, without their axis."""
    return [tree_map(lambda part, i=i: part[i], batch) for i in range(len(batch.task_advantage))]  # type: ignore[misc]


def tree_map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """``function`` of every tensor of ``tree``."""
    result: Tree = torch.utils._pytree.tree_map(function, tree)
    return result
