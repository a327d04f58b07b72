"""Rewritten convolutions: the same values, canonical layouts, at every depth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hfopt.convolutions import canonical, specialize

CANONICAL = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def _layouts(jaxpr) -> list[lax.ConvDimensionNumbers]:
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            found.append(equation.params["dimension_numbers"])
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    found += _layouts(getattr(inner, "jaxpr", inner))
    return found


def _operands(groups: int = 1) -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(0), (4, 9, 8, 4))
    w = jax.random.normal(jax.random.key(1), (3, 2, 4 // groups, 6))
    return x, w


CONVOLUTIONS = {
    "plain": {},
    "strides": {"window_strides": (2, 1)},
    "padding": {"padding": [(2, 1), (0, 3)]},
    "dilation": {"rhs_dilation": (2, 3)},
    "transposed": {"lhs_dilation": (2, 2), "padding": [(1, 1), (1, 1)]},
    "groups": {"feature_group_count": 2},
    "batch groups": {"batch_group_count": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NHWC"), ("HWNC", "IOHW", "CNHW")])
def test_values_are_those_of_the_convolution_and_of_its_gradients(name, layout):
    options = {"window_strides": (1, 1), "padding": "VALID"} | CONVOLUTIONS[name]
    x, w = _operands(options.get("feature_group_count", 1))
    place = lambda array, source, target: jnp.transpose(array, [source.index(axis) for axis in target])  # noqa: E731
    x, w = place(x, "NHWC", layout[0]), place(w, "HWIO", layout[1])
    convolve = lambda x, w: lax.conv_general_dilated(x, w, dimension_numbers=layout, **options)  # noqa: E731
    gradients = jax.grad(lambda x, w: jnp.square(convolve(x, w)).sum(), argnums=(0, 1))
    for function in (convolve, gradients):
        expected, actual = function(x, w), canonical(function)(x, w)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11), actual, expected)
        layouts = _layouts(jax.make_jaxpr(canonical(function))(x, w).jaxpr)
        assert layouts
        assert set(layouts) == {CANONICAL}


def _convolve(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


def _scan(x, w):
    return lax.scan(lambda c, _: (_convolve(c, w), c.sum()), x, None, length=2)


def _while(x, w):
    return lax.while_loop(lambda c: jnp.abs(c).max() < 1e3, lambda c: _convolve(c, w), x)


@jax.custom_jvp
def _with_own_rule(x, w):
    return _convolve(x, w)


@_with_own_rule.defjvp
def _own_rule(primals, tangents):
    return _with_own_rule(*primals), sum(
        _convolve(*pair) for pair in ((tangents[0], primals[1]), (primals[0], tangents[1]))
    )


DEPTHS = {
    "jit": lambda x, w: jax.jit(_convolve)(x, w),
    "scan": _scan,
    "while": _while,
    "cond": lambda x, w: lax.cond(x.sum() > 0, _convolve, lambda x, w: -_convolve(x, w), x, w),
    "map": lambda x, w: lax.map(lambda row: _convolve(row[None], w)[0], x),
    "checkpoint in scan": lambda x, w: lax.scan(
        lambda c, _: (jax.checkpoint(_convolve)(c, w), None), x, None, length=2
    )[0],
    "custom_jvp": _with_own_rule,
    "gradient of checkpointed scan": jax.grad(lambda x, w: jnp.square(_scan(x, w)[0]).sum(), argnums=1),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_reaches_inside_nested_functions(name):
    function = DEPTHS[name]
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 5))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 3))
    replay = specialize(function, x, w)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11), replay(x, w), function(x, w))
    layouts = _layouts(jax.make_jaxpr(replay)(x, w).jaxpr)
    assert set(layouts) == {CANONICAL}
    assert len(layouts) == len(_layouts(jax.make_jaxpr(function)(x, w).jaxpr))


def test_a_function_without_convolutions_is_replayed_as_it_is():
    function = lambda x: {"sum": x.sum(), "same": x}  # noqa: E731
    x = jnp.arange(3.0)
    assert str(jax.make_jaxpr(specialize(function, x))(x)) == str(jax.make_jaxpr(function)(x))
