"""TensorBoard events, a copy of what `metrics.jsonl` has: on a full disk they end, and the run says so itself.

They are written by the caller. The writer that tensorboardX offers has a thread and a queue of its own, which such a
disk stops at any moment, with a traceback.
"""

import contextlib
import pathlib
import struct
import time
from collections.abc import Iterator, Mapping

from fracbits_jax.system import extras
from fracbits_jax.system.files import write_whole

with extras.needed('train'):
  from google.protobuf.message import DecodeError
  from tensorboardX import summary
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import Event


class Events:
  """The event files of a folder; each start writes one of its own, from its first event on."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._writer: EventsWriter | None = None

  def write(self, scalars: Mapping[str, float], step: int) -> None:
    """Writes a value for each name, to disk before it returns."""
    with contextlib.suppress(OSError):
      if self._writer is None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Its own suffix has seconds only, and the file of another start in the same second would be overwritten.
        self._writer = EventsWriter(str(self._folder / 'events'), filename_suffix=f'.{time.time_ns()}')
      for name, value in scalars.items():
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value)))
      self._writer.flush()

  def rewind(self, step: int) -> None:
    """Takes back the events after a step, before that stretch is run again."""
    self.close()
    for path in sorted(self._folder.glob('events.out.tfevents.*')):
      with contextlib.suppress(OSError):
        content = path.read_bytes()
        kept = [record for event, record in _records(content) if not event.HasField('summary') or event.step <= step]
        if len(kept) <= 1:  # the first names the version of the format
          path.unlink()
        elif sum(map(len, kept)) < len(content):
          write_whole(path, b''.join(kept))

  def close(self) -> None:
    """Closes the file; another event begins another one."""
    with contextlib.suppress(OSError):
      if self._writer is not None:
        self._writer.close()
    self._writer = None


def read(folder: pathlib.Path) -> Iterator[tuple[str, int, float]]:
  """Name, step and value of all scalars in the event files of a folder, in the order in which they were written."""
  for path in sorted(folder.glob('events.out.tfevents.*')):
    for event, _ in _records(path.read_bytes()):
      yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)


def _records(content: bytes) -> Iterator[tuple[Event, bytes]]:
  """The events of a file, each with its record: length, checksum, event, checksum; ends where the file is cut."""
  start = 0
  while start + 12 <= len(content):
    end = start + 16 + struct.unpack_from('<Q', content, start)[0]
    if end > len(content):
      return
    try:
      event = Event.FromString(content[start + 12 : end - 4])
    except DecodeError:
      return
    yield event, content[start:end]
    start = end
