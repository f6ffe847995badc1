"""The work of a meta-batch under every order of events: each task done once, and all accounted."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from maml_ray.learning.rollout_worker import Assignment
from maml_ray.runtime.work_queue import Agenda, Batch, WorkCounts
from maml_ray.tasks.task import Task


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


def agenda_of(*batches: Batch[str]) -> Agenda[str]:
    agenda: Agenda[str] = Agenda()
    for batch in batches:
        agenda.begin(batch)
    return agenda


def test_of_two_batches_the_earlier_iteration_comes_first_whenever_it_was_begun() -> None:
    ahead: Batch[str] = Batch(assignments(2, iteration=5))
    again: Batch[str] = Batch(assignments(2, iteration=4))
    agenda = agenda_of(ahead, again)
    assert list(agenda) == [again, ahead]
    agenda.end(again)
    assert list(agenda) == [ahead]


def test_answers_go_to_the_batch_that_they_are_of() -> None:
    now: Batch[str] = Batch(assignments(1, iteration=4))
    ahead: Batch[str] = Batch(assignments(1, iteration=5))
    agenda = agenda_of(now, ahead)
    first, second = now.hand_out(), ahead.hand_out()
    agenda.finish(second, "five")
    assert (agenda.needs(first), agenda.needs(second), agenda.finished) == (True, False, False)
    agenda.finish(first, "four")
    assert (now.results(), ahead.results()) == (("four",), ("five",))
    assert agenda.finished


def test_of_an_actor_that_dies_with_work_of_two_batches_the_one_it_was_at_is_blamed() -> None:
    now: Batch[str] = Batch(assignments(2, iteration=4))
    ahead: Batch[str] = Batch(assignments(2, iteration=5))
    agenda = agenda_of(now, ahead)
    works = [now.hand_out(), ahead.hand_out()]
    assert agenda.lose(works, blamed=works[0]) == 1
    assert agenda.lose([ahead.hand_out()], blamed=works[1]) == 1  # for the first time
    assert now.counts == WorkCounts(dispatched=1, lost=1)
    assert ahead.counts == WorkCounts(dispatched=2, retried=1, lost=2)
    assert [now.hand_out(), now.hand_out()] == assignments(2, iteration=4)


def test_what_is_heard_of_a_batch_that_is_over_is_counted_once() -> None:
    now: Batch[str] = Batch(assignments(1, iteration=4))
    ahead: Batch[str] = Batch(assignments(1, iteration=5))
    agenda = agenda_of(now, ahead)
    (late,) = assignments(1, iteration=3)
    agenda.finish(late, "late")
    assert agenda.lose([late], blamed=late) == 0
    assert now.counts == WorkCounts(discarded=1, lost=1)
    assert ahead.counts == WorkCounts()


@settings(max_examples=300)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), data=st.data())
def test_under_any_events_of_several_batches_every_piece_is_accounted_for(
    sizes: list[int], data: st.DataObject
) -> None:
    """Batches end in their order, some with copies under way, which are heard of later."""
    batches: list[Batch[str]] = [
        Batch(assignments(size, iteration=i)) for i, size in enumerate(sizes)
    ]
    agenda, under_way = agenda_of(*batches), list[Assignment]()
    for _ in range(200):
        left = list(agenda)
        possible = ["end"] * left[0].finished
        possible += ["hand out"] * any(batch.waiting for batch in left)
        possible += ["finish", "lose"] * bool(under_way)
        duplicable = [w for w in under_way if any(one.may_duplicate(w) for one in left)]
        possible += ["duplicate"] * bool(duplicable)
        event = data.draw(st.sampled_from(possible))
        if event == "end":
            agenda.end(left[0])
            if len(left) == 1:
                break
        elif event == "hand out":
            under_way.append(next(one for one in left if one.waiting).hand_out())
        elif event == "duplicate":
            next(one for one in left if one.may_duplicate(duplicable[0])).duplicate(duplicable[0])
            under_way.append(duplicable[0])
        elif event == "finish":
            work = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            agenda.finish(work, str(work))
        else:
            count = data.draw(st.integers(1, len(under_way)))
            works, under_way = under_way[:count], under_way[count:]
            agenda.lose(works, works[0])
        total = sum((batch.counts for batch in batches), WorkCounts())
        assert total.unanswered == len(under_way)
    for batch, size in zip(batches, sizes, strict=True):
        if batch.finished:
            assert batch.counts.used == size
            wanted = assignments(size, batch.assignments[0].iteration)
            assert batch.results() == tuple(map(str, wanted))
