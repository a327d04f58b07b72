"""Steps without CG iterations: decided step by step, and free of everything that the curvature costs."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hfopt
from hfopt.control.trust_region import Unbounded
from tests.cases import CASES
from tests.loops import train_step

LAMBDA = 0.3


@dataclass(frozen=True)
class EveryOther(Unbounded):
    """No CG iterations at every other step."""

    may_skip: ClassVar[bool] = True

    def init(self, params: Any, dtype: Any) -> Any:
        return jnp.zeros((), jnp.int32)

    def cg_steps(self, state: Any) -> Any:
        return 3 * (state % 2)

    def update(self, state: Any, params: Any, outcome: Any) -> Any:
        return state + 1


def test_iterations_are_skipped_step_by_step_also_under_scan():
    case = CASES["mlp-softmax-integer"]()
    options = {
        "preconditioner": None,
        "metric": hfopt.kronecker(),
        "damping": hfopt.constant_damping(LAMBDA),
        "line_search": hfopt.fixed_step(),
        "warm_start": None,
        "momentum": 0.5,
    }
    skipping = hfopt.hessian_free(solver=hfopt.cg(3, stop=()), trust_region=EveryOther(), **options)

    @jax.jit
    def scanned(params):
        step = lambda carry, _: (lambda p, s, v: ((p, s), s.info))(  # noqa: E731
            *train_step(skipping, case.objective, *carry, case.batch)
        )
        return jax.lax.scan(step, (params, skipping.init(params)), length=4)

    (_, state), info = scanned(case.params)
    assert info.cg_steps.tolist() == [0, 3, 0, 3]
    assert info.products.tolist() == [0, 3 + 4, 0, 3 + 1]  # eight probes without a forward pass, then one
    assert [hfopt.Stop(int(stop)).name for stop in info.cg_stop] == ["NONE", "CAP", "NONE", "CAP"]
    assert int(state.metric.probed) == 2

    never = hfopt.hessian_free(solver=hfopt.cg(0), trust_region=None, **options)
    first, second = (
        jax.jit(partial(train_step, tx, case.objective))(case.params, tx.init(case.params), case.batch)[0]
        for tx in (never, skipping)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), first, second)


def _products_over(jaxpr, rows):
    """How many matrix products of a program have an operand with so many rows, conditionals counted by branch."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            count += any(rows in v.aval.shape and v.aval.ndim == 2 for v in equation.invars)
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    count += _products_over(getattr(inner, "jaxpr", inner), rows)
    return count


def test_without_iterations_nothing_of_the_curvature_is_computed():
    """Counted in the program: two layers are 2 products forwards and 3 backwards; 97 examples, and a part of 29."""
    objective = hfopt.Objective(lambda p, x: jnp.tanh(x @ p[0]) @ p[1], optax.squared_error)
    params = [jnp.ones((4, 3)), jnp.ones((3, 2))]
    batch, part = ((jnp.ones((n, 4)), jnp.ones((n, 2))) for n in (97, 29))
    tx = hfopt.presets.soap(10)

    def step(params, state):
        value_fn = objective.bind(batch, curvature_batch=part, evaluation_batch=part)
        value, grad = jax.value_and_grad(value_fn)(params)
        return tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)

    program = jax.make_jaxpr(step)(params, tx.init(params)).jaxpr
    assert _products_over(program, 97) == 5  # the gradient
    assert _products_over(program, 29) == 2 * 2  # f before and after
