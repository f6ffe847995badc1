"""Notes when a process starts, imports and calls what a start-up consists of.

Python imports a module of this name in every process whose ``PYTHONPATH`` has its folder: so the
program that is measured, and the processes that Ray starts for it, need to know nothing of it. Each
appends lines of ``[seconds since the epoch, "begin" or "end", what]`` to a file of its own.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

CALLS = {
    "maml_ray.runtime.actors": (
        "RolloutActor.__init__",
        "LearnerActor.__init__",
        "LearnerActor.update",
    ),
    "maml_ray.runtime.learner_handle": (
        "LearnerHandle.wait_until_ready",
        "LearnerHandle.update",
        "LearnerHandle._restart",
    ),
    "maml_ray.runtime.actor_system": ("ActorSystem.run_iteration",),
    "maml_ray.runtime.rollout_pool": ("RolloutPool.wait_until_ready",),
    "ray": ("init",),
}
"""What is wrapped once its module is there."""
MODULES = {*CALLS, "maml_ray.cli.main", "maml_ray.runs.train", "torch", "torch._dynamo", "mujoco"}


def note(edge: str, what: str) -> None:
    """Append a line."""
    path = Path(os.environ["STARTUP_TRACE"]) / f"{os.getpid()}.jsonl"
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps([time.time(), edge, what]) + "\n")


def noted(call: Callable[..., Any], what: str) -> Callable[..., Any]:
    """``call``, with its beginning and its end noted."""

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        note("begin", what)
        try:
            return call(*args, **kwargs)
        finally:
            note("end", what)

    return wrapper


class Noting(MetaPathFinder):
    """Finds :data:`MODULES` as Python does, and has their imports noted."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in MODULES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            noted(execute, f"import {name}")(module)
            for path in CALLS.get(name, ()):
                *holders, attribute = path.split(".")
                holder = functools.reduce(getattr, holders, module)
                setattr(holder, attribute, noted(getattr(holder, attribute), path))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "STARTUP_TRACE" in os.environ:
    note("begin", "process")
    sys.meta_path.insert(0, Noting())
