"""How a layer is quantized: the settings, checked in one place."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fracbits_jax import quantize
from fracbits_jax.quantize import bitwidths, groups

GRANULARITIES = ('layer', 'kernel')
KERNEL_RANGES = ('layer', 'channel')
KERNEL_LEVELS = ('twos_complement', 'balanced')
SCHEMES = (*quantize.SCHEMES, 'lsq')
KERNEL_SCHEMES = (*SCHEMES, 'balanced')  # where the levels of a kernel lie
WITH_RANGES = ('lsq', 'balanced')  # those whose ranges are learned, so that channels or groups can have their own
MIXTURES = ('values', 'elements')
FLOAT_BITS = 32
CALIBRATIONS = ('squares', 'absolute', 'trimmed')
_MOST_ALPHA = 1e30  # far inside float32, so that what is computed with it stays finite


def check_calibration(criterion: str) -> str:
  """Returns the criterion of calibration; raises `ValueError` unless it is one of `CALIBRATIONS`."""
  if criterion not in CALIBRATIONS:
    raise ValueError(f'calibration={criterion!r} is unknown: choose one of {", ".join(map(repr, CALIBRATIONS))}')
  return criterion


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantConfig:
  """How a layer is quantized.

  Attributes:
    granularity: `layer` for one bit-width a kernel, `kernel` for one per output channel.
    choices: allowed bit-widths of kernels, strictly increasing integers from 0 to 16; `None` means all of them.
    input_choices: allowed bit-widths of inputs; `None` means `choices` without 0.
    init_bits: where learned bit-widths start, a real number, clipped to the allowed range.
    kernel_bits: a fixed integer bit-width for the kernel instead of a learned one.
    input_bits: a fixed integer bit-width for the inputs instead of a learned one.
    weight_only: leave the inputs as they are. They count as `input_bits` in the cost, or as 32 bits without it.
    quantize_residuals: what comes into a residual block is quantized once, for the convolution and the shortcut that
      read it; otherwise the shortcut takes it as it is. For networks of `models` with residual sums.
    signed_input: inputs are quantized on [-alpha, alpha] rather than on [0, alpha].
    scheme: `original` or `modified` for DoReFa kernels, whose inputs are always `original`; `lsq` for a learned step
      size of kernels and inputs.
    kernel_ranges: with `lsq`, `layer` for one range a kernel, `channel` for one per output channel.
    kernel_levels: with `lsq`, `twos_complement`, which has 0 and one level more below it than above; or `balanced`, as
      many on either side and no 0, which is better with few bits.
    group_size: with `lsq`, one range for so many neighbouring weights of an output channel, along the contracted axes
      of the kernel (see `quantize.groups`), whatever `kernel_ranges` says; `None` for no groups. The last group of a
      channel is shorter where the size does not divide its weights.
    range_bits: 16 or 32, what the range of a group is stored in; with 16 the network computes with float16 ranges.
      They count in the size of the network, as ranges of kernels and of channels do not.
    input_offset: with `lsq`, ranges of signed inputs have a learned offset, as after an activation function that is
      seldom negative; unsigned ones have none.
    learned: false says that the bit-widths in the collection `bits` are integers, fixed after a search: the layer is
      then as fast as one with fixed bits.
    stochastic: draw one of the two neighbouring bit-widths instead of interpolating, wherever the network is applied
      with a random stream `bits`.
    mixture: what a bit-width between two allowed ones is: `values`, the two quantizers interpolated, as in the paper;
      or `elements`, of which each takes one of the two, so that the error between integers is between theirs.
    sat: rescale the quantized kernel as SAT does where no batch norm follows the layer; not with `lsq`, whose ranges
      are learned.
    alpha_init: where the clip of the inputs starts.
    calibration: the criterion by which `calibrate` chooses where clips and ranges start: `squares`, the mean squared
      error; `absolute`, the mean absolute error, or `trimmed`, squares without the thousandth of the values that is
      largest, for inputs with outliers.
  """

  granularity: str = 'layer'
  choices: Sequence[int] | None = tuple(range(1, 9))
  input_choices: Sequence[int] | None = None
  init_bits: float = 8.0
  kernel_bits: int | None = None
  input_bits: int | None = None
  weight_only: bool = False
  quantize_residuals: bool = False
  signed_input: bool = False
  scheme: str = 'original'
  kernel_ranges: str = 'layer'
  kernel_levels: str = 'twos_complement'
  group_size: int | None = None
  range_bits: int = 16
  input_offset: bool = False
  learned: bool = True
  stochastic: bool = False
  mixture: str = 'values'
  sat: bool = False
  alpha_init: float = 8.0
  calibration: str = 'squares'

  def __post_init__(self):
    if self.granularity not in GRANULARITIES:
      raise ValueError(f'granularity={self.granularity!r} is unknown: choose one of {", ".join(GRANULARITIES)}')
    if self.scheme not in SCHEMES:
      raise ValueError(f'scheme={self.scheme!r} is unknown: choose one of {", ".join(map(repr, SCHEMES))}')
    if self.kernel_ranges not in KERNEL_RANGES:
      raise ValueError(f'kernel_ranges={self.kernel_ranges!r} is unknown: choose one of {", ".join(KERNEL_RANGES)}')
    if self.kernel_ranges == 'channel' and self.scheme != 'lsq':
      raise ValueError(
        f"kernel_ranges='channel' is for learned ranges, and scheme={self.scheme!r} has none: set scheme='lsq', or "
        "kernel_ranges='layer'"
      )
    self._check_groups()
    if self.kernel_levels not in KERNEL_LEVELS:
      raise ValueError(f'kernel_levels={self.kernel_levels!r} is unknown: choose one of {", ".join(KERNEL_LEVELS)}')
    if self.kernel_levels != 'twos_complement' and self.scheme != 'lsq':
      raise ValueError(
        f'kernel_levels={self.kernel_levels!r} is for learned step sizes, and scheme={self.scheme!r} has levels of its '
        "own: set scheme='lsq', or kernel_levels='twos_complement'"
      )
    if self.input_offset and self.scheme != 'lsq':
      raise ValueError(
        f"input_offset=True is for learned step sizes, and scheme={self.scheme!r} has none: set scheme='lsq', or "
        'input_offset=False'
      )
    check_calibration(self.calibration)
    object.__setattr__(self, 'choices', bitwidths.check_choices(self.choices))
    if self.choices == (0,):
      raise ValueError('choices=(0,) would leave nothing of a kernel: allow at least one bit-width above 0')
    try:
      given = self.allowed_input_bits if self.input_choices is None else self.input_choices
      allowed = bitwidths.check_choices(given)
      object.__setattr__(self, 'input_choices', None if self.input_choices is None else allowed)
    except ValueError as error:
      raise ValueError(f'for inputs, {error}') from None
    largest_input = FLOAT_BITS if self.weight_only else bitwidths.MAX_BITS
    for name, largest in (('kernel_bits', bitwidths.MAX_BITS), ('input_bits', largest_input)):
      value = getattr(self, name)
      if value is not None and not (isinstance(value, int | np.integer) and 0 <= value <= largest):
        raise ValueError(
          f'{name}={value!r} is not a fixed bit-width: give an integer from 0 to {largest}, or None to learn it'
        )
    if self.quantize_residuals and self.weight_only:
      raise ValueError(
        'quantize_residuals=True quantizes inputs, which weight_only=True leaves as they are: set one of them to False'
      )
    if self.mixture not in MIXTURES:
      raise ValueError(f'mixture={self.mixture!r} is unknown: choose one of {", ".join(map(repr, MIXTURES))}')
    if self.stochastic and self.mixture != 'values':
      raise ValueError(
        f'stochastic=True draws bit-widths as wholes, and mixture={self.mixture!r} mixes them by element: take one of '
        'the two'
      )
    if self.group_size is not None and self.prunes:
      raise ValueError(
        f'group_size={self.group_size} cannot prune: without a pruned channel the groups of what it feeds would be '
        'others, so take 0 out of choices, or set group_size=None'
      )
    if self.stochastic and self.prunes:
      raise ValueError(
        'stochastic=True cannot prune: a gate does not follow what is drawn, so take 0 out of choices or interpolate'
      )
    if not 0 <= self.init_bits < np.inf:
      raise ValueError(f'init_bits={self.init_bits!r} is not a bit-width: give a finite number of at least 0')
    if not 0 < self.alpha_init <= _MOST_ALPHA:
      raise ValueError(f'alpha_init={self.alpha_init!r} is not a clip: give a number above 0 and up to {_MOST_ALPHA:g}')

  def _check_groups(self) -> None:
    if self.range_bits not in groups.RANGE_BITS:
      raise ValueError(f'range_bits={self.range_bits!r} is unknown: a range is stored in 16 or in 32 bits, give one')
    if self.group_size is None:
      return
    if isinstance(self.group_size, bool) or not isinstance(self.group_size, int | np.integer) or self.group_size < 1:
      raise ValueError(
        f'group_size={self.group_size!r} is no number of weights: give a positive integer, such as 32, 64 or 128, or '
        'None for no groups'
      )
    object.__setattr__(self, 'group_size', int(self.group_size))
    if self.scheme != 'lsq':
      raise ValueError(
        f'group_size={self.group_size} is for learned ranges, and scheme={self.scheme!r} has none: set '
        "scheme='lsq', or group_size=None"
      )

  @property
  def range_kind(self) -> str:
    """What has a range of its own with `lsq`: `layer`, `channel` or `group`."""
    return self.kernel_ranges if self.group_size is None else 'group'

  @property
  def kernel_scheme(self) -> str:
    """Where the levels of a kernel lie: the scheme, or `balanced`."""
    return 'balanced' if self.kernel_levels == 'balanced' else self.scheme

  @property
  def allowed_kernel_bits(self) -> tuple[int, ...]:
    """The allowed bit-widths of the kernel: `choices`, of which `None` has become all."""
    assert isinstance(self.choices, tuple)
    return self.choices

  @property
  def allowed_input_bits(self) -> tuple[int, ...]:
    """The allowed bit-widths of the inputs."""
    if self.input_choices is None:
      return tuple(b for b in self.allowed_kernel_bits if b > 0)
    return tuple(self.input_choices)

  @property
  def prunes(self) -> bool:
    """Whether output channels can be pruned: a learned bit-width for each of them, and 0 among the allowed ones."""
    return self.granularity == 'kernel' and self.kernel_bits is None and self.allowed_kernel_bits[0] == 0

  @property
  def has_offset(self) -> bool:
    """Whether the range of the inputs has an offset: two numbers, the range and its middle."""
    return self.input_offset and self.signed_input and not self.weight_only

  @property
  def alpha_start(self) -> np.ndarray:
    """Where the range of the inputs starts without calibration, `()` or `[2]`."""
    return np.asarray([self.alpha_init, 0] if self.has_offset else self.alpha_init, np.float32)

  @property
  def learns_input(self) -> bool:
    """Whether the bit-width of the inputs is a variable."""
    return not self.weight_only and self.input_bits is None

  @property
  def counted_input_bits(self) -> int | None:
    """The fixed bit-width with which the inputs enter the cost; `None` where it is learned."""
    return None if self.learns_input else FLOAT_BITS if self.input_bits is None else self.input_bits
