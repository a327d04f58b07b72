"""The equations: the operator of the network, the points, and the metric."""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from experiments.problems.physics import EQUATIONS, Equation, build_physics, initial_network, network
from experiments.problems.problem import Params, Problem
from experiments.settings.problem import Physics
from tests.loops import train_step

NAMES = sorted(EQUATIONS)


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def settings(equation: str, **changes: object) -> Physics:
    given = {"family": "physics", "equation": equation, "hidden": (6, 5), "points": 40, "boundary_points": 24}
    return Physics(**(given | changes))


def perturbed(problem: Problem) -> Params:
    """Initial parameters with biases away from zero."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape), problem.init(0)
    )


def evaluated(equation: Equation, params: Params, points: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """The network's values and L of it at the points."""
    return jax.jit(lambda params, points: network(params, points, equation.second, equation.first))(params, points)


def differentiated_twice(
    function: Callable[[jax.Array], jax.Array], equation: Equation, points: np.ndarray
) -> jax.Array:
    """L of a function of one point, by JAX's Hessian and gradient at every point."""

    @jax.jit
    @jax.vmap
    def applied(point: jax.Array) -> jax.Array:
        second, first = jnp.array(equation.second), jnp.array(equation.first)
        return jnp.diag(jax.hessian(function)(point)) @ second + jax.grad(function)(point) @ first

    return applied(points)


@pytest.mark.parametrize("name", NAMES)
def test_operator_agrees_with_differentiating_the_network_twice(name: str) -> None:
    equation, problem = EQUATIONS[name], build_physics(settings(name))
    params, points = perturbed(problem), problem.dataset.train.inputs["points"]

    def u(point: jax.Array) -> jax.Array:
        hidden = jnp.tanh(point @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
        hidden = jnp.tanh(hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"])
        return (hidden @ params["dense_2"]["kernel"] + params["dense_2"]["bias"])[0]

    value, applied = evaluated(equation, params, points)

    np.testing.assert_allclose(value, jax.jit(jax.vmap(u))(points), atol=1e-13)
    np.testing.assert_allclose(applied, differentiated_twice(u, equation, points), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_exact_solution_solves_the_equation(name: str) -> None:
    equation = EQUATIONS[name]
    points = np.random.default_rng(0).uniform(size=(50, len(equation.first)))
    applied = differentiated_twice(lambda point: equation.solution(point[None])[0], equation, points)
    np.testing.assert_allclose(applied, equation.source(points), atol=1e-11)


def test_mean_squares_of_the_solutions_are_their_integrals() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(20)
    nodes, weights = (nodes + 1) / 2, weights / 2
    for name in ("poisson2d", "heat"):
        grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2)
        integral = np.outer(weights, weights).ravel() @ np.square(EQUATIONS[name].solution(grid))
        assert EQUATIONS[name].mean_square == pytest.approx(float(integral), rel=1e-12)
    # E (Σ sᵢ)² = Var + mean² for independent sᵢ = sin(πxᵢ).
    mean, square = weights @ np.sin(math.pi * nodes), weights @ np.sin(math.pi * nodes) ** 2
    assert EQUATIONS["poisson5d"].mean_square == pytest.approx(5 * (square - mean**2) + 25 * mean**2, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_objective_is_the_mean_square_inside_plus_the_weighted_mean_square_on_the_boundary(name: str) -> None:
    equation, problem = EQUATIONS[name], build_physics(settings(name, boundary_weight=7.0))
    params, train = perturbed(problem), problem.dataset.train
    points, inside = train.inputs["points"], train.inputs["interior"]
    value, applied = evaluated(equation, params, points)
    residual = applied - equation.source(points)
    gap = value - equation.solution(points)

    outputs = jax.jit(problem.predict)(params, train.inputs)
    objective = problem.loss(outputs, train.targets).mean()

    expected = (residual[inside] ** 2).mean() + 7.0 * (gap[~inside] ** 2).mean()
    assert float(objective) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_points_are_inside_or_on_the_faces_where_data_are_given(name: str) -> None:
    equation, dataset = EQUATIONS[name], build_physics(settings(name)).dataset
    points, inside = dataset.train.inputs["points"], dataset.train.inputs["interior"]
    assert points.dtype == dataset.train.targets.dtype == np.float64
    assert (inside.sum(), (~inside).sum()) == (40, 24)
    assert np.all((points[inside] > 0) & (points[inside] < 1))
    assert np.all((points >= 0) & (points <= 1))
    on_face = np.stack([points[~inside][:, axis] == value for axis, value in equation.faces])
    assert on_face.sum(axis=0).tolist() == [1] * 24
    assert np.ptp(on_face.sum(axis=1)) <= 1
    # Along a face the points spread over all of it, not over a part.
    for axis, row in enumerate(on_face):
        spread = np.delete(points[~inside][row], equation.faces[axis][0], axis=1)
        assert np.all(spread.min(axis=0) < 0.5)
        assert np.all(spread.max(axis=0) > 0.5)
    assert len(dataset.test) == 1024
    assert dataset.test.inputs["interior"].all()


def test_heat_has_no_data_at_the_final_time() -> None:
    train = build_physics(settings("heat")).dataset.train
    assert train.inputs["points"][:, 0].max() < 1


@pytest.mark.parametrize("name", NAMES)
def test_relative_error_is_one_for_the_zero_function(name: str) -> None:
    problem = build_physics(settings(name))
    zero = optax.tree.zeros_like(problem.init(0))
    test = problem.dataset.test
    squares = jax.jit(problem.metric.measure)(zero, test.inputs, test.targets)
    assert squares.shape == (1024,)
    assert problem.metric.finish(float(squares.mean())) == pytest.approx(1, rel=0.01)


def test_relative_error_is_the_distance_from_the_solution_over_its_norm() -> None:
    problem = build_physics(settings("poisson2d"))
    params, test = perturbed(problem), problem.dataset.test
    points = test.inputs["points"]
    value, _ = evaluated(EQUATIONS["poisson2d"], params, points)
    solution = np.sin(math.pi * points[:, 0]) * np.sin(math.pi * points[:, 1])
    expected = np.linalg.norm(value - solution) / np.linalg.norm(solution)
    measured = problem.metric.finish(float(jax.jit(problem.metric.measure)(params, test.inputs, test.targets).mean()))
    assert measured == pytest.approx(expected, rel=1e-3)  # the norm by quadrature here, in closed form there


def test_initial_parameters_are_a_function_of_the_seed_with_glorots_variance() -> None:
    params, again, other = (initial_network((200, 300, 1), seed) for seed in (3, 3, 4))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, again))
    assert not np.array_equal(params["dense_0"]["kernel"], other["dense_0"]["kernel"])
    assert float(jnp.var(params["dense_0"]["kernel"])) == pytest.approx(2 / 500, rel=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float64")}


@pytest.mark.slow
def test_hessian_free_solves_the_heat_equation_to_a_few_thousandths() -> None:
    problem = build_physics(settings("heat", hidden=(32,), points=400, boundary_points=90))
    batch = jax.device_put((problem.dataset.train.inputs, problem.dataset.train.targets))
    objective, tx = hfopt.Objective(problem.predict, problem.loss), hfopt.hessian_free()

    @jax.jit
    def steps(params: object) -> object:
        step = lambda _, carry: train_step(tx, objective, *carry, batch)[:2]  # noqa: E731
        return jax.lax.fori_loop(0, 300, step, (params, tx.init(params)))[0]

    test = problem.dataset.test
    squares = problem.metric.measure(steps(problem.init(0)), test.inputs, test.targets)
    assert problem.metric.finish(float(squares.mean())) < 2e-3
