"""What makes up a task, and how what it measures is shown."""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """Something that is measured of a network on a split of the data.

  Attributes:
    name: in files, such as `accuracy` in `test_accuracy` and `validation_accuracy`.
    title: in words, within a sentence.
    higher_is_better: whether a larger value is the better one.
    best: what is said of the network with the best value, as the end of a sentence.
    better: what is said of one with a better value than another.
    least: the least value that there is.
    most: the largest.
    scale: by which a value is multiplied where it is shown.
    unit: of what is shown then; empty for none.
    digits: format of what is shown.
    few_digits: the same where there is little room.
    differences: the unit of a difference; `None` for one that is shown as a part of what it is a difference from.
    same: what is said of a value that differs by less than is shown.
  """

  name: str
  title: str
  higher_is_better: bool
  best: str
  better: str
  least: float = -math.inf
  most: float = math.inf
  scale: float = 1.0
  unit: str = ''
  digits: str = '#.4g'
  few_digits: str = '#.3g'
  differences: str | None = None
  same: str = 'the same as'

  @property
  def heading(self) -> str:
    """The title at the start of a sentence."""
    return self.title[0].upper() + self.title[1:]

  @property
  def label(self) -> str:
    """The title with its unit."""
    return f'{self.title}, {self.unit}' if self.unit else self.title

  def number(self, value: float) -> str:
    """A value as text, without its unit."""
    return format(self.scale * value, self.digits)

  def text(self, value: float | None, *, short: bool = False) -> str:
    """A value with its unit; a dash for `None`."""
    if value is None:
      return '-'
    number = format(self.scale * value, self.few_digits) if short else self.number(value)
    return self.with_unit(number)

  def with_unit(self, number: str) -> str:
    """A number that is text already, with the unit behind it."""
    return f'{number}{self.unit}' if self.unit in ('', '%') else f'{number} {self.unit}'

  def goodness(self, value: float) -> float:
    """The value, or its negative where a smaller one is better: more is better of this."""
    return value if self.higher_is_better else -value

  def difference(self, value: float, reference: float, whose: str) -> str:
    """How far a value is from that of something else, such as `1.25 points below the float network`."""
    if self.differences is None:
      size = value / reference - 1 if reference else math.copysign(math.inf, value - reference)
      text, shown = f'{abs(size):.2%}', abs(size) >= 5e-5 and value != reference
    else:
      size = self.scale * (value - reference)
      text, shown = f'{abs(size):.2f} {self.differences}', abs(size) >= 0.005
    if not shown:
      return f'{self.same} {whose}'
    return f'{text} {"above" if size > 0 else "below"} {whose}'


class Task(abc.ABC):
  """What a network is trained for.

  Of every batch a task takes the terms: the loss, and whatever else is averaged, of each thing that counts, an example
  or a token of one. Means of terms give the metrics; the first metric chooses the best state and stands in figures.

  Attributes:
    name: of the task.
    metrics: what is measured, what matters most first.
    examples: what a batch holds, in words.
    note: what a reader of a table of metrics has to know; empty for nothing.
    keeps_scale: whether the scale of the outputs matters, and with it that of the last kernel.
    meets_targets: whether outputs are to be those of a batch's `target`, where it has one.
    has_temperature: whether `distance` depends on its temperature.
  """

  name: ClassVar[str]
  metrics: ClassVar[tuple[Metric, ...]]
  examples: ClassVar[str]
  note: ClassVar[str] = ''
  keeps_scale: ClassVar[bool]
  meets_targets: ClassVar[bool] = False
  has_temperature: ClassVar[bool]

  @property
  def metric(self) -> Metric:
    """The metric that matters most."""
    return self.metrics[0]

  def inputs(self, batch: Batch) -> jax.Array:
    """What the network is called with: the images `[N, H, W, C]`, 0..255 in float32."""
    return jnp.asarray(batch['image'], jnp.float32)

  def of_tokens(self, tokens: str | None) -> 'Task':
    """The task on data that are text of these tokens, `characters` or `bytes`; `None` for images.

    Raises:
      ValueError: one sentence, if the task is not for such data.
    """
    if tokens is not None:
      raise ValueError(
        f'the data are text, and the task {self.name} is for images: give a model.name that models language, such as '
        'gpt_mini, or another data.dataset'
      )
    return self

  def counted(self, inputs: jax.ShapeDtypeStruct) -> int:
    """How many of its `examples` one entry of a batch holds, for inputs `[1, ...]`."""
    del inputs
    return 1

  @abc.abstractmethod
  def width(self, image_shape: Sequence[int], num_classes: int, target_shape: Sequence[int] | None) -> int:
    """How many outputs the network has for a data set.

    Args:
      image_shape: `[H, W, C]` of an example.
      num_classes: its classes; 0 where it has no labels.
      target_shape: of the targets of an example, where it has targets.

    Raises:
      ValueError: one sentence, if the data set lacks what the task needs.
    """

  @abc.abstractmethod
  def terms(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """What is averaged, by name, each `[N, ...]` with an entry for each thing that counts; the `loss` is among them.

    Args:
      outputs: of the network, `[N, ...]` in float32.
      batch: what the data set gives.
    """

  @abc.abstractmethod
  def values(self, means: Mapping[str, float]) -> dict[str, float]:
    """The metrics by name, of the means of the terms."""

  @abc.abstractmethod
  def distance(self, outputs: jax.Array, taught: jax.Array, temperature: float) -> jax.Array:
    """How far outputs `[N, ...]` are from those of a teacher, to which no gradient goes; `()`."""

  @abc.abstractmethod
  def curvature(self, outputs: jax.Array, key: jax.Array) -> jax.Array:
    """A random vector `[N, ...]` for each example whose covariance is the Hessian of its loss by its outputs."""

  @abc.abstractmethod
  def sentence(self, values: Mapping[str, float]) -> str:
    """What the metrics on the test split say, as a sentence that goes on."""
