"""Save a policy to a folder and load it: for ``Agent.save``, ``maml-ray adapt`` and ``load``.

The folder holds two files: ``parameters.safetensors`` with the parameters and, if observations are
normalized, the mean and scale; ``policy.json`` with the architecture, the settings of the run, and
a SHA-256 of the other file. Loading executes no code from them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from maml_ray.common.errors import RunDirError
from maml_ray.common.normalization import Normalizer
from maml_ray.common.safe_files import UnreadableFile, read_bytes
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import SettingsError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.compatibility import check_matches_settings
from maml_ray.persistence.checkpoint_format import max_array_bytes
from maml_ray.persistence.run_dir import check_inside
from maml_ray.policies.spec import PolicySpec
from maml_ray.tasks.task import Task

FORMAT = 1
DESCRIPTION = "policy.json"
PARAMETERS = "parameters.safetensors"
_MAX_DESCRIPTION_BYTES = 10_000_000
_MEAN, _SCALE = "observation_mean", "observation_scale"


def save_policy(agent: Agent, folder: Path, task: Task | None = None) -> None:
    """Write a policy to a new folder, atomically.

    Args:
        agent: the policy, adapted or not.
        folder: folder to create; must not exist.
        task: task it was adapted to, stored for reference.

    Raises:
        RunDirError: the folder exists or cannot be written.
    """
    files = serialize_policy(agent, task)
    if os.path.lexists(folder):
        raise RunDirError(f"{folder} already exists: name another folder")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        temporary.mkdir(parents=True)
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        os.replace(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunDirError(f"cannot write the policy to {folder}: {error.strerror}") from None


def serialize_policy(agent: Agent, task: Task | None = None) -> dict[str, bytes]:
    """Return name and content of each file of a policy folder; deterministic."""
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


@dataclass(frozen=True, eq=False)
class SavedPolicy:
    """A policy as saved, and the task it was adapted to, if that is known."""

    agent: Agent
    task: Task | None


def load_policy(folder: Path) -> Agent:
    """Load a policy written by :func:`save_policy`.

    Raises:
        RunDirError: a file is truncated, altered, of another format, or a link out of ``folder``.
        SettingsError: the stored settings are invalid.
    """
    check_inside(folder, folder / DESCRIPTION, folder / PARAMETERS)
    return parse_policy(partial(_read, folder), folder).agent


def parse_policy(read: Callable[[str, int], bytes], source: Path) -> SavedPolicy:
    """Return the policy whose files, those of :func:`serialize_policy`, ``read`` returns.

    Args:
        read: returns the content of a file, given its name and its largest size in bytes.
        source: where the policy is, for error messages.

    Raises:
        RunDirError: a file is truncated, altered or of another format.
        SettingsError: the stored settings are invalid.
        Exception: any exception of ``read``.
    """
    content = read(DESCRIPTION, _MAX_DESCRIPTION_BYTES)
    try:
        description = json.loads(content)
    except (ValueError, RecursionError):
        raise RunDirError(f"{source / DESCRIPTION} is not JSON") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise RunDirError(
            f"the policy in {source} has another format: this version reads format {FORMAT}"
        )
    try:
        spec = PolicySpec.from_json(description["policy"])
        max_bytes = max_array_bytes(spec)
        saved = _parse(source, description, spec, read(PARAMETERS, max_bytes))
    except KeyError as error:
        raise RunDirError(f"{source} does not hold a policy: {error} is missing") from None
    except SettingsError as error:
        raise SettingsError(f"{source / DESCRIPTION}: {error}") from None
    except (TypeError, ValueError, OverflowError, AttributeError, SafetensorError) as error:
        raise RunDirError(f"{source} does not hold a policy: {str(error)[:200]}") from None
    check_matches_settings(saved.agent, source)
    return saved


def _read(folder: Path, name: str, max_bytes: int) -> bytes:
    path = folder / name
    try:
        return read_bytes(path, max_bytes=max_bytes)
    except UnreadableFile as error:
        raise RunDirError(f"cannot read the policy: {path}: {error}") from None


def _parse(
    source: Path, description: dict[str, Any], spec: PolicySpec, content: bytes
) -> SavedPolicy:
    if description["sha256"] != {PARAMETERS: hashlib.sha256(content).hexdigest()}:
        raise ValueError(f"the SHA-256 of {PARAMETERS} differs from the recorded one")
    arrays = safetensors_numpy.load(content)
    normalizer = None
    if _MEAN in arrays:
        normalizer = Normalizer(arrays.pop(_MEAN), arrays.pop(_SCALE))
    settings = validate_settings(description["settings"], recorded=True)
    agent = Agent(
        settings=settings.as_recorded_in(str(source)),
        spec=spec,
        parameters=arrays,
        normalizer=normalizer,
        adaptation_steps=int(description["adaptation_steps"]),
    )
    task = description.get("task")
    return SavedPolicy(agent, None if task is None else Task(task["name"], task["parameters"]))
