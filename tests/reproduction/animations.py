"""Record short animations of finished runs, before and after adaptation side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.evaluation.video import record_video
from tests.reproduction.experiments import Experiment
from tests.reproduction.runs import is_trained, run_folder

FRAMES_PER_SECOND, SECONDS = 12, 4
WIDTH = 560
"""Of both images together, in pixels."""
MAX_BYTES = 400_000
_QUALITIES = (75, 60, 45, 30, 15)
_TASKS = 6
"""Held-out tasks, of which the two that differ most are shown."""

Frame = NDArray[np.uint8]


def write_animations(
    base: Path, runs: Sequence[tuple[Experiment, int]], output: Path
) -> list[Path]:
    """Write animations of the first finished seed of each animated experiment; keep what exists.

    Args:
        base: folder of the run directories.
        runs: experiments and seeds.
        output: folder to write to.

    Returns:
        The new files.

    Raises:
        VideoUnavailable: this machine cannot render.
    """
    written: list[Path] = []
    done: set[str] = set()
    for experiment, seed in runs:
        folder = run_folder(base, experiment, seed)
        if not experiment.animated or experiment.name in done or not is_trained(folder):
            continue
        done.add(experiment.name)
        existing = sorted(output.glob(f"{folder.path.name}--*.webp"))
        if existing:
            print(f"{existing[0].parent} has the animations of {folder}: skipped", flush=True)
            continue
        print(f"recording animations of {folder}", flush=True)
        written += _record(folder.path, output)
    return written


def shorten(frames: Sequence[Frame], frames_per_second: float) -> list[Frame]:
    """Return the first :data:`SECONDS` of a film at :data:`FRAMES_PER_SECOND`, in real time."""
    count = min(SECONDS * FRAMES_PER_SECOND, _frames_at(len(frames), frames_per_second))
    steps = [round(index * frames_per_second / FRAMES_PER_SECOND) for index in range(count)]
    return [frames[min(step, len(frames) - 1)] for step in steps]


def encode(frames: Sequence[Frame], path: Path) -> None:
    """Write an animated WebP of at most :data:`MAX_BYTES` if a lower quality achieves that."""
    images = list(_scaled(frames))
    for quality in _QUALITIES:
        images[0].save(
            path,
            save_all=True,
            append_images=images[1:],
            duration=round(1000 / FRAMES_PER_SECOND),
            loop=0,
            quality=quality,
            method=4,
        )
        if path.stat().st_size <= MAX_BYTES:
            return


def _record(folder: Path, output: Path) -> list[Path]:
    """Write one animation for each of the two tasks that differ most."""
    import imageio.v2 as imageio

    from maml_ray.evaluation.evaluate import evaluate  # PyTorch takes seconds to import
    from maml_ray.evaluation.loading import load
    from maml_ray.runs.adapt import file_name_of

    agent = load(folder)
    replays = evaluate(agent, tasks=_TASKS, episodes=1).replays
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for pair in replays:
        with tempfile.TemporaryDirectory() as temporary:
            film = Path(temporary) / "film.mp4"
            record_video(agent, [pair], film)
            reader: Any = imageio.get_reader(film)
            with reader:
                rate = float(reader.get_meta_data()["fps"])
                frames = [np.asarray(frame, dtype=np.uint8) for frame in reader]
        path = output / f"{folder.name}--{file_name_of(pair[0].task)}.webp"
        encode(shorten(frames, rate), path)
        written.append(path)
    return written


def _frames_at(frames: int, frames_per_second: float) -> int:
    return max(1, int(frames / frames_per_second * FRAMES_PER_SECOND))


def _scaled(frames: Sequence[Frame]) -> Iterator[Any]:
    from PIL import Image

    for frame in frames:
        image = Image.fromarray(frame)
        height = round(image.height * WIDTH / image.width)
        yield image.resize((WIDTH, height), Image.Resampling.LANCZOS)
