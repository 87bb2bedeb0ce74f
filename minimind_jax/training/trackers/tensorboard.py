"""TensorBoard's event files, by the `tensorboard` package's own writer: it needs no TensorFlow.

(tensorboardX would do, but imports PyTorch wherever that is installed.)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from minimind_jax.training.trackers import TrackedRun


def check() -> None:
    """Nothing to log in to."""


def start(run: TrackedRun) -> EventWriter:
    return EventWriter(run.directory, run.resumed_at + 1)


class EventWriter:
    """Appends to a new event file in `directory`; TensorBoard shows all files of a directory as one run.

    `first_step`: readers forget what older files of the directory say of this step and later ones.
    """

    def __init__(self, directory: Path, first_step: int):
        self._writer = EventFileWriter(str(directory), flush_secs=10)
        self._add(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._add(step, summary=Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()]))

    def text(self, tag: str, text: str, step: int) -> None:
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
        self._add(step, summary=Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]))

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, **content: Summary | SessionLog) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))
