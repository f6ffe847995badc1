"""Format the tables of ``make bench``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.benchmarks.collection import CollectionResult
from tests.benchmarks.iteration import IterationResult
from tests.benchmarks.ratios import Ratio

_HEAD = f"{'':<52}{'us/step':>8}   ratio   10% - 90% of rounds"


def heading(machine: Mapping[str, str], versions: Mapping[str, str]) -> Iterator[str]:
    """Yield lines that describe the machine and the versions."""
    for name, value in machine.items():
        yield f"{name:<20}{value}"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"{'versions':<20}{packages}"


def collections(results: tuple[CollectionResult, ...]) -> Iterator[str]:
    """Yield the table of collection: one rollout actor and the peers."""
    yield "one core, with policy and storage; peers: how many times faster maml_ray is"
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
    """Yield lines on a whole training iteration."""
    actors = result.rollout_actors
    yield f"a training iteration, {actors} rollout actors, learner on {result.learner}"
    yield (
        f"  wall {result.wall_s:.3f} s, physics {result.physics_s:.3f} s, learner "
        f"{result.learn_s:.3f} s; wall over physics {1.0 / result.physics_share.median:.2f}"
    )
    yield f"  {'share of physics in the wall time':<58}  {result.physics_share}"
    yield f"  {'share of physics and learner in the wall time':<58}  {result.accounted}"


def _line(name: str, does: str, us: float | None = None, ratio: Ratio | None = None) -> str:
    line = f"  {name:<24}{does:<26}" + ("" if us is None else f"{us:>8.1f}")
    return line + ("" if ratio is None else f"   {ratio}")
