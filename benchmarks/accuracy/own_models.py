"""Networks written without quantization, searched in a loop of their own: float, learned bits, uniform bits.

    python benchmarks/accuracy/own_models.py --seeds 0 1 2

A residual network in plain Flax, the vision transformer and the denoising autoencoder of the recipes, and one in NNX,
on the embedded digits at 16 x 16. Learned and uniform networks start from the same float network and get the same
number of steps, with the same settings for every network but the rates; all were chosen on the validation split.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from benchmarks.accuracy import own_networks
from benchmarks.shared import cells
from fracbits_jax import cost, from_float, models, policy, quantize_model
from fracbits_jax.data import sets
from fracbits_jax.data.batches import eval_batches
from fracbits_jax.fast import platforms
from fracbits_jax.layers import QuantConfig, nnx_adapter, wrap
from fracbits_jax.train import optim

BATCH = 64
EQUIVALENT_BITS = 2  # an integer, which the uniform network has throughout
KAPPA = 1.0
FLOAT_EPOCHS, SEARCH_EPOCHS, FINETUNE_EPOCHS = 40, 20, 20
NOISE = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A network and what it is for.

  Attributes:
    model: a linen module, or a function of `nnx.Rngs` that makes an NNX module.
    denoises: whether it takes noise out of images; it classifies them otherwise.
    scale: what the network takes for a pixel of 255.
    trains: whether it is called with `train`.
    rate: peak learning rate of the weights, by Adam.
    bits_rate: peak learning rate of the bits, by SGD with momentum.
  """

  model: Any
  denoises: bool = False
  scale: float = 1.0
  trains: bool = False
  rate: float = 3e-3
  bits_rate: float = 0.5


TASKS = {
  'resnet': Task(model=own_networks.ResNet(), trains=True),
  'vit': Task(model=models.create('vit_mini', num_classes=10, small_images=True), scale=255.0, rate=2e-3),
  'denoiser': Task(model=models.create('denoiser'), denoises=True, scale=255.0, trains=True, bits_rate=0.15),
  'denoiser_nnx': Task(model=lambda rngs: own_networks.NNXDenoiser(rngs=rngs), denoises=True),
}


def read_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images `[N, 16, 16, 1]` from 0 to 1 and labels, by split."""
  dataset = sets.load('digits', image_size=16)
  found = {}
  for split in ('train', 'validation', 'test'):
    batches = list(eval_batches(dataset, split, batch_size=100))
    kept = np.concatenate([batch['mask'] for batch in batches]) > 0
    images, labels = (np.concatenate([batch[key] for batch in batches])[kept] for key in ('image', 'label'))
    found[split] = images.astype(np.float32) / 255, labels
  return found


def _shifted(key: jax.Array, images: jax.Array) -> jax.Array:
  """Each image moved by up to a pixel each way."""
  offsets = jax.random.randint(key, (len(images), 2), 0, 3)
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  cut = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:])
  return jax.vmap(cut)(padded, offsets)


def loss_of(task: Task, call: Callable, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
  """The loss of a batch and what else the call gives; of a denoiser the squared error over the images' variance."""
  if not task.denoises:
    logits, rest = call(images * task.scale)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), rest
  y, rest = call((images + NOISE * jax.random.normal(key, images.shape)) * task.scale)
  return jnp.mean((y - images) ** 2) / jnp.var(images), rest


def score_of(task: Task, call: Callable, split: tuple[np.ndarray, np.ndarray]) -> float:
  """Accuracy in per cent, or the peak signal-to-noise ratio in dB, on a split; its noise is always the same."""
  images, labels = split
  if not task.denoises:
    return 100 * float(np.mean(np.argmax(call(images * task.scale), -1) == labels))
  noise = NOISE * jax.random.normal(jax.random.key(99), images.shape)
  return -10 * float(jnp.log10(jnp.mean((call((images + noise) * task.scale) - images) ** 2)))


def batches(images: np.ndarray, labels: np.ndarray, key: jax.Array, epochs: int) -> tuple[jax.Array, ...]:
  """Batches for all steps: shuffled positions `[steps, 64]` and a key for each step."""
  steps = len(images) // BATCH
  orders = [jax.random.permutation(jax.random.fold_in(key, e), len(images))[: steps * BATCH] for e in range(epochs)]
  return jnp.concatenate(orders).reshape(-1, BATCH), jax.random.split(key, epochs * steps)


def rates(task: Task, steps: int) -> tuple[optax.Schedule, optax.Schedule]:
  """The rates of weights and bits by step: a short rise, then a cosine."""
  rate = lambda peak: optax.warmup_cosine_decay_schedule(0, peak, steps // 20, steps, 0.01 * peak)
  return rate(task.rate), rate(task.bits_rate)


def train_linen(
  task: Task, net: nn.Module, variables: Any, split: tuple, key: jax.Array, *, epochs: int, penalised: Any = None
) -> Any:
  """Trains a linen network; with `penalised=(budget, table)` its bits as well."""
  images, labels = (jnp.asarray(x) for x in split)
  positions, keys = batches(images, labels, key, epochs)
  of_weights, of_bits = rates(task, len(keys))
  bits = None if penalised is None else optax.sgd(of_bits, momentum=0.9)
  optimizer = optim.with_bits(optax.adam(of_weights), bits)
  bits_range = None if penalised is None else cost.bits_range(penalised[1])

  @functools.partial(jax.jit, donate_argnums=(0, 1, 2), compiler_options=platforms.compiler_options())
  def step(learned: Any, stats: Any, state: Any, at: jax.Array, key: jax.Array) -> tuple:
    shift, noise = jax.random.split(key)
    batch = _shifted(shift, images[at]), labels[at]

    def loss(learned: Any) -> tuple:
      kwargs = {'train': True, 'mutable': ['batch_stats']} if task.trains else {'mutable': []}
      call = lambda x: net.apply({**learned, **stats}, x, **kwargs)
      value, rest = loss_of(task, call, *batch, noise)
      if penalised is not None:
        value += KAPPA * penalised[0].penalty(learned['bits'], penalised[1])
      return value, rest

    gradients, stats = jax.grad(loss, has_aux=True)(learned)
    updates, state = optimizer.update(gradients, state, learned)
    return optim.apply_updates(learned, updates, bits_range), stats, state

  variables = jax.tree.map(jnp.copy, {'bits': {}, **variables})  # the step gives its own away
  learned = {name: variables.pop(name) for name in ('params', 'bits')}
  state = optimizer.init(learned)
  for at, step_key in zip(positions, keys, strict=True):
    learned, variables, state = step(learned, variables, state, at, step_key)
  return {**learned, **variables}


def run_linen(task: Task, splits: dict, seed: int, equivalent_bits: int) -> dict[str, Any]:
  """Float, learned and uniform network of one seed: their scores, and what the policy is like."""
  key, sample = jax.random.key(seed), splits['train'][0][:256] * task.scale
  variables = task.model.init(key, sample)
  variables = train_linen(task, task.model, variables, splits['train'], key, epochs=FLOAT_EPOCHS)
  variables.pop('bits')
  found = {'float': score_of(task, functools.partial(task.model.apply, variables), splits['test'])}
  quant = QuantConfig(scheme='lsq', choices=range(1, 9), init_bits=equivalent_bits + 0.5)

  # What it takes with a network as it is: these three lines.
  net = quantize_model(task.model, sample, default=quant)
  start = from_float(net, variables, sample)
  table = cost.trace(net, sample)

  budget = cost.budget('bitops', table, equivalent_bits=equivalent_bits)
  keys = jax.random.split(key)
  searched = train_linen(task, net, start, splits['train'], keys[0], epochs=SEARCH_EPOCHS, penalised=(budget, table))
  chosen = policy.discretize(searched['bits'], table, budget)
  fixed, float32 = wrap.with_fixed_bits(net), lambda tree: jax.tree.map(jnp.float32, tree)
  final = {**searched, 'bits': float32(chosen.bits())}
  final = train_linen(task, fixed, final, splits['train'], keys[1], epochs=FINETUNE_EPOCHS)
  uniform_net = quantize_model(task.model, sample, default=dataclasses.replace(quant, init_bits=equivalent_bits))
  uniform = from_float(uniform_net, variables, sample)
  epochs = SEARCH_EPOCHS + FINETUNE_EPOCHS
  uniform = train_linen(task, wrap.with_fixed_bits(uniform_net), uniform, splits['train'], keys[0], epochs=epochs)
  for name, trained in (('learned', final), ('uniform', uniform)):
    found[name] = score_of(task, functools.partial(fixed.apply, trained), splits['test'])
  return {**found, **_described(chosen)}


def _described(chosen: policy.Policy) -> dict[str, Any]:
  widths = {getattr(entry, which) for entry in chosen.layers for which in entry.learned}
  return {'cost / target': chosen.cost / chosen.target, 'bit-widths': cells.span(sorted(widths))}


def train_nnx(
  task: Task, model: nnx.Module, split: tuple, key: jax.Array, *, epochs: int, penalised: Any = None
) -> None:
  """Trains an NNX model in place; with `penalised=(budget, table)` its bits as well."""
  images, labels = (jnp.asarray(x) for x in split)
  positions, keys = batches(images, labels, key, epochs)
  of_weights, of_bits = rates(task, len(keys))
  weights = nnx.Optimizer(model, optax.adam(of_weights), wrt=nnx.Param)
  bits = nnx.Optimizer(model, optax.sgd(of_bits, momentum=0.9), wrt=nnx_adapter.Bits)
  learned = nnx.Param if penalised is None else nnx.Any(nnx.Param, nnx_adapter.Bits)

  @nnx.jit
  def step(model: nnx.Module, weights: nnx.Optimizer, bits: nnx.Optimizer, at: jax.Array, key: jax.Array) -> None:
    shift, noise = jax.random.split(key)
    batch = _shifted(shift, images[at]), labels[at]

    def loss(model: nnx.Module) -> jax.Array:
      value, _ = loss_of(task, lambda x: (model(x), None), *batch, noise)
      if penalised is not None:
        value += KAPPA * penalised[0].penalty(nnx_adapter.bits(model), penalised[1])
      return value

    of_bits, of_weights = nnx.split_state(
      nnx.grad(loss, argnums=nnx.DiffState(0, learned))(model), nnx_adapter.Bits, ...
    )
    weights.update(model, of_weights)
    if penalised is not None:
      bits.update(model, of_bits)
      projected = optim.project_bits(nnx_adapter.bits(model), cost.bits_range(penalised[1]))
      nnx_adapter.set_bits(model, projected)

  for at, step_key in zip(positions, keys, strict=True):
    step(model, weights, bits, at, step_key)


def run_nnx(task: Task, splits: dict, seed: int, equivalent_bits: int) -> dict[str, Any]:
  """What `run_linen` does, with an NNX model."""
  key, sample = jax.random.key(seed), splits['train'][0][:256] * task.scale
  keys = jax.random.split(key)
  model = task.model(nnx.Rngs(seed))
  train_nnx(task, model, splits['train'], key, epochs=FLOAT_EPOCHS)
  found = {'float': score_of(task, nnx.jit(model), splits['test'])}
  quant = QuantConfig(scheme='lsq', choices=range(1, 9), init_bits=equivalent_bits + 0.5)
  uniform = nnx.clone(model)
  quantize_model(model, sample, default=quant)
  table = cost.trace(model, sample)
  budget = cost.budget('bitops', table, equivalent_bits=equivalent_bits)
  train_nnx(task, model, splits['train'], keys[0], epochs=SEARCH_EPOCHS, penalised=(budget, table))
  chosen = policy.discretize(nnx_adapter.bits(model), table, budget)
  nnx_adapter.set_bits(model, chosen.bits(), fixed=True)
  train_nnx(task, model, splits['train'], keys[1], epochs=FINETUNE_EPOCHS)
  quantize_model(uniform, sample, default=dataclasses.replace(quant, init_bits=equivalent_bits))
  nnx_adapter.set_bits(uniform, nnx_adapter.bits(uniform), fixed=True)
  train_nnx(task, uniform, splits['train'], keys[0], epochs=SEARCH_EPOCHS + FINETUNE_EPOCHS)
  for name, trained in (('learned', model), ('uniform', uniform)):
    found[name] = score_of(task, nnx.jit(trained), splits['test'])
  return {**found, **_described(chosen)}


def main() -> None:
  """Prints a row for each network, and each seed above it."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
  parser.add_argument('--equivalent_bits', type=int, default=EQUIVALENT_BITS)
  parser.add_argument('--validation', action='store_true', help='scores on the validation split, for choosing settings')
  args = parser.parse_args()
  cells.set_up()
  splits = read_digits()
  if args.validation:
    splits['test'] = splits['validation']
  print('| network | float | learned | uniform | cost / target | bit-widths |\n|---|---|---|---|---|---|')
  for name in args.tasks:
    task, rows = TASKS[name], []
    for seed in args.seeds:
      run = run_linen if isinstance(task.model, nn.Module) else run_nnx
      rows.append(run(task, splits, seed, args.equivalent_bits))
      print(f'seed {seed}: {rows[-1]}', file=sys.stderr, flush=True)
      jax.clear_caches()
    scores = [np.array([row[kind] for row in rows]) for kind in ('float', 'learned', 'uniform')]
    shown = [cells.with_deviation(x) for x in scores]
    ratios = ', '.join(f'{row["cost / target"]:.4f}' for row in rows)
    widths = ', '.join(row['bit-widths'] for row in rows)
    unit = 'dB' if task.denoises else '%'
    print(f'| {name}, {unit} | {" | ".join(shown)} | {ratios} | {widths} |', flush=True)


if __name__ == '__main__':
  main()
