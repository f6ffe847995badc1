from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.tensorboard_evaluation import write_tensorboard_evaluation


def row(steps: int, actions: str, mean: float) -> dict[str, Any]:
    interval = {"low": mean - 1.0, "high": mean + 2.0}
    return {"steps": steps, "actions": actions, "mean": mean, "speed": None, **interval}


def evaluation(offset: float = 0.0, steps: int = 2) -> dict[str, Any]:
    numbers = range(steps + 1)
    return {
        "rows": [row(n, "stochastic", n + offset) for n in numbers]
        + [row(n, "mean", 10.0 + n) for n in numbers],
        "beside": {"random": [row(n, "stochastic", -5.0) for n in numbers]},
    }


def read(folder: RunDir) -> EventAccumulator:
    return EventAccumulator(str(folder.tensorboard / "evaluation")).Reload()


def points(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    tag = f"3 evaluation by inner steps/{name}"
    return [(point.step, point.value) for point in events.Scalars(tag)]


def test_returns_are_shown_by_inner_steps_with_interval_and_baselines(tmp_path: Path) -> None:
    write_tensorboard_evaluation(RunDir(tmp_path), evaluation(), iteration=9)
    events = read(RunDir(tmp_path))
    assert points(events, "return") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert points(events, "return_95_low") == [(0, -1.0), (1, 0.0), (2, 1.0)]
    assert points(events, "return_95_high") == [(0, 2.0), (1, 3.0), (2, 4.0)]
    assert points(events, "return_of_mean_actions") == [(0, 10.0), (1, 11.0), (2, 12.0)]
    assert points(events, "return_of_random") == [(0, -5.0), (1, -5.0), (2, -5.0)]


def test_the_last_returns_are_shown_beside_those_of_training(tmp_path: Path) -> None:
    write_tensorboard_evaluation(RunDir(tmp_path), evaluation(), iteration=9)
    events = read(RunDir(tmp_path))
    for key, value in (("return_before", 0.0), ("return_after", 2.0)):
        (point,) = events.Scalars(f"1 returns by iteration/{key}")
        assert (point.step, point.value) == (9, value)


def test_a_new_evaluation_replaces_the_earlier_one(tmp_path: Path) -> None:
    write_tensorboard_evaluation(RunDir(tmp_path), evaluation(steps=3))
    write_tensorboard_evaluation(RunDir(tmp_path), evaluation(offset=0.5, steps=1))
    assert len(list(tmp_path.glob("tensorboard/evaluation/*"))) == 1
    assert points(read(RunDir(tmp_path)), "return") == [(0, 0.5), (1, 1.5)]


def test_the_video_is_an_animation_of_bounded_size(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    writer: Any = imageio.get_writer(folder.video, fps=20, macro_block_size=2)
    with writer:
        for shade in range(100):
            writer.append_data(np.full((300, 800, 3), 2 * shade, dtype=np.uint8))
    write_tensorboard_evaluation(folder, evaluation())
    (event,) = read(folder).Images("3 evaluation by inner steps/video")
    opened: Any = Image.open(io.BytesIO(event.encoded_image_string))
    with opened as animation:
        assert (animation.format, animation.size) == ("GIF", (480, 180))
        assert (event.width, event.height) == animation.size
        assert 30 <= animation.n_frames <= 40
        duration = animation.n_frames * animation.info["duration"]
    assert abs(duration - 5000) <= 300, "it is as long as the video, in milliseconds"


def test_without_a_readable_video_there_is_none(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.video.write_bytes(b"not a film")
    write_tensorboard_evaluation(folder, evaluation())
    assert read(folder).Tags()["images"] == []
