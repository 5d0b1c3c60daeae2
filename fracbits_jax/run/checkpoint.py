"""Checkpoints of a run, by Orbax: one folder a phase, in it the state and the position in the data.

Each holds a digest of its content, taken before it is written. What is read is compared with it, so that a checkpoint
is either what was saved or known to be damaged.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  import orbax.checkpoint as ocp
  from absl import logging

from fracbits_jax.system.files import check_name
from fracbits_jax.train import hosts

_DIGEST = 'sha256'


def steps(workdir: str | os.PathLike, phase: str) -> list[int]:
  """The steps of a phase's checkpoints, whole or not, from the oldest; nothing is opened."""
  folder = _folder(workdir, phase)
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else ()
  return sorted(int(name) for name in names if name.isdecimal())


def newest_step(workdir: str | os.PathLike, phase: str) -> int | None:
  """The step of a phase's newest checkpoint, whole or not, or `None`; nothing is opened."""
  return max(steps(workdir, phase), default=None)


def _folder(workdir: str | os.PathLike, phase: str) -> pathlib.Path:
  return pathlib.Path(workdir).absolute() / 'checkpoints' / phase


class Checkpoints:
  """The checkpoints of one phase; the last of a finished phase stays as the phase's result.

  Without `create` the folder is only read, and need not be there.

  Args:
    workdir: the run's folder.
    phase: names the folder within its `checkpoints`.
    keep: how many of the newest stay; `None` for all, until they are dropped.
    create: whether the folder may be changed.
    say: is told what is set aside.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    phase: str,
    *,
    keep: int | None = 2,
    create: bool = True,
    say: Callable[[str], None] = print,
  ):
    # Of several hosts this one alone is concerned, so that none waits for another.
    alone = ocp.options.MultiprocessingOptions(
      primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix='alone'
    )
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False, multiprocessing_options=alone)
    self._folder = _folder(workdir, phase)
    self._create, self._say = create, say
    check_name(workdir, 'give the folder another name')
    _ignore_late_reads()
    try:
      if create:
        self._folder.mkdir(parents=True, exist_ok=True)
      with _quiet():
        self._manager = _Manager(self._folder, options=options)
    except OSError as error:
      raise ValueError(f'{self._folder} cannot be used: {error.strerror or error}; choose another --workdir') from None

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Writes `state`, a tree of arrays, and `meta`, a JSON object, in the background; replaces what `step` has.

    Raises:
      OSError: one sentence, if it or the one before it cannot be written; the ones before stay.
    """
    self.drop(lambda found: found == step)
    meta = {**meta, _DIGEST: _digest(state, meta)}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    self._write(lambda: self._manager.save(step, args=args))

  def restore(self, like: Any = None) -> tuple[int, Any, dict] | None:
    """The newest whole checkpoint: its step, its state in the structure and shapes of `like`, its JSON object.

    Without `like` the state comes as nested dicts of whatever was saved. Damaged checkpoints that are newer are moved
    to the folder `checkpoints/damaged`, or passed over where the folder may not be changed.

    Returns:
      `None` if there is no checkpoint at all.

    Raises:
      ValueError: one sentence, if no checkpoint is whole, or a whole one has another structure.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        return (step, *self._read(step, like))
      except _Damaged as error:
        damaged.append(f'checkpoint {self._folder / str(step)} is damaged ({error})')
        if self._create:
          self._say(f'{damaged[-1]}; it is kept as {self._set_aside(step)}')
    if damaged and not self._create:
      raise ValueError(f'{damaged[0]}, and there is no other whole one: give another folder')
    return None

  def drop(self, unwanted: Callable[[int], bool]) -> None:
    """Removes the checkpoints of the steps that are `unwanted`; raises `OSError` as `save`."""
    found = [step for step in self._manager.all_steps() if unwanted(step)]
    if found:
      self.wait()
    for step in found:
      self._write(functools.partial(self._manager.delete, step))

  def wait(self) -> None:
    """Waits for what is being written; raises `OSError` as `save`."""
    self._write(self._manager.wait_until_finished)

  def close(self) -> None:
    """As `wait`, and ends it."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _write(self, write: Callable[[], Any]) -> None:
    try:
      write()
    except Exception as error:  # whatever the storage says, in the background or here
      reason = str(error).strip().split('\n')[0]
      if shutil.disk_usage(self._folder if self._folder.exists() else self._folder.anchor).free < 2**20:
        reason = 'the disk is full'
      raise OSError(
        f'no checkpoint can be written to {self._folder} ({reason}): the earlier ones are untouched, so make room or '
        'mend it, and the same command goes on from there'
      ) from None

  def _read(self, step: int, like: Any) -> tuple[Any, dict]:
    """The content of a checkpoint, if it is what was saved."""
    try:
      state, meta = self._load(step, like)
    except Exception as error:  # damage has many faces
      if like is None or not self._is_whole(step):
        raise _Damaged(_reason(error)) from None
      raise ValueError(
        f'checkpoint {self._folder / str(step)} is of another network or version: choose another --workdir'
      ) from None
    if not isinstance(meta, dict) or meta.pop(_DIGEST, None) != _digest(state, meta):
      raise _Damaged('its content is not what was saved')
    return state, meta

  def _load(self, step: int, like: Any) -> tuple[Any, Any]:
    abstract = None if like is None else jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
    with _quiet():
      restored = self._manager.restore(step, args=args)
    return restored['state'], restored['meta']

  def _is_whole(self, step: int) -> bool:
    try:
      self._read(step, None)
    except _Damaged:
      return False
    return True

  def _set_aside(self, step: int) -> pathlib.Path:
    folder = self._folder.parent / 'damaged'
    folder.mkdir(exist_ok=True)
    taken = len([p for p in folder.iterdir() if p.name.startswith(f'{self._folder.name}-{step}')])
    target = folder / f'{self._folder.name}-{step}{f"-{taken}" if taken else ""}'
    (self._folder / str(step)).rename(target)
    self._manager.reload()
    return target


class _Manager(ocp.CheckpointManager):
  def reached_preemption(self, step: int) -> bool:
    del step
    return False  # Several hosts must ask JAX equally often, and `preemption` does.


class PrimaryCheckpoints:
  """`Checkpoints` of the primary host, whose answers and errors all hosts have; arguments as there.

  All hosts have to make, ask and use it in the same order; only `close` concerns each for itself.
  """

  def __init__(self, *args: Any, **kwargs: Any):
    self._own = hosts.everywhere(lambda: Checkpoints(*args, **kwargs) if hosts.is_primary() else None)

  def save(self, step: int, state: Any, meta: dict) -> None:
    hosts.primary(lambda: self._own.save(step, state, meta))

  def restore(self, like: Any = None) -> tuple[int, Any, dict] | None:
    return hosts.primary(lambda: self._own.restore(like))

  def drop(self, unwanted: Callable[[int], bool]) -> None:
    hosts.primary(lambda: self._own.drop(unwanted))

  def wait(self) -> None:
    hosts.primary(lambda: self._own.wait())

  def close(self) -> None:
    if self._own is not None:
      self._own.close()


class _Damaged(Exception):
  """A checkpoint that cannot be read or is not what was saved; says why."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without Orbax's log: what it says of a damaged file is said here."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


@functools.cache
def _ignore_late_reads() -> None:
  """Orbax ends its event loop at the first read that fails, and each of the others would print a traceback."""
  otherwise = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      otherwise(unraisable)

  sys.unraisablehook = hook


def _reason(error: Exception) -> str:
  line = str(error).strip().split('\n')[0]
  return f'{type(error).__name__}: {line[:160]}' if line else type(error).__name__


def _digest(state: Any, meta: dict) -> str:
  """Of names, types, shapes and bytes of the arrays, and of the JSON object."""
  found = hashlib.sha256()
  named = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}
  for name in sorted(named):
    array = named[name]
    found.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  found.update(json.dumps(meta, sort_keys=True).encode())
  return found.hexdigest()


def _name(path: tuple) -> str:
  """A leaf's name, the same in a tree of dataclasses and named tuples and in the nested dicts that it is saved as."""
  keys = (getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key))) for key in path)
  return '/'.join(map(str, keys))
