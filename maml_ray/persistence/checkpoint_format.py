"""Serialize checkpoints to files, and read them back with their checksums verified.

Nothing outside this module knows the layout of the files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from maml_ray.common.errors import RunDirError, error_reason
from maml_ray.common.normalization import Normalizer, RunningStatistics
from maml_ray.common.safe_files import UnsuitableFile
from maml_ray.learning.state import LearnerState, OptimizerState
from maml_ray.persistence.storage import Storage
from maml_ray.policies.spec import PolicyParameters, PolicySpec

FORMAT = 2
FORMAT_STALE = 3
"""Format 2 plus the policy of the previous version, which collects the next meta-batch; written
only if there is one. A reader of format 2 alone must refuse it: it would collect that meta-batch
with other parameters."""
_MANIFEST = "manifest.json"
_PARAMETERS = "parameters.safetensors"
_LEARNER = "learner.safetensors"
_HEADER_BYTES, _MAX_ARRAY_BYTES = 1_000_000, 4_000_000_000
"""Allowance for names and shapes in a file of arrays, and limit of a file of the largest policy
allowed, whatever sizes a manifest from somebody else claims."""
_UNREADABLE = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    UnsuitableFile,
)
"""What a file of a checkpoint alone can cause; other errors are of the storage."""

# Keys in the files. They predate the names of the attributes and must not follow them.
_OPTIMIZER_STEPS = "optimiser_steps"
_OBS_COUNT = "observations_seen"
_STALE_VERSION = "behind_version"
_FIRST_MOMENTS = "first"
_SECOND_MOMENTS = "second"
_OBS_STATS = "observations"
_STALE_PARAMS = "behind"
_STALE_NORMALIZER = "behind_normaliser"

Arrays = Mapping[str, NDArray[np.float32]]


class CorruptCheckpoint(Exception):
    """A checkpoint is incomplete or its content was altered; the message says how."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to resume.

    Attributes:
        iteration: number of finished iterations.
        total_env_steps: environment steps so far.
        elapsed_s: seconds of training so far.
        spec: sizes of the policy.
        learner: state of the learner.
    """

    iteration: int
    total_env_steps: int
    elapsed_s: float
    spec: PolicySpec
    learner: LearnerState


def load_checkpoint(storage: Storage, name: str) -> Checkpoint:
    """Read and verify the checkpoint in directory ``name`` of ``storage``.

    Raises:
        CorruptCheckpoint: a file is missing, a checksum is wrong, or it is not a checkpoint.
        RunDirError: it has an unknown format.
        OSError: the storage failed.
    """
    manifest = _read_manifest(storage, name)
    try:
        spec = PolicySpec.from_json(manifest["policy"])
        max_bytes = max_array_bytes(spec)
        files = {
            file: _read_verified(storage, f"{name}/{file}", digest, max_bytes)
            for file, digest in manifest["sha256"].items()
        }
        parameters = safetensors_numpy.load(files[_PARAMETERS])
        arrays = safetensors_numpy.load(files[_LEARNER])
        return Checkpoint(
            iteration=int(manifest["iteration"]),
            total_env_steps=int(manifest["total_env_steps"]),
            elapsed_s=float(manifest["elapsed_s"]),
            spec=spec,
            learner=LearnerState(
                version=int(manifest["version"]),
                parameters=parameters,
                optimizer=OptimizerState(
                    steps=int(manifest[_OPTIMIZER_STEPS]),
                    first_moments=_with_prefix(arrays, _FIRST_MOMENTS),
                    second_moments=_with_prefix(arrays, _SECOND_MOMENTS),
                ),
                obs_stats=RunningStatistics(
                    count=float(manifest[_OBS_COUNT]),
                    mean=arrays[f"{_OBS_STATS}/mean"],
                    squares=arrays[f"{_OBS_STATS}/squares"],
                ),
                skipped_in_a_row=int(manifest["skipped_in_a_row"]),
                discarded_episodes=int(manifest["discarded_episodes"]),
                stale_params=_read_stale_params(manifest, arrays),
            ),
        )
    except (KeyError, TypeError, ValueError, OverflowError, SafetensorError) as error:
        raise CorruptCheckpoint(f"{storage}/{name} does not hold a checkpoint: {error}") from None


def max_array_bytes(spec: PolicySpec) -> int:
    """Return a generous bound on the size of one file of a policy's arrays.

    The largest holds two moments and the previous version of each parameter and of its learned
    rate, and four statistics of each observation: less than 64 bytes for each weight.

    Raises:
        TypeError, ValueError, OverflowError: ``spec`` has sizes that are none.
    """
    weights = sum(math.prod(map(int, shape)) for shape in spec.shapes().values())
    return min(_MAX_ARRAY_BYTES, _HEADER_BYTES + 64 * max(0, weights))


def checkpoint_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the checkpoint's files by name, the manifest last: it marks the others as complete."""
    state, stale = checkpoint.learner, checkpoint.learner.stale_params
    arrays: dict[str, NDArray[Any]] = {
        **_prefixed(_FIRST_MOMENTS, state.optimizer.first_moments),
        **_prefixed(_SECOND_MOMENTS, state.optimizer.second_moments),
        f"{_OBS_STATS}/mean": state.obs_stats.mean,
        f"{_OBS_STATS}/squares": state.obs_stats.squares,
    }
    if stale is not None:
        arrays |= _prefixed(_STALE_PARAMS, stale.values)
        if stale.normalizer is not None:
            arrays[f"{_STALE_NORMALIZER}/mean"] = stale.normalizer.mean
            arrays[f"{_STALE_NORMALIZER}/scale"] = stale.normalizer.scale
    files = {
        _PARAMETERS: safetensors_numpy.save(dict(state.parameters)),
        _LEARNER: safetensors_numpy.save(arrays),
    }
    manifest = {
        "format": FORMAT if stale is None else FORMAT_STALE,
        "iteration": checkpoint.iteration,
        "version": state.version,
        _OPTIMIZER_STEPS: state.optimizer.steps,
        _OBS_COUNT: state.obs_stats.count,
        "total_env_steps": checkpoint.total_env_steps,
        "elapsed_s": checkpoint.elapsed_s,
        "skipped_in_a_row": state.skipped_in_a_row,
        "discarded_episodes": state.discarded_episodes,
        "policy": asdict(checkpoint.spec),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    if stale is not None:
        manifest[_STALE_VERSION] = stale.version
    sealed = {**manifest, "seal": _seal(manifest)}
    return {**files, _MANIFEST: json.dumps(sealed, indent=2).encode()}


def _read_manifest(storage: Storage, name: str) -> dict[str, Any]:
    try:
        manifest = json.loads(storage.read(f"{name}/{_MANIFEST}"))
    except FileNotFoundError:
        raise CorruptCheckpoint(
            f"{storage}/{name} has no manifest, as while it is written or if that was interrupted"
        ) from None
    except _UNREADABLE as error:
        raise CorruptCheckpoint(
            f"{storage}/{name} has no readable manifest: {error_reason(error)}"
        ) from None
    except (ValueError, RecursionError):
        raise CorruptCheckpoint(f"the manifest of {storage}/{name} is not JSON") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise CorruptCheckpoint(f"the manifest of {storage}/{name} is not one of a checkpoint")
    if manifest["format"] not in (FORMAT, FORMAT_STALE):
        raise RunDirError(
            f"{storage}/{name} is a checkpoint of format {manifest['format']}, and this version of "
            f"maml-ray reads formats {FORMAT} and {FORMAT_STALE}: use the version that wrote it"
        )
    if manifest.pop("seal", None) != _seal(manifest):
        raise CorruptCheckpoint(f"the manifest of {storage}/{name} does not match its checksum")
    digests = manifest.get("sha256")
    if not isinstance(digests, dict) or set(digests) != {_PARAMETERS, _LEARNER}:
        raise CorruptCheckpoint(f"the manifest of {storage}/{name} does not name its files")
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    """Return a checksum of the manifest, so that an altered counter is detected too."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_verified(storage: Storage, name: str, digest: str, max_bytes: int) -> bytes:
    try:
        content = storage.read(name, max_bytes)
    except _UNREADABLE as error:
        raise CorruptCheckpoint(f"{storage}/{name} cannot be read: {error_reason(error)}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise CorruptCheckpoint(f"{storage}/{name} does not match its checksum")
    return content


def _read_stale_params(manifest: Mapping[str, Any], arrays: Arrays) -> PolicyParameters | None:
    if manifest["format"] != FORMAT_STALE:
        return None
    normalizer = _with_prefix(arrays, _STALE_NORMALIZER)
    return PolicyParameters(
        version=int(manifest[_STALE_VERSION]),
        values=_with_prefix(arrays, _STALE_PARAMS),
        normalizer=Normalizer(normalizer["mean"], normalizer["scale"]) if normalizer else None,
    )


def _prefixed(prefix: str, arrays: Arrays) -> dict[str, NDArray[np.float32]]:
    return {f"{prefix}/{name}": value for name, value in arrays.items()}


def _with_prefix(arrays: Arrays, prefix: str) -> dict[str, NDArray[np.float32]]:
    start = f"{prefix}/"
    return {
        name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)
    }
