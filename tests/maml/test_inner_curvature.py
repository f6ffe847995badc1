"""Second derivatives of the inner losses: which products of scores each of them keeps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maml_ray.config.loading import validate_settings
from maml_ray.config.sections import InnerSettings
from maml_ray.kernels.types import Samples
from maml_ray.maml.policy_losses import inner_loss
from maml_ray.policies.spec import PolicySpec
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.oracles.meta import Parameters

GAUSSIAN = PolicySpec(2, 2, (3,), "tanh", 0.0, -3.0)
CATEGORICAL = PolicySpec(2, 3, (3,), "tanh", 0.0, -3.0, discrete=True)


def shaped(spec: PolicySpec, vector: Tensor) -> Parameters:
    """A vector of all parameters as a dictionary."""
    sizes = {name: torch.Size(shape) for name, shape in spec.shapes().items()}
    parts = vector.split([size.numel() for size in sizes.values()])
    return {name: part.view(size) for (name, size), part in zip(sizes.items(), parts, strict=True)}


def derivatives(
    spec: PolicySpec, kind: Any, theta: Tensor, samples: Samples[Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of an inner loss."""

    def loss(vector: Tensor) -> Tensor:
        return inner_loss(spec, InnerSettings(objective=kind), samples, shaped(spec, vector))[0]

    return torch.func.grad(loss)(theta), torch.func.hessian(loss)(theta)


def one_task(spec: PolicySpec, parameters: Parameters, rng: np.random.Generator) -> Samples[Tensor]:
    """Episodes of 5 and 3 steps, collected with ``parameters`` themselves."""
    settings = validate_settings({"meta_batch": {"tasks": 1}})
    task = meta_oracles.tasks_of(oracles.random_meta_batch(settings, spec, parameters, rng))[0]
    policy = meta_oracles.action_distribution(spec, parameters, task.query.observations)
    return task.query._replace(log_probs=meta_oracles.log_probs(policy, task.query))


def scores_and_curvatures(
    spec: PolicySpec, theta: Tensor, samples: Samples[Tensor]
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """First and second derivatives of every step's log-probability, episode by episode."""

    def log_density(vector: Tensor, episode: int, step: int) -> Tensor:
        parameters = shaped(spec, vector)
        policy = meta_oracles.action_distribution(spec, parameters, samples.observations)
        return meta_oracles.log_probs(policy, samples)[episode, step]

    scores: list[list[Tensor]] = [[], []]
    curvatures: list[list[Tensor]] = [[], []]
    for episode, step in torch.nonzero(samples.weights).tolist():

        def here(vector: Tensor, episode: int = episode, step: int = step) -> Tensor:
            return log_density(vector, episode, step)

        scores[episode].append(torch.autograd.functional.jacobian(here, theta))
        curvatures[episode].append(torch.autograd.functional.hessian(here, theta))
    return scores, curvatures


@pytest.mark.parametrize("kind", ["ratio", "dice", "log_prob"])
@pytest.mark.parametrize("spec", [GAUSSIAN, CATEGORICAL], ids=["gaussian", "categorical"])
def test_which_products_of_scores_a_loss_keeps(spec: PolicySpec, kind: str) -> None:
    """The docstring of :mod:`maml_ray.maml.losses`, at the policy that collected the data."""
    rng = np.random.default_rng(2)
    parameters = oracles.random_parameters(spec, rng)
    samples, theta = one_task(spec, parameters, rng), oracles.flat(parameters)
    scores, curvatures = scores_and_curvatures(spec, theta, samples)
    gradient, hessian = torch.zeros_like(theta), torch.zeros(len(theta), len(theta)).double()
    for episode, of_steps in enumerate(scores):
        assert len(of_steps) == (5, 3)[episode]
        for t, score in enumerate(of_steps):
            kept = curvatures[episode][t].clone()
            if kind in ("ratio", "dice"):
                kept += torch.outer(score, score)
            if kind == "dice":
                for earlier in of_steps[:t]:
                    kept += torch.outer(score, earlier) + torch.outer(earlier, score)
            gradient -= samples.advantages[episode, t] * score / 8
            hessian -= samples.advantages[episode, t] * kept / 8
    found_gradient, found_hessian = derivatives(spec, kind, theta, samples)
    torch.testing.assert_close(found_gradient, gradient)
    torch.testing.assert_close(found_hessian, hessian)


# Two steps, three actions: few enough episodes to take the expectation over all of them.

TABULAR = PolicySpec(4, 3, (), "tanh", 0.0, -3.0, discrete=True)
FIRST_REWARD = torch.tensor([1.0, -0.5, 0.3]).double()
SECOND_REWARD = torch.tensor([[0.0, 2.0, -1.0], [1.0, 0.4, 0.2], [-2.0, 0.1, 1.5]]).double()


def expected_return(theta: Tensor) -> Tensor:
    """Of a policy that sees which action it took first: a sum over all episodes."""
    parameters = shaped(TABULAR, theta)
    logits = torch.eye(4).double() @ parameters["logits.weight"].T + parameters["logits.bias"]
    probabilities = torch.softmax(logits, -1)
    total = torch.zeros(()).double()
    for first, second in product(range(3), range(3)):
        probability = probabilities[0, first] * probabilities[1 + first, second]
        total = total + probability * (FIRST_REWARD[first] + SECOND_REWARD[first, second])
    return total


def all_episodes(theta: Tensor, baseline: Tensor) -> Iterator[tuple[float, Samples[Tensor]]]:
    """Every episode, with its probability; advantages are rewards to go less a value of state."""
    for first, second in product(range(3), range(3)):
        observations = torch.eye(4).double()[[0, 1 + first]]
        policy = meta_oracles.action_distribution(TABULAR, shaped(TABULAR, theta), observations)
        actions = torch.tensor([[first], [second]]).double()
        log_probs = policy.log_prob(actions[:, 0])[None]
        late = SECOND_REWARD[first, second]
        to_go = torch.stack([FIRST_REWARD[first] + late, late])
        advantages = (to_go - baseline[[0, 1 + first]])[None]
        weights = torch.full((1, 2), 0.5).double()
        samples = Samples(observations, actions, log_probs, advantages, weights)
        yield float(log_probs.sum().exp()), samples


@pytest.mark.parametrize("with_baseline", [False, True])
def test_only_dice_has_the_expected_curvature_of_the_expected_return(with_baseline: bool) -> None:
    rng = np.random.default_rng(5)
    theta = torch.from_numpy(rng.standard_normal(15))
    baseline = torch.from_numpy(rng.standard_normal(4)) * float(with_baseline)
    slope, curvature = (
        torch.func.grad(expected_return)(theta),
        torch.func.hessian(expected_return)(theta),
    )
    for kind in ("dice", "ratio", "log_prob"):
        gradient, hessian = torch.zeros_like(slope), torch.zeros_like(curvature)
        for probability, samples in all_episodes(theta, baseline):
            first, second = derivatives(TABULAR, kind, theta, samples)
            gradient -= 2 * probability * first  # a mean over two steps, and a loss
            hessian -= 2 * probability * second
        torch.testing.assert_close(gradient, slope)
        error = float((hessian - curvature).norm() / curvature.norm())
        assert error < 1e-12 if kind == "dice" else error > 0.05, (kind, error)
