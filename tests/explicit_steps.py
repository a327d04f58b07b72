"""Steps on a mesh with explicit axes and without a mesh, as JSON: ``python -m tests.explicit_steps``.

A program of its own, since JAX fixes the number of simulated devices when it starts.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import hfopt

ROWS = 16
DIRECTION = optax.chain(hfopt.scale_by_gauss_newton(), optax.scale_by_learning_rate(0.3))
# Few iterations: ten of them amplify rounding a million times.
SHORT = hfopt.cg(max_steps=4)
TRANSFORMATIONS = {
    "default": (hfopt.hessian_free(solver=SHORT), {}),
    "chunked": (hfopt.hessian_free(solver=SHORT), {"chunk_size": 8}),
    "unevenly chunked": (hfopt.hessian_free(solver=SHORT), {"chunk_size": 6, "memory": "recompute"}),
    "by the fisher matrix": (hfopt.hessian_free(solver=SHORT, curvature=hfopt.fisher), {}),
    "by the hessian": (hfopt.hessian_free(solver=SHORT, curvature=hfopt.hessian), {}),
    "martens2010": (hfopt.presets.martens2010(1.0), {}),
    "stochastic": (hfopt.presets.stochastic(10), {}),
    "direction": (DIRECTION, {}),
}


def predict(p: Any, x: Any) -> jax.Array:
    return jnp.tanh(x @ p["a"]) @ p["c"] + p["b"]


def problem(mesh: jax.sharding.Mesh | None, weighted: bool) -> tuple[Any, Any]:
    """Parameters and batch; the rows split over ``mesh``."""
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 5)), "b": np.zeros(3), "c": rng.normal(size=(5, 3))}
    batch: tuple[Any, ...] = (rng.normal(size=(ROWS, 4)), rng.integers(3, size=ROWS))
    if weighted:
        batch[0][3] = np.nan
        batch = (*batch, np.where(np.arange(ROWS) == 3, 0, np.arange(1.0, ROWS + 1)))
    if mesh is None:
        return params, batch
    place = lambda tree, *spec: jax.device_put(tree, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
    return place(params), place(batch, "data")


def objective() -> hfopt.Objective:
    return hfopt.Objective(predict, optax.losses.softmax_cross_entropy_with_integer_labels, l2=1e-2)


def trained(name: str, mesh: jax.sharding.Mesh | None) -> list[float]:
    """The parameters after three steps."""
    tx, options = TRANSFORMATIONS[name]
    params, batch = problem(mesh, weighted=name == "default")
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        value_fn = objective().bind(batch, **options)
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state, batch)
    return np.asarray(ravel_pytree(params)[0]).tolist()


def products(mesh: jax.sharding.Mesh | None) -> dict[str, list[float]]:
    """The matrices of all operators, times a vector."""
    params, batch = problem(mesh, weighted=True)
    f, key = objective().bind(batch), jax.random.key(0)
    operators = {
        "gauss_newton": hfopt.gauss_newton(f, params),
        "hessian": hfopt.hessian(f, params),
        "residual_hessian": hfopt.residual_hessian(f, params),
        "fisher": hfopt.fisher(f, params, key),
        "exact fisher": hfopt.fisher(f, params, samples="exact"),
        "empirical_fisher": hfopt.empirical_fisher(f, params),
        "outer_product": hfopt.outer_product(f, params),
    }
    found = {name: np.asarray(ravel_pytree(A @ params)[0]).tolist() for name, A in operators.items()}
    jacobian = hfopt.jacobian(objective().bind(problem(mesh, weighted=False)[1]), params)
    found["jacobian"] = np.asarray(ravel_pytree(jacobian.T @ (jacobian @ params))[0]).tolist()
    found["forms"] = [float(A.quadratic_form(params)) for A in operators.values()]
    return found


def main() -> None:
    report: dict[str, Any] = {"devices": jax.device_count()}
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    with jax.enable_x64(True):
        report["without"] = {name: trained(name, None) for name in TRANSFORMATIONS} | products(None)
        with jax.set_mesh(mesh):
            report["explicit"] = {name: trained(name, mesh) for name in TRANSFORMATIONS} | products(mesh)
            params, batch = problem(mesh, weighted=False)
            report["check"] = [finding.status for finding in hfopt.check(objective().bind(batch), params)]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
