"""TensorBoard's event files, written without a thread that a full disk could end.

PyTorch's ``SummaryWriter`` hands events to a thread of TensorBoard's, which stops for good at the
first write that fails. Here every event is framed as TensorBoard frames it and appended at once;
what the disk refuses waits, and is written when there is room again.
"""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from maml_ray.common.safe_files import RetryingFile


class EventWriter:
    """One event file of a run.

    Args:
        folder: of event files; TensorBoard reads all that lie in it.
        first_step: of what earlier files hold of this step and later ones nothing is shown.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = RetryingFile(_free(folder / f"events.out.tfevents.{stamp}"))
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._file.append(_record(step=first_step, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._file.append(_record(step=first_step, session_log=start))

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """One point of each curve."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        def point(tag: str, value: float) -> Any:
            return Summary(value=[Summary.Value(tag=tag, simple_value=value)])

        points = (_record(step=step, summary=point(*each)) for each in values.items())
        self._file.append(b"".join(points))

    def add_text(self, tag: str, words: str, step: int) -> None:
        """A line of the text page."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        # Named as PyTorch's writer names it: a run that goes on has one page of them.
        self._file.append(_record(step=step, summary=text_pb(f"{tag}/text_summary", words)))

    def close(self) -> None:
        """Try once more to write what waits."""
        self._file.close()


def _record(**content: Any) -> bytes:
    """One event, framed."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
    return record.getvalue()


def _free(path: Path) -> Path:
    """``path``, or another where a file has the name: two logs of one process in one second."""
    number, free = 0, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
