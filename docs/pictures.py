"""Draws the pictures of `docs/method.md` and of the data set `glyphs`, in seconds: `python docs/pictures.py`.

With `--workdir=runs/digits` those of a run as well, here of the default one, `python main.py`.
"""

import argparse
import itertools
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from fracbits_jax import cost, policy, quantize  # noqa: E402
from fracbits_jax.data.datasets import glyphs as glyphs_set  # noqa: E402
from fracbits_jax.quantize import bitwidths, lsq  # noqa: E402
from fracbits_jax.report import course_plots, plots  # noqa: E402
from fracbits_jax.run import progress  # noqa: E402
from fracbits_jax.train import penalty  # noqa: E402

ALPHA = 6.0
RANGE = 3.0  # of normally distributed weights, in their deviations


def _kernel(w: jax.Array, bits: float) -> jax.Array:
  return quantize.kernel(w, bits)


def _input(x: jax.Array, bits: float) -> jax.Array:
  return quantize.activation(x, bits, ALPHA)


def _axes(height: float, **kwargs):
  figure, axes = plots.new_figure(height, columns=2, **kwargs)
  for axis in axes:
    axis.margins(x=0.02)
  return figure, axes


def staircases() -> Figure:
  """A kernel and an input at 2 bits, at 3 bits, and half way between."""
  figure, axes = _axes(3.6)
  panels = (
    (_kernel, jnp.linspace(-1.5, 1.5, 3001), plots.KERNEL, 'weight', 'a kernel'),
    (_input, jnp.linspace(-1.0, 8.0, 3001), plots.INPUT, 'input', f'an input, clip {ALPHA:g}'),
  )
  for axis, (quantizer, x, color, name, title) in zip(axes, panels, strict=True):
    axis.plot(x, quantizer(x, 16.0), color='#333333', linewidth=1, linestyle=':', label='16 bits')
    axis.plot(x, quantizer(x, 2.0), color=plots.MUTED, linewidth=1.2, label='2 bits')
    axis.plot(x, quantizer(x, 3.0), color=color, linewidth=1.2, alpha=0.45, label='3 bits')
    axis.plot(x, quantizer(x, 2.5), color=color, linewidth=2.2, label='2.5 bits')
    axis.set_title(title, color=color)
    axis.set_xlabel(name)
    axis.set_ylabel(f'quantized {name}')
    axis.legend(loc='upper left')
  return figure


def derivatives() -> Figure:
  """What one more bit does to each value, and the error of a kernel over its bits."""
  figure, (left, right) = _axes(3.4)
  x = jnp.linspace(0, 7, 2801)
  slope = jax.jit(jax.vmap(jax.grad(_input, argnums=1), (0, None)))
  one_more = slope(x, 2.5)
  left.fill_between(x, one_more, color=plots.INPUT, alpha=0.25, linewidth=0)
  left.plot(x, one_more, color=plots.INPUT, linewidth=1.6)
  left.set_title('derivative of an input by its bits, at 2.5 bits', color=plots.INPUT)
  left.set_xlabel(f'input, clip {ALPHA:g}')
  left.set_ylabel('change for one bit more')

  w = jnp.asarray(np.random.default_rng(0).normal(size=4096), jnp.float32)
  target = _kernel(w, 16.0)
  error = jax.jit(jax.vmap(lambda bits: jnp.mean((_kernel(w, bits) - target) ** 2)))
  grid = jnp.linspace(1, 6, 501)
  right.step(grid, error(jnp.round(grid)), color=plots.MUTED, linewidth=1.2, label='bits rounded')
  right.plot(grid, error(grid), color=plots.KERNEL, linewidth=2, label='bits interpolated')
  whole = jnp.arange(1.0, 7.0)
  right.plot(whole, error(whole), 'o', color=plots.KERNEL, markersize=4)
  right.set_yscale('log')
  right.set_title('error of a kernel over its bits', color=plots.KERNEL)
  right.set_xlabel('bits')
  right.set_ylabel('mean squared error')
  right.legend(loc='upper right')
  return figure


def mixtures() -> Figure:
  """The error of normally distributed weights over their bits and its slope, of values and of errors that are mixed."""
  figure, (left, right) = _axes(3.4)
  w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)
  grid, whole = jnp.linspace(1.5, 4.5, 241), jnp.arange(2.0, 5.0)
  rows = {'values': (None, plots.MUTED), 'elements': (bitwidths.thresholds(w.shape), plots.KERNEL)}
  for name, (noise, color) in rows.items():
    error = lambda bits, noise=noise: jnp.mean(jnp.square(lsq.kernel(w, bits, RANGE, noise=noise) - w))
    left.plot(grid, jax.vmap(error)(grid), color=color, linewidth=1.8, label=f'{name} mixed')
    right.plot(grid, jax.vmap(jax.grad(error))(grid), color=color, linewidth=1.8, label=f'{name} mixed')
  left.plot(whole, jax.vmap(error)(whole), 'o', color=plots.KERNEL, markersize=4)
  right.axhline(0, color='#333333', linewidth=1, linestyle=':')
  left.set_title('error of a kernel over its bits')
  right.set_title('its derivative, as the search sees it')
  left.set_ylabel('mean squared error')
  for axis in (left, right):
    axis.set_xlabel('bits')
    axis.legend(loc='upper right' if axis is left else 'lower right')
  return figure


def penalties() -> Figure:
  """The term that is added to the loss over cost / target, fixed and controlled."""
  layer = cost.Layer(name='conv', macs=10**9, weights=1, channels=1, input_bits=1)
  budget = cost.Budget(metric='bitops', target=4.0)
  ratio = jnp.linspace(0.8, 1.2, 401)
  bits = {'conv': {'kernel': budget.target * ratio}}
  term = lambda found, multiplier: jax.vmap(lambda b: found(b, jnp.float32(multiplier))[0])(bits)
  figure, axes = _axes(3.2, sharey=True)
  for i, kappa in enumerate((0.5, 1.0, 2.0)):
    fixed = penalty.Penalty(budget=budget, layers=(layer,), kappa=kappa)
    axes[0].plot(ratio, term(fixed, 0.0), color=plots.shade(i / 2), linewidth=1.8, label=f'kappa = {kappa:g}')
  controller = penalty.Controller(gain=4.0, damping=40.0, rate=lambda step: 0.1)
  controlled = penalty.Penalty(budget=budget, layers=(layer,), controller=controller)
  for i, mu in enumerate((0.0, 1.0, 2.0)):
    axes[1].plot(ratio, term(controlled, mu), color=plots.shade(i / 2), linewidth=1.8, label=f'mu = {mu:g}')
  for axis, title in zip(axes, ('fixed', 'controlled, damping 40'), strict=True):
    axis.axvline(1, color='#333333', linewidth=1, linestyle='--')
    axis.set_title(title)
    axis.set_xlabel('cost / target')
    axis.legend(loc='upper left')
  axes[0].set_ylabel('added to the loss')
  return figure


def discretization(rows: list[dict], found: policy.Policy) -> Figure:
  """Where the search left every bit-width, and the integer that it became."""
  searched = [row for row in rows if row['phase'] == 'search'][-1]['bits']
  figure, axes = plots.new_figure(5.0, rows=2, sharex=True)
  for axis, which, color in zip(axes, ('kernel', 'input'), (plots.KERNEL, plots.INPUT), strict=True):
    at = [i for i, entry in enumerate(found.layers) if which in entry.learned]
    before = [float(np.mean(searched[f'{found.layers[i].name}/{which}'])) for i in at]
    after = [float(np.mean(getattr(found.layers[i], which))) for i in at]
    axis.vlines(at, before, after, color=color, alpha=0.5, linewidth=1.4)
    axis.plot(at, before, 'o', markerfacecolor='white', color=color, markersize=5, label='searched')
    axis.plot(at, after, 's', color=color, markersize=6, label='in the policy')
    axis.set_title(f'bits of the {which}s', color=color)
    axis.set_ylim(min(after) - 0.6, max(after) + 0.9)
    axis.set_yticks(range(int(min(after)), int(max(after)) + 1))
    axis.legend(loc='upper right', ncols=2)
  axes[1].set_xlabel('layer, from the input to the classifier')
  return figure


def glyphs() -> Figure:
  """The first training image of each class."""
  figure, axes = plots.new_figure(3.0, rows=4, columns=16)
  images = glyphs_set.draw('train', 0)
  for axis, image, name in itertools.zip_longest(axes.flat, images, glyphs_set.CLASSES):
    axis.set_axis_off()
    if name is not None:
      axis.imshow(image, interpolation='nearest')
      axis.set_title(name, fontsize=8, pad=2)
  return figure


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', type=pathlib.Path, help='the folder of a finished run')
  parser.add_argument('--out', type=pathlib.Path, default=ROOT / 'docs', help='where the pictures go')
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  with plots.style(math=True):
    figures = {f.__name__: f() for f in (staircases, derivatives, mixtures, penalties, glyphs)}
    if args.workdir is not None:
      rows = progress.read_rows(args.workdir)
      figures['bits_over_time'] = course_plots.bits_over_time(rows)
      figures['discretization'] = discretization(rows, policy.load(args.workdir / 'policy.json'))
    for name, figure in figures.items():
      figure.savefig(args.out / f'{name}.png', dpi=150)


if __name__ == '__main__':
  main()
