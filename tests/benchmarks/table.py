"""What ``make bench`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.benchmarks.collection import CollectionResult
from tests.benchmarks.iteration import IterationResult
from tests.benchmarks.ratios import Ratio

_HEAD = f"{'':<52}{'us/step':>8}   ratio   10% - 90% of rounds"


def heading(machine: Mapping[str, str], versions: Mapping[str, str]) -> Iterator[str]:
    """On what was measured."""
    for name, told in machine.items():
        yield f"{name:<20}{told}"
    yield "versions            " + ", ".join(f"{name} {told}" for name, told in versions.items())


def collections(results: tuple[CollectionResult, ...]) -> Iterator[str]:
    """One rollout actor, and the others."""
    yield "one core, policy and storage included; others: how many times faster we are"
    yield _HEAD
    for result in results:
        yield f"{result.family}, {result.episodes} episodes"
        yield _line("physics alone", "", result.physics_us)
        yield _line("maml_ray", "share of physics speed", result.collected_us, result.share)
        for peer in result.peers:
            if peer.us is None:
                yield _line(peer.name, peer.absent or "")
            else:
                yield _line(peer.name, peer.does, peer.us, peer.ratio)


def iteration(result: IterationResult) -> Iterator[str]:
    """A whole one."""
    actors = result.rollout_actors
    yield f"a training iteration, {actors} rollout actors, learner on {result.learner}"
    yield (
        f"  wall {result.wall_s:.3f} s, physics {result.physics_s:.3f} s, learner "
        f"{result.learn_s:.3f} s; wall over physics {1.0 / result.physics_share.median:.2f}"
    )
    yield f"  {'share of physics in the wall time':<58}  {result.physics_share}"
    yield f"  {'share of physics and learner in the wall time':<58}  {result.accounted}"


def _line(name: str, does: str, us: float | None = None, ratio: Ratio | None = None) -> str:
    told = f"  {name:<24}{does:<26}" + ("" if us is None else f"{us:>8.1f}")
    return told + ("" if ratio is None else f"   {ratio}")
