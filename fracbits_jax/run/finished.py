"""A finished run, read back: its network, its variables, its policy."""

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

from fracbits_jax.system import extras

with extras.needed():
  from ml_collections import ConfigDict

from fracbits_jax import policy
from fracbits_jax.data import contents
from fracbits_jax.run import begin, settings
from fracbits_jax.run.best_states import FOLDER
from fracbits_jax.run.checkpoint import Checkpoints, newest_step
from fracbits_jax.run.experiment import Experiment, prepare
from fracbits_jax.run.records import read_finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
  """What a run left.

  Attributes:
    experiment: what it worked with: networks, layer table, budget, data.
    variables: the collections `params`, `bits` and `batch_stats` after its last phase.
    policy: its integer bit-widths, or `None` where it ended before they were fixed.
    result: what `result.json` holds.
  """

  experiment: Experiment
  variables: dict[str, Any]
  policy: policy.Policy | None
  result: dict[str, Any]


def load(workdir: str | os.PathLike, *, best: bool = False) -> Finished:
  """Reads a finished run; nothing in its folder is changed.

  Args:
    workdir: the run's folder.
    best: its variables are those of the finetuning that were best on the validation split, not the last.

  Raises:
    ValueError: one sentence: no finished run there, or damaged files.
  """
  workdir = pathlib.Path(workdir)
  config, result = read_finished(workdir)
  config = settings.completed(config)
  if lacking := settings.missing(config):
    raise ValueError(
      f'{workdir} was left by another version: its config.json has no {lacking[0]}, which this one needs'
    )
  experiment = prepare(ConfigDict(config), workdir)
  was, now = contents.read(workdir), experiment.dataset.contents
  if was is not None and was.class_names != now.class_names:
    raise ValueError(f'{workdir} holds a run on other classes: {contents.differences(was, now)}; put the old ones back')
  phase = experiment.config.phases[-1]
  if best and result.get('best') is None:
    raise ValueError(f'{workdir} has no best state: only a run that finetunes, and looks at it on the way, has one')
  name = FOLDER if best else phase
  if not (workdir / 'checkpoints' / name).is_dir():
    raise ValueError(
      f'{workdir} has lost the checkpoints of {name}, so its network cannot be read back: give another run'
    )
  wanted = result['best']['step'] if best else newest_step(workdir, phase)
  with contextlib.closing(Checkpoints(workdir, name, create=False)) as checkpoints:
    restored = checkpoints.restore()
  if restored is None or restored[0] != wanted:  # an older one has other answers than the result tells
    which = f'best state, that of step {wanted},' if best else f'last state of {phase}'
    raise ValueError(
      f'{workdir} has lost the checkpoints of {name}, the {which} among them, or it is damaged: give another run'
    )
  chosen = policy.load(workdir / 'policy.json', experiment.layers) if (workdir / 'policy.json').exists() else None
  _, state, _ = restored
  variables = {name: state[name] for name in begin.shapes(experiment, phase)}
  return Finished(experiment=experiment, variables=variables, policy=chosen, result=result)
