"""``python -m tests.benchmarks.scaling``: training with 1, 2, 4, ... 64 rollout actors.

Everything is real but the physics, which sleeps (:mod:`tests.benchmarks.sleeping`): driver, pool,
learner, object store and checkpoints. One task an actor, so that an iteration takes the same time
of physics whatever their number is. ``--overlap`` has the actors go on while the learner works, one
version behind.

A process of Ray takes 0.6% of a core while it is idle, and with PyTorch 280 MB: 64 of them keep two
cores busy with themselves. So several actors share a process, as threads, which mostly sleep: the
driver has a queue, a call and a receipt for each all the same. ``--share 1`` gives every actor a
process of its own. They are started once; each run adds those that it lacks.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from cProfile import Profile
from dataclasses import asdict

# As the learner actor has it: threads that spin while they wait would take the other core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.benchmarks import scaling_model
from tests.benchmarks.arguments import count
from tests.benchmarks.scaling_actors import actors_kept, many_cpus
from tests.benchmarks.scaling_model import Assumed, Parts
from tests.benchmarks.scaling_parts import measure_learner, parts_of
from tests.benchmarks.scaling_runs import PHASE_S, ScalingResult, run_with
from tests.benchmarks.sleeping import PHASES

MOST = 64
SHARE = 8
FORECAST = (64, 256, 1000, 4000)


def sizes_up_to(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to ``most``."""
    return tuple(2**power for power in range(most.bit_length()))


def measure(
    most: int = MOST,
    iterations: int = 12,
    *,
    share: int = SHARE,
    overlap: bool = False,
    profile: str | None = None,
) -> tuple[ScalingResult, ...]:
    """Every number of actors up to ``most``, the actors of each run kept for the next.

    Args:
        most: actors of the largest run.
        iterations: counted ones, of each run.
        share: actors in a process.
        overlap: whether the next meta-batch is collected during an update.
        profile: file for a profile of the largest run's driver, as ``pstats`` reads it.
    """
    results = []
    sizes = sizes_up_to(most)
    with many_cpus(max(sizes[-1], share)), actors_kept(share):
        for actors in sizes:
            profiler = Profile() if profile is not None and actors == sizes[-1] else None
            results.append(run_with(actors, iterations, profiler, overlap=overlap))
            if profiler is not None:
                profiler.dump_stats(str(profile))
    return tuple(results)


def describe(results: Sequence[ScalingResult]) -> str:
    """A table for people: milliseconds, and CPU milliseconds by process."""
    lines = [
        f"{PHASES * PHASE_S:.1f} s of physics an iteration, slept; one task an actor; all on "
        f"{os.cpu_count()} cores; in ms",
        "actors   wall  effic.  collect  learner  orchestration    driver  queued   "
        "CPU: driver  actors  learner  Ray    MB put  KB a version",
    ]
    for one in results:
        cpu = one.cpu
        lines.append(
            f"{one.actors:>6} {one.wall_s * 1e3:>6.0f} {one.efficiency:>7.2f} "
            f"{one.collect_s * 1e3:>8.0f} {one.learn_s * 1e3:>8.1f} "
            f"{one.orchestration_s * 1e3:>7.1f} {one.orchestration_share:>6.1%} "
            f"{one.driver_busy_s * 1e3:>9.1f} {one.driver_queued_s * 1e3:>7.1f} "
            f"{cpu.driver * 1e3:>13.0f} {cpu.actors * 1e3:>7.0f} {cpu.learner * 1e3:>8.0f} "
            f"{cpu.ray * 1e3:>4.0f} {one.rollout_bytes / 1e6:>9.2f} "
            f"{one.version_bytes / 1e3:>13.1f}"
        )
    return "\n".join(lines)


def model(results: Sequence[ScalingResult]) -> Parts:
    """The constants of the forecast: of these runs, and of a learner of the default settings."""
    most = results[-1]
    return parts_of(
        [one.actors for one in results],
        [one.driver_busy_s for one in results],
        [one.updated_s - one.learn_s for one in results],
        fixed_s=results[0].orchestration_s,
        actor_s=most.physics_s,
        bytes_each=(most.rollout_bytes / most.actors, most.version_bytes),
        learner=measure_learner(),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--most", type=count, default=MOST, help="rollout actors")
    parser.add_argument("--iterations", type=count, default=12, help="of each number of actors")
    parser.add_argument("--share", type=count, default=SHARE, help="rollout actors in a process")
    parser.add_argument("--overlap", action="store_true", help="as meta_batch.async_collection")
    parser.add_argument("--profile", help="file for a profile of the driver with the most actors")
    chosen = parser.parse_args()
    results = measure(
        chosen.most,
        chosen.iterations,
        share=chosen.share,
        overlap=chosen.overlap,
        profile=chosen.profile,
    )
    # The forecast adds up what follows one another.
    parts = model(results) if len(results) > 1 and not chosen.overlap else None
    if chosen.json:
        told = {
            "scaling": [asdict(one) for one in results],
            "parts": None if parts is None else asdict(parts),
        }
        print(json.dumps(told, indent=2))
        return
    print(describe(results))
    if parts is not None:
        print(f"\n{scaling_model.describe(parts, FORECAST, Assumed())}")


if __name__ == "__main__":
    main()
