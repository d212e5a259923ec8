"""TensorBoard's event files, written by the caller: tensorboardX's own thread would die
on a full disk, and the training wait for it for ever."""

import os
import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from ffn_alloc.paths import AnyPath


class EventFile:
    """A new file in `folder`; TensorBoard hides what earlier ones say from `purge_step` on."""

    def __init__(self, folder: AnyPath, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(os.path.join(folder, "events"))
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, name: str, value: float, step: int) -> None:
        self._write(Event(step=step, summary=scalar(name, value)))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
