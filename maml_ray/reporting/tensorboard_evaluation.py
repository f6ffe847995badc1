"""Write the evaluation of a run and its video to TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.tensorboard_tags import (
    EVALUATION_FOLDER,
    VIDEO_TAG,
    evaluation_scalars,
    final_scalars,
)

_MAX_FRAMES, _MAX_WIDTH, _COLORS = 40, 480, 64
"""Size of the animation: a few MB at most, since TensorBoard loads it whole."""


def write_tensorboard_evaluation(
    run_dir: RunDir, evaluation: Mapping[str, Any], *, iteration: int = 0
) -> Path:
    """Write evaluation results, and the video if there is one, in place of earlier ones.

    Args:
        run_dir: run directory.
        evaluation: content of ``evaluation.json``.
        iteration: last iteration of training, at which the returns are shown beside training's.

    Returns:
        Path of the event file.

    Raises:
        OSError: the file cannot be written.
    """
    from maml_ray.reporting.tensorboard import EventWriter  # slow to import

    folder = run_dir.tensorboard / EVALUATION_FOLDER
    earlier = list(folder.glob("events.out.tfevents.*"))
    events = EventWriter(folder)
    events.add_scalars(final_scalars(evaluation), iteration)
    for steps, values in evaluation_scalars(evaluation).items():
        events.add_scalars(values, steps)
    animation = _read_animation(run_dir.video)
    if animation is not None:
        content, size = animation
        events.add_image(VIDEO_TAG, content, size, step=0)
    events.close()
    for path in earlier:
        path.unlink()
    return events.path


def _read_animation(video: Path) -> tuple[bytes, tuple[int, int]] | None:
    """Return a video as GIF with its width and height; None if it is missing or unreadable."""
    if not video.is_file():
        return None
    try:
        import imageio.v2 as imageio  # slow to import and rarely needed
        from PIL import Image

        reader: Any = imageio.get_reader(video)
        with reader:
            meta = reader.get_meta_data()
            every = max(1, -(-round(meta["fps"] * meta["duration"]) // _MAX_FRAMES))
            frames = [frame for index, frame in enumerate(reader) if index % every == 0]
        images = [Image.fromarray(frame) for frame in frames]
        for image in images:
            image.thumbnail((_MAX_WIDTH, _MAX_WIDTH))
        images = [image.quantize(_COLORS) for image in images]
        content = io.BytesIO()
        images[0].save(
            content,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=round(1000 * every / meta["fps"]),
            loop=0,
        )
        return content.getvalue(), images[0].size
    except Exception:  # codecs raise many unrelated types, and the rest is worth showing
        return None
