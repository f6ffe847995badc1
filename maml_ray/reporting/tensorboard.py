"""Write TensorBoard event files such that logging survives a full disk.

PyTorch's ``SummaryWriter`` writes from a thread of TensorBoard that stops for good at the first
failed write. Here every event is encoded as TensorBoard does it and appended at once; if the write
fails, the event is kept and written with a later one.
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
    """Write one event file.

    Args:
        folder: folder of event files; TensorBoard reads all of them.
        first_step: TensorBoard hides points of this and later steps in earlier files.

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = RetryingFile(_unused_path(folder / f"events.out.tfevents.{stamp}"))
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._file.append(_encode_event(step=first_step, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._file.append(_encode_event(step=first_step, session_log=start))

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Add one point per curve.

        Args:
            values: values by tag.
            step: x coordinate.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        def summary(tag: str, value: float) -> Any:
            return Summary(value=[Summary.Value(tag=tag, simple_value=value)])

        events = (_encode_event(step=step, summary=summary(*item)) for item in values.items())
        self._file.append(b"".join(events))

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Add a line to the text page."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        # The suffix is that of PyTorch's SummaryWriter, which wrote the logs of older runs.
        self._file.append(_encode_event(step=step, summary=text_pb(f"{tag}/text_summary", text)))

    def close(self) -> None:
        """Retry pending writes once and close the file."""
        self._file.close()


def _encode_event(**content: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
    return record.getvalue()


def _unused_path(path: Path) -> Path:
    """Return ``path``, with a number appended if it exists: a process may open two per second."""
    number, unused = 0, path
    while os.path.lexists(unused):
        number += 1
        unused = path.with_name(f"{path.name}.{number}")
    return unused
