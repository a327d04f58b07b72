"""`python -m experiments bench convergence`: quadratic convergence of Newton's method, against scikit-learn.

L2-regularised logistic regression, f(w, b) = ‖w‖² / (2CN) + mean over examples of the cross-entropy, is convex, and its
Gauss-Newton matrix is its Hessian. `hessian_free` with tight CG and next to no damping is then Newton's method: once
close, ‖g_k+1‖ / ‖g_k‖² stays bounded, until g is rounding error. f* comes from an algorithm that shares nothing with
this one: scikit-learn's LogisticRegression. All in float64.
"""

import warnings
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import hfopt

TOLERANCE = 1e-8  # on the relative difference of the two objectives
_MAX_STEPS = 30


class Step(NamedTuple):
    """Where a step of Newton's method led: f and ‖g‖ there, and the CG iterations it took; 0 for the start."""

    value: float
    gradient_norm: float
    cg_steps: int


class Convergence(NamedTuple):
    """The path of Newton's method, and f at scikit-learn's solution."""

    steps: list[Step]
    reference: float

    @property
    def relative_difference(self) -> float:
        """(f − f*) / f* at the end."""
        return (self.steps[-1].value - self.reference) / self.reference

    def ratios(self) -> list[float]:
        """‖g_k+1‖ / ‖g_k‖² for every step."""
        norms = [step.gradient_norm for step in self.steps]
        return [after / before**2 for before, after in pairwise(norms)]


def main(C: float = 1.0) -> int:
    """Prints the table of the steps; the exit code is 1 if the two optima differ. C: as in scikit-learn."""
    found = convergence(C)
    _print(found)
    return 0 if abs(found.relative_difference) <= TOLERANCE else 1


def convergence(C: float = 1.0) -> Convergence:
    """Newton's method and scikit-learn on the breast cancer data (569 examples, 30 standardised features)."""
    data = load_breast_cancer()
    inputs = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    targets = data.target.astype(np.float64)
    with jax.enable_x64(True):
        objective = hfopt.Objective(
            lambda params, x: x @ params["weights"] + params["intercept"],
            optax.losses.sigmoid_binary_cross_entropy,
            l2=1 / (C * len(inputs)),
            l2_mask={"weights": True, "intercept": False},
        )
        value_fn = objective.bind((jnp.asarray(inputs), jnp.asarray(targets)))
        return Convergence(_newton(value_fn, inputs.shape[1]), float(value_fn(_reference(inputs, targets, C))))


def _newton(value_fn: hfopt.ValueFn, features: int) -> list[Step]:
    """Newton's method from zero until a step no longer lowers f."""
    tx = hfopt.hessian_free(
        solver=hfopt.cg(400, hfopt.relative_residual(1e-13)),
        damping=hfopt.constant_damping(1e-14),
        trust_region=None,
        line_search=hfopt.armijo(),
        warm_start=None,
    )

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, Any, Any]:
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state, value, optax.tree.norm(grad)

    params = {"weights": jnp.zeros(features), "intercept": jnp.zeros(())}
    state = tx.init(params)
    steps: list[Step] = []
    while len(steps) <= _MAX_STEPS:
        cg_steps = int(state.info.cg_steps)
        params, state, value, norm = step(params, state)
        steps.append(Step(float(value), float(norm), cg_steps))
        if not state.info.new_loss < value:
            break
    return steps


def _reference(inputs: np.ndarray, targets: np.ndarray, C: float) -> Any:
    model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-14, max_iter=100)
    with warnings.catch_warnings():
        # It warns that it stopped short of its tolerance, which is below the rounding of its gradient.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs, targets)
    return {"weights": jnp.asarray(model.coef_[0]), "intercept": jnp.asarray(model.intercept_[0])}


def _print(found: Convergence) -> None:
    caption = f"f* = {found.reference:.12g}, from scikit-learn's LogisticRegression"
    table = Table(title="Newton's method on logistic regression", caption=caption, box=box.SIMPLE_HEAD)
    for name in ("step", "f − f*", "‖g‖", "‖g‖ / last ‖g‖²", "CG iterations"):
        table.add_column(name, justify="right")
    for number, (step, ratio) in enumerate(zip(found.steps, [None, *found.ratios()], strict=True)):
        table.add_row(
            str(number),
            f"{step.value - found.reference:.2e}",
            f"{step.gradient_norm:.2e}",
            "" if ratio is None else f"{ratio:.3g}",
            "" if ratio is None else str(step.cg_steps),
        )
    console = Console()
    console.print(table)
    verdict = "met" if abs(found.relative_difference) <= TOLERANCE else "MISSED"
    console.print(
        f"relative difference of the objectives: {found.relative_difference:.1e} (target ≤ {TOLERANCE:g}: {verdict})",
        highlight=False,
    )
