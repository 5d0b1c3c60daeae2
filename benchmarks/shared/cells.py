"""Cells of a study: one recipe, some overrides, one seed; finished cells are not run again."""

import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fracbits_jax import policy
from fracbits_jax.fast import platforms
from fracbits_jax.run import runner

ROOT = pathlib.Path(__file__).resolve().parents[2]


def set_up() -> None:
  """What a study begins with, before JAX does anything: compiled programs stay in the project's folder, memory is kept,
  and garbage is looked for rarely."""
  platforms.keep_memory()
  platforms.collect_garbage_rarely()
  platforms.cache_compilations(ROOT / '.cache' / 'jax')


def run_cell(config: ConfigDict, folder: pathlib.Path, float_from: pathlib.Path | None = None) -> dict[str, Any]:
  """Runs a configuration in a folder, or reads its result; adds the `bit_widths` that its policy learned.

  Args:
    config: the configuration, seed and all.
    folder: the run's folder.
    float_from: the folder of a run whose float network is taken over instead of trained again.
  """
  if float_from is not None:
    theirs, mine = (path / 'checkpoints' / 'pretrain' for path in (float_from, folder))
    if theirs.exists() and theirs != mine and not mine.exists():
      shutil.copytree(theirs, mine)
  result = runner.run(config, folder)
  jax.clear_caches()  # a process that runs many cells would keep every compiled program
  widths: set[int] = set()
  if (folder / 'policy.json').exists():
    entries = policy.load(folder / 'policy.json').layers
    widths = {b for e in entries for which in e.learned for b in np.atleast_1d(getattr(e, which)).tolist()}
  return {**result, 'bit_widths': sorted(widths)}


def accuracy(cells: list[dict[str, Any]], field: str = 'test_accuracy') -> str:
  """Mean and standard deviation over seeds, in per cent."""
  return with_deviation([100 * cell[field] for cell in cells])


def with_deviation(values: Any, digits: int = 2) -> str:
  """Mean and standard deviation as text; of a single value itself."""
  mean = f'{np.mean(values):.{digits}f}'
  return f'{mean} ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else mean


def each(cells: list[dict[str, Any]], field: str = 'test_accuracy') -> str:
  """The accuracy of each seed, in per cent."""
  return ', '.join(f'{100 * cell[field]:.2f}' for cell in cells)


def budget_used(cells: list[dict[str, Any]]) -> str:
  """Cost over target of each seed."""
  return ', '.join(f'{cell["cost"] / cell["target"]:.4f}' for cell in cells)


def span(widths: list[int]) -> str:
  """`2-5` for the bit-widths 2, 3 and 5."""
  return f'{widths[0]}-{widths[-1]}' if widths else '-'
