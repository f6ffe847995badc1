"""Signals to programs of their own: what the first one does, and what the second."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
BEGIN = """
import signal, sys, threading
from maml_ray.common import signals
from maml_ray.common.errors import Interrupted
from maml_ray.common.signals import ExitOnSignal, HeldSignals, StopRequest

def say(word):
    print(word, flush=True)

def hang():
    # In short waits: a signal that comes just before a long one is heard only after it.
    while True:
        threading.Event().wait(0.02)

"""


@contextmanager
def program(text: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN + text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@BOTH
def test_a_loop_hears_the_first_signal_when_it_looks_and_the_second_ends_it_at_once(
    number: signal.Signals,
) -> None:
    text = """
with StopRequest() as stop:
    say("on its way")
    while True:
        try:
            stop.check()
        except Interrupted as error:
            say(f"asked by {error.signal_number}")
            hang()
"""
    with program(text) as process:
        assert heard(process) == "on its way"
        process.send_signal(number)
        assert heard(process) == f"asked by {int(number)}"
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number


@BOTH
def test_outside_of_a_loop_the_first_signal_closes_what_is_open_and_ends_the_program(
    number: signal.Signals,
) -> None:
    text = """
with ExitOnSignal():
    try:
        say("open")
        hang()
    finally:
        say("closed")
"""
    with program(text) as process:
        assert heard(process) == "open"
        process.send_signal(number)
        said, complaints = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said == "closed\n"
    assert complaints == f"maml-ray: stopped by signal {int(number)}\n"


@BOTH
def test_a_signal_that_comes_where_exceptions_are_swallowed_ends_the_program_as_well(
    number: signal.Signals,
) -> None:
    """As within a destructor."""
    text = f"""
signals.EXIT_TIMEOUT_S = 1000.0
class Open:
    def __del__(self):
        signal.raise_signal({int(number)})

with ExitOnSignal():
    try:
        Open()
        hang()
    finally:
        say("closed")
"""
    with program(text) as process:
        said, complaints = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said == "closed\n"
    assert complaints == f"maml-ray: stopped by signal {int(number)}\n"


def test_so_does_one_that_is_heard_by_the_handler_that_ray_has_while_it_starts() -> None:
    text = """
class Open:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

with ExitOnSignal():
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    try:
        Open()
        hang()
    except SystemExit as leaving:
        say(f"left by {leaving.code}")
"""
    with program(text) as process:
        said, complaints = process.communicate(timeout=60)
    assert said == "left by 15\n"
    assert complaints == ""


@BOTH
@pytest.mark.parametrize("moment", ["before", "after_in_parent"])
def test_a_signal_within_a_fork_waits_until_all_hooks_have_run(
    number: signal.Signals, moment: str
) -> None:
    text = f"""
import os

def hook(moment):
    def run():
        if moment == "{moment}":
            signal.raise_signal({int(number)})
        os.write(1, f"{{moment}}\\n".encode())  # in one piece: two processes write
    return run

os.register_at_fork(**{{key: hook(key) for key in ("before", "after_in_parent", "after_in_child")}})
signals.hold_signals_in_forks()
with ExitOnSignal():
    try:
        if os.fork():
            hang()
        os._exit(0)
    finally:
        say("closed")
"""
    with program(text) as process:
        said, complaints = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    before, *after, closed = said.splitlines()
    assert (before, sorted(after), closed) == (
        "before",
        ["after_in_child", "after_in_parent"],
        "closed",
    )
    assert complaints == f"maml-ray: stopped by signal {int(number)}\n"


def test_a_signal_within_a_fork_reaches_the_handlers_of_other_programs() -> None:
    text = """
import os
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
os.register_at_fork(before=lambda: signal.raise_signal(signal.SIGINT))
signals.hold_signals_in_forks()
try:
    if os.fork():
        hang()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        os.write(1, b"restored in the child\\n")
    os._exit(0)
except KeyboardInterrupt:
    os.write(1, b"interrupted\\n")
"""
    with program(text) as process:
        said, complaints = process.communicate(timeout=60)
    assert sorted(said.splitlines()) == ["interrupted", "restored in the child"]
    assert complaints == ""


def test_what_is_to_come_again_does_not_come_after_the_end() -> None:
    text = """
signals._RESEND_AFTER_S = 1000.0
class Open:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

try:
    with ExitOnSignal():
        Open()
        raise Interrupted(signal.SIGTERM)
except Interrupted:
    for thread in threading.enumerate():
        if getattr(thread, "interval", None) == signals._RESEND_AFTER_S:
            assert thread.finished.is_set()
    say("ended in good order")
"""
    with program(text) as process:
        said, _ = process.communicate(timeout=60)
    assert said == "ended in good order\n"
    assert process.returncode == 0


@BOTH
def test_a_second_signal_does_not_wait_for_what_does_not_close(number: signal.Signals) -> None:
    text = """
with ExitOnSignal():
    try:
        say("open")
        hang()
    finally:
        say("closing")
        hang()
"""
    with program(text) as process:
        assert heard(process) == "open"
        process.send_signal(signal.SIGTERM)
        assert heard(process) == "closing"
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number


@pytest.mark.parametrize("loop", [False, True])
def test_what_does_not_close_in_time_is_left_behind(loop: bool) -> None:
    text = f"""
signals.EXIT_TIMEOUT_S = 0.2
with ExitOnSignal():
    try:
        if {loop}:
            with StopRequest() as stop:
                say("open")
                while True:
                    stop.check()
        say("open")
        hang()
    finally:
        hang()
"""
    with program(text) as process:
        assert heard(process) == "open"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143


def test_the_second_signal_is_the_second_also_where_a_loop_has_heard_the_first() -> None:
    text = """
signals.EXIT_TIMEOUT_S = 1000.0
with ExitOnSignal():
    try:
        with StopRequest() as stop:
            say("on its way")
            while True:
                stop.check()
    finally:
        say("closing")
        hang()
"""
    with program(text) as process:
        assert heard(process) == "on its way"
        process.send_signal(signal.SIGTERM)
        assert heard(process) == "closing"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130


@BOTH
def test_a_held_signal_arrives_when_the_block_has_ended(number: signal.Signals) -> None:
    text = f"""
with ExitOnSignal():
    with HeldSignals():
        signal.raise_signal({int(number)})
        say("in the block")
    say("after it")
"""
    with program(text) as process:
        said, complaints = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said == "in the block\n"
    assert complaints == f"maml-ray: stopped by signal {int(number)}\n"


def test_a_held_signal_goes_to_whoever_handles_it_outside_of_our_command_too() -> None:
    text = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background ignores it
try:
    with HeldSignals():
        signal.raise_signal(signal.SIGINT)
        say("in the block")
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    say("as ever")
"""
    with program(text) as process:
        said, _ = process.communicate(timeout=60)
    assert said == "in the block\nas ever\n"


@pytest.mark.parametrize("second", [False, True])
def test_a_block_that_holds_signals_and_hangs_is_left_in_time(second: bool) -> None:
    text = f"""
signals.EXIT_TIMEOUT_S = {1000.0 if second else 0.2}
signals.forced_exit_cleanups.append(lambda: say("cleaned"))
with ExitOnSignal(), HeldSignals():
    say("open")
    hang()
"""
    with program(text) as process:
        assert heard(process) == "open"
        process.send_signal(signal.SIGTERM)
        if second:
            process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode in ((130, 143) if second else (143,))  # in either order
    assert said == "cleaned\n"


def test_a_cleanup_that_hangs_does_not_delay_a_forced_exit() -> None:
    text = """
signals.forced_exit_cleanups.append(hang)
signals.force_exit(3)
"""
    with program(text) as process:
        assert process.wait(timeout=60) == 3
