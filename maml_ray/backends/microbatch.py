"""How the tasks of a meta-batch go through the learner's arithmetic: how many at once, and where.

A task's arithmetic needs no other task. On a CPU each goes by itself, small ones in company, on one
of several threads, each of which computes alone: its matrices stay in the core's own cache, nobody
waits at a barrier after every operation, and how sums are rounded does not depend on the number of
threads. On a GPU as many tasks go in one pass as its memory has room for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from maml_ray.backends.tensor_tree import joined, length, sliced
from maml_ray.config.settings import Settings
from maml_ray.policies.spec import PolicySpec

Batch = TypeVar("Batch")
Result = TypeVar("Result")

_SAMPLES = 2000
"""As many keep a core busy for longer than Python takes from one operation to the next."""
_OF_FREE_MEMORY = 0.5
"""Of what is free on the GPU, where no budget is set: PyTorch keeps some for pieces of any size."""


class Passes:
    """Pieces of a meta-batch, one after another or side by side.

    Args:
        tasks: in one pass, at most; None for all.
        threads: that passes are spread over; None to stay on the caller's, with all of its own.
    """

    def __init__(self, tasks: int | None = None, threads: int | None = None) -> None:
        self.tasks, self.threads = tasks, threads
        self._pool = (
            ThreadPoolExecutor(threads, "task", initializer=torch.set_num_threads, initargs=(1,))
            if threads
            else None
        )

    def each(self, function: Callable[[Batch], Result], batch: Batch) -> list[Result]:
        """``function`` of every piece of ``batch``, in the order of the tasks.

        Args:
            function: of a piece, which has the axis of tasks too. It must need no other piece.
            batch: tensors with a leading axis of N tasks, in (named) tuples.
        """
        return self.run([partial(function, piece) for piece in self._pieces(batch)])

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """What each of ``calls`` returns."""
        if self._pool is None:
            return [call() for call in calls]
        return list(self._pool.map(lambda call: call(), calls))

    def over(self, tasks: int, function: Callable[[range], object]) -> None:
        """Have ``function`` see to all ``tasks``, some at a time."""
        self.run([partial(function, some) for some in self._ranges(tasks)])

    def must_forget(self, batch: Batch) -> bool:
        """Whether there is no room for what all pieces leave behind: they share one's memory."""
        return self._pool is None and self.tasks is not None and self.tasks < length(batch)

    def joined(self, function: Callable[[Batch], Result], batch: Batch) -> Result:
        """The same, joined along the axis of tasks: a tree of tensors."""
        found = self.each(function, batch)
        return found[0] if len(found) == 1 else joined(found)

    def _pieces(self, batch: Batch) -> list[Batch]:
        ranges = self._ranges(length(batch))
        if len(ranges) == 1:
            return [batch]
        return [sliced(batch, some.start, some.stop) for some in ranges]

    def _ranges(self, tasks: int) -> list[range]:
        size = self.tasks or tasks
        return [range(start, min(start + size, tasks)) for start in range(0, tasks, size)]


WHOLE = Passes()
"""All tasks in one pass, on the caller's thread."""


def passes_on(
    device: torch.device, settings: Settings, spec: PolicySpec, *, threads: int = 1
) -> Passes:
    """What suits ``device``.

    Args:
        device: of the learner.
        settings: ``cluster.learner_memory_gib`` is for one pass on a GPU; None for half of what
            is free.
        spec: the policy's sizes.
        threads: of the CPU.
    """
    if device.type == "cpu":
        samples = settings.meta_batch.episodes * settings.task.horizon
        return Passes(max(1, _SAMPLES // samples), threads)
    budget = settings.cluster.learner_memory_gib
    if budget is None:
        available = _OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]
    else:
        available = budget * 2**30
    return Passes(max(1, int(available / bytes_a_task(settings, spec))))


def bytes_a_task(settings: Settings, spec: PolicySpec) -> int:
    """Memory that a meta-gradient takes for each task of a pass, beside the batch; an estimate.

    Float32, of every sample: what the passes forward and back of each phase leave behind, and
    what the widest moment, an inner step's Hessian product, takes on the way.
    """
    samples = settings.meta_batch.episodes * settings.task.horizon
    hidden, narrow = sum(spec.hidden_sizes), spec.observation_size + 12 * spec.action_size
    phases = settings.inner.steps + 1
    return 4 * samples * (phases * (3 * hidden + narrow) + 5 * hidden + narrow)
