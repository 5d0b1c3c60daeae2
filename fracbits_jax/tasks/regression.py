"""Regression: the mean squared error from a target, which is the input itself where the data set gives none."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from fracbits_jax.tasks.task import Batch, Metric, Task

_LEAST_ERROR = 1e-10  # that PSNR tells from none, 100 dB


class Regression(Task):
  """Outputs `[N, ...]` that are to be as near as can be to targets, on a scale on which 1 is the whole range.

  The targets of a batch are `target`, as many values an example as there are outputs. A batch without it has its images
  reconstructed: the targets are their values divided by 255, so that 0..255 becomes 0..1, in the order of the array.

      MSE = mean((y - t)^2)        PSNR = 10 log10(1 / MSE) dB, at most 100

  with outputs y and targets t, over outputs and examples alike. PSNR is the same on every scale; the mean squared error
  of values in 0..255 is 255^2 times that given here.
  """

  name = 'regression'
  metrics = (
    Metric(
      name='mse',
      title='MSE',
      higher_is_better=False,
      best='has the lowest MSE',
      better='has a lower MSE',
      least=0.0,
    ),
    Metric(
      name='psnr',
      title='PSNR',
      higher_is_better=True,
      best='has the highest PSNR',
      better='has a higher PSNR',
      unit='dB',
      digits='.2f',
      few_digits='.1f',
      differences='dB',
    ),
  )
  examples = 'examples'
  note = 'MSE: mean squared error of outputs, with targets in 0..1. PSNR: 10 log10(1 / MSE).'
  keeps_scale = True
  meets_targets = True
  has_temperature = False

  def width(self, image_shape: Sequence[int], num_classes: int, target_shape: Sequence[int] | None) -> int:
    """An output for each target, or else for each value of an image."""
    del num_classes
    return math.prod(image_shape if target_shape is None else target_shape)

  def terms(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """The mean of (y - t)^2 over the outputs, `[N]`."""
    targets = batch['target'] if 'target' in batch else self.inputs(batch) / 255
    errors = outputs - jnp.reshape(targets, outputs.shape)
    return {'loss': jnp.mean(jnp.square(errors), axis=tuple(range(1, outputs.ndim)))}

  def values(self, means: Mapping[str, float]) -> dict[str, float]:
    """`mse` and `psnr` in dB."""
    mse = means['loss']
    return {'mse': mse, 'psnr': -10 * math.log10(max(mse, _LEAST_ERROR))}

  def distance(self, outputs: jax.Array, taught: jax.Array, temperature: float) -> jax.Array:
    """The mean squared difference."""
    del temperature
    return jnp.mean(jnp.square(outputs - jax.lax.stop_gradient(taught).astype(jnp.float32)))

  def curvature(self, outputs: jax.Array, key: jax.Array) -> jax.Array:
    """Signs times sqrt(2 / D), for the Hessian is 2 / D on its diagonal."""
    count = math.prod(outputs.shape[1:])
    return math.sqrt(2 / count) * jax.random.rademacher(key, outputs.shape, outputs.dtype)

  def sentence(self, values: Mapping[str, float]) -> str:
    """Such as `The test targets are met with a PSNR of 19.09 dB and an MSE of 0.01234`."""
    mse, psnr = (metric.text(values[metric.name]) for metric in self.metrics)
    return f'The test targets are met with a PSNR of {psnr} and an MSE of {mse}'


REGRESSION = Regression()
