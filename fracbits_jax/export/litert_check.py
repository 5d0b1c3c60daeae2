"""What a network needs before it can be a LiteRT file: 8-bit inputs, kernels of 2, 4 and 8 bits, zeros at codes."""

import numpy as np

from fracbits_jax.export.litert_plan import MOST
from fracbits_jax.export.values import of_kernel
from fracbits_jax.graph.graph import Graph
from fracbits_jax.graph.grid import Grid, Kernel

SETTINGS = """--config.quant.input_choices='(8,)' --config.quant.choices='(4, 8)'"""
WIDTHS = (0, 2, 4, 8)  # of kernels; channels with 0 bits are 0


def check(graph: Graph) -> None:
  """Raises `ValueError` for layers that are not written, and for bit-widths and zeros that int8 does not have."""
  for node in graph.nodes:  # first, so that nobody searches for other bits in vain
    if node.op == 'conv_general_dilated' and any(d > 1 for d in node.params['lhs_dilation']):
      raise ValueError(
        f'{node.place or "a convolution"} is a transposed convolution, which LiteRT files are not written for: export '
        'with --format packed or onnx'
      )
  for node in graph.nodes:
    if node.op == 'quantize':
      _check_inputs(node.params['layer'], node.params['grid'])
    elif node.op == 'kernel':
      _check_kernel(node.params['layer'], node.params['kernel'])


def _check_inputs(layer: str, grid: Grid) -> None:
  if grid.bits != 8:
    raise ValueError(
      f'the inputs of {layer} have {grid.bits} bits, and LiteRT computes with int8: search with {SETTINGS}'
    )
  if grid.zero % 1:
    raise ValueError(
      f'the inputs of {layer} have their zero between two codes, and int8 has it at one: train with '
      '--config.quant.scheme=lsq'
    )
  if not grid.alpha > 0:
    raise ValueError(f'the inputs of {layer} are clipped at 0, so they are all 0: give the layer a larger clip')


def _check_kernel(layer: str, kernel: Kernel) -> None:
  other = sorted(set(np.unique(kernel.bits).tolist()) - set(WIDTHS))
  if other:
    raise ValueError(
      f'the kernel of {layer} has {other[0]} bits, and LiteRT files are written with those of 2, 4 and 8: search with '
      f'{SETTINGS}'
    )
  if np.abs(of_kernel(kernel).integers).max(initial=0) > MOST:
    raise ValueError(
      f'the kernel of {layer} has its zero between two codes of {int(np.max(kernel.bits))} bits, and int8 has it at '
      'one: train with --config.quant.scheme=lsq and kernel_levels=twos_complement, or modified'
    )
