"""A policy in a folder of its own: what ``maml-ray adapt`` writes and ``maml_ray.load`` reads.

Two files: ``parameters.safetensors``, the weights and, where observations are normalized, the
constants; and ``policy.json``, the sizes, the settings of the run it comes from, and a SHA-256 of
the other. Reading them executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from maml_ray.common.errors import RunDirError
from maml_ray.common.normalization import Normalizer
from maml_ray.common.safe_files import Unreadable, read_bytes
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import SettingsError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.compatibility import check_matches_settings
from maml_ray.persistence.run_dir import check_inside
from maml_ray.policies.spec import PolicySpec
from maml_ray.tasks.task import Task

FORMAT = 1
DESCRIPTION = "policy.json"
PARAMETERS = "parameters.safetensors"
_MOST_BYTES = 10_000_000
"""Of the description."""
_MEAN, _SCALE = "observation_mean", "observation_scale"


def save_policy(agent: Agent, folder: Path, task: Task | None = None) -> None:
    """Write ``agent`` to ``folder``, whole or not at all.

    Args:
        agent: the policy, adapted or not.
        folder: must not be there yet.
        task: what it was adapted to, for the record.

    Raises:
        RunDirError: the folder is there, or cannot be written.
    """
    files = serialize_policy(agent, task)
    if os.path.lexists(folder):
        raise RunDirError(f"{folder} is there already: name another folder")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        aside.mkdir(parents=True)
        for name, content in files.items():
            (aside / name).write_bytes(content)
        os.replace(aside, folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise RunDirError(f"cannot write the policy to {folder}: {error.strerror}") from None


def serialize_policy(agent: Agent, task: Task | None = None) -> dict[str, bytes]:
    """Names and contents of the files of a policy's folder; the same policy gives the same."""
    arrays = dict(agent.parameters)
    if agent.normalizer is not None:
        arrays |= {_MEAN: agent.normalizer.mean, _SCALE: agent.normalizer.scale}
    content = safetensors_numpy.save(arrays)
    description = {
        "format": FORMAT,
        "policy": asdict(agent.spec),
        "adaptation_steps": agent.adaptation_steps,
        "task": None if task is None else {"name": task.name, "parameters": dict(task.parameters)},
        "settings": agent.settings.model_dump(mode="json"),
        "sha256": {PARAMETERS: hashlib.sha256(content).hexdigest()},
    }
    return {PARAMETERS: content, DESCRIPTION: (json.dumps(description, indent=2) + "\n").encode()}


def load_policy(folder: Path) -> Agent:
    """Read what :func:`save_policy` has written.

    Raises:
        RunDirError: it is torn, altered or of another format, or leads out of ``folder``.
    """
    check_inside(folder, folder / DESCRIPTION, folder / PARAMETERS)
    try:
        description = json.loads(_read(folder / DESCRIPTION, _MOST_BYTES))
    except (ValueError, RecursionError):
        raise RunDirError(f"{folder / DESCRIPTION} is not JSON") from None
    content = _read(folder / PARAMETERS)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise RunDirError(f"{folder} is of another format; this version reads format {FORMAT}")
    try:
        agent = _agent(description, content)
    except KeyError as error:
        raise RunDirError(f"{folder} does not hold a policy: it has no {error}") from None
    except SettingsError as error:
        raise SettingsError(f"{folder / DESCRIPTION}: {error}") from None
    except (TypeError, ValueError, OverflowError, AttributeError, SafetensorError) as error:
        raise RunDirError(f"{folder} does not hold a policy: {str(error)[:200]}") from None
    check_matches_settings(agent, folder)
    return agent


def _read(path: Path, most: int | None = None) -> bytes:
    try:
        return read_bytes(path, most=most)
    except Unreadable as error:
        raise RunDirError(f"cannot read the policy: {path}: {error}") from None


def _agent(description: dict[str, Any], content: bytes) -> Agent:
    if description["sha256"] != {PARAMETERS: hashlib.sha256(content).hexdigest()}:
        raise ValueError(f"{PARAMETERS} is not what was written")
    arrays = safetensors_numpy.load(content)
    normalizer = None
    if _MEAN in arrays:
        normalizer = Normalizer(arrays.pop(_MEAN), arrays.pop(_SCALE))
    sizes = dict(description["policy"])
    sizes["hidden_sizes"] = tuple(sizes["hidden_sizes"])
    return Agent(
        settings=validate_settings(description["settings"]),
        spec=PolicySpec(**sizes),
        parameters=arrays,
        normalizer=normalizer,
        adaptation_steps=int(description["adaptation_steps"]),
    )
