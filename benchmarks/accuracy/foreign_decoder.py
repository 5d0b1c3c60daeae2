"""GPT-2 of the package transformers, as it is: bits per weight, a search on text, a policy, and exports.

    pip install -e '.[third_party]'
    python benchmarks/accuracy/foreign_decoder.py [--text=FILE] [--minutes=3] [--bits_per_weight=3.5]

The network is `transformers.FlaxGPT2LMHeadModel` of 0.8 million parameters with random weights: learned positions,
fused `Conv1D` layers, and a head that is the table of words. It is trained for a third of the time as it is, for a
third with learned bits, and for a third with the integers of its policy, in a loop of a few lines that knows nothing of
the network. Printed are the bits per character of each on the validation part of the text, the policy, the files, and
how far the packed one's logits are from the network's.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers

from benchmarks.shared import cells
from fracbits_jax import cost, from_float, policy, quantize_model
from fracbits_jax.data import sets
from fracbits_jax.data.batches import eval_batches, train_batches
from fracbits_jax.export import packed, stablehlo
from fracbits_jax.export.source import source_of
from fracbits_jax.graph.graph import evaluate
from fracbits_jax.layers import QuantConfig, wrap
from fracbits_jax.tasks import LANGUAGE
from fracbits_jax.train import optim
from fracbits_jax.train.penalty import Controller, Penalty

CONTEXT, BATCH = 64, 16
RATE, BITS_RATE = 2e-3, 0.2


class Decoder:
  """The linen module within a network of transformers, called with tokens alone."""

  def __init__(self, vocabulary: int):
    config = transformers.GPT2Config(
      vocab_size=vocabulary, n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
      attn_pdrop=0.0,
    )  # fmt: skip
    made = transformers.FlaxGPT2LMHeadModel(config, seed=0, input_shape=(1, CONTEXT))
    self.module, self.params = made.module, made.params

  def call(self, params: Any, tokens: jax.Array) -> jax.Array:
    """Logits `[N, T, vocabulary]` of tokens `[N, T]`."""
    there = jnp.ones_like(tokens)
    places = jnp.broadcast_to(jnp.arange(CONTEXT)[None], tokens.shape)
    return self.module.apply({'params': params}, tokens, there, places, return_dict=False)[0]


def trained(net: Any, variables: Any, batches: Iterator[Any], seconds: float, search: Any = None) -> Any:
  """Trains weights for a time beside the compilation; with `search`, a budget and a layer table, bits as well."""
  bits = None if search is None else optax.sgd(BITS_RATE, momentum=0.9)
  optimizer = optim.with_bits(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE)), bits)
  term = None
  if search is not None:
    term = Penalty(
      budget=search[0],
      layers=search[1],
      controller=Controller(gain=2.0, damping=10.0, rate=optax.constant_schedule(BITS_RATE)),
    )

  @jax.jit
  def step(variables: Any, state: Any, multiplier: jax.Array, at: jax.Array, batch: Any) -> tuple:
    def loss(variables: Any) -> tuple:
      value = LANGUAGE.terms(net.apply(variables, LANGUAGE.inputs(batch)), batch)['loss'].mean()
      if term is None:
        return value, multiplier
      penalty, ratio = term(variables['bits'], multiplier)
      return value + penalty, term.update(multiplier, ratio, at)

    gradients, following = jax.grad(loss, has_aux=True)(variables)
    updates, state = optimizer.update(gradients, state, variables)
    bits_range = None if search is None else cost.bits_range(search[1])
    return optim.apply_updates(variables, updates, bits_range), state, following

  variables = {'bits': {}, **variables}
  state, multiplier, steps, began = optimizer.init(variables), jnp.float32(0), 0, None
  while began is None or time.monotonic() - began < seconds:
    variables, state, multiplier = jax.block_until_ready(step(variables, state, multiplier, steps, next(batches)))
    began, steps = began or time.monotonic(), steps + 1
  print(f'  {steps} steps', flush=True)
  return variables


def bits_per_character(net: Any, variables: Any, dataset: Any) -> float:
  """Of the validation part of a text."""
  apply, total, count = jax.jit(net.apply), 0.0, 0.0
  for batch in eval_batches(dataset, 'validation', batch_size=64):
    losses = LANGUAGE.terms(apply(variables, LANGUAGE.inputs(batch)), batch)['loss']
    total, count = total + float((losses * batch['mask']).sum()), count + float(batch['mask'].sum())
  return LANGUAGE.values({'loss': total / count})['bits_per_character']


class Plain:
  """A float network with the `apply` of a quantized one."""

  def __init__(self, call: Any):
    self.apply = lambda variables, tokens: call(variables['params'], tokens)


def main() -> None:
  """Goes the whole way."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--text', help='a file of UTF-8; the embedded phrases unless given')
  parser.add_argument('--minutes', type=float, default=3.0, help='of all three phases, without compilation')
  parser.add_argument('--bits_per_weight', type=float, default=3.5, help='with the ranges of groups of 32')
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/foreign_decoder'))
  args = parser.parse_args()
  cells.set_up()
  args.out.mkdir(parents=True, exist_ok=True)
  dataset = sets.load('text' if args.text else 'phrases', data_dir=args.text, context=CONTEXT)
  batches = train_batches(dataset, batch_size=BATCH, seed=0)
  decoder, seconds = Decoder(dataset.num_classes), 20 * args.minutes
  plain, variables = Plain(decoder.call), {'params': decoder.params}
  count = sum(x.size for x in jax.tree.leaves(decoder.params))
  print(f'{count:,} parameters, {dataset.num_classes} characters; float')
  variables = {'params': trained(plain, variables, batches, seconds)['params']}
  shown = lambda net, variables: print(f'  {bits_per_character(net, variables, dataset):.3f} bits per character')
  shown(plain, variables)

  # What the network takes to be quantized and searched: these lines, and the `search` of the loop.
  tokens = LANGUAGE.inputs(next(batches))
  quant = QuantConfig(scheme='lsq', group_size=32, weight_only=True, choices=range(1, 9), init_bits=5.0)
  net = quantize_model(decoder.call, tokens, default=quant, edge_bits=None, params=decoder.params)
  table = cost.trace(net, tokens)
  budget = cost.budget('size', table, bits_per_weight=args.bits_per_weight)

  print('learned bits')
  searched = trained(net, from_float(net, variables, tokens), batches, seconds, (budget, table))
  shown(net, searched)
  found = policy.discretize(searched['bits'], table, budget)
  found.save(args.out / 'policy.json')
  fixed = wrap.with_fixed_bits(net)
  final = {**searched, 'bits': jax.tree.map(jnp.float32, found.bits())}
  print('integer bits')
  shown(fixed, final)
  final = trained(fixed, final, batches, seconds)
  shown(fixed, final)
  print('\n'.join(f'  {entry.name}: {entry.kernel} bits' for entry in found.layers if entry.learned))
  print(f'  {found.size_mb * 1e6:,.0f} bytes of {budget.target * 1e6:,.0f}; {table.coverage}')

  source = source_of(fixed, final, tokens, name='gpt2')
  print(packed.write(source, args.out / 'gpt2.fracbits'))
  print(stablehlo.write(source, args.out / 'gpt2.stablehlo'))
  said = np.asarray(evaluate(packed.read(args.out / 'gpt2.fracbits').graph, tokens)[0])
  expected = np.asarray(jax.jit(fixed.apply)(final, tokens))
  print(f'packed: logits within {np.abs(said - expected).max():.1e}, of up to {np.abs(expected).max():.1f}')


if __name__ == '__main__':
  main()
