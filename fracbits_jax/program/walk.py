"""One walk through a program, without running it: where its weights are used, by what is known of each value."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend import core

from fracbits_jax.program import signs, sites, stored
from fracbits_jax.program.sites import Site
from fracbits_jax.program.stored import Loop, Stored, Value

# Equations that hold one program and run it once.
CALLS = {
  'jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint', 'custom_jvp_call', 'custom_vjp_call',
  'custom_vjp_call_jaxpr', 'custom_lin', 'core_closed_call', 'run_state', 'shard_map',
}  # fmt: skip
_ROUNDS = 8  # through the body of a loop until nothing new is known of what it carries
# What leaves every entry where it is: casts, names, and where on which device it lies.
_LAYOUT = {
  'convert_element_type', 'copy', 'copy_p', 'name', 'stop_gradient', 'optimization_barrier', 'sharding_constraint',
  'reshard', 'mesh_cast', 'pvary', 'pcast', 'pbroadcast',
}  # fmt: skip

Path = tuple[int, ...]


def inner_program(equation: Any) -> tuple[Any, Sequence[Any]]:
  """The jaxpr that an equation of `CALLS` runs, and its constants."""
  found = next(equation.params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in equation.params)
  return (found.jaxpr, found.consts) if hasattr(found, 'consts') else (found, ())


def manual_axes(params: Mapping[str, Any]) -> tuple[str, ...]:
  """The axes of the mesh over which a `shard_map` maps its program."""
  found = params['newly_manual_axes'] if 'newly_manual_axes' in params else params['manual_axes']
  return tuple(axis for axis in params['mesh'].axis_names if axis in found)


def find_sites(closed: Any, inputs: Sequence[Value], root: str = '') -> tuple[dict[Path, Site], tuple[str, ...]]:
  """The sites of a program, in the order in which they run.

  Args:
    closed: a closed jaxpr.
    inputs: what is known of each of its arguments.
    root: the name of the outermost module, which is left out of the scopes of sites.

  Returns:
    The sites by their path, and sentences on what could not be followed.
  """
  walk = _Walk(root)
  walk.run(closed.jaxpr, closed.consts, inputs, (), (), '')
  return walk.finished(), tuple(dict.fromkeys(walk.notes))


@dataclasses.dataclass(frozen=True)
class _Around:
  """A loop or a conditional around what is walked through.

  Attributes:
    path: of its equation.
    length: how often a loop runs, 1 for a conditional, `None` where only the run decides it.
    branch: of a conditional.
  """

  path: Path
  length: int | None
  branch: int | None = None


class _Walk:
  def __init__(self, root: str) -> None:
    self.root = root
    self.sites: dict[Path, Site] = {}
    self.maybe: dict[Path, Site] = {}  # products of stored values: sites unless a weight is made of them
    self.used: set[Path] = set()
    self.notes: list[str] = []
    self.recording = True

  def finished(self) -> dict[Path, Site]:
    """The sites; a product of two stored values is one where no weight is made of it, as that of learned queries."""
    rest = {path: site for path, site in self.maybe.items() if path not in self.used}
    found = self.sites | rest
    loops = {loop.path: loop for site in found.values() for loop in site.stored.loops}
    return {path: _in_stack(site, loops) for path, site in sorted(found.items())}

  def run(
    self,
    jaxpr: Any,
    consts: Sequence[Any],
    inputs: Sequence[Value],
    path: Path,
    around: tuple[_Around, ...],
    scope: str,
  ) -> list[Value]:
    """What is known of a jaxpr's outputs."""
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, map(stored.constant, consts), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def get(atom: Any) -> Value:
      return stored.constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

    for position, equation in enumerate(jaxpr.eqns):
      operands = [get(atom) for atom in equation.invars]
      results = self._equation(equation, operands, (*path, position), around, scope)
      known.update(zip(equation.outvars, results, strict=True))
    return [get(atom) for atom in jaxpr.outvars]

  def _equation(
    self, equation: Any, operands: list[Value], path: Path, around: tuple[_Around, ...], scope: str
  ) -> list[Value]:
    op, params = equation.primitive.name, equation.params
    scope = modules_around(scope, str(equation.source_info.name_stack))
    if op in CALLS:
      jaxpr, consts = inner_program(equation)
      before = len(self.sites)
      if op == 'shard_map':
        devices = math.prod(params['mesh'].shape[axis] for axis in manual_axes(params))
        around = (*around, _Around(path, devices))
      results = self.run(jaxpr, consts, operands, path, around, scope)
      if op.startswith('custom_vjp') and len(self.sites) > before:
        self.notes.append(f'{scope or "a function"} has a derivative of its own, in place of which JAX makes one')
      if params.get('name') in signs.FUNCTIONS or getattr(jaxpr.debug_info, 'func_name', '') in signs.FUNCTIONS:
        results = [Value(value.stored, True) for value in results]
      return results
    if op == 'scan':
      return self._scan(params, operands, path, around, scope)
    if op == 'while':
      return self._while(params, operands, path, around, scope)
    if op == 'cond':
      branches = [
        self.run(b.jaxpr, b.consts, operands[1:], (*path, i), (*around, _Around(path, 1, i)), scope)
        for i, b in enumerate(params['branches'])
      ]
      return [self._either(op, operands[:1], values) for values in zip(*branches, strict=True)]
    found = sites.found_at(equation, operands)
    if found is not None and self.recording:
      self._add(operands, found, path, around, scope)
    return self._results(equation, operands, path)

  def _either(self, op: str, chosen_by: list[Value], values: Sequence[Value]) -> Value:
    same = len({value.stored and value.stored.key for value in values}) == 1
    found = values[0].stored if same else stored.joined(op, None, [*chosen_by, *values])
    return Value(found, all(value.positive for value in values))

  def _results(self, equation: Any, operands: list[Value], path: Path) -> list[Value]:
    op, params = equation.primitive.name, equation.params
    positive = signs.result(equation, operands) if operands or op == 'iota' else False
    shapes = [getattr(var.aval, 'shape', ()) for var in equation.outvars]
    if len(operands) == 1 and operands[0].stored is not None:
      (value,) = operands
      assert value.stored is not None
      layout, old = value.stored.layout, equation.invars[0].aval.shape
      if op in _LAYOUT:
        return [Value(value.stored, positive)]
      moved = None
      if op == 'transpose':
        moved = stored.transposed(layout, params['permutation'])
      elif op in ('reshape', 'squeeze', 'expand_dims'):
        moved = stored.reshaped(layout, shapes[0])
      elif op == 'broadcast_in_dim':
        moved = stored.broadcast(layout, shapes[0], params['broadcast_dimensions'], old)
      if moved is not None:
        return [Value(dataclasses.replace(value.stored, layout=moved), positive)]
    settings = {key: value for key, value in params.items() if not callable(value)}
    results = []
    for index in range(len(shapes)):
      joined = stored.joined(op, settings, operands, index) if operands else Stored(key=stored.digest(op, settings))
      if joined is not None and op == 'broadcast_in_dim' and _repeats(equation):
        joined = dataclasses.replace(joined, repeated=True)
      if joined is not None and path in self.maybe:
        joined = dataclasses.replace(joined, products=joined.products | {path})
      results.append(Value(joined, positive))
    return results

  # Loops.

  def _quietly(self, function: Any, *args: Any) -> list[Value]:
    recording, self.recording = self.recording, False
    try:
      return function(*args)
    finally:
      self.recording = recording

  def _carried(self, body: Any, before: list[Value]) -> list[Value]:
    """What is known of what a loop carries in every pass: body(carry) gives what it is behind one."""
    carry = before
    for _ in range(_ROUNDS):
      after = self._quietly(body, carry)
      joined = [
        Value(a.stored if a.stored == b.stored else None, a.positive and b.positive)
        for a, b in zip(carry, after, strict=True)
      ]
      if joined == carry:
        return carry
      carry = joined
    return [Value(None)] * len(before)

  def _scan(
    self, params: Mapping[str, Any], operands: list[Value], path: Path, around: tuple[_Around, ...], scope: str
  ) -> list[Value]:
    closed, n_consts, n_carry = params['jaxpr'], params['num_consts'], params['num_carry']
    consts, before, xs = operands[:n_consts], operands[n_consts : n_consts + n_carry], operands[n_consts + n_carry :]
    loop = Loop(path, params['length'], stored.common_module(xs))
    rows = [stored.row_of(x, loop) for x in xs]
    inside = (*around, _Around(path, params['length']))
    run = lambda carry: self.run(closed.jaxpr, closed.consts, [*consts, *carry, *rows], path, inside, scope)
    carry = self._carried(lambda carry: run(carry)[:n_carry], before)
    results = run(carry)
    stacked = [
      Value(value.stored and stored.joined('stack', path, [value]), value.positive) for value in results[n_carry:]
    ]
    carried = [self._either('carry', [], pair) for pair in zip(before, results[:n_carry], strict=True)]
    return [*carried, *(stored.behind(value, loop) for value in stacked)]

  def _while(
    self, params: Mapping[str, Any], operands: list[Value], path: Path, around: tuple[_Around, ...], scope: str
  ) -> list[Value]:
    condition, body = params['cond_jaxpr'], params['body_jaxpr']
    n_cond, n_body = params['cond_nconsts'], params['body_nconsts']
    of_cond, of_body, before = operands[:n_cond], operands[n_cond : n_cond + n_body], operands[n_cond + n_body :]
    inside = (*around, _Around(path, None))
    run = lambda carry: self.run(body.jaxpr, body.consts, [*of_body, *carry], (*path, 1), inside, scope)
    carry = self._carried(run, before)
    self.run(condition.jaxpr, condition.consts, [*of_cond, *carry], (*path, 0), inside, scope)
    return [self._either('carry', [], pair) for pair in zip(before, run(carry), strict=True)]

  # Sites.

  def _add(
    self, operands: list[Value], found: dict[str, Any], path: Path, around: tuple[_Around, ...], scope: str
  ) -> None:
    weight, other = found['weight'], found['input']
    of_weight = None if found['kind'] == 'product' else operands[weight].stored
    if of_weight is not None:
      self.used |= of_weight.products
    loops = {loop.path for loop in of_weight.loops} if of_weight is not None else set()
    times: int | None = 1
    for loop in around:
      if loop.path not in loops:
        times = None if loop.length is None or times is None else times * loop.length
    if times is None:
      self.notes.append(f'{scope or "a loop"} runs as often as its inputs say, and is counted once')
    inputs = [value.stored for i, value in enumerate(operands) if i != weight]
    site = Site(
      path=path,
      stored=of_weight or Stored(),
      times=times,
      signed=other is not None and not operands[other].positive,
      weight_signed=not operands[weight].positive,
      batched=any(one is None or one.repeated for one in inputs),
      branches=tuple((one.path, one.branch) for one in around if one.branch is not None),
      scans=tuple(one.path for one in around if one.branch is None and one.length is not None),
      scope=scope if scope.partition('/')[0] != self.root else scope.partition('/')[2],
      **found,
    )
    if site.stored.params and all(one is not None for one in inputs):
      self.maybe[path] = site
    else:
      self.sites[path] = site


def _repeats(equation: Any) -> bool:
  """Whether a `broadcast_in_dim` repeats an array of more than one entry; sizes may be unknown numbers of examples."""
  old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
  sizes = dict(zip(equation.params['broadcast_dimensions'], old, strict=True))
  grown = any(size != 1 and sizes.get(axis, 1) == 1 for axis, size in enumerate(new))
  return grown and any(size != 1 for size in old)


def _in_stack(site: Site, loops: Mapping[Path, Loop]) -> Site:
  """A product of two activations in a loop over layers is a product of each of them."""
  own = tuple(loops[path] for path in site.scans if path in loops)
  if site.kind != 'product' or not own or site.times is None:
    return site
  times = site.times // max(math.prod(loop.length for loop in own), 1)
  return dataclasses.replace(site, stored=Stored(loops=own), times=times)


def modules_around(scope: str, stack: str) -> str:
  """The modules around an equation: what JAX keeps of names, without those of methods, transforms and einsums."""
  parts = scope.split('/') if scope else []
  for part in (part.partition('.')[0] for part in stack.split('/')):
    if part.isidentifier() and part not in parts[-1:]:  # a layer that extends another is named twice
      parts.append(part)
  return '/'.join(parts)
