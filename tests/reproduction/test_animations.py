from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.reproduction.animations import MAX_BYTES, WIDTH, encode, shorten, write_animations
from tests.reproduction.conftest import EXPERIMENT
from tests.reproduction.results import write_results


def test_a_film_is_shortened_in_real_time() -> None:
    frames = [np.full((1, 1, 3), index, np.uint8) for index in range(201)]
    shown = [int(frame[0, 0, 0]) for frame in shorten(frames, 20.0)]
    assert len(shown) == 48  # 4 s of 12 images
    assert shown[:4] == [0, 2, 3, 5]  # 20 / 12 = 1.67 apart
    assert shown[-1] == 78  # after 47 / 12 s
    assert len(shorten(frames[:11], 20.0)) == 6  # what lasts half a second


def test_an_animation_is_as_wide_as_wanted_and_repeats(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (34, 80, 3), np.uint8) for _ in range(5)]
    path = tmp_path / "film.webp"
    encode([np.repeat(np.repeat(frame, 10, axis=0), 10, axis=1) for frame in small], path)
    with Image.open(path) as image:
        assert image.size == (WIDTH, 238)
        assert (image.n_frames, image.info["loop"]) == (5, 0)  # type: ignore[attr-defined]
    assert path.stat().st_size <= MAX_BYTES


def test_the_caption_of_an_animation_has_its_command(tmp_path: Path) -> None:
    (tmp_path / "direction-100-seed2--forward.webp").touch()
    write_results(tmp_path, [], tmp_path)
    text = (tmp_path / "plots.md").read_text()
    assert "](direction-100-seed2--forward.webp)" in text
    assert "*direction-100, seed 2, task forward: before adaptation (left) and after it" in text
    assert '`make reproduce ARGS="--only direction-100 --seeds 2, --animations"`' in text


def test_a_run_that_is_not_finished_or_not_chosen_has_none(tmp_path: Path) -> None:
    assert write_animations(tmp_path, [(EXPERIMENT, 0)], tmp_path / "out") == []
    assert not (tmp_path / "out").exists()
