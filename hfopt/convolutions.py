"""Traced programs: convolutions that stay fast inside loops on CPU.

XLA:CPU gives a convolution its fast layout only in the entry computation. Inside ``while``, ``scan`` and ``cond`` the
weight-gradient convolution of a CNN runs about a hundred times slower. Written in the layouts NHWC × HWIO → NHWC with
explicit transposes around it, the same convolution takes the fast path everywhere. `canonical` traces a function and
rewrites every convolution it finds, at any depth, in that form: same value, unmodified models.

This is the one module that works on jaxprs and so leans on ``jax.extend``; the rest of the package uses public
``jax`` alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

_CONVOLUTION = "conv_general_dilated"
# The bodies of these name mesh axes, so they can only be traced inside their own axis environment: left as they are.
_OPAQUE = frozenset({"shard_map", "pmap", "xla_pmap"})


def specialize(function: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """Trace ``function`` once for arguments shaped like ``examples``; every later call replays the trace.

    On CPU the replayed convolutions are in canonical layout. Replaying also saves tracing a function again at each
    place a step applies it (every CG iteration, the residual at a warm start).

    Take derivatives before, not after: ``specialize(jax.grad(f), x)``. The weight-gradient convolution that autodiff
    would derive from a canonical one is not canonical again.
    """
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(*examples)
    if jax.default_backend() == "cpu" and _holds(_CONVOLUTION, closed.jaxpr):
        closed = _rewrite(closed)
    flat = jaxpr_as_fun(closed)
    out_tree = jax.tree.structure(out_shape)
    return lambda *arguments: jax.tree.unflatten(out_tree, flat(*jax.tree.leaves(arguments)))


@dataclass(frozen=True, eq=False)
class Program:
    """A traced function, equal to every other that computes the same by the same operations.

    ``jax.jit`` compiles it once as a static argument, for however many operators of one shape it is traced.
    """

    closed: ClosedJaxpr
    structure: Any  # of the results

    def __call__(self, captured: list[jax.Array], *arguments: Any) -> Any:
        return jax.tree.unflatten(self.structure, jaxpr_as_fun(self.closed)(*captured, *jax.tree.leaves(arguments)))

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Program) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        # The text has every operation with its parameters, shapes and dtypes, but not the numbers of constants. What it
        # has by an address lives as long as the trace, so that no address stands for two things at a time.
        constants, literals = map(id, _constants(self.closed)), _literals(self.closed.jaxpr)
        return str(self.closed.jaxpr), self.structure, tuple(constants), tuple(literals)


def hoisted(function: Callable[..., Any], *examples: Any) -> tuple[Program, list[jax.Array]]:
    """``function`` as one that takes the arrays it has captured as its first argument, and these arrays."""
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(*examples)
    with_captured = lambda captured, *leaves: jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, captured))(*leaves)  # noqa: E731
    # Traced again, so that what is returned, which may live for long in a cache of compiled programs, holds no array.
    traced = jax.make_jaxpr(with_captured)(list(closed.consts), *jax.tree.leaves(examples))
    return Program(traced, jax.tree.structure(out_shape)), list(closed.consts)


def canonical(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` with its convolutions in canonical layout: `specialize` at each call's own shapes."""
    return lambda *arguments: specialize(function, *arguments)(*arguments)


def lacks_forward_rule(jvp: Callable[..., Any], *examples: Any) -> bool:
    """Whether the linear part that ``jax.linearize`` returned meets a function with only a ``custom_vjp``.

    ``jax.linearize`` accepts such a function, since its result might be transposed; applied, it raises at compile time.
    """
    return _holds("custom_lin", jax.make_jaxpr(jvp)(*examples).jaxpr)


def unaffected(function: Callable[[Any], Any], example: Any) -> Any:
    """Shaped like the results of ``function``: whether one does not depend on the argument, by how it is computed."""
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(example)
    reached = set(closed.jaxpr.invars)
    for equation in closed.jaxpr.eqns:
        if any(not isinstance(atom, Literal) and atom in reached for atom in equation.invars):
            reached.update(equation.outvars)
    free = [isinstance(atom, Literal) or atom not in reached for atom in closed.jaxpr.outvars]
    return jax.tree.unflatten(jax.tree.structure(out_shape), free)


def _rewrite(closed: ClosedJaxpr) -> ClosedJaxpr:
    avals = [variable.aval for variable in closed.jaxpr.invars]
    examples = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]
    return jax.make_jaxpr(partial(_evaluate_rewritten, closed))(*examples)


def _evaluate_rewritten(closed: ClosedJaxpr, *arguments: Any) -> list[Any]:
    jaxpr = closed.jaxpr
    environment = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    environment.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else environment[atom]

    for equation in jaxpr.eqns:
        with equation.ctx.manager:  # the precision and other settings under which it was traced
            results = _bind_rewritten(equation, [read(atom) for atom in equation.invars])
        environment.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind_rewritten(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    primitive, parameters = equation.primitive, equation.params
    if primitive.name == _CONVOLUTION:
        return [_canonical_convolution(*operands, **parameters)]
    if primitive.name not in _OPAQUE:
        parameters = {name: _map_subjaxprs(_rewrite_subjaxpr, value) for name, value in parameters.items()}
    results = primitive.bind(*operands, **primitive.get_bind_params(parameters))
    return results if primitive.multiple_results else [results]


def _canonical_convolution(
    lhs: jax.Array, rhs: jax.Array, *, dimension_numbers: lax.ConvDimensionNumbers, **parameters: Any
) -> jax.Array:
    """The same convolution in N…C × …IO → N…C. Spatial axes keep their order, so strides and paddings hold."""
    (lhs_batch, lhs_feature, *lhs_spatial) = dimension_numbers.lhs_spec
    (rhs_out, rhs_in, *rhs_spatial) = dimension_numbers.rhs_spec
    (out_batch, out_feature, *out_spatial) = dimension_numbers.out_spec
    rank = len(lhs_spatial) + 2
    batch, feature, spatial = 0, rank - 1, tuple(range(1, rank - 1))
    layout = lax.ConvDimensionNumbers(
        lhs_spec=(batch, feature, *spatial),
        rhs_spec=(rank - 1, rank - 2, *range(rank - 2)),
        out_spec=(batch, feature, *spatial),
    )
    result = lax.conv_general_dilated_p.bind(
        lax.transpose(lhs, (lhs_batch, *lhs_spatial, lhs_feature)),
        lax.transpose(rhs, (*rhs_spatial, rhs_in, rhs_out)),
        dimension_numbers=layout,
        **parameters,
    )
    position = {out_batch: batch, out_feature: feature, **dict(zip(out_spatial, spatial, strict=True))}
    return lax.transpose(result, tuple(position[axis] for axis in range(rank)))


def _map_subjaxprs(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply ``function`` to a parameter that is a jaxpr (a loop's body) or a tuple of them (a cond's branches)."""
    if isinstance(value, Jaxpr | ClosedJaxpr):
        return function(value)
    if isinstance(value, tuple) and any(isinstance(entry, Jaxpr | ClosedJaxpr) for entry in value):
        return tuple(_map_subjaxprs(function, entry) for entry in value)
    return value


def _rewrite_subjaxpr(inner: Any) -> Any:
    if not _holds(_CONVOLUTION, inner):
        return inner
    if isinstance(inner, ClosedJaxpr):
        return _rewrite(inner)
    return _rewrite(ClosedJaxpr(inner, ())).jaxpr  # an open jaxpr (checkpoint's) has no constants to lose


def _holds(name: str, jaxpr: Any) -> bool:
    """Whether the primitive called ``name`` is applied anywhere in ``jaxpr``."""
    return any(
        equation.primitive.name == name
        or (equation.primitive.name not in _OPAQUE and any(_holds(name, inner) for inner in _subjaxprs(equation)))
        for equation in jaxpr.eqns
    )


def _subjaxprs(equation: JaxprEqn) -> Iterator[Any]:
    for value in equation.params.values():
        found: list[Any] = []
        _map_subjaxprs(found.append, value)
        yield from found


def _constants(closed: ClosedJaxpr) -> Iterator[Any]:
    """The arrays in a traced function, at any depth."""
    yield from closed.consts
    for equation in closed.jaxpr.eqns:
        for inner in _subjaxprs(equation):
            yield from _constants(inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()))


def _literals(jaxpr: Any) -> Iterator[bytes]:
    """The numbers written into a traced function, at any depth, to their last bit."""
    for equation in jaxpr.eqns:
        yield from (np.asarray(atom.val).tobytes() for atom in equation.invars if isinstance(atom, Literal))
        for inner in _subjaxprs(equation):
            yield from _literals(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
