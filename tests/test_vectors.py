"""Packed vectors are the trees they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfopt import vectors
from hfopt.vectors import Packing, norm, norms, vdot


@pytest.fixture
def tree(monkeypatch):
    """Large leaves, small ones of two dtypes, a scalar, an empty one, and a dtype of which there is one only."""
    monkeypatch.setattr(vectors, "_SMALL", 6)
    draw = iter(jax.random.split(jax.random.key(0), 7))
    leaf = lambda shape, dtype: jax.random.normal(next(draw), shape).astype(dtype)  # noqa: E731
    return {
        "large": leaf((3, 4), jnp.float32),
        "small": [leaf((2, 3), jnp.float32), leaf((5,), jnp.float32), leaf((), jnp.float32), leaf((0,), jnp.float32)],
        "wide": (leaf((2,), jnp.float64),),
        "narrow": leaf((2, 2), jnp.bfloat16),
    }


def test_packing_is_undone_by_unpacking(tree):
    packing = Packing.of(tree)
    packed = packing.pack(tree)
    assert sorted(x.size for x in packed) == [2, 4, 12, 12]  # 6 + 5 + 1 + 0 of the small ones are one
    unpacked = packing.unpack(packed)
    assert jax.tree.structure(unpacked) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(unpacked), jax.tree.leaves(tree), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


def test_stacks_of_packed_vectors_unpack_leaf_by_leaf(tree):
    packing = Packing.of(tree)
    stacks = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), packing.pack(tree))
    second = jax.tree.map(lambda x: x[1], jax.vmap(packing.unpack)(stacks))
    expected = jax.tree.map(lambda x: 2 * x, tree)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), second, expected)


def test_a_linear_map_on_trees_is_one_on_packed_vectors(tree):
    packing = Packing.of(tree)
    doubled = packing.unpack(packing.linear(lambda t: jax.tree.map(lambda x: 2 * x, t))(packing.pack(tree)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), 2 * np.asarray(b)), doubled, tree)


def test_inner_products_are_those_of_the_flattened_trees(tree):
    tree = {key: tree[key] for key in ("large", "small", "narrow")}  # strict promotion adds no float64 to a float32
    other = jax.tree.map(lambda x: jnp.cos(x), tree)
    flat = lambda t: np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)])  # noqa: E731
    assert vdot(tree, other).dtype == jnp.float32
    assert float(vdot(tree, other)) == pytest.approx(flat(tree) @ flat(other), rel=1e-6)
    assert float(norm(tree)) == pytest.approx(np.linalg.norm(flat(tree)), rel=1e-6)


def test_leaves_that_an_explicit_sharding_splits_are_not_joined():
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    split = jax.device_put(jnp.ones(4), jax.sharding.NamedSharding(mesh, jax.P("rows")))
    packing = Packing.of([split, jnp.ones(2), jnp.ones(3)])
    assert packing.large == (0,)
    assert packing.small == ((1, 2),)


@pytest.mark.float32
@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1.0, 1e20, 1e37])
def test_norms_neither_under_nor_overflow(scale):
    tree = {"a": scale * jnp.arange(1.0, 5.0), "b": scale * jnp.ones((2, 2)), "c": jnp.zeros(0)}
    wide = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
    assert norm(tree) == pytest.approx(np.linalg.norm(wide), rel=1e-6)
    rows = jnp.stack([tree["a"], 0 * tree["a"]])
    np.testing.assert_allclose(norms(rows, axis=1), np.linalg.norm(np.asarray(rows, np.float64), axis=1), rtol=1e-6)
    assert norms(rows) == pytest.approx(np.linalg.norm(np.asarray(rows, np.float64)), rel=1e-6)


def test_norms_of_what_is_not_finite_or_nothing():
    assert norm({"a": jnp.array([jnp.inf, 1.0])}) == jnp.inf
    assert jnp.isnan(norm([jnp.array([jnp.nan, 1.0]), jnp.ones(2)]))
    assert norm({"a": jnp.zeros(3)}) == norm({"a": jnp.zeros(0)}) == 0
    assert norm({"a": jnp.ones(4, jnp.bfloat16), "b": jnp.ones(5)}) == 3


def test_a_norm_rounds_as_without_scaling():
    x = jax.random.normal(jax.random.key(0), (1000,))
    assert norm(x) == jnp.sqrt(vdot(x, x))
