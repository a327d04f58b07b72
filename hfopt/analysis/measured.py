"""One compiled program for all that the checks want to know of the model's derivatives and of products with G."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hfopt.curvature.gauss_newton import gauss_newton
from hfopt.curvature.linearize import linearize
from hfopt.objective import ValueFn
from hfopt.placement import placed_as
from hfopt.vectors import vdot

_FEW, _MANY = 2, 10  # products


class Forms(NamedTuple):
    """Numbers that the algebra ties together, for random u, v like the parameters and w like the outputs."""

    ugv: Any
    vgu: Any
    ugu: Any
    vgv: Any
    quadratic: Any  # uᵀGu by one jvp
    wjv: Any  # wᵀ(J v)
    vjw: Any  # vᵀ(Jᵀ w)


class Measured(NamedTuple):
    """What one program shows."""

    forms: Forms
    used: Any  # like the parameters: whether the outputs of the first chunk depend on them
    outputs: Any  # of the first chunk, in coordinates
    others: Any  # see `hfopt.outputs`
    seconds: float  # a product
    memory: int | None  # bytes of temporaries; None: the backend does not tell


def measured(value_fn: ValueFn, params: Any, inputs: Any, key: jax.Array) -> Measured:
    """Compile and run it; ``inputs`` are those of the first chunk."""

    def program(params: Any, f: ValueFn, inputs: Any, u: Any, v: Any, key: jax.Array, turns: jax.Array) -> Any:
        operator = gauss_newton(f, params)

        def turn(i: jax.Array, products: tuple[Any, Any]) -> tuple[Any, Any]:
            even = i % 2 == 0
            product = operator @ optax.tree.where(even, u, v)
            return optax.tree.where(even, product, products[0]), optax.tree.where(even, products[1], product)

        # A loop of as many turns as are asked for: one product is compiled, and timed by their number.
        gu, gv = jax.lax.fori_loop(0, turns, turn, (optax.tree.zeros_like(params), optax.tree.zeros_like(params)))
        objective = f.objective.for_curvature
        with objective.matmul_precision():
            model = linearize(lambda p: objective.predict(p, inputs), params)
            w = normal(key, model.outputs)
            jv, jw = model.jvp(v), model.vjp(w)
        forms = Forms(
            vdot(u, gv), vdot(v, gu), vdot(u, gu), vdot(v, gv), operator.quadratic_form(u), vdot(w, jv), vdot(v, jw)
        )
        return forms, jax.tree.map(lambda x: jnp.any(x != 0), jw), model.outputs, model.others

    first, second, third = jax.random.split(key, 3)
    arguments = params, value_fn, inputs, draw(first, params), draw(second, params), third
    compiled = jax.jit(program).lower(*arguments, jnp.int32(_FEW)).compile()
    few, many = (seconds(partial(compiled, *arguments, jnp.int32(turns))) for turns in (_FEW, _MANY))
    memory = compiled.memory_analysis()
    used = None if memory is None else memory.temp_size_in_bytes
    # Where the clock does not tell them apart, all of it is the products'.
    product = (many - few) / (_MANY - _FEW) if many > few else many / _MANY
    forms, acting, outputs, others = compiled(*arguments, jnp.int32(_FEW))
    return Measured(forms, acting, outputs, others, product, used)


def normal(key: jax.Array, like: Any) -> Any:
    """A tree of normal deviates, drawn at once: with a generator for every leaf these take longest to compile."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([jnp.size(leaf) for leaf in leaves])
    drawn = jax.random.normal(key, (ends[-1],), jnp.float32) if leaves else jnp.zeros(0)
    parts = jnp.split(drawn, ends[:-1])
    shaped = [x.reshape(jnp.shape(z)).astype(jnp.result_type(z)) for x, z in zip(parts, leaves, strict=False)]
    return placed_as(jax.tree.unflatten(structure, shaped), like)


draw = jax.jit(normal)  # one program for all trees of one structure


def seconds(program: Callable[[], Any]) -> float:
    """The least of two, after a first call."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(program())
        taken.append(time.perf_counter() - began)
    return float(np.min(taken[1:]))
