"""Operations with random parameters and inputs, for the test of the rules of shapes."""

from fracbits_jax.export.shape_values import DTYPES, Value
from fracbits_jax.export.shape_windows import MODES
from fracbits_jax.export.shapes import RULES

_DTYPES = tuple(dtype for dtype in DTYPES if dtype != 'int64')  # which JAX takes for int32
_BINARY = ['add', 'div', 'mul', 'rem', 'sub', 'max', 'min', 'eq', 'ge', 'gt', 'le', 'lt', 'ne', 'and', 'or', 'xor']


def draw(rng):
  """(operation, parameters, inputs), most of which fit together."""
  op = rng.choice([op for op in RULES if op not in ('kernel', 'quantize')])
  drawing = _Drawing(rng)
  name = 'binary' if op in _BINARY else _kind(op)
  params, inputs = getattr(drawing, name, drawing.plain)()
  if rng.randrange(3) == 0:
    params = drawing.spoilt(params)
  return op, params, [drawing.spoilt_value(value) for value in inputs]


def _kind(op):
  for prefix in ('reduce_window', 'reduce', 'cum', 'scatter', 'arg'):
    if op.startswith(prefix):
      return prefix.removeprefix('reduce_')
  return op


class _Drawing:
  """A method for each operation gives its parameters and inputs; `plain` those of an operation of one input."""

  def __init__(self, rng):
    self.rng, self.pick = rng, rng.choice
    self.shape = self.sides()
    self.rank = len(self.shape)
    self.dtype = rng.choice(('float32', rng.choice(_DTYPES)))
    self.x = Value(self.shape, self.dtype)

  def sides(self, rank=None):
    return tuple(self.pick((0, 1, 1, 2, 3, 4)) for _ in range(self.pick(range(5)) if rank is None else rank))

  def numbers(self, count, low, high):
    return tuple(self.rng.randint(low, high) for _ in range(count))

  def axes(self, rank):
    return tuple(self.rng.sample(range(rank), self.rng.randint(0, rank)))

  def value(self, *shapes, dtype=None):
    return Value(self.pick(shapes), dtype or self.dtype)

  def spoilt_value(self, value):
    if self.rng.randrange(12):
      return value
    return Value(self.sides(), value.dtype) if self.rng.randrange(2) else Value(value.shape, self.pick(_DTYPES))

  def spoilt(self, value):
    """Parameters with a few numbers changed and lists cut."""
    if isinstance(value, dict):
      return {key: self.spoilt(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
      value = tuple(map(self.spoilt, value))
      return value[self.rng.randrange(30) == 0 :]
    return value + self.pick((-1, 1, -5, 7)) if type(value) is int and self.rng.randrange(20) == 0 else value

  def plain(self):
    return {}, [self.x]

  def binary(self):
    inputs = [self.x, self.value(self.shape, (), tuple(self.pick((1, side)) for side in self.shape))]
    return {}, self.rng.sample(inputs, 2)

  def pow(self):
    return {}, [self.x, self.value(self.shape, (), dtype=self.pick((self.dtype, 'int32')))]

  def clamp(self):
    return {}, [self.value(self.shape, ()), self.x, self.value(self.shape, ())]

  def select_n(self):
    return {}, [self.value(self.shape, (), dtype=self.pick(('bool', 'int32'))), *[self.x] * self.pick((1, 2, 2, 3))]

  def affine(self):
    part = lambda: Value(self.pick(((), tuple(self.pick((1, side)) for side in self.shape))), 'float32')
    return {}, [Value(self.shape, 'float32'), part(), part()]

  def arg(self):
    return {'axes': self.numbers(1, 0, max(0, self.rank - 1)), 'index_dtype': self.pick(_DTYPES)}, [self.x]

  def dim_as_value(self):
    return {'shape': self.numbers(1, 0, 9)}, []

  def cum(self):
    return {'axis': self.rng.randint(0, max(0, self.rank - 1)), 'reverse': self.pick((True, False))}, [self.x]

  def round(self):
    return {'rounding_method': self.pick((0, 1))}, [self.x]

  def sort(self):
    count = self.pick((1, 1, 2, 3))
    xs = [self.x, *(Value(self.shape, self.pick(_DTYPES)) for _ in range(count - 1))]
    params = {'dimension': self.rng.randint(0, max(0, self.rank - 1)), 'num_keys': self.rng.randint(1, count)}
    return {**params, 'index': self.rng.randrange(count)}, xs

  def top_k(self):
    axis = self.rng.randint(0, max(0, self.rank - 1))
    k = self.rng.randint(0, self.shape[axis] if self.rank else 1)
    return {'k': k, 'axis': axis, 'index': self.pick((0, 1))}, [self.x]

  def scatter(self):
    places, rank = self.sides(self.pick((0, 1, 2))), self.rank
    inserted = tuple(sorted(self.axes(rank)))
    batching = inserted[:1] if places and inserted and self.rng.randrange(3) == 0 else ()
    inserted, shape = inserted[len(batching) :], list(self.shape)
    for axis in batching:
      shape[axis] = places[0]
    starts = tuple(axis for axis in self.axes(rank) if axis not in batching)
    kept = [self.rng.randint(0, side) for i, side in enumerate(shape) if i not in (*inserted, *batching)]
    window = tuple(sorted(self.rng.sample(range(len(kept) + len(places)), len(kept))))
    of_window, of_places = iter(kept), iter(places)
    sides = tuple(next(of_window) if i in window else next(of_places) for i in range(len(kept) + len(places)))
    numbers = {
      'update_window_dims': window,
      'inserted_window_dims': inserted,
      'scatter_dims_to_operand_dims': starts,
      'operand_batching_dims': batching,
      'scatter_indices_batching_dims': (0,) * len(batching),
    }
    at = Value((*places, len(starts)), self.pick(('int32', 'uint8')))
    params = {'dimension_numbers': numbers, 'mode': self.pick((None, *MODES[:3]))}
    return params, [Value(tuple(shape), self.dtype), at, Value(sides, self.dtype)]

  def broadcast_in_dim(self):
    axes = tuple(sorted(self.axes(self.rank)))
    sides = tuple(self.pick((1, self.shape[axis])) for axis in axes)
    return {'shape': self.shape, 'broadcast_dimensions': axes}, [Value(sides, self.dtype)]

  def concatenate(self):
    axis = self.rng.randint(0, max(0, self.rank - 1))
    part = lambda: tuple(self.pick((0, 1, 2)) if i == axis else side for i, side in enumerate(self.shape))
    return {'dimension': axis}, [Value(part(), self.dtype) for _ in range(self.pick((1, 2, 3)))]

  def convert_element_type(self):
    return {'new_dtype': self.pick(_DTYPES)}, [self.x]

  def conv_general_dilated(self):
    rank = self.pick((0, 1, 2))
    groups, of_batch, features = self.pick((1, 1, 2)), self.pick((1, 1, 1, 2)), self.pick((1, 2, 3))
    specs = [tuple(self.rng.sample(range(rank + 2), rank + 2)) for _ in range(3)]
    images = (self.pick((0, 1, 2, 4)), features * groups, *self.numbers(rank, 0, 5))
    kernel = (self.pick((1, 2, 4)), features, *self.numbers(rank, 0, 3))
    placed = lambda sides, spec: tuple(side for _, side in sorted(zip(spec, sides, strict=True)))
    params = {
      'dimension_numbers': dict(zip(('lhs_spec', 'rhs_spec', 'out_spec'), specs, strict=True)),
      'window_strides': self.numbers(rank, 1, 3),
      'padding': tuple(self.numbers(2, -2, 3) for _ in range(rank)),
      'lhs_dilation': self.numbers(rank, 1, 3),
      'rhs_dilation': self.numbers(rank, 1, 3),
      'feature_group_count': groups,
      'batch_group_count': of_batch,
      'preferred_element_type': self.pick((None, None, self.dtype, 'float32', 'int32')),
    }
    return params, [Value(placed(images, specs[0]), self.dtype), Value(placed(kernel, specs[1]), self.dtype)]

  def dot_general(self):
    order = self.rng.sample(range(self.rank), self.rank)
    first, second = sorted((self.rng.randint(0, self.rank), self.rng.randint(0, self.rank)))
    batch, taken = order[:first], order[first:second]
    others = [*batch, *taken, *[None] * self.pick((0, 1, 2))]
    self.rng.shuffle(others)
    places = lambda axes: tuple(map(others.index, axes))
    sides = tuple(2 if axis is None else self.shape[axis] for axis in others)
    numbers = (tuple(taken), places(taken)), (tuple(batch), places(batch))
    preferred = self.pick((None, None, self.dtype, 'float32', 'int32'))
    return {'dimension_numbers': numbers, 'preferred_element_type': preferred}, [self.x, Value(sides, self.dtype)]

  def expand_dims(self):
    return {'dimensions': tuple(sorted(self.axes(self.rank + 1)))}, [self.x]

  def gather(self):
    places, rank = self.sides(self.pick((0, 1, 2))), self.rank
    collapsed = tuple(sorted(self.axes(rank)))
    batching = collapsed[:1] if places and collapsed and self.rng.randrange(3) == 0 else ()
    collapsed, shape = collapsed[len(batching) :], list(self.shape)
    for axis in batching:
      shape[axis] = places[0]
    starts = tuple(axis for axis in self.axes(rank) if axis not in batching)
    sizes = [1 if i in (*collapsed, *batching) else self.rng.randint(0, side) for i, side in enumerate(shape)]
    kept = rank - len(collapsed) - len(batching)
    numbers = {
      'offset_dims': tuple(sorted(self.rng.sample(range(kept + len(places)), kept))),
      'collapsed_slice_dims': collapsed,
      'start_index_map': starts,
      'operand_batching_dims': batching,
      'start_indices_batching_dims': (0,) * len(batching),
    }
    params = {'dimension_numbers': numbers, 'slice_sizes': tuple(sizes), 'mode': self.pick((None, *MODES[:3]))}
    return params, [Value(tuple(shape), self.dtype), Value((*places, len(starts)), self.pick(('int32', 'uint8')))]

  def integer_pow(self):
    return {'y': self.rng.randint(-3, 5)}, [self.x]

  def iota(self):
    axis = self.rng.randint(0, max(0, self.rank - 1))
    return {'shape': self.shape, 'dimension': axis, 'dtype': self.dtype}, []

  def pad(self):
    config = tuple((*self.numbers(2, -2, 3), self.rng.randint(0, 2)) for _ in self.shape)
    return {'padding_config': config}, [self.x, Value((), self.dtype)]

  def reduce(self):
    return {'axes': self.axes(self.rank)}, [self.x]

  def window(self):
    params = {
      'window_dimensions': self.numbers(self.rank, 1, 2),
      'window_strides': self.numbers(self.rank, 1, 3),
      'padding': tuple(self.numbers(2, -1, 2) for _ in self.shape),
      'base_dilation': self.numbers(self.rank, 1, 2),
      'window_dilation': self.numbers(self.rank, 1, 2),
    }
    return params, [self.x]

  def reshape(self):
    return {'new_sizes': (*self.rng.sample(self.shape, self.rank), *self.pick(((), (1,))))}, [self.x]

  def rev(self):
    return {'dimensions': self.axes(self.rank)}, [self.x]

  def slice(self):
    starts = tuple(self.rng.randint(0, side) for side in self.shape)
    limits = tuple(self.rng.randint(start, side) for start, side in zip(starts, self.shape, strict=True))
    strides = self.pick((None, self.numbers(self.rank, 1, 3)))
    return {'start_indices': starts, 'limit_indices': limits, 'strides': strides}, [self.x]

  def squeeze(self):
    return {'dimensions': tuple(axis for axis in self.axes(self.rank) if self.shape[axis] == 1)}, [self.x]

  def transpose(self):
    return {'permutation': tuple(self.rng.sample(range(self.rank), self.rank))}, [self.x]
