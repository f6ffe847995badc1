"""The work of meta-batches while they are under way: what is left, begun, done, and how often.

Work is keyed by iteration and task, and its result depends on the key alone: handing a piece out
twice is harmless, and the first answer counts. Nothing here knows of Ray: results are opaque.

A piece of work is one task with all its phases: the adapted policy that collects the query data
never leaves the actor that has adapted it. So what is counted for a task is counted for each of
its phases, and the learner checks that every phase of every task is there once.
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
    """What became of the pieces of work that were handed to actors.

    Attributes:
        dispatched: handed out, all told.
        retried: of them, handed out again after a failure.
        duplicated: of them, handed to an idle actor as well, since the first was slow.
        used: answers that the learner got.
        discarded: answers that came second, or too late.
        lost: never answered, since the actor died, hung or raised an error.
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
        """Pieces of which nothing has been heard yet."""
        return self.dispatched - self.used - self.discarded - self.lost


class Batch(Generic[Result]):
    """One meta-batch: every task is to be done once.

    Args:
        assignments: all its work.
        kept: results from before, by task index: only the others are worked at.
        parameters: what the actors are to be given with each piece.
        counts: what became of the work before.
    """

    def __init__(
        self,
        assignments: Sequence[Assignment],
        kept: dict[int, Result] | None = None,
        *,
        parameters: Any = None,
        counts: WorkCounts | None = None,
    ) -> None:
        self.parameters = parameters
        self._assignments = {work.task_index: work for work in assignments}
        self._done: dict[int, Result] = dict(kept or {})
        self._queue = deque(work for work in assignments if work.task_index not in self._done)
        self._copies: Counter[int] = Counter()
        self._failures: Counter[int] = Counter()
        self._again: set[int] = set()
        self._counts = Counter(asdict(counts or WorkCounts()))

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """All its work."""
        return tuple(self._assignments.values())

    @property
    def finished(self) -> bool:
        """Whether every task is done."""
        return self.left == 0

    @property
    def waiting(self) -> int:
        """How many pieces nobody has begun."""
        return len(self._queue)

    @property
    def counts(self) -> WorkCounts:
        """What has become of the work so far."""
        return WorkCounts(**self._counts)

    @property
    def left(self) -> int:
        """How many tasks are not done."""
        return len(self._assignments) - len(self._done)

    def results(self) -> tuple[Result, ...]:
        """The results in the order of their tasks, once the batch is finished."""
        assert self.finished
        return tuple(self._done[index] for index in sorted(self._done))

    def done_since(self, before: int) -> list[Result]:
        """Results in the order in which they came, but for the first so many."""
        return list(islice(self._done.values(), before, None))

    def hand_out(self) -> Assignment:
        """The next piece that nobody has begun."""
        work = self._queue.popleft()
        self._copies[work.task_index] += 1
        self._counts["dispatched"] += 1
        self._counts["retried"] += work.task_index in self._again
        return work

    def has(self, work: Assignment) -> bool:
        """Whether ``work`` is of this batch."""
        return self._assignments.get(work.task_index) == work

    def needs(self, work: Assignment) -> bool:
        """Whether ``work`` is of this batch and not yet done."""
        return self.has(work) and work.task_index not in self._done

    def may_duplicate(self, work: Assignment) -> bool:
        """Whether ``work`` is needed, and one actor alone is at it."""
        return self.needs(work) and self._copies[work.task_index] == 1

    def duplicate(self, work: Assignment) -> None:
        """``work`` has been handed to a second actor."""
        self._copies[work.task_index] += 1
        self._counts["dispatched"] += 1
        self._counts["duplicated"] += 1

    def finish(self, work: Assignment, result: Result) -> None:
        """An answer: the first to a piece of work of this batch is used."""
        if not self.has(work):  # of a batch before this one
            self._counts["discarded"] += 1
            return
        self._copies[work.task_index] -= 1
        if work.task_index in self._done:
            self._counts["discarded"] += 1
            return
        self._done[work.task_index] = result
        self._counts["used"] += 1

    def lose(self, works: Iterable[Assignment], blamed: Assignment | None = None) -> int:
        """Nobody answers to ``works`` any more: they are handed out again, unless done.

        Args:
            works: of one actor, in the order in which it had them.
            blamed: of them, the one that the actor was at.

        Returns:
            How often the blamed one has failed; 0 where it is not needed any more.
        """
        for work in reversed(list(works)):
            self._counts["lost"] += 1
            if not self.has(work):
                continue
            self._copies[work.task_index] -= 1
            if work.task_index not in self._done and not self._copies[work.task_index]:
                self._queue.appendleft(work)
                self._again.add(work.task_index)
        if blamed is None or not self.needs(blamed):
            return 0  # what another has done already kills nobody
        self._failures[blamed.task_index] += 1
        return self._failures[blamed.task_index]


class Agenda(Generic[Result]):
    """The meta-batches under way, the most urgent first: of the earliest iteration.

    What is heard of a piece of work goes to its own batch; of one whose batch is over, to the first
    of them, which counts it. So there is at least one batch whenever anything is heard.
    """

    def __init__(self) -> None:
        self._batches: list[Batch[Result]] = []

    def __iter__(self) -> Iterator[Batch[Result]]:
        return iter(self._batches)

    @property
    def finished(self) -> bool:
        """Whether every task of every batch is done."""
        return all(batch.finished for batch in self._batches)

    def begin(self, batch: Batch[Result]) -> None:
        """Its work is to be done, after that of the iterations before it."""
        self._batches.append(batch)
        self._batches.sort(key=lambda one: one.assignments[0].iteration)

    def end(self, batch: Batch[Result]) -> None:
        """Nothing more is done for it."""
        self._batches.remove(batch)

    def needs(self, work: Assignment) -> bool:
        """Whether ``work`` is of a batch under way and not yet done."""
        return any(batch.needs(work) for batch in self._batches)

    def finish(self, work: Assignment, result: Result) -> None:
        """An answer."""
        self._owner(work).finish(work, result)

    def lose(self, works: Sequence[Assignment], blamed: Assignment) -> int:
        """Nobody answers to ``works`` any more: see :meth:`Batch.lose`."""
        failures = 0
        for batch in self._batches:
            own = [work for work in works if self._owner(work) is batch]
            failures += batch.lose(own, blamed if blamed in own else None)
        return failures

    def _owner(self, work: Assignment) -> Batch[Result]:
        return next((batch for batch in self._batches if batch.has(work)), self._batches[0])
