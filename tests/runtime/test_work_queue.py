"""The work queue under any order of events: each task is done once and all work is counted."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from maml_ray.learning.rollout_worker import Assignment
from maml_ray.runtime.work_queue import WorkBatch, WorkCounts, WorkQueue
from maml_ray.tasks.task import Task


def assignments(count: int, iteration: int = 0) -> list[Assignment]:
    return [Assignment(iteration, index, Task("backward"), iteration) for index in range(count)]


def test_results_are_in_task_order() -> None:
    batch: WorkBatch[str] = WorkBatch(assignments(3))
    items = [batch.next_item() for _ in range(3)]
    for work in reversed(items):
        batch.finish(work, f"task {work.task_index}")
    assert batch.results() == ("task 0", "task 1", "task 2")
    assert batch.counts == WorkCounts(dispatched=3, used=3)


def test_the_first_of_two_results_counts() -> None:
    batch: WorkBatch[str] = WorkBatch(assignments(1))
    work = batch.next_item()
    assert batch.can_duplicate(work)
    batch.duplicate(work)
    assert not batch.can_duplicate(work)
    batch.finish(work, "first")
    batch.finish(work, "second")
    assert batch.results() == ("first",)
    assert batch.counts == WorkCounts(dispatched=2, duplicated=1, used=1, discarded=1)


def test_lost_work_is_requeued_at_the_front() -> None:
    batch: WorkBatch[str] = WorkBatch(assignments(4))
    first, second = batch.next_item(), batch.next_item()
    assert batch.requeue([first, second], blamed=first) == 1
    assert [batch.next_item().task_index for _ in range(4)] == [0, 1, 2, 3]
    assert batch.counts == WorkCounts(dispatched=6, retried=2, lost=2)


def test_only_the_work_in_progress_is_blamed() -> None:
    batch: WorkBatch[str] = WorkBatch(assignments(2))
    for failures in (1, 2, 3):
        works = [batch.next_item(), batch.next_item()]
        assert batch.requeue(works, blamed=works[0]) == failures
    works = [batch.next_item(), batch.next_item()]
    assert batch.requeue(works, blamed=works[1]) == 1


def test_a_duplicate_lost_after_the_first_result_is_not_blamed() -> None:
    batch: WorkBatch[str] = WorkBatch(assignments(2))
    work = batch.next_item()
    assert batch.requeue([work], blamed=work) == 1
    assert batch.next_item() == work
    batch.duplicate(work)
    batch.finish(work, "first")
    assert batch.requeue([work], blamed=work) == 0
    assert batch.counts == WorkCounts(dispatched=3, retried=1, duplicated=1, used=1, lost=2)


def test_work_with_a_duplicate_is_not_given_to_a_third_actor() -> None:
    batch: WorkBatch[str] = WorkBatch(assignments(1))
    work = batch.next_item()
    batch.duplicate(work)
    batch.requeue([work], blamed=work)
    assert batch.num_queued == 0
    assert batch.can_duplicate(work)  # one actor alone is at it again
    batch.requeue([work], blamed=work)
    assert batch.num_queued == 1


def test_results_of_an_earlier_batch_are_discarded() -> None:
    batch: WorkBatch[str] = WorkBatch(assignments(1, iteration=1))
    (late,) = assignments(1, iteration=0)
    assert not batch.needs(late)
    batch.finish(late, "late")
    batch.requeue([late], blamed=late)
    assert not batch.is_finished
    assert batch.counts == WorkCounts(discarded=1, lost=1)


def test_reused_results_are_not_repeated() -> None:
    batch: WorkBatch[str] = WorkBatch(assignments(3), reused={0: "kept", 2: "kept"})
    assert batch.num_queued == 1
    batch.finish(batch.next_item(), "new")
    assert batch.results() == ("kept", "new", "kept")


@settings(max_examples=300)
@given(tasks=st.integers(1, 6), data=st.data())
def test_under_any_events_each_task_is_used_once_and_every_piece_is_accounted_for(
    tasks: int, data: st.DataObject
) -> None:
    batch: WorkBatch[int] = WorkBatch(assignments(tasks))
    in_flight: list[Assignment] = []
    first: dict[int, int] = {}
    events: Counter[str] = Counter()
    for answer in range(200):
        if batch.is_finished:
            break
        possible = ["hand out"] * bool(batch.num_queued) + ["finish", "lose"] * bool(in_flight)
        possible += ["duplicate"] * any(map(batch.can_duplicate, in_flight))
        event = data.draw(st.sampled_from(possible))
        events[event] += 1
        if event == "hand out":
            in_flight.append(batch.next_item())
        elif event == "duplicate":
            work = next(filter(batch.can_duplicate, in_flight))
            batch.duplicate(work)
            in_flight.append(work)
        else:
            work = in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1)))
            if event == "finish":
                first.setdefault(work.task_index, answer)
                batch.finish(work, answer)
            else:
                batch.requeue([work], blamed=work)
        counts = batch.counts
        assert counts.unanswered == len(in_flight)
        assert counts.dispatched == events["hand out"] + events["duplicate"]
        assert counts.lost == events["lose"]
        assert counts.used + counts.discarded == events["finish"]
        assert counts.used == len(first)
    if batch.is_finished:
        assert batch.results() == tuple(first[index] for index in range(tasks))


def queue_of(*batches: WorkBatch[str]) -> WorkQueue[str]:
    queue: WorkQueue[str] = WorkQueue()
    for batch in batches:
        queue.add(batch)
    return queue


def test_the_batch_of_the_earlier_iteration_comes_first() -> None:
    ahead: WorkBatch[str] = WorkBatch(assignments(2, iteration=5))
    again: WorkBatch[str] = WorkBatch(assignments(2, iteration=4))
    queue = queue_of(ahead, again)
    assert list(queue) == [again, ahead]
    queue.remove(again)
    assert list(queue) == [ahead]


def test_results_go_to_their_own_batch() -> None:
    now: WorkBatch[str] = WorkBatch(assignments(1, iteration=4))
    ahead: WorkBatch[str] = WorkBatch(assignments(1, iteration=5))
    queue = queue_of(now, ahead)
    first, second = now.next_item(), ahead.next_item()
    queue.finish(second, "five")
    assert (queue.needs(first), queue.needs(second), queue.is_finished) == (True, False, False)
    queue.finish(first, "four")
    assert (now.results(), ahead.results()) == (("four",), ("five",))
    assert queue.is_finished


def test_of_work_of_two_batches_lost_together_the_one_in_progress_is_blamed() -> None:
    now: WorkBatch[str] = WorkBatch(assignments(2, iteration=4))
    ahead: WorkBatch[str] = WorkBatch(assignments(2, iteration=5))
    queue = queue_of(now, ahead)
    works = [now.next_item(), ahead.next_item()]
    assert queue.requeue(works, blamed=works[0]) == 1
    assert queue.requeue([ahead.next_item()], blamed=works[1]) == 1  # for the first time
    assert now.counts == WorkCounts(dispatched=1, lost=1)
    assert ahead.counts == WorkCounts(dispatched=2, retried=1, lost=2)
    assert [now.next_item(), now.next_item()] == assignments(2, iteration=4)


def test_late_results_of_a_removed_batch_are_counted_once() -> None:
    now: WorkBatch[str] = WorkBatch(assignments(1, iteration=4))
    ahead: WorkBatch[str] = WorkBatch(assignments(1, iteration=5))
    queue = queue_of(now, ahead)
    (late,) = assignments(1, iteration=3)
    queue.finish(late, "late")
    assert queue.requeue([late], blamed=late) == 0
    assert now.counts == WorkCounts(discarded=1, lost=1)
    assert ahead.counts == WorkCounts()


@settings(max_examples=300)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), data=st.data())
def test_under_any_events_of_several_batches_every_piece_is_accounted_for(
    sizes: list[int], data: st.DataObject
) -> None:
    """Batches end in order, some with duplicates in flight whose outcomes come later."""
    batches: list[WorkBatch[str]] = [
        WorkBatch(assignments(size, iteration=i)) for i, size in enumerate(sizes)
    ]
    queue, in_flight = queue_of(*batches), list[Assignment]()
    for _ in range(200):
        left = list(queue)
        possible = ["end"] * left[0].is_finished
        possible += ["hand out"] * any(batch.num_queued for batch in left)
        possible += ["finish", "lose"] * bool(in_flight)
        duplicable = [w for w in in_flight if any(one.can_duplicate(w) for one in left)]
        possible += ["duplicate"] * bool(duplicable)
        event = data.draw(st.sampled_from(possible))
        if event == "end":
            queue.remove(left[0])
            if len(left) == 1:
                break
        elif event == "hand out":
            in_flight.append(next(one for one in left if one.num_queued).next_item())
        elif event == "duplicate":
            next(one for one in left if one.can_duplicate(duplicable[0])).duplicate(duplicable[0])
            in_flight.append(duplicable[0])
        elif event == "finish":
            work = in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1)))
            queue.finish(work, str(work))
        else:
            count = data.draw(st.integers(1, len(in_flight)))
            works, in_flight = in_flight[:count], in_flight[count:]
            queue.requeue(works, works[0])
        total = sum((batch.counts for batch in batches), WorkCounts())
        assert total.unanswered == len(in_flight)
    for batch, size in zip(batches, sizes, strict=True):
        if batch.is_finished:
            assert batch.counts.used == size
            wanted = assignments(size, batch.assignments[0].iteration)
            assert batch.results() == tuple(map(str, wanted))
