"""Where clips and ranges start: those that quantize the float network's own inputs and weights best."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.layers import clip_search
from fracbits_jax.layers.channel_ranges import channel_ranges
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.program import operands
from fracbits_jax.program.interpreter import Interpreter, bind
from fracbits_jax.program.network import Network
from fracbits_jax.program.plan import Weight
from fracbits_jax.program.sites import Site
from fracbits_jax.program.trace import Program

Ranges = dict[str, dict[str, Any]]  # by the name of the weight: `alpha` and `kernel_alpha`, those it has


def initial_ranges(network: Network, params: Any, others: Any, args: Any, kwargs: Any) -> Ranges:
  """The ranges before calibration: clips as configured, LSQ's start for the weights."""
  found: Ranges = {}
  needed = {name: pair for name, pair in network.quantized().items() if operands.has_kernel_alpha(*pair)}
  weights = _kept(network, params, others, args, kwargs, inputs=False) if needed else {}
  for name, (weight, quant) in network.quantized().items():
    of_weight = found.setdefault(name, {})
    if not quant.weight_only and weight.has_input:
      start = quant.alpha_start
      of_weight['alpha'] = jnp.broadcast_to(start, (*weight.stack, *start.shape))
    if name in needed and not (weight.is_product and quant.weight_only):
      of_weight['kernel_alpha'] = _initial(weight, quant, *weights[name][0])
  return found


def unit_ranges(network: Network) -> Ranges:
  """Ranges of 1, for what depends on the shapes of a network alone."""
  found: Ranges = {}
  for name, (weight, quant) in network.quantized().items():
    ones = jnp.ones(operands.range_shape(weight, quant), jnp.float32)
    has_alpha = not quant.weight_only and weight.has_input
    clip = jnp.ones((*weight.stack, *quant.alpha_start.shape), jnp.float32)
    has_kernel = operands.has_kernel_alpha(weight, quant) and not (weight.is_product and quant.weight_only)
    found[name] = {**({'alpha': clip} if has_alpha else {}), **({'kernel_alpha': ones} if has_kernel else {})}
  return found


def _initial(weight: Weight, quant: QuantConfig, site: Site, taps: Mapping[str, np.ndarray]) -> jax.Array:
  values = taps['weight'] if weight.is_product else _of_weight(site, taps)
  return operands.initial_range(weight, site, quant, values)


def best_ranges(
  network: Network,
  params: Any,
  others: Any,
  args: Any,
  kwargs: Any,
  bits: Mapping[str, Mapping[str, Any]] | None = None,
) -> Ranges:
  """The ranges that quantize these inputs, and these parameters, with the least error, by each layer's criterion.

  The float network runs once.

  Args:
    network, params, others, args, kwargs: as for `samples`.
    bits: the learned bit-widths that they quantize with, by the name of the weight, of
      `collections.bits_of_weights`; where they start without it.

  Raises:
    ValueError: inputs or weights that are not finite, by the name of the layer.
  """
  found = samples(network, params, others, args, kwargs)
  wanted: list[tuple[tuple[str, str], Weight, tuple, np.ndarray, np.ndarray]] = []
  factors: dict[tuple[str, str], np.ndarray] = {}
  with_offset: dict[str, jax.Array] = {}
  by_channel: dict[str, tuple[np.ndarray, Any, QuantConfig]] = {}
  for name, (weight, quant) in network.quantized().items():
    values = found[name]
    widths = {which: _widths(weight, quant, which, (bits or {}).get(name, {})) for which in ('kernel', 'input')}
    of_each = {which: width.mean(axis=1) for which, width in widths.items()}  # of a stack
    if 'input' in values and quant.has_offset:
      with_offset[name] = _with_offset(weight, quant, values['input'], of_each['input'])
    elif 'input' in values:
      how = (quant.signed_input, quant.allowed_input_bits, quant.input_bits, quant.scheme, quant.calibration)
      wanted.append(((name, 'alpha'), weight, _how(*how), values['input'], of_each['input']))
    if not operands.has_kernel_alpha(weight, quant) or (weight.is_product and quant.weight_only):
      continue
    kernels = values['kernel']
    signed, scheme = (weight.weight_signed, quant.scheme) if weight.is_product else (True, quant.kernel_scheme)
    is_grouped = quant.group_size is not None
    if is_grouped or (operands.has_channel_ranges(weight, quant) and not weight.rows):
      by_channel[name] = (kernels, widths['kernel'], quant)
      continue
    if weight.rows:
      kernels, factors[name, 'kernel_alpha'] = _in_units(kernels)
    how = (signed, quant.allowed_kernel_bits, quant.kernel_bits, scheme, quant.calibration)
    flat = kernels.reshape(len(kernels), -1)
    wanted.append(((name, 'kernel_alpha'), weight, _how(*how), flat, of_each['kernel']))
  ranges = _solved(wanted, factors)
  for name, alpha in with_offset.items():
    ranges.setdefault(name, {})['alpha'] = alpha
  for name, best in channel_ranges(by_channel).items():
    shape = operands.range_shape(*network.quantized()[name])
    ranges.setdefault(name, {})['kernel_alpha'] = jnp.asarray(best.reshape(shape))
  return ranges


def _with_offset(weight: Weight, quant: QuantConfig, samples: np.ndarray, widths: np.ndarray) -> jax.Array:
  """The best ranges of inputs with their middles, `[stack..., 2]`."""
  choices = quant.allowed_input_bits if quant.input_bits is None else (quant.input_bits,)
  rows = [clip_search.checked(clip_search.resized(row), f'inputs of {weight.name}') for row in samples]
  best = functools.partial(clip_search.best_range, choices=choices, criterion=quant.calibration)
  found = [best(row, np.float32(width)) for row, width in zip(rows, widths, strict=True)]
  return jnp.stack(found).reshape(*weight.stack, 2)


def samples(network: Network, params: Any, others: Any, args: Any, kwargs: Any) -> dict[str, dict[str, np.ndarray]]:
  """What each quantized weight is multiplied with, and its values, in one run of the float network.

  Returns:
    By the name of the weight: `input`, values drawn at random `[stack, n]`, where its inputs are quantized; `kernel`,
    the kernels `[stack, C_out, ...]`, or of a product of two activations values of the second one `[stack, n]`.
  """
  kept = _kept(network, params, others, args, kwargs, inputs=True)
  found: dict[str, dict[str, np.ndarray]] = {}
  for name, (weight, quant) in network.quantized().items():
    of_weight = found.setdefault(name, {})
    if weight.has_input and not quant.weight_only:
      drawn = [_of_calls(weight, site, taps, 'input') for site, taps in kept[name] if 'input' in taps]
      of_weight['input'] = np.concatenate(drawn, axis=-1)
    site, taps = kept[name][0]
    if weight.is_product:
      of_weight['kernel'] = _of_calls(weight, site, taps, 'weight')
    else:
      of_weight['kernel'] = operands.kernels_of(weight, site, quant, _of_weight(site, taps))
  return found


def _widths(weight: Weight, quant: QuantConfig, which: str, learned: Mapping[str, Any]) -> np.ndarray:
  """The bit-widths of a weight or its inputs, fixed, learned or where they start: `[stack, C_out or 1]`."""
  fixed, allowed = (
    (quant.kernel_bits, quant.allowed_kernel_bits)
    if which == 'kernel'
    else (quant.input_bits, quant.allowed_input_bits)
  )
  start = np.clip(quant.init_bits, allowed[0], allowed[-1]) if fixed is None else fixed
  found, count = np.asarray(learned.get(which, start), np.float64), math.prod(weight.stack)
  return found.reshape(count, -1) if which in learned and found.size else np.full((count, 1), start, np.float64)


def _how(signed: bool, choices: tuple[int, ...], fixed: int | None, scheme: str, criterion: str) -> tuple:
  return (signed, choices if fixed is None else (fixed,), scheme, criterion)


def _solved(wanted: list, factors: Mapping[tuple[str, str], np.ndarray]) -> Ranges:
  """The best ranges, computed together for all layers that are quantized alike."""
  found: Ranges = {}
  for how in dict.fromkeys(how for _, _, how, _, _ in wanted):
    group = [entry for entry in wanted if entry[2] == how]
    rows, widths = [], []
    for (name, which), _, _, samples, of_each in group:
      what = f'{"inputs" if which == "alpha" else "kernel"} of {name}'
      rows += [clip_search.checked(clip_search.resized(row), what) for row in samples]
      widths += list(of_each)
    signed, choices, scheme, criterion = how
    settings = dict(signed=signed, choices=choices, scheme=scheme, criterion=criterion)
    best = iter(np.asarray(clip_search.best_clips(np.stack(rows), np.asarray(widths, np.float32), **settings)))
    for (name, which), weight, _, samples, _ in group:
      values = np.array([next(best) for _ in samples], np.float32)
      factor = factors.get((name, which))
      if factor is not None:
        values = values[:, None] * factor
      shape = (*weight.stack, *values.shape[1:])
      found.setdefault(name, {})[which] = jnp.asarray(values.reshape(shape))
  return found


def _in_units(kernels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rows in units of their largest value, `[stack, C, ...]`, and those values `[stack, C]`, 1 for rows of zeros."""
  largest = np.abs(kernels).max(axis=-1, initial=0)
  largest = np.where(largest > 0, largest, 1).astype(np.float32)
  return kernels / largest[..., None], largest


def _kept(
  network: Network, params: Any, others: Any, args: Any, kwargs: Any, *, inputs: bool
) -> dict[str, list[tuple[Site, dict[str, np.ndarray]]]]:
  """By the name of each quantized weight its sites with what they multiply: samples of their inputs, and the weight."""
  program, arrays = network.tracer.trace(params, others, args, kwargs)
  kept = network.compiled((program, inputs), functools.partial(_run, network, program, inputs))(arrays)
  found: dict[str, list[tuple[Site, dict[str, np.ndarray]]]] = {}
  for path, site in program.sites.items():
    if path in kept:
      found.setdefault(network.name_of(program, site), []).append((site, jax.tree.map(np.asarray, kept[path])))
  return found


def _run(network: Network, program: Program, inputs: bool, arrays: list[Any]) -> dict[tuple, dict[str, jax.Array]]:
  seen: set[str] = set()

  def at_site(site: Site, equation: Any, values: list[Any], variables: Any, ready: Any) -> tuple[list[Any], Any]:
    del variables, ready
    name = network.name_of(program, site)
    quant = network.configs.get(name)
    kept: dict[str, jax.Array] = {'ran': jnp.ones((), bool)}
    if quant is not None:
      weight = network.weights[name]
      if weight.is_product:
        kept['weight'] = _sampled(values[site.weight], site.stacked)
      elif name not in seen:
        kept['weight'] = values[site.weight]
      seen.add(name)
      if inputs and site.input is not None:
        kept['input'] = _sampled(values[site.input], site.input_stacked)
    return bind(equation, values), kept

  interpreter = Interpreter(program.sites, functools.partial(network.name_of, program), at_site, keeps=True)
  return interpreter.run(program.closed.jaxpr, program.closed.consts, arrays, {})[1]


def _sampled(x: jax.Array, stacked: tuple[int, ...]) -> jax.Array:
  """Values of an operand, drawn at random: `[stacked..., 4096]`."""
  x = jnp.moveaxis(x, stacked, range(len(stacked)))
  sizes = x.shape[: len(stacked)]
  x = x.astype(jnp.float32).reshape(math.prod(sizes), *x.shape[len(stacked) :])
  return jax.vmap(clip_search.sample)(x).reshape(*sizes, -1)


def _ordered(site: Site, tap: np.ndarray) -> tuple[np.ndarray, int, int]:
  """What was kept with the axes of its stack's loops in front and those of other loops behind them; their numbers."""
  own = {loop.path for loop in site.stored.loops}
  stack = [i for i, path in enumerate(site.scans) if path in own]
  others = [i for i, path in enumerate(site.scans) if path not in own]
  return np.moveaxis(tap, [*stack, *others], range(len(site.scans))), len(stack), len(others)


def _of_calls(weight: Weight, site: Site, taps: Mapping[str, np.ndarray], which: str) -> np.ndarray:
  """Samples of an operand: `[stack, values]`; none where the site did not run."""
  count = math.prod(weight.stack)
  if not np.any(taps['ran']):
    return np.zeros((count, 0), np.float32)
  values, stack, others = _ordered(site, taps[which])
  values = np.moveaxis(values, range(stack, stack + others), range(values.ndim - 1 - others, values.ndim - 1))
  return values.reshape(count, -1)


def _of_weight(site: Site, taps: Mapping[str, np.ndarray]) -> np.ndarray:
  """The weight as the program has it, with the axes of its loops in front; the same in the passes of other loops."""
  values, stack, others = _ordered(site, taps['weight'])
  return values[(slice(None),) * stack + (0,) * others]
