"""``python -m tests.benchmarks.scaling``: training with 1, 2, 4, ... 64 rollout actors.

Driver, pool, learner, object store and checkpoints are real; physics is replaced by sleep
(:mod:`tests.benchmarks.sleeping`). Every actor has one task, so that the time of physics in an
iteration does not depend on their number. ``--overlap`` collects asynchronously.

An idle process of Ray takes 0.6% of a core, and 280 MB with PyTorch: 64 of them would keep two
cores busy. So several actors share a process, as threads, which mostly sleep; the driver still has
a queue, a call and a reply for each. ``--share 1`` gives every actor its own process. Actors are
started once; each run adds those that it lacks.
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
    """Return 1, 2, 4, ... up to ``most``."""
    return tuple(2**power for power in range(most.bit_length()))


def measure(
    most: int = MOST,
    iterations: int = 12,
    *,
    share: int = SHARE,
    overlap: bool = False,
    profile: str | None = None,
) -> tuple[ScalingResult, ...]:
    """Measure every number of actors up to ``most``; each run keeps the actors of the previous one.

    Args:
        most: number of actors of the largest run.
        iterations: number of measured iterations of each run.
        share: number of actors in a process.
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
    """Return a table of milliseconds, and CPU milliseconds by process."""
    lines = [
        f"ms per iteration with {PHASES * PHASE_S:.1f} s of sleep as physics, one task per "
        f"actor, on {os.cpu_count()} cores",
        "actors   wall  effic.  collect  learner  orchestration    driver  queued   "
        "CPU: driver  actors  learner  Ray    MB put  KB/version",
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
    """Return the constants of the forecast, from these runs and the default settings' learner."""
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
    parser.add_argument("--most", type=count, default=MOST, help="largest number of rollout actors")
    parser.add_argument("--iterations", type=count, default=12, help="iterations per run")
    parser.add_argument("--share", type=count, default=SHARE, help="actors per process")
    parser.add_argument("--overlap", action="store_true", help="set meta_batch.async_collection")
    parser.add_argument("--profile", help="file for a profile of the driver in the largest run")
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
        data = {
            "scaling": [asdict(one) for one in results],
            "parts": None if parts is None else asdict(parts),
        }
        print(json.dumps(data, indent=2))
        return
    print(describe(results))
    if parts is not None:
        print(f"\n{scaling_model.describe(parts, FORECAST, Assumed())}")


if __name__ == "__main__":
    main()
