"""Explicit meshes and replicas on one device, where the types of arrays are those that several have."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from tests.cases import Case, slowly
from tests.loops import run

MESH_AXES = ("data",)


def _problem() -> Case:
    x = jax.random.normal(jax.random.key(0), (8, 3))
    params = {"w": jax.random.normal(jax.random.key(1), (3, 2)), "b": jnp.zeros((1, 2))}
    return Case(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), optax.squared_error, params, (x, jnp.sin(x[:, :2])), l2=0.1)


def test_a_step_on_an_explicit_mesh_is_the_step_without_one():
    case, tx = _problem(), hfopt.hessian_free(solver=hfopt.cg(3))
    expected, _, _ = run(tx, case, 2)
    mesh = jax.make_mesh((1,), MESH_AXES)
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    with jax.set_mesh(mesh):
        place = lambda tree, *spec: jax.device_put(tree, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
        split = case._replace(params=place(case.params), batch=place(case.batch, *MESH_AXES))
        assert jax.typeof(split.batch[0]).sharding.spec == jax.P("data", None)
        given, _, _ = run(tx, split, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), given, expected)


@pytest.mark.parametrize("k", [0, 3])
def test_the_metric_of_the_gradients_takes_parameters_that_are_split(k):
    """It is worked on whole, and the step lies where the parameters do."""
    x = jax.random.normal(jax.random.key(0), (8, 4))
    case = Case(lambda p, x: jnp.tanh(x @ p), optax.squared_error, jnp.ones((4, 2)), (x, x[:, :2]), l2=0.1)
    options = {"preconditioner": None, "damping": hfopt.constant_damping(10.0), "momentum": 0.5}
    tx = hfopt.hessian_free(solver=hfopt.cg(k), metric=hfopt.kronecker(), trust_region=None, **options)
    expected, _, _ = run(tx, case, 3)
    mesh = jax.make_mesh((1, 1), ("data", "model"))
    with jax.set_mesh(mesh):
        place = lambda tree, *spec: jax.device_put(tree, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
        split = case._replace(params=place(case.params, None, "model"), batch=place(case.batch, "data", None))
        given, _, _ = run(tx, split, 3)
    np.testing.assert_allclose(given, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [hfopt.hessian_free, *map(slowly, (lambda: hfopt.presets.martens2010(1.0), lambda: hfopt.presets.stochastic(9)))],
)
def test_parameters_may_be_split_by_an_explicit_axis(make):
    """Every parameter acts on a column of its own, and lies with it."""
    x = jax.random.normal(jax.random.key(0), (8, 4))
    case = Case(lambda p, x: jnp.tanh(x * p), optax.squared_error, jnp.ones((1, 4)), (x, jnp.sin(3 * x)), l2=0.1)
    expected, _, _ = run(make(), case, 2)
    mesh = jax.make_mesh((1, 1), ("data", "model"))
    with jax.set_mesh(mesh):
        place = lambda tree, *spec: jax.device_put(tree, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
        split = case._replace(params=place(case.params, None, "model"), batch=place(case.batch, "data", "model"))
        given, state, _ = run(make(), split, 2)
        assert jax.typeof(state.solution).sharding.spec == jax.P(None, "model")
    np.testing.assert_allclose(given, expected, rtol=1e-8)


@pytest.mark.parametrize("make", [hfopt.hessian_free, hfopt.scale_by_gauss_newton])
@pytest.mark.parametrize("way", ["shard_map", "shard_map, unchecked", "pmap"])
def test_a_step_of_replicas_is_refused_with_the_way_to_write_it(make, way):
    """Only the parts of the batch are known there: a mean of the gradients makes no common step."""
    case, tx = _problem(), make()

    def step(params, batch):
        value_fn = case.objective.bind(batch)
        value, grad = jax.lax.pmean(jax.value_and_grad(value_fn)(params), "data")
        return tx.update(grad, tx.init(params), params, value=value, value_fn=value_fn)[0]

    if way == "pmap":
        batch = jax.tree.map(lambda x: x[None], case.batch)
        mapped = jax.pmap(step, axis_name="data", in_axes=(None, 0))
    else:
        batch, mesh = case.batch, jax.make_mesh((1,), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,))
        specs = {"in_specs": (jax.P(), jax.P("data")), "out_specs": jax.P()}
        mapped = jax.shard_map(step, mesh=mesh, check_vma=way == "shard_map", **specs)
    with pytest.raises(ValueError, match=r"inside shard_map or pmap over 'data'.*jax\.jit\(step\).*shard_batch"):
        jax.jit(mapped)(case.params, batch)


def test_products_of_replicas_may_be_averaged():
    """A product is a mean over examples, so that the mean of those of equal parts is that of the whole."""
    case = _problem()
    mesh = jax.make_mesh((1,), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,))
    product = lambda p, b: jax.lax.pmean(hfopt.gauss_newton(case.objective.bind(b), p) @ p, "data")  # noqa: E731
    specs = {"in_specs": (jax.P(), jax.P("data")), "out_specs": jax.P(), "check_vma": False}
    given = jax.jit(jax.shard_map(product, mesh=mesh, **specs))(case.params, case.batch)
    expected = hfopt.gauss_newton(case.objective.bind(case.batch), case.params) @ case.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), given, expected)


def test_models_of_their_own_are_mapped():
    """What the refusal advises: one step, mapped over the models."""
    case, tx = _problem(), hfopt.hessian_free(solver=hfopt.cg(3))

    def step(params):
        value_fn = case.objective.bind(case.batch)
        value, grad = jax.value_and_grad(value_fn)(params)
        return tx.update(grad, tx.init(params), params, value=value, value_fn=value_fn)[0]

    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), case.params)
    updates = jax.jit(jax.vmap(step))(many)
    for i, scale in enumerate((1, 2)):
        one = jax.jit(step)(jax.tree.map(lambda p, s=scale: s * p, case.params))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-7), updates, one)
