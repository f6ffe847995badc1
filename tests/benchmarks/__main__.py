"""``make bench``: one table of ratios. ``--json`` prints the same for keeping."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from importlib import metadata

# One thread a contender: the comparison is of one core's work.
os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

from tests.benchmarks import collection, iteration

CONTESTS = (
    ("half-cheetah-backward", 10),
    ("half-cheetah-backward", 20),
    ("ant-direction", 20),
    ("walker2d-random-dynamics", 20),
)
"""Families, and the episodes that are collected at once."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds")
    parser.add_argument("--iterations", type=int, default=20, help="training iterations")
    parser.add_argument("--settings", default="deploy.yaml", help="what to train")
    chosen = parser.parse_args()
    collections = [collection.measure(*contest, chosen.rounds) for contest in CONTESTS]
    whole = iteration.measure(chosen.settings, chosen.iterations)
    if chosen.json:
        figures = {
            "machine": _machine(),
            "collection": [asdict(result) for result in collections],
            "iteration": asdict(whole),
        }
        print(json.dumps(figures, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in _machine().items()))
    print("\none rollout actor, policy and storage included       us/step   ratio")
    for result in collections:
        print(f"{result.family}, {result.episodes} episodes")
        print(f"               physics alone{result.physics_us:>31.1f}")
        _line("collected; share of physics speed", result.collected_us, result.ratio_to_physics)
        _line("gymnasium sync; how much slower", result.sync_us, result.speedup_over_sync)
        if result.envpool_us is not None and result.speedup_over_envpool is not None:
            _line("envpool; how much slower", result.envpool_us, result.speedup_over_envpool)
        elif result.family in collection.ENVPOOL:
            print("               envpool: not installed")
    print(
        f"\na training iteration, {whole.rollout_actors} rollout actors, learner on {whole.learner}"
    )
    print(
        f"     wall {whole.wall_s:.3f} s, physics {whole.physics_s:.3f} s, "
        f"learner {whole.learn_s:.3f} s"
    )
    print(f"     neither physics nor learner: {whole.rest_share:.1%} of the wall time")
    print(f"     wall time over physics:      {whole.wall_over_physics:.2f}")


def _line(name: str, microseconds: float, ratio: float) -> None:
    print(f"               {name:<36}{microseconds:>8.1f}{ratio:>8.2f}")


def _machine() -> dict[str, str]:
    packages = ("mujoco", "gymnasium", "numpy", "torch", "ray")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
