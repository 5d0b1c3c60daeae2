"""The arrays and kernels of a packed file: what its header says of each, and their bytes, one behind the other."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fracbits_jax.export import bitpack, shape_values
from fracbits_jax.export import packed_fields as fields
from fracbits_jax.graph.grid import Kernel
from fracbits_jax.layers.quant_config import KERNEL_SCHEMES, WITH_RANGES
from fracbits_jax.quantize import groups

# How many elements are read, by the bytes of the body, and beside them: those of 0 bits take none.
ELEMENTS_PER_BYTE, FREE_ELEMENTS = 16, 2**22


class Writer:
  """The arrays of a network on their way into a file.

  Attributes:
    specs: what the header says of each.
    chunks: the bytes of each.
  """

  def __init__(self):
    self.specs: list[Any] = []
    self.chunks: list[bytes] = []
    self._places: dict[Any, int] = {}

  def add(self, array: np.ndarray) -> list[Any]:
    """Takes an array, stored once for all that equal it.

    Returns:
      What stands in its place: the number itself if it has no axes, else its place in the list.
    """
    if array.dtype.name not in shape_values.DTYPES:
      raise ValueError(f'an array of {array.dtype.name} cannot be packed: only {", ".join(shape_values.DTYPES)}')
    if not array.ndim:
      return [array.dtype.name, array.item()]
    content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder('<')).tobytes()
    key = array.dtype.name, array.shape, hashlib.sha256(content).digest()
    if key not in self._places:
      self.specs.append([array.dtype.name, array.shape])
      self.chunks.append(content)
      self._places[key] = len(self.specs) - 1
    return [self._places[key]]

  def bytes_of(self, places: Iterable[Any]) -> int:
    """The bytes of the arrays that stand at some places, of each once; names and numbers have none."""
    return sum(len(self.chunks[i]) for i in {x[0] for x in places if isinstance(x, list) and len(x) == 1})

  def add_kernel(self, kernel: Kernel) -> int:
    """Takes a kernel; its place in the list."""
    dtype = np.float16 if kernel.group_size is not None and kernel.range_bits == 16 else np.float32
    alpha = kernel.alpha if isinstance(kernel.alpha, float) else self.add(np.asarray(kernel.alpha, dtype))
    of_groups = [] if kernel.group_size is None else [kernel.group_size]
    self.specs.append([kernel.scheme, kernel.codes.shape, kernel.bits.tolist(), alpha, *of_groups])
    self.chunks.append(bitpack.pack(kernel.codes, kernel.bits))
    return len(self.specs) - 1


class Reader:
  """The arrays of a file, each of them taken by an operation; a kernel by no more than one."""

  def __init__(self, specs: Sequence[Any], body: memoryview):
    self._specs, self._used = [_spec(spec) for spec in specs], [False] * len(specs)
    lengths = [_length(spec) for spec in self._specs]
    if sum(lengths) != len(body):
      raise ValueError(f'its arrays take {sum(lengths):,} bytes and it has {len(body):,}')
    elements = sum(math.prod(max(1, side) for side in spec[1]) for spec in self._specs)
    most = FREE_ELEMENTS + ELEMENTS_PER_BYTE * len(body)
    if elements > most:
      raise ValueError(f'its arrays have {elements:,} entries, and at most {most:,} are read from {len(body):,} bytes')
    ends = np.cumsum([0, *lengths], dtype=np.int64).tolist()
    self._chunks = [body[start:stop] for start, stop in itertools.pairwise(ends)]
    self._found: dict[int, np.ndarray] = {}

  def take(self, at: Any, kernel: bool) -> Any:
    """The array, or the kernel, at a place of the list."""
    if type(at) is not int or not 0 <= at < len(self._specs) or (kernel and self._used[at]):
      raise ValueError('an operation takes an array that is not there, or a kernel that another has taken')
    if at in self._found and not kernel:
      return self._found[at]
    spec, chunk, self._used[at] = self._specs[at], self._chunks[at], True
    if kernel != (spec[0] in KERNEL_SCHEMES):
      raise ValueError('an operation takes a kernel for an array, or an array for a kernel')
    if kernel:
      scheme, shape, bits, alpha, group_size = spec
      of_groups: dict[str, Any] = {}
      if isinstance(alpha, list):
        alpha, of_groups = self._ranges(alpha[0], shape, group_size)
      return Kernel(codes=bitpack.unpack(chunk, shape, bits), bits=bits, scheme=scheme, alpha=alpha, **of_groups)
    if spec[0] == 'bool' and np.frombuffer(chunk, np.uint8).max(initial=0) > 1:
      raise ValueError('an array of true and false has other values')
    found = np.frombuffer(chunk, np.dtype(spec[0]).newbyteorder('<')).reshape(spec[1]).astype(spec[0])
    found.flags.writeable = False  # for all that take it
    self._found[at] = found
    return found

  def _ranges(self, at: Any, shape: tuple[int, ...], group_size: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    """The ranges of the channels or groups of a kernel, float32, and the fields of a `Kernel` that say of what."""
    found = self.take(at, kernel=False)
    if group_size is None:
      if found.dtype != np.float32 or found.shape != shape[-1:] or not np.isfinite(found).all():
        raise ValueError('a kernel has ranges that are not one number for each of its channels')
      return found, {}
    number = groups.count(math.prod(shape[:-1]), group_size)
    is_float = found.dtype in (np.float16, np.float32)
    if not is_float or found.shape != (number, shape[-1]) or not np.isfinite(found).all():
      raise ValueError('a kernel has ranges that are not one number for each group of its channels')
    return found.astype(np.float32), {'group_size': group_size, 'range_bits': 8 * found.dtype.itemsize}

  def check_used(self) -> None:
    """Raises `ValueError` if an array is left over."""
    if not all(self._used):
      raise ValueError('it has an array that no operation takes')


def _spec(spec: Any) -> tuple[Any, ...]:
  """What is said of an array: (dtype, shape); of a kernel: (scheme, shape, bits, alpha or its place, group size)."""
  if not isinstance(spec, list) or not spec or spec[0] not in KERNEL_SCHEMES:
    dtype, shape = fields.entries(spec, 2, 'an array')
    return fields.dtype(dtype), fields.shape(shape, least=0)
  scheme, shape, bits, alpha, *of_groups = fields.entries(spec, 5 if len(spec) == 5 else 4, 'a kernel')
  shape = fields.shape(shape, least=0)
  widths = bits if isinstance(bits, list) else [bits]
  if not shape or (isinstance(bits, list) and len(bits) != shape[-1]):
    raise ValueError('a kernel has no channels, or not as many bit-widths as channels')
  if not all(type(b) is int and 0 <= b <= fields.MAX_BITS for b in widths):
    raise ValueError(f'a kernel has bit-widths that are not integers from 0 to {fields.MAX_BITS}')
  if not isinstance(alpha, list) or len(alpha) != 1:  # the place of an array with one for each channel
    alpha = fields.number(alpha, 'the scale of a kernel', -fields.MAX_FLOAT, fields.MAX_FLOAT)
  group_size = of_groups[0] if of_groups else None
  if of_groups:
    if type(group_size) is not int or not 1 <= group_size <= shape_values.MAX_SIDE:
      raise ValueError('a kernel has groups of a size that is no positive integer')
    if scheme not in WITH_RANGES or not isinstance(alpha, list):
      raise ValueError('a kernel has groups, and no ranges for them')
  return scheme, shape, np.asarray(bits, np.int32), alpha, group_size


def _length(spec: tuple[Any, ...]) -> int:
  """The bytes of an array, before any of them is read."""
  if spec[0] in KERNEL_SCHEMES:
    return bitpack.packed_bytes(spec[1], spec[2])
  return math.prod(spec[1]) * np.dtype(spec[0]).itemsize
