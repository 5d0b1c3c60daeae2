"""Functions whose backward pass is written by hand, under every transformation of JAX.

`jax.custom_vjp` takes a backward pass and refuses `jvp`, `linearize` and `hessian`. Here a derivative is a primitive, a
linear function of the tangents, and the backward pass is its transpose. So reverse mode runs the backward pass, as the
operations that it consists of, and keeps nothing but the arguments. Forward mode transposes it once more, and second
derivatives are those of the backward pass: each has to agree with reverse mode, since there is no second formula.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from fracbits_jax.fast import varying

_derivative_p = core.Primitive('derivative')


def with_backward(
  backward: Callable[..., tuple], *, static: tuple[int, ...] = (), forward: Callable[..., jax.Array] | None = None
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
  """Gives a function of arrays, or `None`, and settings a backward pass; it returns an array.

  Within `shard_map` the arguments are cast alike first, so that the cotangents of those that are the same on several
  devices are summed over these.

  Args:
    backward: `backward(*settings, arguments, g)` gives the cotangents of all arguments, `None` for those without a
      gradient. JAX must be able to differentiate it; what is rounded in it has to be straight-through there as well.
    static: the positions of the settings, hashable and behind all arrays.
    forward: `forward(*settings, arguments, tangents)`, the transpose of the backward pass where there is a faster way
      to it than JAX's. A tangent that is 0 throughout is `None`.
  """

  def wrap(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    own = jax.custom_jvp(function, nondiff_argnums=static)

    @functools.partial(own.defjvp, symbolic_zeros=True)
    def rule(*call: Any) -> tuple[jax.Array, jax.Array]:
      *settings, arguments, tangents = call
      y = own(*arguments, *settings)
      return y, derivative(y, settings, arguments, tangents)

    def derivative(y, settings, arguments, tangents):
      moving = [i for i, t in enumerate(tangents) if not (t is None or isinstance(t, SymbolicZero))]
      given = [i for i, x in enumerate(arguments) if x is not None]
      types, aval = [jax.typeof(arguments[i]) for i in moving], jax.typeof(y)
      spread = functools.partial(_spread, count=len(arguments))

      def pull(leaves, g):
        cotangents = backward(*settings, spread(leaves, given), g)
        return [_or_zeros(cotangents[i], kind) for i, kind in zip(moving, types, strict=True)]

      def push(leaves, dots):
        if forward is not None:
          return forward(*settings, spread(leaves, given), spread(dots, moving))
        return jax.vjp(functools.partial(pull, leaves), varying.full(aval, 0))[1](dots)[0]

      leaves, dots = ([values[i] for i in where] for values, where in ((arguments, given), (tangents, moving)))
      return _bind(leaves, dots, push=push, pull=pull, aval=aval)

    @functools.wraps(function)
    def varying_alike(*call: Any) -> jax.Array:
      count = len(call) - len(static)
      return own(*varying.alike(*call[:count]), *call[count:])

    return varying_alike

  return wrap


def with_slopes(value: jax.Array, *slopes: tuple[jax.Array, jax.Array | float]) -> jax.Array:
  """`value`, whose derivative is the sum of slope times that of x over the pairs `(x, slope)`, and no other.

  Args:
    value: any shape.
    *slopes: pairs of arrays that broadcast against it.
  """
  xs, factors = zip(*slopes, strict=True)
  value, *rest = varying.alike(value, *xs, *map(jnp.asarray, factors))
  return _with_slopes(value, tuple(rest[: len(xs)]), tuple(rest[len(xs) :]))


@jax.custom_jvp
def _with_slopes(value, xs, factors):
  del xs, factors
  return value


@_with_slopes.defjvp
def _with_slopes_jvp(arguments, tangents):
  factors, dots = arguments[2], tangents[1]
  change = functools.reduce(jnp.add, map(jnp.multiply, factors, dots))
  value = _with_slopes(*arguments)
  return value, jnp.broadcast_to(change, value.shape).astype(value.dtype)


def _spread(values, where, count):
  """The values at their places in a list, `None` at all others."""
  found = dict(zip(where, values, strict=True))
  return [found.get(i) for i in range(count)]


def _or_zeros(cotangent, kind):
  return varying.full(kind, 0) if cotangent is None else cotangent


def _bind(arguments, tangents, **how):
  return _derivative_p.bind(*arguments, *tangents, count=len(arguments), **how)


@_derivative_p.def_impl
def _run(*operands, count, push, pull, aval):
  del pull, aval
  return push(list(operands[:count]), list(operands[count:]))


@_derivative_p.def_abstract_eval
def _type(*operands, count, push, pull, aval):
  del operands, count, push, pull
  return aval


def _jvp(operands, dots, *, count, **how):
  arguments, tangents = list(operands[:count]), list(operands[count:])
  moving = [i for i, dot in enumerate(dots[:count]) if type(dot) is not ad.Zero]
  parts = []
  if any(type(dot) is not ad.Zero for dot in dots[count:]):
    parts.append(_bind(arguments, [ad.instantiate_zeros(dot) for dot in dots[count:]], **how))
  if moving:

    def along(*values):
      changed = dict(zip(moving, values, strict=True))
      return how['push']([changed.get(i, x) for i, x in enumerate(arguments)], tangents)

    parts.append(jax.jvp(along, [arguments[i] for i in moving], [dots[i] for i in moving])[1])
  return _bind(arguments, tangents, **how), functools.reduce(ad.add_jaxvals, parts)


def _transpose(g, *operands, count, push, pull, aval):
  del push, aval
  if type(g) is ad.Zero:
    return [None] * len(operands)
  cotangents = zip(pull(list(operands[:count]), g), operands[count:], strict=True)
  return [None] * count + [c if ad.is_undefined_primal(t) else None for c, t in cotangents]


def _batch(operands, axes, *, count, push, pull, aval):
  size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
  tangents = [batching.bdim_at_front(t, axis, size) for t, axis in zip(operands[count:], axes[count:], strict=True)]
  over = lambda function: jax.vmap(function, (list(axes[:count]), 0))
  aval = core.unmapped_aval(size, 0, aval)
  return _bind(list(operands[:count]), tangents, push=over(push), pull=over(pull), aval=aval), 0


mlir.register_lowering(_derivative_p, mlir.lower_fun(_run, multiple_results=False))
ad.primitive_jvps[_derivative_p] = _jvp
ad.primitive_transposes[_derivative_p] = _transpose
batching.primitive_batchers[_derivative_p] = _batch
