"""Checkpoints: complete or absent, checked on load, nothing in them can run.

A checkpoint is a folder ``checkpoints/00000120`` (the number of finished iterations) of three
files: ``parameters.safetensors`` (the policy, readable by any safetensors program),
``learner.safetensors`` (the optimizer's moments, the statistics of observations) and
``manifest.json``, which holds the counters, the policy's sizes and a SHA-256 of each other file.
With ``meta_batch.async_collection`` the meta-batch that is under way is not kept, but what it is collected
with is, beside the optimizer's moments: a run that goes on collects it again, to the same bits.
The manifest is written last: without it there is no checkpoint. ``checkpoints/best.json`` names
the one whose parameters had the highest return after adaptation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from maml_ray.common.errors import RunDirError
from maml_ray.persistence.checkpoint_format import (
    Checkpoint,
    CorruptCheckpoint,
    checkpoint_files,
    load_checkpoint,
)
from maml_ray.persistence.storage import Storage, is_partial

FOLDER = "checkpoints"
_BEST = f"{FOLDER}/best.json"
_LOOKS = 10
"""At checkpoints that come and go; whoever is too slow for all of them is told so."""


@dataclass(frozen=True)
class CheckpointScore:
    """How good a checkpoint's parameters are.

    Attributes:
        iteration: the checkpoint's number.
        value: mean return after adaptation, in the iteration that collected with them.
    """

    iteration: int
    value: float


def save_checkpoint(
    storage: Storage,
    checkpoint: Checkpoint,
    *,
    keep: int,
    scores: Sequence[CheckpointScore] = (),
    sound: set[str] | None = None,
) -> str:
    """Write ``checkpoint``; remove all but the newest ``keep`` sound ones and the best.

    Args:
        storage: of the run.
        checkpoint: what is to be kept.
        keep: how many of the newest stay; broken ones are not counted.
        scores: of checkpoints that were written before.
        sound: names of those that are known to be; what is found out is added. Without it all that
            are to be kept are looked at.

    Returns:
        The name of the checkpoint's folder in the storage.

    Raises:
        OSError: the storage failed; no earlier checkpoint has been touched.
    """
    name, sound = _name(checkpoint.iteration), set() if sound is None else sound
    if not _is_whole(storage, name):
        for file, content in checkpoint_files(checkpoint).items():  # the manifest comes last
            storage.write(f"{name}/{file}", content)
    sound.add(name)
    names = storage.names(FOLDER)
    for left in (one for one in names if is_partial(one)):  # by a write that was killed
        storage.remove(f"{FOLDER}/{left}")
    there = _checkpoints(names)
    best = _note_best(storage, scores, there)
    # What is newer than this one is a leftover: of a write that was killed, or altered later.
    older, counted = [one for one in there if one < name], 1
    for one in older:
        if counted < keep and (one in sound or _is_whole(storage, one)):
            sound.add(one)
            counted += 1
        elif best is None or one != _name(best.iteration):
            storage.remove(one)
    return name


def load_newest_checkpoint(storage: Storage) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that can be read, and a warning for each broken one before it.

    Of a run that is under way all may have been replaced by newer ones while they were read: then
    those are looked for.

    Raises:
        RunDirError: there is none, the newest is of another format, or the storage fails.
    """
    warnings: list[str] = []
    seen: list[str] = []
    try:
        for _ in range(_LOOKS):
            if (there := _folders(storage)) == seen:
                break
            seen, warnings = there, []
            for name in there:
                try:
                    return load_checkpoint(storage, name), warnings
                except CorruptCheckpoint as error:
                    warnings.append(f"{error}; trying the one before it")
    except OSError as error:
        raise RunDirError(f"cannot read the checkpoints in {storage}: {error}") from None
    found = f"; broken: {'; '.join(warnings)}" if warnings else ""
    raise RunDirError(f"{storage}/{FOLDER} holds no checkpoint that can be read{found}")


def load_newest_of(places: Sequence[Storage]) -> tuple[Storage, Checkpoint | None, list[str]]:
    """The newest checkpoint of a run that may have some in several places.

    Returns:
        Where it is, the checkpoint and warnings; the first place and None where there is none.

    Raises:
        RunDirError: none can be read, though some may be there.
    """
    found: list[tuple[Storage, Checkpoint]] = []
    warnings: list[str] = []
    problems: list[RunDirError] = []
    for place in places:
        try:
            if has_checkpoints(place):
                checkpoint, told = load_newest_checkpoint(place)
                warnings += told
                found.append((place, checkpoint))
        except RunDirError as error:
            problems.append(error)
    if not found:
        if problems:
            raise problems[0]
        return places[0], None, warnings
    place, newest = max(found, key=lambda each: each[1].iteration)
    return place, newest, warnings + [str(problem) for problem in problems]


def has_checkpoints(storage: Storage) -> bool:
    """Whether there is anything to go on from, sound or not.

    Raises:
        RunDirError: the storage fails.
    """
    try:
        return bool(_folders(storage))
    except OSError as error:
        raise RunDirError(f"cannot read the checkpoints in {storage}: {error}") from None


def load_named_checkpoint(storage: Storage, which: str) -> tuple[Checkpoint, list[str]]:
    """A checkpoint by what a person calls it, and warnings.

    Args:
        storage: of the run.
        which: ``"newest"``, ``"best"``, or a number of iterations.

    Raises:
        RunDirError: there is no such checkpoint, or it cannot be read.
    """
    if which == "newest":
        return load_newest_checkpoint(storage)
    if which == "best":
        try:
            best = read_best_score(storage)
        except OSError as error:
            raise RunDirError(f"cannot read the note of the best in {storage}: {error}") from None
        if best is None:
            raise RunDirError(f"{storage} does not know its best checkpoint yet: take newest")
        which = str(best.iteration)
    if not (which.isascii() and which.isdigit() and len(which) <= 8):
        raise RunDirError(f"a checkpoint is newest, best or a number, not {which!r:.60}")
    name = _name(int(which))
    try:
        there = _folders(storage)
        if name not in there:
            numbers = ", ".join(str(int(one.rpartition("/")[2])) for one in there) or "none"
            raise RunDirError(f"{storage} has no checkpoint {int(which)}; there is: {numbers}")
        return load_checkpoint(storage, name), []
    except CorruptCheckpoint as error:
        raise RunDirError(str(error)) from None
    except OSError as error:
        raise RunDirError(f"cannot read the checkpoints in {storage}: {error}") from None


def read_best_score(storage: Storage) -> CheckpointScore | None:
    """The best checkpoint that is known; None where none is, or the note is damaged.

    Raises:
        OSError: the storage fails. That is not to know of none: the best would be cleared away.
    """
    try:
        content = json.loads(storage.read(_BEST))
        score = CheckpointScore(int(content["iteration"]), float(content["score"]))
    except (FileNotFoundError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return score if math.isfinite(score.value) else None


def _is_whole(storage: Storage, name: str) -> bool:
    """Whether it is there already: a resumed run comes to the same iteration, and the same bits."""
    try:
        load_checkpoint(storage, name)
    except (CorruptCheckpoint, RunDirError):
        return False
    return True


def _note_best(
    storage: Storage, scores: Sequence[CheckpointScore], there: Sequence[str]
) -> CheckpointScore | None:
    """The best checkpoint of those that are ``there``, written down where it is a new one."""
    best = read_best_score(storage)
    if best is not None and _name(best.iteration) not in there:
        best = None
    better = [score for score in scores if best is None or score.value > best.value]
    rivals = [score for score in better if _name(score.iteration) in there]
    if not rivals:
        return best
    challenger = max(rivals, key=lambda score: score.value)
    content = {"iteration": challenger.iteration, "score": challenger.value}
    storage.write(_BEST, json.dumps(content).encode())
    return challenger


def _name(iteration: int) -> str:
    return f"{FOLDER}/{iteration:08d}"


def _folders(storage: Storage) -> list[str]:
    """Names of the checkpoints' folders, newest first."""
    return _checkpoints(storage.names(FOLDER))


def _checkpoints(names: Sequence[str]) -> list[str]:
    numbers = [name for name in names if name.isascii() and name.isdigit()]
    return [f"{FOLDER}/{number}" for number in sorted(numbers, reverse=True)]
