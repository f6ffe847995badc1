"""Compile the kernels that runs need, once per machine or container image.

    python -m maml_ray.runs.precompile

Otherwise the first run on a machine compiles them, which delays its start by about 30 s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from maml_ray.common.errors import error_reason
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.kernels.jit import can_cache_code, is_precompiled, mark_precompiled
from maml_ray.reporting.progress import status_line

_TIMEOUT_S = 600.0
_STATUS = "compiling kernels, once for this machine: about 30 s of one core"


def compile_ahead(on_status: Callable[[str], None], on_event: Callable[[str], None]) -> None:
    """Compile the kernels unless this machine has done so, in a process of its own.

    Otherwise learner and actors compile at the same time, each for itself. It is a process because
    compiling imports PyTorch, which the driver does without. A failure is reported, and the actors
    compile.

    Args:
        on_status: receives what happens.
        on_event: receives how it ended.
    """
    if not can_cache_code():
        on_event(
            "warning: every process compiles its kernels, about 30 s, since the compiled code "
            "cannot be stored: set NUMBA_CACHE_DIR to a writable directory"
        )
        return
    if is_precompiled():
        return
    started_at = time.monotonic()
    on_status(_STATUS)
    package = Path(__file__).parents[2]  # it need not be installed
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        subprocess.run(
            [sys.executable, "-m", "maml_ray.runs.precompile"],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        on_event(f"warning: compiling kernels failed: {lines[-1][:200] if lines else error}")
    except (OSError, subprocess.TimeoutExpired) as error:
        on_event(f"warning: compiling kernels failed: {error_reason(error)}")
    else:
        seconds = time.monotonic() - started_at
        on_event(f"compiled kernels, once for this machine, in {seconds:.0f} s")


def precompile() -> None:
    """Run one minimal meta-iteration that calls every kernel with the types of any run."""
    # Imported here: PyTorch is not for the driver, which imports this module.
    from maml_ray.learning.learner import MetaLearner
    from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
    from maml_ray.policies.numpy_policy import NumpyPolicy

    settings = _minimal_settings()
    worker = RolloutWorker(settings)
    learner = MetaLearner(settings, worker.spec)
    try:
        (task,) = sample_tasks(settings, worker.tasks, 0)
        published = learner.publish()
        rollouts, _ = worker.roll_out(published, Assignment(0, 0, task, 0))
        learner.update([rollouts])
        policy = NumpyPolicy(worker.spec, published.values, published.normalizer)
        policy.forward(rollouts.query.observations)  # for environments stepped from Python
        trust_region = {**settings.model_dump(), "outer": {"objective": "trpo"}}
        MetaLearner(validate_settings(trust_region), worker.spec).warm_up()
    finally:
        worker.close()
    mark_precompiled()


def _minimal_settings() -> Settings:
    return validate_settings(
        {
            "task": {"name": "half-cheetah-backward", "horizon": 2},
            "meta_batch": {"tasks": 1, "episodes": 2},
        }
    )


if __name__ == "__main__":
    with status_line(Console(), _STATUS):
        precompile()
