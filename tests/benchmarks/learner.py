"""Compare the learner's meta-update with the arithmetic that it consists of.

The floor is the time that the matrix products of an update would take if each ran as fast as a
large one on the same threads. Both are timed in alternation. Activations, losses and the optimizer
come on top of the floor.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.batch_builder import MetaBatchBuilder
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.trajectories import TaskRollouts
from maml_ray.runtime.actors import keep_freed_memory
from tests.benchmarks.arguments import count
from tests.benchmarks.parity import describe_parity, measure_parity
from tests.benchmarks.ratios import Ratio

_LARGE = 2048


@dataclass(frozen=True)
class LearnerResult:
    """Medians over updates, in seconds.

    Attributes:
        objective: ``ppo`` or ``trpo``.
        device: where it was computed, in words.
        tasks, episodes, horizon: of the meta-batch, support and query.
        operations: floating-point operations of an update's matrix products.
        update_s: of an update, rollouts to the next parameters.
        prepare_s: of it, until the rollouts are a meta-batch on the device.
        copy_s: of that, until they are copied to it.
        late_s: of an update for which all tasks but the last had been taken ahead.
        floor_share: the floor over the update.
    """

    objective: str
    device: str
    tasks: int
    episodes: int
    horizon: int
    operations: float
    update_s: float
    prepare_s: float
    copy_s: float
    late_s: float
    floor_share: Ratio

    def ratios(self) -> dict[str, Ratio]:
        """By name; more is better."""
        size = f"{self.tasks}x{self.episodes}x{self.horizon}"
        return {f"learner, {self.objective}, {size}: share of arithmetic": self.floor_share}


def measure_both(
    *, threads: int, tasks: int = 40, episodes: int = 20, rounds: int = 3, device: str = "cpu"
) -> list[LearnerResult]:
    """By PPO and by TRPO; without further arguments, the meta-batch of the papers."""
    keep_freed_memory()  # as the learner of a run does
    return [
        measure(
            objective,
            tasks=tasks,
            episodes=episodes,
            rounds=rounds,
            device=device,
            threads=threads,
        )
        for objective in ("ppo", "trpo")
    ]


def measure(
    objective: str, *, tasks: int, episodes: int, rounds: int, device: str, threads: int
) -> LearnerResult:
    """Time ``rounds`` updates in turns with a large matrix product."""
    settings = load_settings(
        overrides=[
            "task.name=half-cheetah-direction",
            f"meta_batch.tasks={tasks}",
            f"meta_batch.episodes={episodes}",
            f"outer.objective={objective}",
            # Every update takes all its steps, whatever the data: always the same.
            "outer.max_query_kl=null",
            "outer.tasks_per_minibatch=null",
            "outer.diagnose_every=null",
        ]
    )
    worker = RolloutWorker(settings)
    learner = MetaLearner(settings, worker.spec, device, threads)
    start, rollouts = learner.state(), _rollouts(settings, worker, learner)
    torch.set_num_threads(threads)
    updates, prepares, copies, lates, floors = [], [], [], [], []
    for _ in range(rounds + 1):
        learner.load(start)
        copies.append(_timed(lambda: _copy(learner, rollouts), device))
        prepares.append(_timed(lambda: learner.prepare(rollouts), device))
        updates.append(_timed(lambda: learner.update(rollouts), device))
        learner.load(start)
        _timed(lambda: learner.prefetch(rollouts[:-1]), device)
        lates.append(_timed(lambda: learner.update(rollouts), device))
        steps = settings.outer.epochs if objective == "ppo" else 0
        operations = _operations(settings, worker.spec, steps)
        floors.append(operations / _rate(device))
    worker.close()
    return LearnerResult(
        objective=objective,
        device=f"{device}, {threads} threads" if device == "cpu" else torch.cuda.get_device_name(),
        tasks=tasks,
        episodes=episodes,
        horizon=settings.task.horizon,
        operations=operations,
        update_s=float(np.median(updates[1:])),
        prepare_s=float(np.median(prepares[1:])),
        copy_s=float(np.median(copies[1:])),
        late_s=float(np.median(lates[1:])),
        floor_share=Ratio.of(np.array(floors[1:]) / np.array(updates[1:])),
    )


def _rollouts(
    settings: Settings, worker: RolloutWorker, learner: MetaLearner
) -> list[TaskRollouts]:
    """One task's, as those of all: what they say is not what is timed."""
    task = sample_tasks(settings, worker.tasks, 0)[0]
    rollouts, _ = worker.roll_out(learner.publish(), Assignment(0, 0, task, 0))
    return [replace(rollouts, task_index=i) for i in range(settings.meta_batch.tasks)]


def _copy(learner: MetaLearner, rollouts: list[TaskRollouts]) -> None:
    builder = MetaBatchBuilder(
        learner.settings, learner.backend, learner.parameters, learner.publish().normalizer
    )
    for task in rollouts:
        builder.copy_task(task)


def _operations(settings: Settings, spec: PolicySpec, steps: int) -> float:
    """Of the matrix products of an update: twice the multiplications.

    A pass forward goes once over the weights. A pass back goes twice, but for the first layer,
    whose inputs want no slope. A direction is pushed forward as a pass back goes; back again it
    has twice its work.
    """
    sizes = (spec.observation_size, *spec.hidden_sizes, spec.action_size)
    products = [a * b for a, b in pairwise(sizes)]
    forward, inner = float(sum(products)), float(sum(products[1:]))
    back = push = forward + inner
    push_back = forward + 3.0 * inner
    adapting = settings.inner.steps * (forward + back) + forward
    pulled = back + settings.inner.steps * (push + push_back)
    samples = settings.meta_batch.tasks * settings.meta_batch.episodes * settings.task.horizon
    work = adapting  # of the policies that collected the data
    if steps:
        work += steps * (adapting + pulled)
    else:  # TRPO: a gradient, Fisher products that use its pass forward, and a try
        pushed = settings.inner.steps * (push + push_back) + push
        work += 2.0 * adapting + pulled
        work += settings.outer.trust_region.cg_iterations * (pushed + pulled)
    return 2.0 * samples * work


def _rate(device: str) -> float:
    """Operations a second of a large product in float32, the best of a few."""
    left, right = (torch.randn(_LARGE, _LARGE, device=device) for _ in range(2))
    return 2.0 * _LARGE**3 / min(_timed(lambda: left @ right, device) for _ in range(4))


def _timed(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def describe(results: list[LearnerResult]) -> list[str]:
    """A table, line by line."""
    lines = [
        "a meta-update                     GFLOP   update s   of it prepared   copied   "
        "others taken ahead   share of arithmetic"
    ]
    for one in results:
        name = f"{one.objective}, {one.tasks} tasks x {one.episodes} x {one.horizon}"
        lines.append(
            f"{name:<30}{one.operations / 1e9:>9.0f}{one.update_s:>11.3f}{one.prepare_s:>17.3f}"
            f"{one.copy_s:>9.3f}{one.late_s:>21.3f}{one.floor_share.median:>22.2f}"
        )
    return lines


def main() -> int:
    """``python -m tests.benchmarks.learner``: the papers' meta-batch, by both outer steps.

    Before it times, it compares the device's meta-gradient with that of the CPU's kernels; its exit
    code is 1 if they differ.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.learner")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device of the learner"
    )
    parser.add_argument("--threads", type=count, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--tasks", type=count, default=40, help="tasks of the meta-batch")
    parser.add_argument("--episodes", type=count, default=20, help="episodes per task")
    parser.add_argument("--rounds", type=count, default=3, help="interleaved rounds")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"PyTorch {torch.__version__} sees no GPU: leave --device out")
    parities = measure_parity(chosen.device)
    print(*describe_parity(parities, chosen.device), "", sep="\n", flush=True)
    print(*describe(measure_both(**vars(chosen))), sep="\n")
    return 0 if all(parity.is_equal for parity in parities) else 1


if __name__ == "__main__":
    sys.exit(main())
