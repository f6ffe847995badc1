"""Track the work of meta-batches in progress: what is queued, running, finished and lost.

Work is keyed by iteration and task, and its result depends on the key alone, so running a piece
twice is harmless: the first result counts. Nothing here depends on Ray; results are opaque.

A piece of work is one task with all its phases, since the adapted policy that collects the query
data never leaves the actor that adapted it. Counts per task therefore hold for each of its phases,
and the learner checks that every phase of every task arrives once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any, Generic, TypeVar

from maml_ray.learning.rollout_worker import Assignment

Result = TypeVar("Result")


@dataclass(frozen=True)
class WorkCounts:
    """Number of pieces of work by outcome.

    Attributes:
        dispatched: given to an actor, in total.
        retried: of those, given out again after a failure.
        duplicated: of those, given to an idle actor as well because the first was slow.
        used: results that the learner received.
        discarded: results that came second, or too late.
        lost: never answered: the actor died, hung or raised an error.
    """

    dispatched: int = 0
    retried: int = 0
    duplicated: int = 0
    used: int = 0
    discarded: int = 0
    lost: int = 0

    def __add__(self, other: WorkCounts) -> WorkCounts:
        return WorkCounts(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )

    @property
    def unanswered(self) -> int:
        """Number of dispatched pieces without an outcome yet."""
        return self.dispatched - self.used - self.discarded - self.lost


class WorkBatch(Generic[Result]):
    """One meta-batch, in which every task must be done once.

    Args:
        assignments: the work, one assignment per task.
        reused: earlier results by task index; only the other tasks are done.
        parameters: passed to the actors with each assignment.
        counts: counts of earlier work on the same meta-batch.
    """

    def __init__(
        self,
        assignments: Sequence[Assignment],
        reused: dict[int, Result] | None = None,
        *,
        parameters: Any = None,
        counts: WorkCounts | None = None,
    ) -> None:
        self.parameters = parameters
        self._assignments = {work.task_index: work for work in assignments}
        self._results: dict[int, Result] = dict(reused or {})
        self._queue = deque(work for work in assignments if work.task_index not in self._results)
        self._num_running: Counter[int] = Counter()
        self._failures: Counter[int] = Counter()
        self._requeued: set[int] = set()
        self._counts = Counter(asdict(counts or WorkCounts()))

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """All work of the batch."""
        return tuple(self._assignments.values())

    @property
    def is_finished(self) -> bool:
        """Whether every task is done."""
        return self.num_unfinished == 0

    @property
    def num_queued(self) -> int:
        """Number of pieces that no actor is working on."""
        return len(self._queue)

    @property
    def counts(self) -> WorkCounts:
        """Outcomes of the work so far."""
        return WorkCounts(**self._counts)

    @property
    def num_unfinished(self) -> int:
        """Number of tasks that are not done."""
        return len(self._assignments) - len(self._results)

    def results(self) -> tuple[Result, ...]:
        """Return the results of a finished batch in task order."""
        assert self.is_finished
        return tuple(self._results[index] for index in sorted(self._results))

    def results_after(self, count: int) -> list[Result]:
        """Return the results in order of arrival, without the first ``count``."""
        return list(islice(self._results.values(), count, None))

    @property
    def next_is_repeated(self) -> bool:
        """Whether the next queued piece was lost with an actor before."""
        return bool(self._queue) and self._queue[0].task_index in self._requeued

    def is_repeated(self, work: Assignment) -> bool:
        """Return whether ``work`` belongs to this batch and was lost with an actor before."""
        return self.contains(work) and work.task_index in self._requeued

    def next_item(self) -> Assignment:
        """Remove and return the next queued piece."""
        work = self._queue.popleft()
        self._num_running[work.task_index] += 1
        self._counts["dispatched"] += 1
        self._counts["retried"] += work.task_index in self._requeued
        return work

    def contains(self, work: Assignment) -> bool:
        """Return whether ``work`` belongs to this batch."""
        return self._assignments.get(work.task_index) == work

    def needs(self, work: Assignment) -> bool:
        """Return whether ``work`` belongs to this batch and is not done."""
        return self.contains(work) and work.task_index not in self._results

    def can_duplicate(self, work: Assignment) -> bool:
        """Return whether ``work`` is needed and exactly one actor is working on it."""
        return self.needs(work) and self._num_running[work.task_index] == 1

    def duplicate(self, work: Assignment) -> None:
        """Record that ``work`` was given to a second actor."""
        self._num_running[work.task_index] += 1
        self._counts["dispatched"] += 1
        self._counts["duplicated"] += 1

    def finish(self, work: Assignment, result: Result) -> None:
        """Record a result; the first one per task is used."""
        if not self.contains(work):  # of an earlier batch
            self._counts["discarded"] += 1
            return
        self._num_running[work.task_index] -= 1
        if work.task_index in self._results:
            self._counts["discarded"] += 1
            return
        self._results[work.task_index] = result
        self._counts["used"] += 1

    def requeue(self, items: Iterable[Assignment], blamed: Assignment | None = None) -> int:
        """Record the loss of an actor's work and queue it again, unless it is done.

        Args:
            items: the actor's work, in the order in which it was assigned.
            blamed: the one of them that the actor was working on.

        Returns:
            Consecutive failures of the blamed piece; 0 if it is no longer needed.
        """
        for work in reversed(list(items)):
            self._counts["lost"] += 1
            if not self.contains(work):
                continue
            self._num_running[work.task_index] -= 1
            if work.task_index not in self._results and not self._num_running[work.task_index]:
                self._queue.appendleft(work)
                self._requeued.add(work.task_index)
        if blamed is None or not self.needs(blamed):
            return 0  # another actor has done it, so it is not what kills actors
        self._failures[blamed.task_index] += 1
        return self._failures[blamed.task_index]


class WorkQueue(Generic[Result]):
    """The meta-batches in progress, by iteration: the earliest is the most urgent.

    Outcomes go to the batch that contains the work. Outcomes of work whose batch has been removed
    are counted by the first batch, so at least one batch must be in progress at any outcome.
    """

    def __init__(self) -> None:
        self._batches: list[WorkBatch[Result]] = []

    def __iter__(self) -> Iterator[WorkBatch[Result]]:
        return iter(self._batches)

    @property
    def is_finished(self) -> bool:
        """Whether every task of every batch is done."""
        return all(batch.is_finished for batch in self._batches)

    def add(self, batch: WorkBatch[Result]) -> None:
        """Add a batch behind those of earlier iterations."""
        self._batches.append(batch)
        self._batches.sort(key=lambda one: one.assignments[0].iteration)

    def remove(self, batch: WorkBatch[Result]) -> None:
        """Remove a batch; its late results will be discarded."""
        self._batches.remove(batch)

    def needs(self, work: Assignment) -> bool:
        """Return whether ``work`` belongs to a batch in progress and is not done."""
        return any(batch.needs(work) for batch in self._batches)

    def is_repeated(self, work: Assignment) -> bool:
        """Return whether ``work`` belongs to a batch in progress and was lost before."""
        return any(batch.is_repeated(work) for batch in self._batches)

    def finish(self, work: Assignment, result: Result) -> None:
        """Record a result."""
        self._batch_of(work).finish(work, result)

    def requeue(self, items: Sequence[Assignment], blamed: Assignment) -> int:
        """Record the loss of an actor's work; see :meth:`WorkBatch.requeue`."""
        failures = 0
        for batch in self._batches:
            own = [work for work in items if self._batch_of(work) is batch]
            failures += batch.requeue(own, blamed if blamed in own else None)
        return failures

    def _batch_of(self, work: Assignment) -> WorkBatch[Result]:
        return next((batch for batch in self._batches if batch.contains(work)), self._batches[0])
