"""The weights of a network by name: which places of the program use them, and how they are quantized."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from fracbits_jax.program.sites import Site
from fracbits_jax.program.stored import Atom, Stored, atoms_of, axes_with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
  """A weight, or a stack of weights that differ in nothing but their values; or a product of two activations.

  Attributes:
    name: the path of its module where that has one weight, else of its parameter; `NAME:2` for a second use of a
      parameter in another way.
    key: by which a place of a program is known to use it.
    params: the parameters that it is computed from.
    kind: of its first product, or `embedding` where there is none.
    shape: of one kernel.
    channels: axes of it that are output channels.
    atoms: the parts of the parameter that the channels are, where it is used as it is.
    summed: the parts that its other axes are, in their order.
    stack: how many kernels there are, by axis of the stack.
    prefixes: for each axis of the stack, behind which part of the name its index is written.
    rows: whether each channel has a range of its own, as the rows of an embedding do.
    signed: whether inputs can be negative.
    weight_signed: of a product: whether its second operand can be.
    places: of its uses in the program that it was found in.
  """

  name: str
  key: tuple
  params: tuple[str, ...] = ()
  kind: str = 'dense'
  shape: tuple[int, ...] = ()
  channels: tuple[int, ...] = ()
  atoms: tuple[Atom, ...] | None = None
  summed: tuple[Atom, ...] | None = None
  stack: tuple[int, ...] = ()
  prefixes: tuple[str, ...] = ()
  rows: bool = False
  signed: bool = True
  weight_signed: bool = True
  places: tuple[tuple[int, ...], ...] = ()

  @property
  def is_product(self) -> bool:
    """Whether it is no weight but a product of two activations."""
    return self.kind == 'product'

  @property
  def has_input(self) -> bool:
    """Whether something multiplies with it."""
    return self.kind != 'embedding'

  @property
  def size(self) -> int:
    """Entries of one kernel."""
    return 0 if self.is_product else math.prod(self.shape)

  @property
  def count(self) -> int:
    """Output channels of one kernel."""
    return math.prod(self.shape[axis] for axis in self.channels)

  def indices(self) -> list[tuple[int, ...]]:
    """The places in the stack, `[()]` where there is one kernel alone."""
    return list(itertools.product(*map(range, self.stack)))

  def at(self, index: tuple[int, ...]) -> str:
    """The name of one kernel of the stack, such as `layers/0/Dense_0`."""
    name = self.name
    # From the innermost place to the outermost, so that what is in front of a place stays what it was.
    for prefix, i in sorted(zip(self.prefixes, index, strict=True), key=lambda pair: len(pair[0]))[::-1]:
      behind = name[len(prefix) :].strip('/')
      name = '/'.join(part for part in (prefix, str(i), behind) if part)
    return name

  def names(self) -> list[str]:
    """The names of all kernels of the stack."""
    return [self.at(index) for index in self.indices()]


def key_of(site: Site) -> tuple:
  """By what two places of a program are known to use the same weight."""
  one = site.stored
  lengths = tuple(loop.length for loop in one.loops)
  if site.kind == 'product':
    return ('product', site.scope, lengths)
  params = tuple(sorted(one.params))
  if one.layout is None:
    return ('computed', params, one.key, site.stacked, lengths)
  return ('parameter', params, frozenset(atoms_of(one.layout, range(len(one.layout)))), lengths)


def _atoms(site: Site) -> tuple[Atom, ...] | None:
  layout = site.stored.layout
  return None if layout is None else atoms_of(layout, site.channels)


def _summed(site: Site) -> tuple[Atom, ...] | None:
  layout = site.stored.layout
  axes = (axis for axis in range(len(site.shape)) if axis not in (*site.channels, *site.stacked))
  return None if layout is None else atoms_of(layout, axes)


def channels_of(weight: Weight, site: Site) -> tuple[int, ...] | None:
  """The axes of the kernel at a place that are the weight's output channels, in their order; `None` where none are."""
  if weight.atoms is None or site.stored.layout is None:
    return site.kernel_channels
  return _kernel_axes(site, weight.atoms)


def summed_of(weight: Weight, site: Site) -> tuple[int, ...]:
  """The other axes of the kernel at a place, along which its groups lie, in the order that they have in the weight.

  Raises:
    ValueError: there is no such order.
  """
  channels = channels_of(weight, site)
  assert channels is not None  # or it would be another weight
  rest = tuple(axis for axis in range(len(site.kernel_shape)) if axis not in channels)
  if weight.summed is None or site.stored.layout is None:
    return rest
  axes = _kernel_axes(site, weight.summed)
  if axes is None:
    raise ValueError(
      f'{weight.name} is used twice, with the axes along which its groups lie in another order: give it a rule with '
      'group_size=None'
    )
  return (*axes, *(axis for axis in rest if axis not in axes))  # at last those of size 1


def _kernel_axes(site: Site, atoms: tuple[Atom, ...]) -> tuple[int, ...] | None:
  """The axes of the kernel at a place that consist of these parts of the parameter; `None` where none do."""
  assert site.stored.layout is not None
  axes = axes_with(site.stored.layout, atoms)
  if axes is None:
    return None
  kept = [axis for axis in range(len(site.shape)) if axis not in site.stacked]
  return tuple(kept.index(axis) for axis in axes) if all(axis in kept for axis in axes) else None


def group_sites(found: Mapping[tuple[int, ...], Site]) -> dict[tuple, list[Site]]:
  """The sites of a program by the weight that they use, in the order of its first use."""
  groups: dict[tuple, list[Site]] = {}
  for site in found.values():
    key = key_of(site)
    while key in groups and not _fits(groups[key][0], site):
      key = (*key, 'again')
    groups.setdefault(key, []).append(site)
  return groups


def name_weights(groups: Mapping[tuple, Sequence[Site]], sizes: Mapping[str, int]) -> dict[tuple, Weight]:
  """The weights of a program by their key.

  Args:
    groups: of `group_sites`.
    sizes: entries of each parameter, by its path.
  """
  main = {key: _main_parameter(group[0].stored, sizes) for key, group in groups.items() if group[0].stored.params}
  beside: dict[str, set[str]] = {}
  for path in main.values():
    beside.setdefault(path.rpartition('/')[0], set()).add(path)
  taken: dict[str, int] = {}
  weights = {}
  for key, group in groups.items():
    if key in main:
      module = main[key].rpartition('/')[0]
      name = module if module and len(beside[module]) == 1 else main[key]
    else:
      name = f'{group[0].scope}/product'.strip('/')
    taken[name] = taken.get(name, 0) + 1
    name = name if taken[name] == 1 else f'{name}:{taken[name]}'
    weights[key] = _weight(name, key, group)
  return weights


def _fits(first: Site, site: Site) -> bool:
  """Whether two uses of a parameter can share bits: the same stack, and channels that are axes of both."""
  if first.kind == 'product':
    return False
  if first.stored.layout is None:
    return site.kernel_shape == first.kernel_shape
  probe = Weight(name='', key=(), atoms=_atoms(first))
  return site.stack == first.stack and channels_of(probe, site) is not None


def _main_parameter(one: Stored, sizes: Mapping[str, int]) -> str:
  return max(sorted(one.params), key=lambda path: sizes.get(path, 0))


def _weight(name: str, key: tuple, group: Sequence[Site]) -> Weight:
  first = group[0]
  loops = first.stored.loops
  multiplies = [site for site in group if site.kind != 'embedding']
  inside = lambda prefix: prefix if name == prefix or name.startswith(f'{prefix}/') else ''
  return Weight(
    name=name,
    key=key,
    params=tuple(sorted(first.stored.params)),
    kind=multiplies[0].kind if multiplies else 'embedding',
    shape=first.kernel_shape,
    channels=first.kernel_channels,
    atoms=_atoms(first),
    summed=_summed(first),
    stack=first.stack,
    prefixes=(*(inside(loop.prefix) for loop in loops), *(name for _ in first.stacked)),
    rows=any(site.kind == 'embedding' for site in group),
    signed=any(site.signed for site in multiplies),
    weight_signed=any(site.weight_signed for site in multiplies),
    places=tuple(site.path for site in group),
  )
