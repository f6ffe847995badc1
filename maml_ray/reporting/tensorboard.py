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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maml_ray.common.safe_files import RetryingFile

HyperParameter = bool | float | str
_MAX_STEP = 2**63 - 1


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
        self._path = _unused_path(folder / f"events.out.tfevents.{stamp}")
        self._file = RetryingFile(self._path)
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._file.append(_encode_event(step=first_step, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._file.append(_encode_event(step=first_step, session_log=start))

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self._path

    def add_scalars(
        self, values: Mapping[str, float], step: int, wall_time: float | None = None
    ) -> None:
        """Add one point per curve.

        Args:
            values: values by tag.
            step: x coordinate.
            wall_time: Unix time of the points in seconds; now by default.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        def summary(tag: str, value: float) -> Any:
            return Summary(value=[Summary.Value(tag=tag, simple_value=value)])

        events = (
            _encode_event(step=step, wall_time=wall_time, summary=summary(*item))
            for item in values.items()
        )
        self._file.append(b"".join(events))

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Add a line to the text page."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        # The suffix is that of PyTorch's SummaryWriter, which wrote the logs of older runs.
        self._file.append(_encode_event(step=step, summary=text_pb(f"{tag}/text_summary", text)))

    def add_image(self, tag: str, content: bytes, size: tuple[int, int], step: int) -> None:
        """Add a picture.

        Args:
            tag: title of the picture.
            content: encoded PNG or, animated, GIF.
            size: width and height in pixels.
            step: x coordinate.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = size
        image = Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=content
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._file.append(_encode_event(step=step, summary=summary))

    def add_hyperparameters(self, values: Mapping[str, HyperParameter]) -> None:
        """Add a line to the page of hyperparameters, where TensorBoard adds the last metrics.

        Args:
            values: hyperparameters by name. TensorBoard shows first what differs between runs.
        """
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in values.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, str):
                start.hparams[name].string_value = value
            else:
                start.hparams[name].number_value = value
        content = plugin_data_pb2.HParamsPluginData(session_start_info=start).SerializeToString()
        tag, plugin = metadata.SESSION_START_INFO_TAG, metadata.PLUGIN_NAME
        self._file.append(_encode_event(summary=_plugin_summary(plugin, tag, metadata=content)))

    def add_custom_charts(self, charts: Mapping[str, Sequence[str]]) -> None:
        """Lay out the page of custom charts, each with several curves.

        Args:
            charts: regular expressions of tags by title of the chart.
        """
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata

        layout = layout_pb2.Layout(
            category=[
                layout_pb2.Category(
                    title="Overview",
                    chart=[
                        layout_pb2.Chart(
                            title=title, multiline=layout_pb2.MultilineChartContent(tag=tags)
                        )
                        for title, tags in charts.items()
                    ],
                )
            ]
        )
        tag, plugin = metadata.CONFIG_SUMMARY_TAG, metadata.PLUGIN_NAME
        summary = _plugin_summary(plugin, tag, value=layout.SerializeToString())
        self._file.append(_encode_event(summary=summary))

    def close(self) -> None:
        """Retry pending writes once and close the file."""
        self._file.close()


def _plugin_summary(plugin: str, tag: str, *, metadata: bytes = b"", value: bytes = b"") -> Any:
    """Return a summary for a plugin of TensorBoard: these import TensorFlow to make one."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    plugin_data = SummaryMetadata.PluginData(plugin_name=plugin, content=metadata)
    tensor = TensorProto(dtype=DT_STRING, string_val=[value])
    metadata_pb = SummaryMetadata(plugin_data=plugin_data)
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata_pb, tensor=tensor)])


def _encode_event(*, step: float = 0, wall_time: float | None = None, **content: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    now = time.time() if wall_time is None else wall_time
    event = Event(step=min(int(step), _MAX_STEP), wall_time=now, **content)
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()


def _unused_path(path: Path) -> Path:
    """Return ``path``, with a number appended if it exists: a process may open two per second."""
    number, unused = 0, path
    while os.path.lexists(unused):
        number += 1
        unused = path.with_name(f"{path.name}.{number}")
    return unused
