"""The folder of a network for Qwix: `rules.json` and `params.safetensors`.

`rules.json` has the arguments of each `qwix.QuantizationRule`, and for each quantized parameter the type and the shape
of its levels. `params.safetensors` has the variables by path: `params/conv/kernel/qvalue`, `params/conv/kernel/scale`
of a quantized parameter, `params/conv/bias`, `batch_stats/norm/mean`. Levels of up to four bits are `uint8`, two in a
byte, in the order of the array, the first in the lower four bits; others are `int8`.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fracbits_jax.system import extras, strict_json
from fracbits_jax.system.files import read_text, reason, write_whole

with extras.needed('qwix'):
  import safetensors
  from safetensors import flax as arrays_of

FORMAT = 'fracbits_jax for Qwix, 1'
RULES, PARAMS = 'rules.json', 'params.safetensors'
PACKED_BITS = 4  # levels of so many are two in a byte
_NAMES = ('module_path', 'weight_qtype', 'act_qtype', 'act_calibration_method')
_RULE = (*_NAMES, 'tile_size')  # and that of groups of weights
_MOST_BYTES = 2**26  # of rules


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Content:
  """A network for Qwix.

  Attributes:
    name: of the network.
    rules: the arguments of each `QuantizationRule`.
    qtypes: the type of each quantized parameter, by path.
    bits: that its levels take.
    arrays: variables by path; of a quantized parameter `qvalue`, int8, and `scale`.
    notes: what is said of the network beside that, such as its cost.
  """

  name: str
  rules: tuple[Mapping[str, str | int | None], ...]
  qtypes: Mapping[str, str]
  bits: Mapping[str, int]
  arrays: Mapping[str, Any]
  notes: Mapping[str, str]


def write(content: Content, folder: str | os.PathLike) -> int:
  """Writes the two files, each whole or not at all; returns their bytes."""
  folder, arrays = pathlib.Path(folder), dict(content.arrays)
  kernels = {}
  for path, qtype in content.qtypes.items():
    levels = np.asarray(arrays[f'{path}/qvalue'])
    packed = content.bits[path] <= PACKED_BITS
    kernels[path] = {'qtype': qtype, 'shape': levels.shape, 'two_in_a_byte': packed}
    if packed:
      arrays[f'{path}/qvalue'] = _packed(levels)
  text = json.dumps(
    {'format': FORMAT, 'name': content.name, **content.notes, 'rules': content.rules, 'kernels': kernels}, indent=1
  )
  parameters = arrays_of.save(arrays)
  folder.mkdir(parents=True, exist_ok=True)
  write_whole(folder / PARAMS, parameters)
  write_whole(folder / RULES, text + '\n')
  return len(parameters) + len(text) + 1


def read(folder: str | os.PathLike) -> Content:
  """Reads a folder that anybody may have written.

  Raises:
    ValueError: one sentence that names the folder and what is wrong with it.
  """
  folder = pathlib.Path(folder)
  try:
    header = strict_json.loads(read_text(folder / RULES, max_bytes=_MOST_BYTES, kind='JSON'))
    rules, kernels = _checked(header)
    try:
      arrays = dict(arrays_of.load_file(folder / PARAMS))
    except (safetensors.SafetensorError, OSError) as error:
      raise ValueError(f'{PARAMS} cannot be read: {reason(error)}') from None
    bits = {}
    for path, kernel in kernels.items():
      qvalue, scale = arrays.get(f'{path}/qvalue'), arrays.get(f'{path}/scale')
      if qvalue is None or scale is None:
        raise ValueError(f'{PARAMS} lacks {path}/qvalue or {path}/scale')
      arrays[f'{path}/qvalue'] = _levels(path, np.asarray(qvalue), tuple(kernel['shape']), kernel['two_in_a_byte'])
      bits[path] = PACKED_BITS if kernel['two_in_a_byte'] else 8
  except ValueError as error:
    raise ValueError(f'{folder} is no network for Qwix: {str(error)[:300]}; export it anew') from None
  return Content(
    name=str(header.get('name')),
    rules=tuple(rules),
    qtypes={path: kernel['qtype'] for path, kernel in kernels.items()},
    bits=bits,
    arrays=arrays,
    notes={},
  )


def _checked(header: Any) -> tuple[list[dict[str, str | int | None]], dict[str, Any]]:
  """The rules and kernels of a header; `ValueError` unless they are some."""
  if not isinstance(header, dict) or header.get('format') != FORMAT:
    raise ValueError(f'its {RULES} is of another format than {FORMAT!r}')
  rules, kernels = header.get('rules'), header.get('kernels')
  if not isinstance(rules, list) or not isinstance(kernels, dict):
    raise ValueError(f'its {RULES} has no rules and kernels')
  for rule in rules:
    given = isinstance(rule, dict) and all(key in _RULE for key in rule)
    given = given and all(isinstance(rule.get(key), str | None) for key in _NAMES)
    tile = rule.get('tile_size', 1) if given else 0
    if type(tile) is not int or tile < 1 or 'module_path' not in rule:
      raise ValueError(f'its {RULES} has a rule with other than {", ".join(_RULE)}')
  for path, kernel in kernels.items():
    named = isinstance(kernel, dict) and re.fullmatch('int[2-8]', str(kernel.get('qtype')))
    if not named or not isinstance(kernel.get('two_in_a_byte'), bool) or not _is_shape(kernel.get('shape')):
      raise ValueError(f'the kernel {strict_json.shown(path)} has no qtype, shape and two_in_a_byte')
  return rules, kernels


def _is_shape(shape: Any) -> bool:
  return isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)


def _packed(levels: np.ndarray) -> np.ndarray:
  """Levels of four bits, two in a byte."""
  flat = levels.reshape(-1).astype(np.uint8) & 15
  flat = np.pad(flat, (0, flat.size % 2))
  return flat[::2] | flat[1::2] << 4


def _levels(path: str, stored: np.ndarray, shape: tuple[int, ...], packed: bool) -> np.ndarray:
  """The levels of a kernel as int8."""
  count = math.prod(shape)
  expected, dtype = (-(-count // 2), np.uint8) if packed else (count, np.int8)
  if stored.dtype != dtype or stored.size != expected:
    raise ValueError(f'{path}/qvalue has {stored.size} entries of {stored.dtype} for the shape {shape}')
  if packed:
    nibbles = np.stack([stored & 15, stored >> 4], -1).reshape(-1)[:count].astype(np.int8)
    stored = np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8)
  return stored.reshape(shape)
