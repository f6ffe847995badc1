from __future__ import annotations

import threading

from maml_ray.runtime.actors import HeartbeatLog


def held(log: HeartbeatLog, reached: threading.Event, release: threading.Event) -> None:
    with log.working_on("iteration 3, task 1"):
        log.set_phase("query")
        reached.set()
        release.wait(30)


def test_a_working_thread_is_seen_from_another_with_its_phase_and_its_stack() -> None:
    log, reached, release = HeartbeatLog(), threading.Event(), threading.Event()
    thread = threading.Thread(target=held, args=(log, reached, release))
    thread.start()
    assert reached.wait(30)
    told = log.read()
    release.set()
    thread.join(30)
    assert told.work == "iteration 3, task 1, query"
    assert any(line.endswith(" in held") for line in told.stack)
    assert str(told).startswith("iteration 3, task 1, query, for 0 s\n")


def test_idle_is_told_and_an_error_leaves_the_log_idle() -> None:
    log = HeartbeatLog()
    try:
        with log.working_on("iteration 0, task 0"):
            raise ValueError
    except ValueError:
        pass
    assert log.read().work is None
    assert str(log.read()) == "idle for 0 s"
