"""Divide the tasks of a meta-batch into chunks, and spread them over threads.

A task's arithmetic needs no other task. On a CPU chunks hold one task, or a few small ones, and
each runs on one of several threads that compute with one core: its matrices stay in the core's
cache, no thread waits at a barrier after every operation, and rounding does not depend on the
number of threads. On a GPU a chunk holds as many tasks as its memory has room for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from maml_ray.backends.tensor_tree import concat, num_rows, slice_rows
from maml_ray.config.settings import Settings
from maml_ray.maml.losses import outer_objective
from maml_ray.policies.spec import PolicySpec

Batch = TypeVar("Batch")
Result = TypeVar("Result")

_MIN_SAMPLES = 2000
"""Samples of a chunk on a CPU: they take a core longer than Python takes between operations."""
_SHARE_OF_FREE_MEMORY = 0.5
"""Budget on a GPU if none is set; PyTorch's allocator keeps some memory for blocks of any size."""


class Microbatcher:
    """Apply functions to a meta-batch chunk by chunk.

    Args:
        chunk_size: largest number of tasks in a chunk; None for all of them.
        threads: number of threads that chunks are spread over; None to stay on the caller's thread,
            with PyTorch's own threads.
    """

    def __init__(self, chunk_size: int | None = None, threads: int | None = None) -> None:
        self.chunk_size, self.threads = chunk_size, threads
        self._pool = (
            ThreadPoolExecutor(threads, "task", initializer=torch.set_num_threads, initargs=(1,))
            if threads
            else None
        )

    def map_chunks(self, function: Callable[[Batch], Result], batch: Batch) -> list[Result]:
        """Return ``function`` of every chunk of ``batch``, in the order of the tasks.

        Args:
            function: of a chunk, which has the axis of tasks too.
            batch: tensors with a leading axis of N tasks, in (named) tuples.
        """
        ranges = self._ranges(num_rows(batch))
        if len(ranges) == 1:
            return self.run([partial(function, batch)])
        chunks = [slice_rows(batch, tasks.start, tasks.stop) for tasks in ranges]
        return self.run([partial(function, chunk) for chunk in chunks])

    def map_concat(self, function: Callable[[Batch], Result], batch: Batch) -> Result:
        """Return :meth:`map_chunks`' results, trees of tensors, concatenated along the tasks."""
        return concat(self.map_chunks(function, batch))

    def for_each_task(self, tasks: range, function: Callable[[int], object]) -> None:
        """Call ``function`` with the index of every task in ``tasks``, on the caller's thread too.

        PyTorch's number of threads is the caller's there, so ``function`` must not compute with it.
        """
        chunks = iter(self._ranges(len(tasks)))

        def work() -> None:
            for chunk in chunks:
                for task in tasks[chunk.start : chunk.stop]:
                    function(task)

        helpers = min(self.threads or 1, len(self._ranges(len(tasks)))) - 1
        futures = [self._pool.submit(work) for _ in range(helpers)] if self._pool else []
        work()
        for future in futures:
            future.result()

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """Return the results of ``calls``, made side by side if there are threads."""
        if self._pool is None:
            return [call() for call in calls]
        return list(self._pool.map(lambda call: call(), calls))

    def must_recompute(self, batch: Batch) -> bool:
        """Return whether the graphs of all chunks cannot be kept: memory is that of one chunk."""
        return (
            self._pool is None and self.chunk_size is not None and self.chunk_size < num_rows(batch)
        )

    def _ranges(self, tasks: int) -> list[range]:
        size = self.chunk_size or tasks
        return [range(start, min(start + size, tasks)) for start in range(0, tasks, size)]


SINGLE_CHUNK = Microbatcher()
"""All tasks at once, on the caller's thread."""


def make_microbatcher(
    device: torch.device, settings: Settings, spec: PolicySpec, *, threads: int = 1
) -> Microbatcher:
    """Return the division into chunks that suits ``device``.

    Args:
        device: of the learner.
        settings: of the run: sizes of the meta-batch, and ``cluster.learner_memory_gib``, the
            memory of one chunk on a GPU; None for half of what is free.
        spec: the policy's sizes.
        threads: of the CPU.
    """
    if device.type == "cpu":
        samples = settings.meta_batch.episodes * settings.task.horizon
        return Microbatcher(max(1, _MIN_SAMPLES // samples), threads)
    budget = settings.cluster.learner_memory_gib
    if budget is None:
        available = _SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]
    else:
        available = budget * 2**30
    return Microbatcher(max(1, int(available / bytes_per_task(settings, spec))))


def bytes_per_task(settings: Settings, spec: PolicySpec) -> int:
    """Estimate the memory in bytes that autograd takes per task of a chunk, beside the batch.

    Float32. What the graph keeps grows with the samples of each phase. The factors are measured, by
    PyTorch's profiler on a CPU: the peak is 60% to 100% of the estimate for one to three layers.
    A trust region's Fisher product differentiates the second-order graph once more.
    """
    trust_region = outer_objective(settings.outer.objective).uses_trust_region
    per_inner_step, per_query, copies = (10, 4, 3) if trust_region else (3, 2, 2)
    hidden = sum(spec.hidden_sizes)
    steps = 0 if settings.inner.parameters == "context" else settings.inner.steps
    samples = settings.meta_batch.episodes * settings.task.horizon
    parameters = sum(math.prod(shape) for shape in spec.shapes().values())
    narrow = spec.observation_size + 6 * spec.action_size
    floats = samples * (steps * (per_inner_step * hidden + narrow) + per_query * hidden + narrow)
    return 4 * (floats + copies * (steps + 1) * parameters)
