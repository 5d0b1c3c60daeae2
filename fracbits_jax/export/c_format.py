"""Writes a network as C99 for a device without floating point: `model.h`, `model.c` and what runs them.

The folder has the loops (`fracbits.h`, `fracbits.c`, the same for every network), the tables of the network, test
vectors with a `main.c` that runs them, a Makefile and a README. The answers are those of integer inference.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import numpy as np

from fracbits_jax.export import grouped, integer
from fracbits_jax.export.c_program import Product, Program, Run, integer_graph, program_of
from fracbits_jax.export.c_tables import INSTEAD
from fracbits_jax.export.c_vectors import Op, Scaling
from fracbits_jax.export.source import Source
from fracbits_jax.export.values import sized
from fracbits_jax.system.files import write_whole

_CODE = pathlib.Path(__file__).parent / 'c'
_COPIED = ('fracbits.h', 'fracbits.c')
_VECTORS = 8
BLOCK = 32  # channels that are computed at once, as in fracbits.h
_WIDTH = 116  # of a line of numbers
_OPERATIONS = {'int32_t': '{}', 'int64_t': 'INT64_C({})', 'uint8_t': '{}'}


def write(source: Source, path: str | os.PathLike, *, examples: np.ndarray | None = None) -> str:
  """Writes a folder with the C code of a network; returns what it takes of flash and memory.

  Args:
    source: the network.
    path: the folder; what other files it has stays.
    examples: images from 0 to 255 `[N, ...]` for the test vectors; by default the first of the source, or drawn ones.

  Raises:
    ValueError: one sentence: something of the network that has no meaning in integers, or none in C.
  """
  folder, name = pathlib.Path(path), identifier(source.name)
  grouped.refuse(source.graph, 'C code with integers')
  graph = integer_graph(source.graph)
  if len(graph.inputs) != 1 or len(graph.outputs) != 1:
    raise ValueError(
      f'{source.name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs: C takes one each; {INSTEAD}'
    )
  program = program_of(graph)
  shape = sized(graph.input_shape, 1)[1:]
  if examples is None and source.examples is not None:
    examples = source.examples()[:_VECTORS]
  examples = np.random.default_rng(0).integers(0, 256, (_VECTORS, *shape)) if examples is None else np.asarray(examples)
  answers, _ = integer.inference(graph, fixed_outputs=True)(examples.astype(np.float32))
  context = {**_context(source, program, name, shape), **_vectors(examples, answers)}
  files = {
    f'{name}.h': 'model.h.j2',
    f'{name}.c': 'model.c.j2',
    'main.c': 'main.c.j2',
    'vectors.h': 'vectors.h.j2',
    'Makefile': 'Makefile.j2',
    'README.md': 'README.md.j2',
  }
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_CODE), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
  )
  texts = {file: environment.get_template(template).render(context) for file, template in files.items()}
  folder.mkdir(parents=True, exist_ok=True)
  for file, text in {**texts, **{file: (_CODE / file).read_text() for file in _COPIED}}.items():
    write_whole(folder / file, text.encode())
  return (
    f'{folder}: {program.weight_bytes:,} bytes of kernels and {program.table_bytes:,} of rescaling in flash, beside '
    f'the code; {program.arena:,} bytes of memory; make test runs {len(examples)} test vectors'
  )


def identifier(name: str) -> str:
  """What the files and functions of a network of this name are called in C."""
  found = re.sub(r'\W', '_', name, flags=re.ASCII).strip('_').lower() or 'network'
  return found if not found[0].isdigit() and found not in ('main', 'fracbits', 'vectors') else f'network_{found}'


def _context(source: Source, program: Program, name: str, shape: Sequence[int]) -> dict[str, Any]:
  ends = [_end(n, tensor, elements) for n, tensor, elements in program.inputs]
  for end in ends:
    end['layout'] = f', [{", ".join(map(str, shape))}]' if len(shape) > 1 else ''
  outputs = [{**_end(o.name, o.tensor, o.elements), 'digits': o.digits} for o in program.outputs]
  ends[0].update(name='input', NAME='INPUT')
  outputs[0].update(name='output', NAME='OUTPUT')
  tensors = [
    {**dataclasses.asdict(t), 'comment': f'{i}: {comment}'} for i, (t, comment) in enumerate(program.named_tensors())
  ]
  return {
    'title': source.name,
    'name': name,
    'NAME': name.upper(),
    'macs': f'{sum(layer.macs for layer in source.layers):,}',
    'arena': program.arena,
    'weight_bytes': program.weight_bytes,
    'table_bytes': program.table_bytes,
    'inputs': ends,
    'outputs': outputs,
    'input': ends[0],
    'output': outputs[0],
    'tensors': tensors,
    'steps': [_Writer(i, run).step() for i, run in enumerate(program.steps)],
  }


def _end(name: str, tensor: int, elements: int) -> dict[str, Any]:
  return {'name': identifier(name), 'NAME': identifier(name).upper(), 'tensor': tensor, 'elements': elements}


def _vectors(examples: np.ndarray, answers: np.ndarray) -> dict[str, Any]:
  rows = lambda arrays: [', '.join(map(str, row.reshape(-1).tolist())) for row in arrays]
  pixels = examples.astype(np.int64)
  return {
    'count': len(examples),
    'in_count': pixels[0].size,
    'out_count': answers[0].size,
    'in_rows': rows(pixels),
    'out_rows': rows(answers),
  }


class _Writer:
  """Writes the tables of a step as initializers of C."""

  def __init__(self, number: int, run: Run):
    self.run, self.prefix = run, f's{number}'
    self.arrays: list[dict[str, Any]] = []
    self.scalings: list[dict[str, str]] = []
    self.programs: list[dict[str, Any]] = []
    self.names: dict[int, str] = {}

  def step(self) -> dict[str, Any]:
    kind, what = self.run.kind, f'{self.prefix}_what'
    program = self._program('program', self.run.program)
    text = getattr(self, f'_{kind}')(self.run.what)
    sums = self.run.sums
    cleared = f'tensors + {sums[0]}, {sums[1]}' if sums else '0, 0'
    of_c = {'concatenation': 'fb_concatenation', 'elements': 'fb_elements'}.get(kind, f'fb_{kind}')
    comment = self.run.name
    if kind == 'products':
      comment = ' and '.join(f'{p.layer}, {p.kind.lower()}' for p in self.run.what)
    return {
      'comment': comment,
      'arrays': self.arrays,
      'scalings': self.scalings,
      'programs': self.programs,
      'what': f'static const {of_c} {what} = {{{text}}};',
      'row': f'fb_run_{kind}, &{what}, {program}, {cleared}',
    }

  def _array(self, name: str, kind: str, values: Iterable[Any]) -> str:
    full = f'{self.prefix}_{name}'
    texts = [_OPERATIONS[kind].format(v) for v in values] if kind in _OPERATIONS else list(values)
    self.arrays.append({'type': kind, 'name': full, 'lines': _lines(texts or ['0'])})
    return full

  def _program(self, name: str, ops: Sequence[Op]) -> str:
    if not ops:
      return '{0, 0}'
    rows = []
    for op in ops:
      tensor = '0' if op.tensor is None else f'tensors + {op.tensor}'
      scaling = '0' if op.scaling is None else f'&{self._scaling(op.scaling)}'
      rows.append(f'FB_{op.op}, {op.to}, {op.a}, {op.b}, {op.number}, {tensor}, {scaling}')
    full = f'{self.prefix}_{name}'
    self.programs.append({'name': full, 'ops': rows})
    return f'{{{full}, {len(ops)}}}'

  def _scaling(self, s: Scaling) -> str:
    if id(s) not in self.names:
      number = len(self.names)
      kinds = {'multiplier': 'int32_t', 'offset': 'int64_t', 'shift': 'uint8_t', 'least': 'int32_t', 'most': 'int32_t'}
      arrays = [self._array(f'{field}{number}', kind, getattr(s, field).tolist()) for field, kind in kinds.items()]
      self.names[id(s)] = f'{self.prefix}_scaling{number}'
      fields = ', '.join([*arrays, str(len(s.multiplier)), str(len(s.least))])
      self.scalings.append({'name': self.names[id(s)], 'fields': fields})
    return self.names[id(s)]

  def _products(self, products: Sequence[Product]) -> str:
    rows = []
    for i, p in enumerate(products):
      weights = self._array(f'weights{i}', 'uint8_t', p.weights)
      forms = self._array(f'rows{i}', 'uint8_t', p.rows)
      numbers = (*p.size, *p.kernel, *p.strides, *p.dilation, *p.padding, p.groups, p.out[2], int(len(p.rows) > 1))
      rows.append(f'{{tensors + {p.tensor}, {weights}, {forms}, {_numbers(numbers)}, FB_{p.kind}}}')
    name = self._array('products', 'fb_product', rows)
    p = products[0]
    return f'{name}, {len(products)}, {_numbers(p.out)}, {_block(products)}'

  def _pool(self, w: dict[str, Any]) -> str:
    before = self._program('before', w['before'])
    numbers = (*w['size'], *w['window'], *w['strides'], *w['dilation'], *w['padding'], *w['out'][:2], int(w['is_max']))
    return f'{before}, {_numbers(numbers)}, {w["shift"]}'

  def _sums(self, w: dict[str, Any]) -> str:
    return f'tensors + {w["tensor"]}, {w["channels"]}, {w["shift"]}'

  def _move(self, w: dict[str, Any]) -> str:
    index = '0' if w['index'] is None else self._array('index', 'int32_t', w['index'].tolist())
    boxes = ', '.join(f'{{{_numbers(w[key])}}}' for key in ('size', 'low', 'high', 'stride'))
    return f'tensors + {w["tensor"]}, {index}, {boxes}, {w["start"]}'

  def _concatenation(self, w: dict[str, Any]) -> str:
    parts = self._array('parts', 'fb_part', [f'{{tensors + {tensor}, {inner}}}' for tensor, inner in w['parts']])
    return f'{parts}, {len(w["parts"])}, {w["outer"]}'

  def _elements(self, elements: int) -> str:
    return str(elements)


def _numbers(values: Iterable[Any]) -> str:
  return ', '.join(str(int(v)) for v in values)


def _block(products: Sequence[Product]) -> int:
  """Channels that are computed at once: up to 32, and of one group unless each is a group by itself."""
  block = BLOCK
  for p in products:
    if p.kind == 'CONV' and p.groups > 1:
      of_group = p.out[2] // p.groups
      block = max(b for b in range(1, block + 1) if of_group % b == 0)
  return block


def _lines(texts: Iterable[str]) -> list[str]:
  """Texts with commas between, in lines of some width."""
  lines: list[str] = []
  for text in texts:
    if lines and len(lines[-1]) + 2 + len(text) <= _WIDTH:
      lines[-1] += f', {text}'
    else:
      lines.append(text)
  return lines
