from __future__ import annotations

import threading

from maml_ray.runtime.actors import HeartbeatLog


def hold(log: HeartbeatLog, reached: threading.Event, release: threading.Event) -> None:
    with log.working_on("iteration 3, task 1"):
        log.set_phase("query")
        reached.set()
        release.wait(30)


def test_a_heartbeat_has_the_phase_and_stack_of_the_working_thread() -> None:
    log, reached, release = HeartbeatLog(), threading.Event(), threading.Event()
    thread = threading.Thread(target=hold, args=(log, reached, release))
    thread.start()
    assert reached.wait(30)
    heartbeat = log.read()
    release.set()
    thread.join(30)
    assert heartbeat.work == "iteration 3, task 1, query"
    assert any(line.endswith(" in hold") for line in heartbeat.stack)
    assert str(heartbeat).startswith("iteration 3, task 1, query, for 0 s\n")


def test_an_error_leaves_the_log_idle() -> None:
    log = HeartbeatLog()
    try:
        with log.working_on("iteration 0, task 0"):
            raise ValueError
    except ValueError:
        pass
    assert log.read().work is None
    assert str(log.read()) == "idle for 0 s"
