"""The table of preconditioners: equal accuracy, checked against a dense solve, on a problem of a second."""

import jax.numpy as jnp
import numpy as np
import optax

import hfopt
from experiments.benchmarks import preconditioning
from experiments.benchmarks.preconditioning import Case


def _tiny() -> Case:
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(60, 8)) * np.geomspace(0.03, 30, 8)).astype(np.float32)
    targets = (inputs @ rng.normal(size=8) + rng.normal(size=60)).astype(np.float32)
    objective = hfopt.Objective(lambda w, x: x @ w, optax.l2_loss)
    return Case("tiny", objective, jnp.zeros(8), (inputs, targets), damping=1e-3, steps=0)


def test_every_preconditioner_has_a_row_and_the_best_saves_half(monkeypatch, capsys):
    chosen = {name: preconditioning.CHOICES[name] for name in ("none", "squared gradients, 1", "Nyström 32")}
    monkeypatch.setattr(preconditioning, "CHOICES", chosen)
    rows = preconditioning.rows((_tiny,))
    assert [row["preconditioner"] for row in rows] == list(chosen)
    assert [row["setup_products"] for row in rows] == [0, 1, 8]
    assert max(row["fewer"] for row in rows) >= 2
    preconditioning.print_table(rows, "here")
    printed = capsys.readouterr().out
    assert all(name in printed for name in chosen)


def test_the_minimum_is_that_of_a_dense_solve():
    case = _tiny()
    inputs, targets = (part.astype(np.float64) for part in case.batch)
    matrix, rhs = inputs.T @ inputs / 60 + 1e-3 * np.eye(8), inputs.T @ targets / 60
    expected = -0.5 * rhs @ np.linalg.solve(matrix, rhs)
    np.testing.assert_allclose(preconditioning._minimum(case, case.params), expected, rtol=1e-6)
