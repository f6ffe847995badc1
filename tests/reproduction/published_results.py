"""Results that others have published: learning curves, and returns of which there is no curve."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "published"


@dataclass(frozen=True)
class PublishedCurve:
    """A learning curve: a file in ``published/``, see its README.

    Attributes:
        plots: key of :data:`tests.reproduction.experiments.PLOTS`.
        label: source, for the legend.
        file: columns env_steps, hours and return.
        protocol: how it was measured, for the caption.
    """

    plots: str
    label: str
    file: str
    protocol: str

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return environment steps (n,), minutes (n,) and returns (n,)."""
        with (FOLDER / self.file).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        steps, hours, returns = (
            np.array([float(row[key]) for row in rows]) for key in ("env_steps", "hours", "return")
        )
        return steps, 60.0 * hours, returns


@dataclass(frozen=True)
class PublishedReturns:
    """Returns after 0, 1, 2, ... gradient steps at the end of training, without a curve.

    Attributes:
        plots: key of :data:`tests.reproduction.experiments.PLOTS`.
        label: source, for the legend.
        returns: return by number of gradient steps; of an oracle, one.
        protocol: how they were measured, for the caption.
        env_steps: environment steps of training, if known.
        minutes: minutes of training, if known.
    """

    plots: str
    label: str
    returns: tuple[float, ...]
    protocol: str
    env_steps: float | None = None
    minutes: float | None = None

    @property
    def after_one_step(self) -> float:
        """Return after one gradient step; an oracle's only one."""
        return self.returns[1] if len(self.returns) > 1 else self.returns[0]


_PEARL = (
    "one seed on an RTX 3080 (x35f/meta_rl), T = 200, mean actions after two exploration episodes"
)
_FINN = (
    "raw data of figure 5 (cbfinn/maml_rl), T = 200, 40 tasks, 20 episodes a step; time step "
    "0.01 s, ours is 0.05 s: compare the shape, not the level"
)
_FINN_ORACLE = "observes its task, otherwise as Finn et al."

CURVES: Sequence[PublishedCurve] = (
    PublishedCurve("direction", "PEARL", "pearl_cheetah-dir.csv", _PEARL),
    PublishedCurve(
        "velocity",
        "PEARL",
        "pearl_cheetah-vel.csv",
        f"{_PEARL}; target speeds presumably up to 3 m/s",
    ),
    PublishedCurve(
        "ant",
        "PEARL",
        "pearl_ant-dir.csv",
        f"{_PEARL}; about 200 of the return is for surviving",
    ),
    PublishedCurve("walker", "PEARL", "pearl_walker-rand-params.csv", _PEARL),
)

RETURNS: Sequence[PublishedReturns] = (
    PublishedReturns("direction", "Finn et al. 2017", (-51, 293, 314, 316), _FINN),
    PublishedReturns("direction", "Finn et al. 2017, oracle", (443,), _FINN_ORACLE),
    PublishedReturns("velocity", "Finn et al. 2017", (-130, -79, -67, -61), _FINN),
    PublishedReturns("velocity", "Finn et al. 2017, oracle", (-55,), _FINN_ORACLE),
    PublishedReturns(
        "direction-100",
        "RLlib MAML",
        (-14, 255),
        "ray-project/rl-experiments, T = 100, 31 workers and a GPU, 211 M environment steps in "
        "2 h 25 min, read off a plot",
        env_steps=211e6,
        minutes=145.0,
    ),
    PublishedReturns(
        "direction-100",
        "learn2learn, after one step",
        (265,),
        "its documentation, T = 100, 3 seeds, iteration 300, read off a plot",
    ),
    PublishedReturns(
        "direction-100",
        "learn2learn, after three steps",
        (405,),
        "trained with three inner steps, otherwise as learn2learn after one step",
    ),
)
