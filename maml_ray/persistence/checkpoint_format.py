"""The files of a checkpoint: a value to bytes and back, checked on the way in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from maml_ray.common.errors import RunDirError, told
from maml_ray.common.normalization import Normalizer, RunningStatistics
from maml_ray.learning.state import LearnerState, OptimizerState
from maml_ray.persistence.storage import Storage
from maml_ray.policies.spec import PolicyParameters, PolicySpec

FORMAT = 2
FORMAT_BEHIND = 3
"""As format 2, with the parameters that the next meta-batch is collected with: what reads only
format 2 would collect it with others, so it must refuse. Written where there are any."""
_MANIFEST = "manifest.json"
_PARAMETERS = "parameters.safetensors"
_LEARNER = "learner.safetensors"

Arrays = Mapping[str, NDArray[np.float32]]


class CorruptCheckpoint(Exception):
    """A checkpoint that is torn or altered; the sentence says how."""


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


def load_checkpoint(storage: Storage, name: str) -> Checkpoint:
    """Read one checkpoint folder of ``storage`` and verify it.

    Raises:
        CorruptCheckpoint: a file is missing, its checksum is wrong, or it is no checkpoint.
        RunDirError: it is of another format.
        OSError: the storage failed.
    """
    manifest = _read_manifest(storage, name)
    files = {
        file: _read_verified(storage, f"{name}/{file}", digest)
        for file, digest in manifest["sha256"].items()
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
                optimizer=OptimizerState(
                    steps=int(manifest["optimiser_steps"]),
                    first_moments=_with_prefix(arrays, "first"),
                    second_moments=_with_prefix(arrays, "second"),
                ),
                observations=RunningStatistics(
                    count=float(manifest["observations_seen"]),
                    mean=arrays["observations/mean"],
                    squares=arrays["observations/squares"],
                ),
                skipped_in_a_row=int(manifest["skipped_in_a_row"]),
                discarded_episodes=int(manifest["discarded_episodes"]),
                behind=_read_behind(manifest, arrays),
            ),
        )
    except (KeyError, TypeError, ValueError, OverflowError, SafetensorError) as error:
        raise CorruptCheckpoint(f"{storage}/{name} does not hold a checkpoint: {error}") from None


def checkpoint_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Names and contents of its files, the manifest last: without it there is no checkpoint."""
    state = checkpoint.learner
    arrays: dict[str, NDArray[Any]] = {
        **{f"first/{name}": value for name, value in state.optimizer.first_moments.items()},
        **{f"second/{name}": value for name, value in state.optimizer.second_moments.items()},
        "observations/mean": state.observations.mean,
        "observations/squares": state.observations.squares,
        **_behind_arrays(state.behind),
    }
    files = {
        _PARAMETERS: safetensors_numpy.save(dict(state.parameters)),
        _LEARNER: safetensors_numpy.save(arrays),
    }
    manifest = {
        "format": FORMAT if state.behind is None else FORMAT_BEHIND,
        "iteration": checkpoint.iteration,
        "version": state.version,
        "optimiser_steps": state.optimizer.steps,
        "observations_seen": state.observations.count,
        "total_env_steps": checkpoint.total_env_steps,
        "elapsed_s": checkpoint.elapsed_s,
        "skipped_in_a_row": state.skipped_in_a_row,
        "discarded_episodes": state.discarded_episodes,
        "policy": asdict(checkpoint.spec),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    if state.behind is not None:
        manifest["behind_version"] = state.behind.version
    sealed = {**manifest, "seal": _seal(manifest)}
    return {**files, _MANIFEST: json.dumps(sealed, indent=2).encode()}


def _read_manifest(storage: Storage, name: str) -> dict[str, Any]:
    try:
        manifest = json.loads(storage.read(f"{name}/{_MANIFEST}"))
    except FileNotFoundError:
        raise CorruptCheckpoint(f"{storage}/{name} has no manifest") from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise CorruptCheckpoint(f"{storage}/{name} has no readable manifest: {error}") from None
    except (ValueError, RecursionError):
        raise CorruptCheckpoint(f"the manifest of {storage}/{name} is not JSON") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise CorruptCheckpoint(f"the manifest of {storage}/{name} is not one of a checkpoint")
    if manifest["format"] not in (FORMAT, FORMAT_BEHIND):
        raise RunDirError(
            f"{storage}/{name} is a checkpoint of format {manifest['format']}, and this version of "
            f"maml-ray reads formats {FORMAT} and {FORMAT_BEHIND}: use the version that wrote it"
        )
    if manifest.pop("seal", None) != _seal(manifest):
        raise CorruptCheckpoint(f"the manifest of {storage}/{name} does not match its checksum")
    digests = manifest.get("sha256")
    if not isinstance(digests, dict) or set(digests) != {_PARAMETERS, _LEARNER}:
        raise CorruptCheckpoint(f"the manifest of {storage}/{name} does not name its files")
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    """A checksum of what the manifest says: a counter that has been altered is an error too."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_verified(storage: Storage, name: str, digest: str) -> bytes:
    try:
        content = storage.read(name)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise CorruptCheckpoint(f"{storage}/{name} cannot be read: {told(error)}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise CorruptCheckpoint(f"{storage}/{name} does not match its checksum")
    return content


def _behind_arrays(behind: PolicyParameters | None) -> dict[str, NDArray[Any]]:
    if behind is None:
        return {}
    arrays = {f"behind/{name}": value for name, value in behind.values.items()}
    if behind.normalizer is not None:
        arrays["behind_normaliser/mean"] = behind.normalizer.mean
        arrays["behind_normaliser/scale"] = behind.normalizer.scale
    return arrays


def _read_behind(manifest: Mapping[str, Any], arrays: Arrays) -> PolicyParameters | None:
    if manifest["format"] != FORMAT_BEHIND:
        return None
    constants = _with_prefix(arrays, "behind_normaliser")
    return PolicyParameters(
        version=int(manifest["behind_version"]),
        values=_with_prefix(arrays, "behind"),
        normalizer=Normalizer(constants["mean"], constants["scale"]) if constants else None,
    )


def _with_prefix(arrays: Arrays, prefix: str) -> dict[str, NDArray[np.float32]]:
    start = f"{prefix}/"
    return {
        name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)
    }
