"""LiteRT's flatbuffer, by the schema that the package ai-edge-litert carries; no TensorFlow."""

import numpy as np

from fracbits_jax.system import extras

with extras.needed('litert'):
  import flatbuffers
  from ai_edge_litert import schema_py_generated as schema
  from ai_edge_litert.interpreter import Interpreter

from fracbits_jax.export import bitpack
from fracbits_jax.export.litert_plan import Operation, Plan, Tensor

_VERSION, _IDENTIFIER = 3, b'TFL3'
_ALIGNMENT = 16  # of constants: runtimes read biases and weights where they lie
_LAST_OLD_CODE = 127  # `deprecated_builtin_code` is a byte, for readers of before there were more operators
# The options of an operation, where another name than the operation's has them.
_OPTIONS = {
  'ADD': 'AddOptions',
  'CONCATENATION': 'ConcatenationOptions',
  'CONV_2D': 'Conv2DOptions',
  'DEPTHWISE_CONV_2D': 'DepthwiseConv2DOptions',
  'FULLY_CONNECTED': 'FullyConnectedOptions',
  'MAX_POOL_2D': 'Pool2DOptions',
  'MEAN': 'ReducerOptions',
  'PAD': 'PadOptions',
  'PADV2': 'PadV2Options',
  'QUANTIZE': 'QuantizeOptions',
  'RESHAPE': 'ReshapeOptions',
  'STRIDED_SLICE': 'StridedSliceOptions',
  'TRANSPOSE': 'TransposeOptions',
}
_ENUMERATIONS = {'padding': 'Padding', 'fusedActivationFunction': 'ActivationFunctionType'}


def serialized(plan: Plan, *, description: str) -> bytes:
  """The bytes of a file; `description` is what it says of itself."""
  tensors: list[Tensor] = []
  index: dict[Tensor, int] = {}

  def places(group: tuple[Tensor, ...]) -> np.ndarray:
    for tensor in group:
      if tensor not in index:
        index[tensor] = len(tensors)
        tensors.append(tensor)
    return np.asarray([index[tensor] for tensor in group], np.int32)

  inputs = places(plan.inputs)
  codes: list[tuple[str, int]] = []
  operators = []
  for operation in plan.operations:
    code = (operation.op, _version(operation))
    if code not in codes:
      codes.append(code)
    options, kind = _options(operation)
    operators.append(
      schema.OperatorT(
        opcodeIndex=codes.index(code),
        inputs=places(operation.inputs),
        outputs=places((operation.output,)),
        builtinOptionsType=kind,
        builtinOptions=options,
      )
    )
  outputs = places(plan.outputs)
  buffers = [_Buffer(data=None)]  # the first is that of all that is computed
  stored: dict[bytes, int] = {}
  found = [_tensor(tensor, buffers, stored) for tensor in tensors]
  graph = schema.SubGraphT(tensors=found, inputs=inputs, outputs=outputs, operators=operators, name='main')
  model = schema.ModelT(
    version=_VERSION,
    operatorCodes=[_operator_code(*code) for code in codes],
    subgraphs=[graph],
    description=description,
    buffers=buffers,
  )
  builder = flatbuffers.Builder(2**16)
  builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
  return bytes(builder.Output())


def check_loads(content: bytes, path: str) -> None:
  """Raises `ValueError` where LiteRT's interpreter does not load a file, or cannot run it."""
  try:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.invoke()
  except (RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise ValueError(f'{path} is not written, for LiteRT does not run it: {reason}; export as packed or onnx') from None


class _Buffer(schema.BufferT):
  """A buffer whose bytes lie at multiples of `_ALIGNMENT`, which the generated class does not see to."""

  def Pack(self, builder: flatbuffers.Builder) -> int:
    data = None
    if self.data is not None:
      size = len(self.data)
      builder.StartVector(1, size, _ALIGNMENT)
      builder.head -= size
      builder.Bytes[builder.head : builder.head + size] = self.data
      data = builder.EndVector()
    schema.BufferStart(builder)
    if data is not None:
      schema.BufferAddData(builder, data)
    return schema.BufferEnd(builder)


class _Quantization(schema.QuantizationParametersT):
  """Scales and zeros; those of one file that are the same are stored once."""

  def __init__(self, stored: dict[bytes, int], **fields: object):
    super().__init__(**fields)
    self.stored = stored

  def Pack(self, builder: flatbuffers.Builder) -> int:
    places = []
    for array in (self.scale, self.zeroPoint):
      key = array.dtype.str.encode() + array.tobytes()
      if key not in self.stored:
        self.stored[key] = builder.CreateNumpyVector(array)
      places.append(self.stored[key])
    schema.QuantizationParametersStart(builder)
    schema.QuantizationParametersAddScale(builder, places[0])
    schema.QuantizationParametersAddZeroPoint(builder, places[1])
    schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
    return schema.QuantizationParametersEnd(builder)


def _tensor(tensor: Tensor, buffers: list[_Buffer], stored: dict[bytes, int]) -> schema.TensorT:
  quantization = None
  if tensor.scale is not None:
    quantization = _Quantization(
      stored,
      scale=tensor.scale,
      zeroPoint=np.full(tensor.scale.shape, tensor.zero, np.int64),
      quantizedDimension=tensor.axis,
    )
  buffer = 0
  if tensor.data is not None:
    buffer = len(buffers)
    buffers.append(_Buffer(data=_bytes(tensor.data, tensor.dtype)))
  return schema.TensorT(
    shape=np.asarray(tensor.shape, np.int32),
    type=getattr(schema.TensorType, tensor.dtype.upper()),
    buffer=buffer,
    name=tensor.name,
    quantization=quantization,
    hasRank=True,
  )


def _bytes(integers: np.ndarray, dtype: str) -> bytes:
  if dtype == 'int4':  # two in a byte, the first in the lower half
    return bitpack.pack((integers % 16).astype(np.int32).reshape(-1, 1), np.asarray(4))
  return np.ascontiguousarray(integers, np.dtype(dtype).newbyteorder('<')).tobytes()


def _options(operation: Operation) -> tuple[object, int]:
  """The options of an operation, and which of the schema's kinds they are."""
  name = _OPTIONS.get(operation.op)
  if name is None:
    return None, schema.BuiltinOptions.NONE
  fields = {
    key: getattr(getattr(schema, _ENUMERATIONS[key]), value) if key in _ENUMERATIONS else value
    for key, value in operation.options.items()
  }
  return getattr(schema, f'{name}T')(**fields), getattr(schema.BuiltinOptions, name)


def _operator_code(op: str, version: int) -> schema.OperatorCodeT:
  code = getattr(schema.BuiltinOperator, op)
  return schema.OperatorCodeT(deprecatedBuiltinCode=min(code, _LAST_OLD_CODE), builtinCode=code, version=version)


def _version(operation: Operation) -> int:
  """The first version of an operator that computes with these integers, so that older runtimes say what they lack."""
  if operation.op in ('CONV_2D', 'DEPTHWISE_CONV_2D', 'FULLY_CONNECTED'):
    x, weights = operation.inputs[:2]
    if operation.op == 'CONV_2D' and weights.shape[-1] != x.shape[-1]:
      return 6
    return {'CONV_2D': (3, 7), 'DEPTHWISE_CONV_2D': (3, 7), 'FULLY_CONNECTED': (4, 10)}[operation.op][
      weights.dtype == 'int4'
    ]
  return 1 if operation.op == 'RESHAPE' else 2
