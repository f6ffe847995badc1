"""For notebooks: show a recorded video."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any


def show_video(path: str | Path, *, width: int = 480) -> Any:
    """An MP4 as an object that Jupyter displays; it is embedded, so the notebook keeps it.

    Args:
        path: of the file.
        width: in pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: IPython is not installed: this function is for notebooks.
    """
    from IPython.display import HTML

    data = b64encode(Path(path).read_bytes()).decode()
    source = f'<source src="data:video/mp4;base64,{data}" type="video/mp4">'
    return HTML(f'<video width="{int(width)}" controls loop>{source}</video>')
