"""Runs as LiteRT files are made of them: a float one with its ranges calibrated to 8 bits, without any training."""

import dataclasses
import os
import pathlib

import numpy as np

from fracbits_jax import cost
from fracbits_jax.data.batches import eval_batches
from fracbits_jax.export.source import Source, source_of, source_of_run
from fracbits_jax.layers import QuantConfig, wrap
from fracbits_jax.run import begin, finished

_EXAMPLES = 512


def source_with_8_bits(workdir: str | os.PathLike) -> Source:
  """The network of a float run with 8 bits everywhere; clips and ranges are calibrated as before a search."""
  run = finished.load(workdir)
  experiment, dataset = run.experiment, run.experiment.dataset
  residuals = experiment.float_model.has_residuals()
  quant = QuantConfig(scheme='lsq', choices=(8,), input_choices=(8,), quantize_residuals=residuals)
  model = experiment.float_model.clone(quant=quant)
  layers = cost.trace(model, (1, *dataset.image_shape))
  bits = cost.fill_bits(layers, lambda layer, which, shape, choices: np.full(shape, 8, np.float32))
  experiment = dataclasses.replace(experiment, quant_model=model, layers=layers)
  variables = begin.quantized_variables(experiment, run.variables, bits)
  model = wrap.with_fixed_bits(model.clone(axis_name=None))
  inputs = np.zeros((1, *dataset.image_shape), np.float32)
  name = pathlib.Path(workdir).resolve().name
  source = source_of(model, variables, inputs, name=name, input_range=(0, 255))
  return dataclasses.replace(source, training=lambda: images_of(run, 'train', _EXAMPLES)[0])


def source_and_run(workdir: str | os.PathLike) -> tuple[Source, finished.Finished]:
  """The network of a run as something to export: that of its integer bits, or of 8 where it has none."""
  run = finished.load(workdir)
  whole = run.result['phase'] == 'finetune'
  return source_of_run(workdir) if whole else source_with_8_bits(workdir), run


def images_of(run: finished.Finished, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
  """The first images of a split, uint8 `[N, H, W, C]`, and their labels."""
  batch = next(eval_batches(run.experiment.dataset, split, batch_size=count))
  kept = batch['mask'] > 0
  return batch['image'][kept], batch['label'][kept]
