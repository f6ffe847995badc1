"""The work of a meta-batch under every order of events: each task done once, and all accounted."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from maml_ray.distributed.batch import Batch, WorkCounts
from maml_ray.rollout import Assignment
from maml_ray.tasks.distribution import Task


def assignments(count: int, iteration: int = 0) -> list[Assignment]:
    return [Assignment(iteration, index, Task("backward"), iteration) for index in range(count)]


def test_results_come_in_the_order_of_tasks_whoever_was_first() -> None:
    batch: Batch[str] = Batch(assignments(3))
    handed = [batch.hand_out() for _ in range(3)]
    for work in reversed(handed):
        batch.finish(work, f"task {work.task_index}")
    assert batch.results() == ("task 0", "task 1", "task 2")
    assert batch.counts == WorkCounts(dispatched=3, used=3)


def test_the_first_of_two_answers_counts() -> None:
    batch: Batch[str] = Batch(assignments(1))
    work = batch.hand_out()
    assert batch.may_duplicate(work)
    batch.duplicate(work)
    assert not batch.may_duplicate(work)
    batch.finish(work, "first")
    batch.finish(work, "second")
    assert batch.results() == ("first",)
    assert batch.counts == WorkCounts(dispatched=2, duplicated=1, used=1, discarded=1)


def test_lost_work_is_handed_out_again_before_what_nobody_has_begun() -> None:
    batch: Batch[str] = Batch(assignments(4))
    first, second = batch.hand_out(), batch.hand_out()
    assert batch.lose([first, second], blamed=first) == 1
    assert [batch.hand_out().task_index for _ in range(4)] == [0, 1, 2, 3]
    assert batch.counts == WorkCounts(dispatched=6, retried=2, lost=2)


def test_only_the_work_that_an_actor_was_at_is_blamed() -> None:
    batch: Batch[str] = Batch(assignments(2))
    for failures in (1, 2, 3):
        works = [batch.hand_out(), batch.hand_out()]
        assert batch.lose(works, blamed=works[0]) == failures
    works = [batch.hand_out(), batch.hand_out()]
    assert batch.lose(works, blamed=works[1]) == 1


def test_a_copy_that_is_lost_after_another_has_answered_is_nobodys_fault() -> None:
    batch: Batch[str] = Batch(assignments(2))
    work = batch.hand_out()
    assert batch.lose([work], blamed=work) == 1
    assert batch.hand_out() == work
    batch.duplicate(work)
    batch.finish(work, "first")
    assert batch.lose([work], blamed=work) == 0
    assert batch.counts == WorkCounts(dispatched=3, retried=1, duplicated=1, used=1, lost=2)


def test_work_that_a_second_actor_is_at_is_not_handed_to_a_third() -> None:
    batch: Batch[str] = Batch(assignments(1))
    work = batch.hand_out()
    batch.duplicate(work)
    batch.lose([work], blamed=work)
    assert batch.waiting == 0
    assert batch.may_duplicate(work)  # one actor alone is at it again
    batch.lose([work], blamed=work)
    assert batch.waiting == 1


def test_answers_of_a_batch_before_are_discarded() -> None:
    batch: Batch[str] = Batch(assignments(1, iteration=1))
    (late,) = assignments(1, iteration=0)
    assert not batch.needs(late)
    batch.finish(late, "late")
    batch.lose([late], blamed=late)
    assert not batch.finished
    assert batch.counts == WorkCounts(discarded=1, lost=1)


def test_what_is_kept_is_not_worked_at_again() -> None:
    batch: Batch[str] = Batch(assignments(3), kept={0: "kept", 2: "kept"})
    assert batch.waiting == 1
    batch.finish(batch.hand_out(), "new")
    assert batch.results() == ("kept", "new", "kept")


@settings(max_examples=300)
@given(tasks=st.integers(1, 6), data=st.data())
def test_under_any_events_each_task_is_used_once_and_every_piece_is_accounted_for(
    tasks: int, data: st.DataObject
) -> None:
    batch: Batch[int] = Batch(assignments(tasks))
    under_way: list[Assignment] = []
    first: dict[int, int] = {}
    events: Counter[str] = Counter()
    for answer in range(200):
        if batch.finished:
            break
        possible = ["hand out"] * bool(batch.waiting) + ["finish", "lose"] * bool(under_way)
        possible += ["duplicate"] * any(map(batch.may_duplicate, under_way))
        event = data.draw(st.sampled_from(possible))
        events[event] += 1
        if event == "hand out":
            under_way.append(batch.hand_out())
        elif event == "duplicate":
            work = next(filter(batch.may_duplicate, under_way))
            batch.duplicate(work)
            under_way.append(work)
        else:
            work = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            if event == "finish":
                first.setdefault(work.task_index, answer)
                batch.finish(work, answer)
            else:
                batch.lose([work], blamed=work)
        counts = batch.counts
        assert counts.unanswered == len(under_way)
        assert counts.dispatched == events["hand out"] + events["duplicate"]
        assert counts.lost == events["lose"]
        assert counts.used + counts.discarded == events["finish"]
        assert counts.used == len(first)
    if batch.finished:
        assert batch.results() == tuple(first[index] for index in range(tasks))
