"""Policies without a search: each kernel and each input is scored by what quantizing it alone does to the loss.

    python -m fracbits_jax.sensitivity --workdir=runs/digits --bits=3 --out=policy.json

Scores are those of HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852), the trace of the Hessian times the squared
quantization error; the rise of the loss itself; or its rise to second order by the very error of each bit-width.
`assignment.solve` makes a policy of them, which a run takes as `config.policy`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from fracbits_jax import cost as costs
from fracbits_jax import layers, tasks
from fracbits_jax.layers import QuantConfig, calibrate, wrap
from fracbits_jax.layers.channel_ranges import channel_ranges
from fracbits_jax.layers.clip_search import best_range
from fracbits_jax.layers.examples import arguments_of, examples_in
from fracbits_jax.layers.operands import with_last_channels
from fracbits_jax.policy.assignment import Scores
from fracbits_jax.quantize import groups

Slot = tuple[str, str]  # a layer's path, and `kernel` or `input`
Batch = Mapping[str, Any]

SCORES = ('hessian', 'loss', 'error')
_DRAWS = 8


def quantized_kernel(quant: QuantConfig, kernel: jax.Array, bits: Any, alpha: jax.Array | None = None) -> jax.Array:
  """A kernel at an integer bit-width, on the scale at which it is nearest to the float one.

  DoReFa's kernels have a scale of their own, which batch norm takes away again.

  Args:
    quant: how the layer is quantized.
    kernel: the float kernel.
    bits: `()`.
    alpha: its range, `()`, `[C_out]` or, in groups, `[G, C_out]`, with the scheme `lsq`.
  """
  plain = dataclasses.replace(quant, sat=False)
  q = layers.quantize_kernel(plain, kernel, jnp.float32(bits), alpha, learned=False)
  return q * jnp.sum(q * kernel) / jnp.maximum(jnp.sum(q * q), 1e-12)


class Sensitivity:
  """A float network whose kernels and inputs are disturbed one by one, in evaluation mode.

  It is the quantized network with quantizers that change nothing, so that both have their tensors in the same places.

  Args:
    model: a quantized network, called as `model(inputs)`.
    variables: `params` and further collections of its float network.
    inputs: an example of what it is called with, or its shape, as for `cost.trace`.
    batches: training batches, such as `image` and `label` of each.
    task: what the network is trained for.
    inputs_of: what a batch gives the network, an array or a tuple of several; that of the task where it is `None`.
    **kwargs: for the call, such as `train=False`.

  Attributes:
    table: the layer table.
    slots: the allowed bit-widths of each kernel and each input that learns them, without 0.
    variables: of the quantized network: the float one's, and clips and bits that nothing depends on.
  """

  def __init__(
    self,
    model: nn.Module,
    variables: Any,
    inputs: Any,
    batches: Sequence[Batch],
    task: tasks.Task = tasks.CLASSIFICATION,
    *,
    inputs_of: Callable[[Batch], Any] | None = None,
    **kwargs: Any,
  ):
    self.table = costs.trace(model, inputs, **kwargs)
    if any(layer.stack for layer in self.table):
      raise ValueError(
        'layers within a scan cannot be disturbed one by one: score the network without the loop, '
        'model.decoder.scan=False, whose policies are taken by the one with it as well'
      )
    self.slots = {
      (l.name, which): tuple(b for b in c if b) for l in self.table for which, (_, c) in costs.learned(l).items()
    }
    self._model, self._float, self._kwargs = model, variables, kwargs
    self._configs = calibrate.quant_configs(model, inputs, **kwargs)
    self._axes = calibrate.output_axes(model, inputs, variables['params'], **kwargs)
    self._task, self._batches = task, [jax.tree.map(jnp.asarray, dict(batch)) for batch in batches]
    self._inputs_of = task.inputs if inputs_of is None else inputs_of
    init = lambda *args: model.init(jax.random.key(0), *args, **kwargs)
    wanted = jax.eval_shape(init, *self._arguments(self._batches[0]))['params']
    # Clips and bits are not used; at the largest bits nothing is pruned.
    params = wrap.with_parameters(wanted, variables['params'], self._configs)
    bits = jax.tree.map(np.float32, costs.bits_range(self.table)[1])
    self.variables = {**variables, 'params': params, 'bits': bits}

  def _arguments(self, batch: Batch) -> tuple[Any, ...]:
    """What the network is called with."""
    return arguments_of(self._inputs_of(batch))

  def outputs(self, variables: Any, inputs: Any, quantizer: Callable[[Slot, jax.Array], jax.Array]) -> jax.Array:
    """The outputs with `quantizer(slot, x)` for each of the `slots`, kernels as `[..., C_out]`; to be traced."""

    def replacement(layer, which, x, bits, alpha, kept):
      del bits, alpha, kept
      slot = ('/'.join(layer.path), which)
      return quantizer(slot, x) if slot in self.slots else x

    with layers.replace_quantizers(replacement):
      found: Any = self._model.apply(variables, *arguments_of(inputs), **self._kwargs)
    return found.astype(jnp.float32)

  def traces(self, draws: int = _DRAWS, seed: int = 0) -> dict[Slot, float]:
    """The trace of the Hessian of the task's mean loss with respect to each kernel and each input.

    With J the derivative of an example's outputs and H the Hessian of its loss by them, the Gauss-Newton part of the
    Hessian is the mean over the examples of J^T H J. Its trace is estimated as Hutchinson does, by random vectors c, a
    draw of `Task.curvature` for each example:

        Tr = E[|J^T c|^2],    E[c c^T] = H,    for cross entropy H = diag(p) - p p^T with the probabilities p

    In evaluation mode networks of ReLU and batch norm are piecewise linear in each of their tensors alone, so this part
    is the whole. It is never negative, and no draw mixes one tensor with another.

    Args:
      draws: of c, for every batch.
      seed: of the draws.
    """
    shapes: dict[Slot, tuple[int, ...]] = {}

    def see(slot, x):
      shapes[slot] = x.shape
      return x

    first = self._arguments(self._batches[0])
    jax.eval_shape(lambda variables: self.outputs(variables, first, see), self.variables)

    @jax.jit
    def squares(variables, inputs, key):
      def moved(moves):
        return self.outputs(variables, inputs, lambda slot, x: x + moves[list(shapes).index(slot)].astype(x.dtype))

      outputs, pull_back = jax.vjp(moved, [jnp.zeros(shape, jnp.float32) for shape in shapes.values()])
      (gradients,) = pull_back(self._task.curvature(outputs, key))
      return [jnp.sum(jnp.square(g)) / examples_in(inputs) for g in gradients]

    keys = iter(jax.random.split(jax.random.key(seed), draws * len(self._batches)))
    found = [squares(self.variables, self._arguments(b), next(keys)) for b in self._batches for _ in range(draws)]
    return dict(zip(shapes, np.mean(found, axis=0).tolist(), strict=True))

  def errors(self) -> dict[Slot, dict[int, float]]:
    """The mean squared error of each kernel and each input at each bit-width, with the clip that is best for it."""
    errors: dict[Slot, dict[int, float]] = {}
    for slot, x, bits, alpha in self._quantizations():
      quantized = jax.jit(functools.partial(self._quantized, slot))(x, jnp.float32(bits), alpha)
      errors.setdefault(slot, {})[bits] = float(jnp.mean(jnp.square(quantized - x)))
    return errors

  def hessian_scores(self, draws: int = _DRAWS, seed: int = 0) -> Scores:
    """Half the trace times the mean squared error: the rise of the loss to second order, for errors at random."""
    traces = self.traces(draws, seed)
    return {
      slot: {bits: traces[slot] / 2 * error for bits, error in by_bits.items()}
      for slot, by_bits in self.errors().items()
    }

  def error_scores(self, draws: int = _DRAWS, seed: int = 0) -> Scores:
    """The rise of the loss to second order, by the errors that a bit-width makes and not by random ones of their size.

    With d the error of a kernel or an input, and J and c as for `traces`:

        score = mean d^T J^T H J d / 2 = E[(c . J d)^2] / 2

    One gradient of each draw serves all bit-widths, whose errors meet the same c. A kernel's error is the same for all
    examples of a batch: its gradient is that of their sum, in which no draw mixes one example with another.

    Args:
      draws: of c, for every batch.
      seed: of the draws.
    """
    listed: dict[Slot, list[tuple[float, jax.Array, jax.Array | None]]] = {}
    for slot, x, bits, clip in self._quantizations():
      move = self._quantized(slot, x, jnp.float32(bits), clip) - x if slot[1] == 'kernel' else None
      listed.setdefault(slot, []).append((float(bits), clip, move))
    # Stacked, for one quantizer in a loop instead of one for each bit-width.
    stack = lambda *values: jnp.stack([jnp.asarray(value, jnp.float32) for value in values])
    ways = {slot: jax.tree.map(stack, *found) for slot, found in listed.items()}
    order = list(self.slots)

    @jax.jit
    def squares(variables, inputs, key, ways):
      def moved(zeros):
        xs = {}

        def quantizer(slot, x):
          xs[slot] = x
          return x + zeros[slot] if slot in zeros else x

        return self.outputs(variables, inputs, quantizer), xs

      _, shapes = jax.eval_shape(moved, {})
      zeros = {slot: jnp.zeros(shape.shape, shape.dtype) for slot, shape in shapes.items()}
      outputs, pull_back, xs = jax.vjp(moved, zeros, has_aux=True)

      def drawn(key):
        (gradients,) = pull_back(self._task.curvature(outputs, key))
        count = examples_in(inputs)
        return [self._along(slot, gradients[slot], xs[slot], ways[slot], count) / count for slot in order]

      return jax.tree.map(lambda x: jnp.mean(x, 0), lax.map(drawn, jax.random.split(key, draws)))

    keys = jax.random.split(jax.random.key(seed), len(self._batches))
    found = [
      squares(self.variables, self._arguments(batch), key, ways) for batch, key in zip(self._batches, keys, strict=True)
    ]
    means = jax.tree.map(lambda *values: np.mean(values, axis=0), *found)
    return {
      slot: dict(zip(self.slots[slot], (mean / 2).tolist(), strict=True))
      for slot, mean in zip(order, means, strict=True)
    }

  def _along(self, slot: Slot, gradient: jax.Array, x: jax.Array, ways: tuple, examples: int) -> jax.Array:
    """(gradient . error)^2 for each bit-width, a sum over the examples: `[widths]`."""
    if slot[1] == 'kernel':
      return lax.map(lambda move: jnp.square(jnp.vdot(gradient, move)), ways[2])

    def one(way):
      error = self._quantized(slot, x, *way[:2]) - x
      # Tokens of an example lie side by side; inputs that are the same for all examples have one error, as kernels do.
      rows = examples if x.ndim and x.shape[0] % examples == 0 else 1
      return jnp.sum(jnp.square(jnp.sum((gradient * error).reshape(rows, -1), axis=1)))

    return lax.map(one, ways)

  def loss_scores(self) -> Scores:
    """The rise of the loss when one kernel or one input alone is quantized, a mean over the batches."""
    order = list(self.slots)
    most = max((math.prod(self._range_shape(name)) for name, which in order if which == 'kernel'), default=0)
    padded = lambda alpha: np.resize(alpha, max(most, 2))  # of one shape, so that there is one program

    @jax.jit
    def loss(variables, batch, index, bits, alpha):
      def quantizer(slot, x):
        quantized = functools.partial(self._quantized, slot)
        one = lambda x, bits, alpha: quantized(x, bits, self._range_in(slot, alpha))
        return lax.cond(index == order.index(slot), one, lambda x, bits, alpha: x, x, bits, alpha)

      outputs = self.outputs(variables, self._arguments(batch), quantizer)
      return jnp.mean(self._task.terms(outputs, batch)['loss'])

    mean = lambda *which: float(np.mean([loss(self.variables, batch, *which) for batch in self._batches]))
    plain = mean(-1, 8.0, padded(1.0).astype(np.float32))
    scores: dict[Slot, dict[int, float]] = {}
    for slot, _, bits, alpha in self._quantizations():
      scores.setdefault(slot, {})[bits] = mean(order.index(slot), float(bits), padded(alpha)) - plain
    return scores

  def _quantizations(self):
    """Every slot with its tensor, or values of it, each of its bit-widths, and the clip that is best for that."""
    plain = wrap.without_quantization(self._model)
    inputs = calibrate.sample_inputs(plain, self._float, map(self._arguments, self._batches), **self._kwargs)
    for slot, choices in self.slots.items():
      name, which = slot
      quant = self._configs[name]
      x = jnp.asarray(self._kernel(name) if which == 'kernel' else inputs[name])
      signed = which == 'kernel' or quant.signed_input
      for bits in choices:
        clip: Any = 1.0  # of kernels that have none
        if which == 'kernel' and quant.range_kind != 'layer':
          fixed = dataclasses.replace(quant, kernel_bits=bits)
          clip = channel_ranges({name: (np.asarray(x).reshape(-1, x.shape[-1]).T, bits, fixed)})[name]
        elif which == 'input' and quant.has_offset:
          clip = best_range(x, jnp.float32(bits), choices=(bits,), criterion=quant.calibration)
        elif which == 'input' or quant.scheme == 'lsq':
          scheme = quant.kernel_scheme if which == 'kernel' else quant.scheme
          how = dict(signed=signed, choices=choices, scheme=scheme, criterion=quant.calibration)
          clip = calibrate.best_clip(x, jnp.float32(bits), **how)
        yield slot, x, bits, jnp.float32(clip)

  def _range_in(self, slot: Slot, padded: jax.Array) -> jax.Array:
    """The range or the ranges of a tensor, which are the first of an array of some length."""
    quant = self._configs[slot[0]]
    if slot[1] == 'kernel':
      shape = self._range_shape(slot[0])
      return padded[: math.prod(shape)].reshape(shape) if shape else padded[0]
    return padded[:2] if quant.has_offset else padded[0]

  def _range_shape(self, name: str) -> tuple[int, ...]:
    """The shape of the range, or the ranges, of a kernel."""
    quant, (*contracted, channels) = self._configs[name], self._kernel(name).shape
    if quant.group_size is not None:
      return groups.count(math.prod(contracted), quant.group_size), channels
    return (channels,) if quant.range_kind == 'channel' else ()

  def _kernel(self, name: str) -> Any:
    """The kernel of a layer of the float network, `[..., C_out]`."""
    kernel = functools.reduce(lambda node, key: node[key], name.split('/'), self._float['params'])['kernel']
    return with_last_channels(kernel, self._axes[name])

  def _quantized(self, slot: Slot, x: jax.Array, bits: jax.Array, alpha: jax.Array) -> jax.Array:
    quant = self._configs[slot[0]]
    if slot[1] == 'kernel':
      return quantized_kernel(quant, x, bits, alpha).astype(x.dtype)
    return layers.quantize_input(quant, x, bits, alpha, learned=False)
