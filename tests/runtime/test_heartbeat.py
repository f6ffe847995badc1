from __future__ import annotations

import threading

from maml_ray.runtime.heartbeat import ActivityLog


def held(log: ActivityLog, reached: threading.Event, release: threading.Event) -> None:
    with log.at("iteration 3, task 1"):
        log.now("query")
        reached.set()
        release.wait(30)


def test_a_working_thread_is_seen_from_another_with_its_phase_and_its_stack() -> None:
    log, reached, release = ActivityLog(), threading.Event(), threading.Event()
    thread = threading.Thread(target=held, args=(log, reached, release))
    thread.start()
    assert reached.wait(30)
    told = log.tell()
    release.set()
    thread.join(30)
    assert told.work == "iteration 3, task 1, query"
    assert any(line.endswith(" in held") for line in told.stack)
    assert str(told).startswith("iteration 3, task 1, query, for 0 s\n")


def test_idle_is_told_and_an_error_leaves_the_log_idle() -> None:
    log = ActivityLog()
    try:
        with log.at("iteration 0, task 0"):
            raise ValueError
    except ValueError:
        pass
    assert log.tell().work is None
    assert str(log.tell()) == "idle for 0 s"
