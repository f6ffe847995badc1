"""Define the faults that are injected into a run from outside."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.machine import LEARNER, ROLLOUT
from tests.chaos.victim import RunDied, Victim

Deed = Callable[[Victim, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        kind: its name in the table.
        do: does it; whether the run got over it is looked at afterwards.
        weight: how often it comes up, against the others.
    """

    kind: str
    do: Deed
    weight: int = 2


def _to_workers(kind: tuple[str, str], number: signal.Signals) -> Deed:
    def do(victim: Victim, rng: random.Random) -> None:
        victim.hit(kind, number, rng)

    return do


def _hold_up(victim: Victim, rng: random.Random) -> None:
    """Suspend a rollout actor long enough for its work to be duplicated."""
    held = victim.hit(ROLLOUT, signal.SIGSTOP, rng)
    victim.wait_for_progress()
    victim.let_go(held)


def _swap_node(victim: Victim, rng: random.Random) -> None:
    victim.machine.remove_node(rng)
    victim.wait_for_progress()
    victim.machine.add_node()


def _grow_and_shrink(victim: Victim, rng: random.Random) -> None:
    victim.machine.add_node()
    victim.wait_for_progress()
    victim.machine.remove_node(rng)


def _preempt(victim: Victim, rng: random.Random) -> None:
    """Drain a node, then remove it, while the run goes on."""
    node_id = victim.machine.announce_one(rng)
    victim.wait_for_progress()
    victim.machine.remove_nodes({node_id})
    victim.machine.add_node()


def _kill_driver_twice(victim: Victim, rng: random.Random) -> None:
    """Kill the driver, resume, and kill it again in the same iteration."""
    victim.end(signal.SIGKILL)
    for _ in range(10):  # an iteration is short: it may be over before the second kill
        newest = victim.newest_checkpoint()
        victim.begin_again()
        victim.wait_until_started()
        victim.end(signal.SIGKILL)
        if victim.newest_checkpoint() == newest:
            return victim.resume()
    raise RunDied("ten times the second kill came too late")


def _end_driver(number: signal.Signals) -> Deed:
    def do(victim: Victim, rng: random.Random) -> None:
        victim.end(number)
        victim.resume()

    return do


def _tear_checkpoint(victim: Victim, rng: random.Random) -> None:
    """Kill the driver and damage the newest checkpoint before resuming."""
    victim.end(signal.SIGKILL)
    victim.damage_newest_checkpoint(rng)
    victim.resume()


def _take_storage_away(victim: Victim, rng: random.Random) -> None:
    """Make checkpoints fail for a while; training must go on."""
    victim.hide_storage()
    victim.wait_for_progress(iterations=3)
    victim.show_storage()


KINDS: Sequence[Fault] = (
    Fault("rollout actor killed", _to_workers(ROLLOUT, signal.SIGKILL), weight=4),
    Fault("rollout actor hangs", _to_workers(ROLLOUT, signal.SIGSTOP)),
    Fault("rollout actor held up", _hold_up),
    Fault("learner killed", _to_workers(LEARNER, signal.SIGKILL)),
    Fault("learner hangs", _to_workers(LEARNER, signal.SIGSTOP), weight=1),
    Fault("node lost, another added", _swap_node),
    Fault("node added, one lost", _grow_and_shrink),
    Fault("node pre-empted, another added", _preempt),
    Fault("driver killed", _end_driver(signal.SIGKILL), weight=2),
    Fault("driver killed twice in an iteration", _kill_driver_twice, weight=1),
    Fault("driver told to stop (SIGTERM)", _end_driver(signal.SIGTERM), weight=1),
    Fault("driver interrupted (Ctrl-C)", _end_driver(signal.SIGINT), weight=1),
    Fault("newest checkpoint damaged", _tear_checkpoint),
    Fault("storage away for a while", _take_storage_away),
)


def schedule(seed: int, count: int) -> list[Fault]:
    """Return ``count`` faults in random order, each kind in proportion to its weight."""
    rng = random.Random(seed)
    whole = [fault for fault in KINDS for _ in range(fault.weight)]
    chosen: list[Fault] = []
    while len(chosen) < count:
        rng.shuffle(whole)
        chosen += whole
    return chosen[:count]
