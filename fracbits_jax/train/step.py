"""The state of a training and its steps: JAX, Flax and Optax, nothing of the input pipeline."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fracbits_jax import layers, tasks
from fracbits_jax.fast import platforms
from fracbits_jax.layers.linen import DISTANCES
from fracbits_jax.train import optim
from fracbits_jax.train.distill import Distillation
from fracbits_jax.train.hardening import Hardening
from fracbits_jax.train.penalty import Penalty

AXIS = 'batch'  # the mapped axis: the devices that share a batch

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes."""

  step: jax.Array
  params: Any
  bits: Any
  batch_stats: Any
  opt_state: Any
  multiplier: jax.Array  # of a controlled penalty

  @property
  def variables(self) -> dict[str, Any]:
    """The collections that the network takes."""
    return {'params': self.params, 'bits': self.bits, 'batch_stats': self.batch_stats}


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  penalty: Penalty | None = None,
  bits_range: tuple[Any, Any] | None = None,
  draw_seed: int | None = None,
  remat: bool = False,
  accumulate: int = 1,
  distillation: Distillation | None = None,
  task: tasks.Task = tasks.CLASSIFICATION,
  frozen_norm: bool = False,
  hardening: Hardening | None = None,
  dampening: optax.Schedule | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """The step `train_step(state, batch) -> (state, metrics)`, to be mapped over the axis `batch`.

  With a distillation it is `train_step(state, batch, teacher)`, which also takes the variables of its teacher.

  Args:
    model: a network called as `model(inputs, train=True)`.
    optimizer: for the tree `{'params': ..., 'bits': ...}`.
    penalty: the cost term of the loss; `None` leaves it out.
    bits_range: least and largest value of every bit-width, into which they are projected after each update; `None`
      for networks whose bits do not change.
    draw_seed: seed of the stream from which stochastic layers draw their bit-widths, the same on every device and
      another at every step; `None` where they interpolate.
    remat: keep of the forward pass only the outputs of convolutions and dense layers, and compute batch norm,
      activations and quantized tensors again for the gradients: less memory, a little more time.
    accumulate: equal parts in which each device computes its share of a batch, one after the other; the update is that
      of the whole batch, with one draw of bit-widths. Batch norm alone sees the parts: each is normalised by its own
      statistics, over all devices, and the running ones are updated part after part.
    distillation: the part of the loss that comes from a teacher; `None` leaves that of the task alone.
    task: what the network is trained for; the metrics are the means of its terms, the `loss` among them.
    frozen_norm: batch norm takes its running statistics, as in evaluation, and keeps them.
    hardening: what draws the bits to allowed ones after each update; `None` leaves them between.
    dampening: by step, what the sum of the squared distances of all weights from their levels counts in the loss, with
      the scheme `lsq`; it keeps weights from going to and fro between two levels (Nagel et al., ICML 2022, arXiv
      2203.11086). `None` leaves it out.
  """

  def train_step(state: TrainState, batch: Batch, teacher: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
    def loss_function(learned, batch_stats, batch):
      inputs = task.inputs(batch)
      rngs = None
      if draw_seed is not None:
        rngs = {'bits': jax.random.fold_in(jax.random.key(draw_seed), state.step)}

      def forward(learned):
        variables = {**learned, 'batch_stats': batch_stats}
        mutable = [] if dampening is None else [DISTANCES]
        if frozen_norm:
          outputs, updated = model.apply(variables, inputs, mutable=mutable, rngs=rngs)
          return outputs, {**updated, 'batch_stats': batch_stats}
        return model.apply(variables, inputs, train=True, mutable=['batch_stats', *mutable], rngs=rngs)

      if remat:
        forward = jax.checkpoint(forward, policy=jax.checkpoint_policies.save_only_these_names(layers.OUTPUTS))
      outputs, updated = forward(learned)
      outputs = outputs.astype(jnp.float32)
      metrics = {name: jnp.mean(term) for name, term in task.terms(outputs, batch).items()}
      loss = metrics['loss']
      if distillation is not None:
        loss, metrics['distill_loss'] = distillation(teacher, inputs, outputs, loss)
      if penalty is not None:
        term, metrics['cost_ratio'] = penalty(learned['bits'], state.multiplier)
        if penalty.controller is not None:
          metrics['multiplier'] = state.multiplier
        loss = loss + term
      if dampening is not None:
        distances = jax.tree.leaves(updated.get(DISTANCES, {}))
        if not distances:
          raise ValueError(
            'dampening is for QuantConv, QuantDense and their like with the scheme lsq, of which there is none'
          )
        # Of layers within a scan there is one for each.
        loss = loss + dampening(state.step) * sum(d if d.ndim == 0 else jnp.sum(d) for d in distances)
      return loss, (metrics, updated.get('batch_stats', {}))

    learned = {'params': state.params, 'bits': state.bits}
    gradient = jax.grad(loss_function, has_aux=True)
    if accumulate > 1:
      gradient = _in_parts(gradient, accumulate)
    gradients, (metrics, batch_stats) = gradient(learned, state.batch_stats, batch)
    gradients, metrics = lax.pmean((gradients, metrics), AXIS)
    updates, opt_state = optimizer.update(gradients, state.opt_state, learned)
    learned = optim.apply_updates(learned, updates, bits_range)
    if hardening is not None:
      learned['bits'] = hardening(learned['bits'], state.step)
    multiplier = state.multiplier
    if penalty is not None:
      multiplier = penalty.update(multiplier, metrics['cost_ratio'], state.step)
    state = TrainState(
      step=state.step + 1,
      params=learned['params'],
      bits=learned['bits'],
      batch_stats=batch_stats,
      opt_state=opt_state,
      multiplier=multiplier,
    )
    return state, metrics

  return train_step


def _in_parts(gradient: Callable, parts: int) -> Callable:
  """The function `gradient(learned, batch_stats, batch)` as the mean over parts of the batch, run one after the other.

  Every `parts`-th example goes to the same part, so that the parts are the same on any number of devices.
  """

  def mean_gradient(learned, batch_stats, batch):
    def add_part(carry, part):
      total, batch_stats = carry
      # Without the barrier compilers quantize all kernels before the loop, and keep what the gradients need of each.
      held, part = lax.optimization_barrier((learned, part))
      gradients, (metrics, batch_stats) = gradient(held, batch_stats, part)
      return (jax.tree.map(jnp.add, total, gradients), batch_stats), metrics

    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    start = jax.tree.map(jnp.zeros_like, learned), batch_stats
    (total, batch_stats), metrics = lax.scan(add_part, start, split)
    metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
    return jax.tree.map(lambda x: x / parts, total), (metrics, batch_stats)

  return mean_gradient


def make_eval_step(
  model: nn.Module, task: tasks.Task = tasks.CLASSIFICATION
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
  """The step `eval_step(variables, batch) -> sums`: of the terms of a task by name, and the `count` of what counts."""

  def eval_step(variables: Any, batch: Batch) -> dict[str, jax.Array]:
    found: Any = model.apply(variables, task.inputs(batch))
    terms = task.terms(found.astype(jnp.float32), batch)
    mask = batch['mask']  # of examples `[N]`, or of all that counts
    weight = lambda term: jnp.broadcast_to(mask.reshape(*mask.shape, *[1] * (term.ndim - mask.ndim)), term.shape)
    sums = {name: jnp.sum(term * weight(term)) for name, term in terms.items()}
    return lax.psum({'count': jnp.sum(weight(terms['loss'])), **sums}, AXIS)

  return eval_step


def over_devices(step: Callable, *, donate_state: bool = False) -> Callable:
  """A step mapped over the axis `batch`, one part for each device, and compiled as suits the platform.

  Args:
    step: takes and gives trees; every array gets a leading axis, of one entry for each device.
    donate_state: give away the buffers of the first argument.
  """
  donated = (0,) if donate_state else ()
  mapped = jax.pmap(step, axis_name=AXIS, donate_argnums=donated) if jax.process_count() == 1 else _over_hosts(step)
  return jax.jit(mapped, donate_argnums=donated, compiler_options=platforms.compiler_options())


def over_all_devices() -> NamedSharding:
  """How the leading axis of an array lies on the devices of all hosts, those of a host side by side."""
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return NamedSharding(Mesh(devices, (AXIS,)), PartitionSpec(AXIS))


def _over_hosts(step: Callable) -> Callable:
  """What `pmap` does; within `jit`, where compiler options can be given, it would stay on one host."""

  def one_device(*arguments: Any) -> Any:
    result = step(*jax.tree.map(lambda x: x[0], arguments))
    return jax.tree.map(lambda x: x[None], result)

  sharding = over_all_devices()
  return jax.shard_map(one_device, mesh=sharding.mesh, in_specs=sharding.spec, out_specs=sharding.spec, check_vma=False)
