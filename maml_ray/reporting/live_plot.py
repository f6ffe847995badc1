"""Draw a run's returns in a Jupyter notebook while it trains."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

from maml_ray.common.errors import UserError
from maml_ray.persistence.records import IterationRecord, Observer, StartReport

_DPI = 110


class LivePlot(Observer):
    """Plot returns before and after adaptation against environment steps, in one notebook output.

    The plot is one output of the cell and is redrawn in place; the last state is saved with the
    notebook::

        maml_ray.train("direction", observers=[maml_ray.LivePlot()])

    Args:
        interval_s: least seconds between two drawings; one takes about 0.1 s of the driver.
        clock: returns the time in seconds.

    Raises:
        UserError: IPython is not installed.
    """

    def __init__(
        self, interval_s: float = 2.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        try:
            import IPython.display  # noqa: F401
        except ModuleNotFoundError:
            raise UserError(
                "LivePlot draws in Jupyter notebooks, and IPython is not installed: leave it out, "
                "or pip install ipykernel"
            ) from None
        self._interval_s, self._clock = interval_s, clock
        self._drawn_at = float("-inf")
        self._rows: list[dict[str, Any]] = []
        self._is_drawn = False
        self._output: Any = None

    def on_start(self, report: StartReport) -> None:
        """Begin a new curve."""
        self._rows.clear()

    def on_iteration(self, record: IterationRecord) -> None:
        """Add a point, and redraw unless the last drawing is recent."""
        self._rows.append(record.as_row())
        self._is_drawn = self._clock() - self._drawn_at >= self._interval_s
        if self._is_drawn:
            self._draw()

    def close(self) -> None:
        """Draw the points that have come since the last drawing."""
        if self._rows and not self._is_drawn:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import Image, display

        self._drawn_at = self._clock()
        image = Image(data=_render(self._rows), format="png", embed=True)
        if self._output is None:
            self._output = display(image, display_id=True)
        else:
            self._output.update(image)


def _render(rows: list[dict[str, Any]]) -> bytes:
    """Return a PNG of the returns in rows of metrics."""
    # It imports matplotlib, which is slow.
    from maml_ray.reporting.plots.training import returns_figure

    buffer = io.BytesIO()
    returns_figure(rows).savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
