"""The README's example from training to a plot, run as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

README = Path(__file__).parents[2] / "README.md"


def code(marker: str) -> str:
    """The README's Python block that holds ``marker``."""
    blocks = README.read_text(encoding="utf-8").split("```python\n")[1:]
    (found,) = (block.split("```")[0] for block in blocks if marker in block)
    return found


@pytest.mark.cluster
def test_from_training_to_an_adapted_policy_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    exec(code("point-navigation.png"), names)
    agent, adapted, goal = names["agent"], names["adapted"], names["goal"]
    before = agent.collect(goal, seed=11, episodes=50).returns.mean()
    after = adapted.collect(goal, seed=11, episodes=50).returns.mean()
    assert after > before + 5.0
    assert after > 0.6 * before  # of what was lost before, at least 40% is gained
    assert "after one step: return" in capsys.readouterr().out
    picture = np.asarray(Image.open(tmp_path / "point-navigation.png").convert("L"))
    assert picture.std() > 10.0
    names["observation"] = np.zeros(2, np.float32)
    exec(code("adapted.act(observation)").replace("maml_ray.show_video", "str"), names)
    assert names["action"].shape == (2,)
    assert names["evaluation"].row(1, "mean").mean > names["evaluation"].row(0, "mean").mean + 10.0
