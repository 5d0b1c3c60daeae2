"""Runs a program with something else done at its sites: the loops, branches and calls around them are built anew."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from fracbits_jax.program.sites import Site
from fracbits_jax.program.walk import CALLS, Path, inner_program, manual_axes

# What each loop gets apart for each of its passes, and everything else, by the name of a weight.
Variables = Mapping[str, Mapping[str, Any]]
Taps = dict[Path, Any]
_NOT_YET = object()  # a value that is known only where a loop runs

_unrolled = contextvars.ContextVar('_unrolled', default=0)


@contextlib.contextmanager
def unrolled_loops(most: int) -> Iterator[None]:
  """While this context is open, loops of up to `most` passes run one behind the other, each known by its number."""
  token = _unrolled.set(most)
  try:
    yield
  finally:
    _unrolled.reset(token)


def _named(equation: Any) -> contextlib.AbstractContextManager[Any]:
  """Keeps the modules around an equation where loops are unrolled, for those who read what comes out."""
  modules = str(equation.source_info.name_stack) if _unrolled.get() else ''
  return jax.named_scope(modules) if modules else contextlib.nullcontext()


class Interpreter:
  """A program whose sites are computed by a function of one's own.

  Args:
    found: the sites by their path.
    name_of: the name of the weight at a site.
    at_site: `at_site(site, equation, operands, variables)` gives what the equation gives, and values to keep
      (`None` for none). The variables are those of the weight at this site, without what loops have taken. What is kept
      in a scan has an axis for its passes in front; of a loop whose length its inputs decide it is that of the last
      pass, zeros where there is none.
    keeps: whether values are kept, at every site: then every branch of a conditional runs, whichever is taken.
    prepare: `prepare(site, weight, variables)`, what is done to a weight alone. For one that is the same in all passes
      of a loop it is done once, before the loop, and `at_site` gets what came out as `ready`, otherwise `None`.
  """

  def __init__(
    self,
    found: Mapping[Path, Site],
    name_of: Callable[[Site], str],
    at_site: Callable[[Site, Any, list[Any], Mapping[str, Any], Any], tuple[list[Any], Any]],
    keeps: bool = False,
    prepare: Callable[[Site, Any, Mapping[str, Any]], Any] | None = None,
  ):
    self._sites, self._name_of, self._at_site, self._keeps, self._prepare = found, name_of, at_site, keeps, prepare
    self._ready: dict[Path, Any] = {}
    self._within = {path[:i] for path in found for i in range(len(path))}
    self._passes: dict[Path, int] = {}
    self._looped: dict[Path, set[str]] = {}
    for site in found.values():
      for loop in site.stored.loops:
        self._looped.setdefault(loop.path, set()).add(name_of(site))

  def index(self, site: Site) -> tuple[int, ...] | None:
    """Which passes of its own loops a site is in, where they are unrolled; `None` where they are not."""
    loops = [loop.path for loop in site.stored.loops]
    known = _unrolled.get() and all(path in self._passes for path in loops)
    return tuple(self._passes[path] for path in loops) if known else None

  def run(
    self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], variables: Variables, path: Path = ()
  ) -> tuple[list[Any], Taps]:
    """The outputs of a jaxpr, and what was kept at its sites, by their path."""
    known = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))
    get = lambda atom: atom.val if isinstance(atom, core.Literal) else known[atom]
    taps: Taps = {}
    for position, equation in enumerate(jaxpr.eqns):
      here, operands = (*path, position), [get(atom) for atom in equation.invars]
      with _named(equation):
        if here in self._sites:
          site = self._sites[here]
          name = self._name_of(site)
          results, kept = self._at_site(site, equation, operands, variables.get(name, {}), self._ready.get(here))
          if kept is not None:
            taps[here] = kept
        elif here in self._within:
          results, inner = self._inside(equation, operands, variables, here)
          taps |= inner
        else:
          results = bind(equation, operands)
      known.update(zip(equation.outvars, results, strict=True))
    return [get(atom) for atom in jaxpr.outvars], taps

  def _inside(self, equation: Any, operands: list[Any], variables: Variables, path: Path) -> tuple[list[Any], Taps]:
    op, params = equation.primitive.name, equation.params
    if op == 'scan':
      return self._scan(params, operands, variables, path)
    if op == 'while':
      return self._while(params, operands, variables, path)
    if op == 'cond':
      return self._cond(params, operands, variables, path)
    if op == 'shard_map':
      return self._shard_map(equation, operands, variables, path)
    assert op in CALLS, op
    jaxpr, consts = inner_program(equation)
    if op in ('remat', 'remat2', 'checkpoint'):
      again = jax.checkpoint(
        lambda operands, variables: self.run(jaxpr, consts, operands, variables, path),
        prevent_cse=params['prevent_cse'],
        policy=params['policy'],
      )
      return again(operands, self._used_in(path, variables))
    return self.run(jaxpr, consts, operands, variables, path)

  def _used_in(self, path: Path, variables: Variables) -> Variables:
    """The variables of the weights at the sites within an equation."""
    names = {self._name_of(site) for at, site in self._sites.items() if at[: len(path)] == path}
    return {name: variables[name] for name in sorted(names) if name in variables}

  def _scan(
    self, params: Mapping[str, Any], operands: list[Any], variables: Variables, path: Path
  ) -> tuple[list[Any], Taps]:
    closed, n_consts, n_carry = params['jaxpr'], params['num_consts'], params['num_carry']
    consts, carry, xs = operands[:n_consts], operands[n_consts : n_consts + n_carry], operands[n_consts + n_carry :]
    looped = self._looped.get(path, set())
    apart = {name: dict(variables[name]) for name in sorted(looped) if name in variables}
    if 0 < params['length'] <= _unrolled.get():
      return self._unrolled_scan(params, consts, carry, (xs, apart), variables, path), {}
    self._prepare_weights(closed, [*consts, *[_NOT_YET] * (len(operands) - n_consts)], variables, path, path)

    def body(carry: Any, rows: Any) -> tuple[Any, Any]:
      xs, of_this_pass = rows
      inputs = [*consts, *carry, *xs]
      results, taps = self.run(closed.jaxpr, closed.consts, inputs, {**variables, **of_this_pass}, path)
      return results[:n_carry], (results[n_carry:], taps)

    carry, (ys, taps) = lax.scan(
      body, carry, (xs, apart), params['length'], reverse=params['reverse'], unroll=params['unroll']
    )
    return [*carry, *ys], taps

  def _unrolled_scan(
    self, params: Mapping[str, Any], consts: list[Any], carry: list[Any], xs: Any, variables: Variables, path: Path
  ) -> list[Any]:
    closed, n_carry, length = params['jaxpr'], params['num_carry'], params['length']
    rows: dict[int, list[Any]] = {}
    for i in reversed(range(length)) if params['reverse'] else range(length):
      self._passes[path] = i
      of_pass, apart = jax.tree.map(lambda x, i=i: lax.index_in_dim(jnp.asarray(x), i, keepdims=False), xs)
      inputs = [*consts, *carry, *of_pass]
      results, _ = self.run(closed.jaxpr, closed.consts, inputs, {**variables, **apart}, path)
      carry, rows[i] = results[:n_carry], results[n_carry:]
    del self._passes[path]
    return [*carry, *(jnp.stack(column) for column in zip(*(rows[i] for i in range(length)), strict=True))]

  def _while(
    self, params: Mapping[str, Any], operands: list[Any], variables: Variables, path: Path
  ) -> tuple[list[Any], Taps]:
    condition, body = params['cond_jaxpr'], params['body_jaxpr']
    n_cond, n_body = params['cond_nconsts'], params['body_nconsts']
    of_cond, of_body, carry = operands[:n_cond], operands[n_cond : n_cond + n_body], operands[n_cond + n_body :]
    self._prepare_weights(body, [*of_body, *[_NOT_YET] * len(carry)], variables, (*path, 1), path)
    run = lambda part, at, inputs: self.run(part.jaxpr, part.consts, inputs, variables, (*path, at))
    _, shapes = jax.eval_shape(lambda carry: run(body, 1, [*of_body, *carry]), carry)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # what was kept in the last pass

    def one_more(state: Any) -> Any:
      return run(body, 1, [*of_body, *state[0]])

    carry, taps = lax.while_loop(
      lambda state: run(condition, 0, [*of_cond, *state[0]])[0][0], one_more, (list(carry), nothing)
    )
    return list(carry), taps

  def _cond(
    self, params: Mapping[str, Any], operands: list[Any], variables: Variables, path: Path
  ) -> tuple[list[Any], Taps]:
    index, *inputs = operands
    branches = [
      lambda inputs, at=at, branch=branch: self.run(branch.jaxpr, branch.consts, inputs, variables, (*path, at))
      for at, branch in enumerate(params['branches'])
    ]
    platforms = params.get('branches_platforms')
    if platforms is not None:  # a branch for each kind of device, of which the others need not even compile
      by_name = {name: at for at, names in enumerate(platforms) for name in names or ('default',)}
      functions = {name: lambda inputs, at=at: branches[at](inputs)[0] for name, at in by_name.items()}
      return lax.platform_dependent(inputs, **functions), {}
    if not self._keeps:
      return lax.switch(index, [lambda inputs, run=run: run(inputs)[0] for run in branches], inputs), {}
    results, kept = zip(*(run(inputs) for run in branches), strict=True)
    taken = lax.switch(index, [lambda results, at=at: results[at] for at in range(len(results))], list(results))
    return taken, {path: values for taps in kept for path, values in taps.items()}

  def _prepare_weights(
    self, closed: Any, inputs: Sequence[Any], variables: Variables, path: Path, loop: Path
  ) -> list[Any]:
    """Prepares the weights in the body of a loop that are the same in all of its passes.

    Args:
      closed: a closed jaxpr: the body, or a program within it.
      inputs: its arguments, `_NOT_YET` for those that are known in the passes alone.
      variables, path: of the jaxpr, as for `run`.
      loop: the path of the loop.

    Returns:
      Its outputs, as far as they are known.
    """
    if self._prepare is None:
      return []
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))
    get = lambda atom: atom.val if isinstance(atom, core.Literal) else known[atom]
    for position, equation in enumerate(jaxpr.eqns):
      here, operands = (*path, position), [get(atom) for atom in equation.invars]
      results: list[Any] = [_NOT_YET] * len(equation.outvars)
      op = equation.primitive.name
      if here in self._sites:
        site = self._sites[here]
        same = site.stored.params and all(one.path != loop for one in site.stored.loops)
        name = self._name_of(site)
        if same and operands[site.weight] is not _NOT_YET and name in variables:
          self._ready[here] = self._prepare(site, operands[site.weight], variables[name])
      elif here in self._within:
        inner = core.ClosedJaxpr(*inner_program(equation)) if op in CALLS and op != 'shard_map' else None
        if inner is not None:
          results = self._prepare_weights(inner, operands, variables, here, loop)
        elif op == 'scan':
          consts = equation.params['num_consts']
          unknown = [_NOT_YET] * (len(operands) - consts)
          self._prepare_weights(equation.params['jaxpr'], [*operands[:consts], *unknown], variables, here, loop)
      elif not equation.effects and all(value is not _NOT_YET for value in operands):
        results = bind(equation, operands)
      known.update(zip(equation.outvars, results, strict=True))
    return [get(atom) for atom in jaxpr.outvars]

  def _shard_map(self, equation: Any, operands: list[Any], variables: Variables, path: Path) -> tuple[list[Any], Taps]:
    params = equation.params
    jaxpr, consts = inner_program(equation)
    axes, used = manual_axes(params), self._used_in(path, variables)
    each_device = jax.sharding.PartitionSpec(axes)

    def on_a_device(operands: list[Any], variables: Variables) -> tuple[list[Any], Taps]:
      results, taps = self.run(jaxpr, consts, operands, variables, path)
      return results, jax.tree.map(lambda x: x[None], taps)

    everywhere = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), used)
    kept = {at: each_device for at in self._sites if at[: len(path)] == path}
    mapped = jax.shard_map(
      on_a_device,
      mesh=params['mesh'],
      in_specs=(list(params['in_specs']), everywhere),
      out_specs=(list(params['out_specs']), kept if self._keeps else {}),
      check_vma=params.get('check_vma', True),
      axis_names=set(axes),
    )
    return mapped(operands, used)


def bind(equation: Any, operands: Sequence[Any]) -> list[Any]:
  """What an equation gives for other operands."""
  params: Any = equation.primitive.get_bind_params(equation.params)
  functions, params = params if isinstance(params, tuple) else ((), params)  # a pair in releases of JAX up to 0.9
  with equation.ctx.manager:  # such as the precision of products that held where the equation was traced
    results = equation.primitive.bind(*functions, *operands, **params)
  return list(results) if equation.primitive.multiple_results else [results]
