"""The clip or range that quantizes values with the least error, among candidates of every size.

What best means is a criterion of `quant_config.CALIBRATIONS`, a mean over all values. The squared error follows one
value among thousands that is large enough, and gives up all others for it. In the absolute error such a value weighs
little, and `trimmed` leaves it out: the squared error without the thousandth of the values that is largest.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax import quantize
from fracbits_jax.layers.quant_config import check_calibration
from fracbits_jax.quantize import bitwidths, lsq
from fracbits_jax.quantize.unit import SMALLEST

SAMPLES = 4096  # values of a layer's inputs, of each batch
_CANDIDATES = 100  # up to the largest value, and as many beyond it
_ENDS = 32  # candidates of either end of a range that has an offset
_EXACT = 128  # candidates of which levels are the largest value
_NOT_FINITE = 'there are values that are not finite: no clip quantizes them; mend the network or its inputs'


def sample(x: jax.Array) -> jax.Array:
  """4096 values of an array; the same positions for the same shape. Of nothing it is 0 throughout.

  Of a smaller array they are all of its values, as often as one another, so that its largest is among them.
  """
  if not x.size:
    return jnp.zeros(SAMPLES, x.dtype)
  return x.reshape(-1)[positions(x.size)]


def positions(size: int) -> np.ndarray:
  """Where the values of a sample lie: at random, since evenly spaced ones would all lie in the same few channels."""
  rng = np.random.default_rng(0)
  return rng.integers(size, size=SAMPLES) if size > SAMPLES else np.resize(rng.permutation(size), SAMPLES)


def resized(kernel: np.ndarray) -> np.ndarray:
  """4096 entries of an array, all of them as often as one another where there are fewer; zeros where there are none."""
  flat = kernel.reshape(-1)
  return flat[positions(flat.size)] if flat.size else np.zeros(SAMPLES, np.float32)


def checked(x: np.ndarray, what: str) -> np.ndarray:
  """The sample; raises `ValueError`, with what it is of, where a value is not finite."""
  if not np.isfinite(x).all():
    raise ValueError(f'{what}: {_NOT_FINITE}')
  return x


def best_clip(
  x: jax.Array | np.ndarray,
  bits: jax.Array,
  *,
  signed: bool,
  choices: tuple[int, ...],
  scheme: str = 'original',
  criterion: str = 'squares',
) -> jax.Array:
  """The clip that quantizes `x` with the least error.

  Args:
    x: sample of a layer's inputs, or of a kernel, any shape and scale.
    bits: their bit-width, `()`, fractional or not.
    signed: whether the range is two-sided.
    choices: allowed bit-widths.
    scheme: `lsq` for two's complement levels where the range is two-sided, `balanced` for a kernel's balanced ones.
    criterion: of `quant_config.CALIBRATIONS`: the mean of the squared errors, of the absolute ones, or of the squared
      ones without the thousandth of x that is largest.

  Returns:
    The best of the candidates: 100 evenly spaced up to max |x|, as many beyond it, and those of which a level is
    max |x| itself, so that a grid on which all of x lies is found. With other criteria than squares 200 more, up to
    twice what 99 in 100 values are below, since an outlier spreads the others. 1 where x is 0 throughout.

  Raises:
    ValueError: values that are not finite, or an unknown criterion.
  """
  x = jnp.asarray(x)
  if not isinstance(x, jax.core.Tracer) and not jnp.isfinite(x).all():
    raise ValueError(_NOT_FINITE)
  how = dict(signed=signed, choices=choices, scheme=scheme, criterion=check_calibration(criterion))
  return search(x, jnp.float32(bits), **how) if x.size else jnp.float32(1)


@functools.partial(jax.jit, static_argnames=('signed', 'choices', 'scheme', 'criterion'))
def search(
  x: jax.Array,
  bits: jax.Array,
  size: jax.Array | None = None,
  *,
  signed: bool,
  choices: tuple[int, ...],
  scheme: str,
  criterion: str,
) -> jax.Array:
  """`best_clip` within a program; of x `[n]` only the first values count where there is a `size`.

  Those are few, as of a channel: the best candidate is then moved to the least square for the levels that it gives.
  """
  x = x.astype(jnp.float32)
  largest = jnp.max(jnp.abs(x))
  found = largest >= SMALLEST
  x = x / jnp.where(found, largest, 1)  # or squares of very large and very small values would not be there
  distance = jnp.abs if criterion == 'absolute' else jnp.square
  counts = jnp.ones_like(x, bool) if size is None else jnp.arange(x.size) < size
  if criterion != 'squares':
    bulk, most = _quantiles(jnp.abs(x), jnp.array([0.99, 0.999]), size)
    counts &= (jnp.abs(x) <= most) | (criterion != 'trimmed')

  def quantized(alpha):
    if scheme == 'balanced':
      return lsq.kernel(x, bits, alpha, choices=choices, balanced=True)
    quantizer = lsq.activation if scheme == 'lsq' else quantize.activation
    return quantizer(x, bits, alpha, signed=signed, choices=choices)

  def error(alpha):
    return jnp.mean(distance(quantized(alpha) - x), where=counts)

  evenly = jnp.arange(1, 2 * _CANDIDATES + 1) / _CANDIDATES
  parts = [evenly, _exact(bits, signed=signed, choices=choices, scheme=scheme)]
  if criterion != 'squares':
    parts.append(jnp.where(bulk > 0, bulk, 1) * evenly)
  candidates = jnp.concatenate(parts)
  errors = jax.lax.map(error, candidates)
  best = candidates[jnp.argmin(errors)]
  if size is not None and criterion == 'squares':
    levels = quantized(best) / best
    least = jnp.sum(levels * x, where=counts) / jnp.maximum(jnp.sum(levels**2, where=counts), SMALLEST)
    best = jnp.where((least > 0) & (error(least) < jnp.min(errors)), least, best)
  return jnp.where(found, jnp.minimum(best * largest, jnp.finfo(jnp.float32).max), 1.0)


@functools.partial(jax.jit, static_argnames=('signed', 'choices', 'scheme', 'criterion'))
def best_clips(
  x: jax.Array, bits: jax.Array, *, signed: bool, choices: tuple[int, ...], scheme: str, criterion: str
) -> jax.Array:
  """`best_clip` for several samples `[n, values]` at once, with a bit-width each, `[n]`: `[n]`."""
  how = dict(signed=signed, choices=choices, scheme=scheme, criterion=criterion)
  return jax.vmap(functools.partial(search, **how))(x, bits)


@functools.partial(jax.jit, static_argnames=('choices', 'criterion'))
def best_range(x: jax.Array, bits: jax.Array, *, choices: tuple[int, ...], criterion: str) -> jax.Array:
  """The range and the middle, `[2]`, that quantize signed inputs with the least error under `lsq`.

  Args:
    x: sample of them, any shape and scale.
    bits, choices, criterion: as for `best_clip`.

  Returns:
    The best of the ranges from some part of the least value to some part of the largest, and of `best_clip`'s; 1 and 0
    where x is 0 throughout.
  """
  x = jnp.ravel(x).astype(jnp.float32)
  clip = search(x, bits, signed=True, choices=choices, scheme='lsq', criterion=criterion)
  unit = jnp.maximum(jnp.max(jnp.abs(x), initial=0), SMALLEST)
  x = x / unit
  distance = jnp.abs if criterion == 'absolute' else jnp.square
  most = jnp.quantile(jnp.abs(x), 0.999) if criterion == 'trimmed' else jnp.inf
  parts = jnp.arange(_ENDS + 1) / _ENDS * 1.25
  low, high = (jnp.ravel(end) for end in jnp.meshgrid(parts * jnp.min(x), parts * jnp.max(x)))
  low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
  step = (high - low) / jnp.maximum(jnp.exp2(bits) - 1, 1)
  reach = jnp.maximum(step * jnp.exp2(bits - 1), SMALLEST)
  candidates = jnp.concatenate(
    [jnp.stack([reach, low + reach], 1), jnp.stack([clip / unit, jnp.zeros_like(clip)])[None]]
  )

  def error(alpha):
    quantized = lsq.activation(x, bits, alpha, signed=True, choices=choices)
    return jnp.mean(distance(quantized - x), where=jnp.abs(x) <= most)

  found = candidates[jnp.argmin(jax.lax.map(error, candidates))] * unit
  return jnp.where(unit > SMALLEST, found, jnp.array([1.0, 0.0]))


def _quantiles(x: jax.Array, parts: jax.Array, size: jax.Array | None) -> jax.Array:
  """The values that these parts of x are below; with a `size` of its first values, and as if each were there often."""
  if size is None:
    return jnp.quantile(x, parts)
  ordered = jnp.sort(jnp.where(jnp.arange(x.size) < size, x, jnp.inf))
  return ordered[jnp.maximum(jnp.ceil(parts * size).astype(jnp.int32) - 1, 0)]


def _exact(bits: jax.Array, *, signed: bool, choices: tuple[int, ...], scheme: str) -> jax.Array:
  """Clips of which a level is 1, those of the lower neighbour of `bits`: `[128]`, the last ones repeated.

  With n steps up to the clip they are n / k for a level of k steps. Below n / 2, or n / 3 where the levels are odd, a
  finer grid has the same levels, so that they go up to 2, or 3. The largest balanced level is a step below the clip.
  """
  low, high, fraction = bitwidths.neighbours(bits, choices)
  low = jnp.where(fraction == 1, high, low)
  power, step, first = bitwidths.power_of_two(low), 1, 0
  if scheme == 'lsq' and signed:
    steps = jnp.where(low <= 1, 2, power / 2)  # at 1 bit the levels are half the clip and its negative
  elif scheme == 'balanced':
    steps, step, first = jnp.maximum(power, 2), 2, 1
  else:
    steps, step = jnp.maximum(power - 1, 1), 2 if signed else 1
  return steps / jnp.maximum(steps - first - step * jnp.arange(_EXACT), jnp.ceil(steps / (step + 1)))
