"""ResNet-8 in Keras on JAX, in float and with HGQ2's learned bits."""

import contextlib
import functools
import os

os.environ['KERAS_BACKEND'] = 'jax'

import keras
from hgq.config import LayerConfigScope, QuantizerConfigScope
from hgq.layers import QConv2D, QDense

# Of the quantizers' axes, those along which bit-widths differ: all, as is HGQ2's own setting, or none.
GRANULARITIES = {'weight': {}, 'layer': {'homogeneous_axis': None, 'heterogeneous_axis': ()}}


def resnet8(
  granularity: str | None,
  shape: tuple[int, int, int] = (32, 32, 3),
  widths: tuple[int, ...] = (16, 32, 64),
  beta: float = 0.0,
) -> keras.Model:
  """The network; kernels and inputs of convolutions and of the classifier have learned bits.

  Args:
    granularity: `weight`: a bit-width for each weight and for each element of an input; `layer`: one for each kernel
      and each input; `None`: the float network.
    shape: of the images, `[H, W, C]`.
    widths: output channels of the three stages.
    beta: what an effective bit operation (EBOP) of one image adds to the loss.
  """
  scope = contextlib.ExitStack()
  conv, dense = keras.layers.Conv2D, keras.layers.Dense
  if granularity is not None:
    scope.enter_context(QuantizerConfigScope(place=('weight', 'bias', 'datalane'), **GRANULARITIES[granularity]))
    scope.enter_context(LayerConfigScope(enable_ebops=True, beta0=beta))
    conv, dense = QConv2D, QDense
  conv = functools.partial(conv, use_bias=False, padding='same')
  norm = functools.partial(keras.layers.BatchNormalization, momentum=0.9, epsilon=1e-5)
  relu = keras.layers.ReLU
  with scope:
    inputs = keras.Input(shape)
    x = relu()(norm()(conv(widths[0], 3)(inputs)))
    for i, width in enumerate(widths):
      stride = 1 if i == 0 else 2
      y = relu()(norm()(conv(width, 3, strides=stride)(x)))
      y = norm()(conv(width, 3)(y))
      if i > 0:
        x = conv(width, 1, strides=stride)(x)
      x = relu()(keras.layers.add([x, y]))
    outputs = dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)
