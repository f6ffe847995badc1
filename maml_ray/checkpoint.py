"""Checkpoints: complete or absent, checked on load, nothing in them can run.

A checkpoint is a folder ``checkpoints/00000120`` (the number of finished iterations) of three
files: ``parameters.safetensors`` (the policy, readable by any safetensors program),
``learner.safetensors`` (the optimiser's moments, the statistics of observations) and
``manifest.json``, which holds the counters, the policy's sizes and a SHA-256 of each other file.
It is written aside, synced, and renamed into place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from maml_ray.errors import RunFolderError
from maml_ray.learner import LearnerState
from maml_ray.normalisation import RunningStatistics
from maml_ray.outer_update import OptimiserState
from maml_ray.policy import PolicySpec

FORMAT = 1
_MANIFEST = "manifest.json"
_PARAMETERS = "parameters.safetensors"
_LEARNER = "learner.safetensors"

Arrays = Mapping[str, NDArray[np.float32]]


class BrokenCheckpoint(Exception):
    """A checkpoint that is torn, altered or of another format; the sentence says which."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on.

    Attributes:
        iteration: number of finished iterations, and so the number of the next.
        total_env_steps: environment steps taken so far.
        elapsed_s: seconds of training so far.
        spec: sizes of the policy.
        learner: the learner's state.
    """

    iteration: int
    total_env_steps: int
    elapsed_s: float
    spec: PolicySpec
    learner: LearnerState


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write ``checkpoint`` under ``folder`` and remove all but the newest ``keep``.

    Returns:
        The new checkpoint's folder.

    Raises:
        OSError: the storage failed; no earlier checkpoint has been touched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{checkpoint.iteration:08d}"
    aside = folder / f".{final.name}.{os.getpid()}.partial"
    if final.exists():
        try:  # the same iteration again, after a resume: what is there is as good
            load_checkpoint(final)
            return final
        except BrokenCheckpoint:
            shutil.rmtree(final)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        for name, content in _contents(checkpoint).items():
            _write_synced(aside / name, content)
        _sync_folder(aside)
        os.replace(aside, final)
        _sync_folder(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder and verify it.

    Raises:
        BrokenCheckpoint: a file is missing, its checksum is wrong, or the format is another.
    """
    manifest = _read_manifest(path)
    files = {
        name: _read_verified(path / name, digest) for name, digest in manifest["sha256"].items()
    }
    try:
        parameters = safetensors_numpy.load(files[_PARAMETERS])
        arrays = safetensors_numpy.load(files[_LEARNER])
        spec = dict(manifest["policy"])
        spec["hidden_sizes"] = tuple(spec["hidden_sizes"])
        return Checkpoint(
            iteration=int(manifest["iteration"]),
            total_env_steps=int(manifest["total_env_steps"]),
            elapsed_s=float(manifest["elapsed_s"]),
            spec=PolicySpec(**spec),
            learner=LearnerState(
                version=int(manifest["version"]),
                parameters=parameters,
                optimiser=OptimiserState(
                    steps=int(manifest["optimiser_steps"]),
                    first_moments=_with_prefix(arrays, "first"),
                    second_moments=_with_prefix(arrays, "second"),
                ),
                observations=RunningStatistics(
                    count=float(manifest["observations_seen"]),
                    mean=arrays["observations/mean"],
                    squares=arrays["observations/squares"],
                ),
            ),
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise BrokenCheckpoint(f"{path} does not hold a checkpoint: {error}") from None


def load_newest(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint under ``folder`` that can be read, and a warning per broken one.

    Raises:
        RunFolderError: there is none.
    """
    warnings: list[str] = []
    for path in _folders(folder):
        try:
            return load_checkpoint(path), warnings
        except BrokenCheckpoint as error:
            warnings.append(f"{error}; trying the one before it")
    found = f"; broken: {'; '.join(warnings)}" if warnings else ""
    raise RunFolderError(f"{folder} holds no checkpoint that can be read{found}")


def _contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    """File names and contents, the manifest last."""
    state = checkpoint.learner
    arrays: dict[str, NDArray[Any]] = {
        **{f"first/{name}": value for name, value in state.optimiser.first_moments.items()},
        **{f"second/{name}": value for name, value in state.optimiser.second_moments.items()},
        "observations/mean": state.observations.mean,
        "observations/squares": state.observations.squares,
    }
    files = {
        _PARAMETERS: safetensors_numpy.save(dict(state.parameters)),
        _LEARNER: safetensors_numpy.save(arrays),
    }
    manifest = {
        "format": FORMAT,
        "iteration": checkpoint.iteration,
        "version": state.version,
        "optimiser_steps": state.optimiser.steps,
        "observations_seen": state.observations.count,
        "total_env_steps": checkpoint.total_env_steps,
        "elapsed_s": checkpoint.elapsed_s,
        "policy": asdict(checkpoint.spec),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    return {**files, _MANIFEST: json.dumps(manifest, indent=2).encode()}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
    except OSError as error:
        raise BrokenCheckpoint(f"{path} has no readable manifest: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise BrokenCheckpoint(f"the manifest of {path} is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise BrokenCheckpoint(f"{path} is of format {found!r}; this version reads format {FORMAT}")
    digests = manifest.get("sha256")
    if not isinstance(digests, dict) or set(digests) != {_PARAMETERS, _LEARNER}:
        raise BrokenCheckpoint(f"the manifest of {path} does not name its files")
    return manifest


def _read_verified(path: Path, digest: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BrokenCheckpoint(f"{path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise BrokenCheckpoint(f"{path} does not match its checksum")
    return content


def _with_prefix(arrays: Arrays, prefix: str) -> dict[str, NDArray[np.float32]]:
    start = f"{prefix}/"
    return {
        name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)
    }


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit() and p.is_dir()), reverse=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
