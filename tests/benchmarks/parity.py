"""Compare the meta-gradient on a device with the one that the CPU's kernels compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.backends.base import Backend
from maml_ray.backends.compiled import CompiledBackend
from maml_ray.backends.microbatch import make_microbatcher
from maml_ray.backends.tensor_tree import ravel, tree_map
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.maml.distributions import Parameters
from maml_ray.maml.meta_objective import MetaBatch
from maml_ray.policies.spec import PolicySpec

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest relative difference of the meta-gradient. In float32 TF32 products would be above it."""
OBJECTIVES = ("ppo", "trpo", "reinforce")


@dataclass(frozen=True)
class Parity:
    """How far a device's meta-gradient is from the CPU's.

    Attributes:
        objective: the outer objective.
        dtype: of the computation.
        difference: norm of the difference over the norm of the CPU's gradient.
    """

    objective: str
    dtype: torch.dtype
    difference: float

    @property
    def is_equal(self) -> bool:
        """Whether the difference is rounding; NaN is not."""
        return self.difference <= TOLERANCES[self.dtype]

    def __str__(self) -> str:
        verdict = "equal" if self.is_equal else f"DIFFERENT: above {TOLERANCES[self.dtype]:g}"
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.objective:<12}{kind:<10}{self.difference:.1e}  {verdict}"


def measure_parity(device: str) -> list[Parity]:
    """Compare on a small meta-batch, by each objective, in float64 and in float32."""
    return [
        parity
        for objective in OBJECTIVES
        for parity in _parities(_settings(objective), torch.device(device))
    ]


def describe_parity(results: list[Parity], device: str) -> list[str]:
    """A table, line by line."""
    head = f"the meta-gradient on {device} (autograd) and on the CPU (kernels): relative difference"
    return [head, *map(str, results)]


def _settings(objective: str) -> Settings:
    return load_settings(
        overrides=[
            "task.name=half-cheetah-direction",
            "task.horizon=50",
            "meta_batch.tasks=4",
            "meta_batch.episodes=4",
            "inner.learning_rate=0.1",
            f"outer.objective={objective}",
        ]
    )


def _parities(settings: Settings, device: torch.device) -> list[Parity]:
    worker = RolloutWorker(settings)
    learner = MetaLearner(settings, worker.spec)
    version, collecting = learner.version, learner.collection_params()
    rollouts = [
        worker.roll_out(collecting, Assignment(version, i, task, version))[0]
        for i, task in enumerate(sample_tasks(settings, worker.tasks, version))
    ]
    batch, parameters = learner.prepare(rollouts), learner.parameters
    worker.close()
    cpu = torch.device("cpu")
    kernels = _backend(CompiledBackend, settings, worker.spec, cpu)
    autograd = _backend(AutogradBackend, settings, worker.spec, device)
    results = []
    for dtype in TOLERANCES:
        expected = _gradient(kernels, batch, parameters, cpu, dtype)
        difference = _gradient(autograd, batch, parameters, device, dtype).cpu() - expected
        relative = float(difference.norm() / expected.norm())
        results.append(Parity(settings.outer.objective, dtype, relative))
    return results


def _backend(
    kind: type[Backend], settings: Settings, spec: PolicySpec, device: torch.device
) -> Backend:
    microbatcher = make_microbatcher(device, settings, spec, threads=1)
    return kind(settings.inner, settings.outer, spec, microbatcher)


def _gradient(
    backend: Backend,
    batch: MetaBatch,
    parameters: Parameters,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    here = {
        name: value.detach().to(device, dtype).requires_grad_()
        for name, value in parameters.items()
    }
    moved = tree_map(lambda tensor: tensor.to(device, dtype), batch)
    _, _, gradients = backend.value_and_grad(here, moved, "second")
    return ravel(gradients.values()).detach()
