"""Checkpoints of a run, by Orbax: one folder a phase, in it the state and the position in the data."""

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
  """The checkpoints of one phase; the last of a finished phase stays as the phase's result.

  Without `create` the folder is only read, and need not be there.
  """

  def __init__(self, workdir: str | os.PathLike, phase: str, *, keep: int = 2, create: bool = True):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create)
    folder = pathlib.Path(workdir).absolute() / 'checkpoints' / phase
    self._manager = ocp.CheckpointManager(folder, options=options)

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint, or `None`."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Writes `state`, a tree of arrays, and `meta`, a JSON object, in the background."""
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    self._manager.save(step, args=args)

  def restore(self, like: Any = None) -> tuple[Any, dict]:
    """The newest checkpoint: the state, in the structure and shapes of `like`, and the JSON object.

    Without `like` the state comes as nested dicts of whatever was saved.

    Raises:
      ValueError: if it cannot be read, or holds another structure.
    """
    abstract = None if like is None else jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
    step = self._manager.latest_step()
    try:
      restored = self._manager.restore(step, args=args)
    except (ValueError, KeyError, OSError):
      raise ValueError(
        f'checkpoint {self._manager.directory / str(step)} is damaged or of another network or version: start anew '
        'with another --workdir'
      ) from None
    return restored['state'], restored['meta']

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()
