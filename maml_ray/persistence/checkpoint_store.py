"""Save, list and load the checkpoints of a run.

A checkpoint is a directory ``checkpoints/00000120`` (the number of finished iterations) of three
files: ``parameters.safetensors`` (the policy, readable by any safetensors program),
``learner.safetensors`` (optimizer moments, observation statistics) and ``manifest.json`` (counters,
the policy's sizes and a SHA-256 of each other file). None of them can execute code. The manifest
is written last: a directory without one is not a checkpoint. With ``meta_batch.async_collection``
the policy that collects the next meta-batch is stored too, but not the part that has been collected
already: a resumed run collects it again, to the same bits. ``checkpoints/best.json`` names the
checkpoint with the highest return after adaptation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from maml_ray.common.errors import RunDirError, warn_of_damage
from maml_ray.common.safe_files import UnsuitableFile
from maml_ray.persistence.checkpoint_format import (
    Checkpoint,
    CorruptCheckpoint,
    checkpoint_files,
    load_checkpoint,
)
from maml_ray.persistence.storage import Storage, is_partial

DIRECTORY = "checkpoints"
_BEST = f"{DIRECTORY}/best.json"
_MAX_LISTINGS = 10
"""Attempts to load the newest checkpoint of a run that replaces them faster than they are read."""


@dataclass(frozen=True)
class CheckpointScore:
    """Score of a checkpoint's parameters.

    Attributes:
        iteration: number of the checkpoint.
        value: mean return after adaptation in the iteration that collected with them.
    """

    iteration: int
    value: float


def save_checkpoint(
    storage: Storage,
    checkpoint: Checkpoint,
    *,
    keep: int,
    scores: Sequence[CheckpointScore] = (),
    verified: set[str] | None = None,
) -> str:
    """Write ``checkpoint``; remove all but the newest ``keep`` valid ones and the best.

    Args:
        storage: storage of the run.
        checkpoint: checkpoint to write.
        keep: number of newest checkpoints to keep; corrupt ones do not count.
        scores: scores of earlier checkpoints.
        verified: names of checkpoints known to be valid, extended in place. Without it every
            checkpoint to keep is read.

    Returns:
        The name of the checkpoint's directory in the storage.

    Raises:
        OSError: the storage failed; earlier checkpoints are intact.
    """
    name, verified = _name(checkpoint.iteration), set() if verified is None else verified
    # A resumed run may arrive at an iteration that is saved already, with the same bits.
    if not _is_valid(storage, name):
        for file, content in checkpoint_files(checkpoint).items():  # the manifest comes last
            storage.write(f"{name}/{file}", content)
    verified.add(name)
    entries = storage.names(DIRECTORY)
    for partial in filter(is_partial, entries):  # of an interrupted write
        storage.remove(f"{DIRECTORY}/{partial}")
    existing = _newest_first(entries)
    best = _update_best(storage, scores, existing)
    # Newer ones than this are ignored: remains of an interrupted write, or corrupt.
    kept = 1
    for older in (each for each in existing if each < name):
        if kept < keep and (older in verified or _is_valid(storage, older)):
            verified.add(older)
            kept += 1
        elif best is None or older != _name(best.iteration):
            storage.remove(older)
    return name


def load_newest_checkpoint(storage: Storage) -> tuple[Checkpoint, list[str]]:
    """Load the newest valid checkpoint; return it and a sentence on each corrupt newer one.

    Each sentence is also issued as a :class:`~maml_ray.common.errors.RunWarning`. A live run may
    replace all of them while they are read; they are listed again then.

    Raises:
        RunDirError: there is none, the newest has an unknown format, or the storage failed.
    """
    corrupt: list[str] = []
    previous: list[str] = []
    try:
        for _ in range(_MAX_LISTINGS):
            if (existing := _list_checkpoints(storage)) == previous:
                break
            previous, corrupt = existing, []
            for name in existing:
                try:
                    checkpoint = load_checkpoint(storage, name)
                except CorruptCheckpoint as error:
                    corrupt.append(str(error))
                else:
                    warnings = [
                        f"{each}; checkpoint {checkpoint.iteration} is used" for each in corrupt
                    ]
                    for warning in warnings:
                        warn_of_damage(warning)
                    return checkpoint, warnings
    except OSError as error:
        raise RunDirError(f"cannot read the checkpoints in {storage}: {error}") from None
    details = f" ({'; '.join(corrupt)}): put back a copy of one" if corrupt else ""
    raise RunDirError(f"{storage}/{DIRECTORY} holds no checkpoint that can be read{details}")


def load_newest_of(storages: Sequence[Storage]) -> tuple[Storage, Checkpoint | None]:
    """Load the newest checkpoint of a run whose checkpoints may be in several storages.

    Issues a :class:`~maml_ray.common.errors.RunWarning` for each that cannot be read.

    Returns:
        Its storage and the checkpoint; the first storage and None if there is none.

    Raises:
        RunDirError: checkpoints may exist, but none can be read.
    """
    loaded: list[tuple[Storage, Checkpoint]] = []
    errors: list[RunDirError] = []
    for storage in storages:
        try:
            if has_checkpoints(storage):
                loaded.append((storage, load_newest_checkpoint(storage)[0]))
        except RunDirError as error:
            errors.append(error)
    if not loaded:
        if errors:
            raise errors[0]
        return storages[0], None
    for unreadable in errors:
        warn_of_damage(str(unreadable))
    return max(loaded, key=lambda each: each[1].iteration)


def has_checkpoints(storage: Storage) -> bool:
    """Return whether there are checkpoints, valid or not.

    Raises:
        RunDirError: the storage failed.
    """
    try:
        return bool(_list_checkpoints(storage))
    except OSError as error:
        raise RunDirError(f"cannot read the checkpoints in {storage}: {error}") from None


def load_named_checkpoint(storage: Storage, which: str) -> tuple[Checkpoint, list[str]]:
    """Load a checkpoint that a user asks for; return it and warnings.

    Args:
        storage: storage of the run.
        which: ``"newest"``, ``"best"``, or a number of iterations.

    Raises:
        RunDirError: it does not exist or cannot be read.
    """
    if which == "newest":
        return load_newest_checkpoint(storage)
    if which == "best":
        which = str(_best_iteration(storage))
    if not (which.isascii() and which.isdigit() and len(which) <= 8):
        raise RunDirError(f"a checkpoint is newest, best or a number, not {which!r:.60}")
    name = _name(int(which))
    try:
        existing = _list_checkpoints(storage)
        if name not in existing:
            numbers = ", ".join(str(int(one.rpartition("/")[2])) for one in existing) or "none"
            raise RunDirError(f"{storage} has no checkpoint {int(which)}; it has: {numbers}")
        return load_checkpoint(storage, name), []
    except CorruptCheckpoint as error:
        raise RunDirError(str(error)) from None
    except OSError as error:
        raise RunDirError(f"cannot read the checkpoints in {storage}: {error}") from None


def _best_iteration(storage: Storage) -> int:
    """Return the iteration of the best checkpoint.

    Raises:
        RunDirError: it is not known, or the storage failed.
    """
    try:
        best = read_best_score(storage)
        if best is not None:
            return best.iteration
        is_damaged = _BEST.rpartition("/")[2] in storage.names(DIRECTORY)
    except OSError as error:
        raise RunDirError(f"cannot read {storage}/{_BEST}: {error}") from None
    problem = f"{_BEST} is damaged" if is_damaged else "its best is not known yet"
    raise RunDirError(f"{storage} has no best checkpoint ({problem}): use newest")


def read_best_score(storage: Storage) -> CheckpointScore | None:
    """Return the score of the best checkpoint; None if none is recorded or the file is corrupt.

    Raises:
        OSError: the storage failed. Returning None would get the best checkpoint removed.
    """
    try:
        content = json.loads(storage.read(_BEST))
        score = CheckpointScore(int(content["iteration"]), float(content["score"]))
    except (FileNotFoundError, UnsuitableFile):
        return None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return score if math.isfinite(score.value) else None


def _is_valid(storage: Storage, name: str) -> bool:
    try:
        load_checkpoint(storage, name)
    except (CorruptCheckpoint, RunDirError):
        return False
    return True


def _update_best(
    storage: Storage, scores: Sequence[CheckpointScore], existing: Sequence[str]
) -> CheckpointScore | None:
    """Record the best of the ``existing`` checkpoints if it has changed, and return its score."""
    best = read_best_score(storage)
    if best is not None and _name(best.iteration) not in existing:
        best = None
    candidates = [
        score
        for score in scores
        if (best is None or score.value > best.value) and _name(score.iteration) in existing
    ]
    if not candidates:
        return best
    best = max(candidates, key=lambda score: score.value)
    content = {"iteration": best.iteration, "score": best.value}
    storage.write(_BEST, json.dumps(content).encode())
    return best


def _name(iteration: int) -> str:
    return f"{DIRECTORY}/{iteration:08d}"


def _list_checkpoints(storage: Storage) -> list[str]:
    """Return names of the checkpoint directories, newest first."""
    return _newest_first(storage.names(DIRECTORY))


def _newest_first(entries: Sequence[str]) -> list[str]:
    numbers = [entry for entry in entries if entry.isascii() and entry.isdigit()]
    return [f"{DIRECTORY}/{number}" for number in sorted(numbers, reverse=True)]
