"""When the Hessian, the Fisher and the empirical Fisher agree with the Gauss-Newton matrix, and when they do not."""

import io
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import hfopt
from experiments.__main__ import main
from experiments.laboratory import approximation_figures as figures
from experiments.laboratory import approximations, matrices
from experiments.laboratory.approximations import LIMIT, Claim
from experiments.laboratory.matrices import (
    BLOCK,
    against_size,
    along_training,
    growing_weights,
    identities,
    settings,
    slope,
)

SIZES = (BLOCK, 4 * BLOCK, 16 * BLOCK)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def of(wide):
    return settings(jax.random.key(0))


@pytest.fixture(scope="module")
def sweeps(of):
    names = [name for name in of if name not in ("no noise", "labels without noise")]
    return {name: against_size(of[name], KEY, SIZES, repeats=5) for name in names}


def exponent(distances):
    return slope(SIZES, distances)


@pytest.mark.slow
@pytest.mark.slow
def test_the_identities_hold_exactly(of):
    for setting in of.values():
        errors = identities(setting, KEY)
        assert max(errors.values()) < 1e-10, (setting.name, errors)


def test_the_trace_of_the_empirical_fisher_is_the_mean_square_of_the_gradients(of):
    setting = of["labels from the model"]
    blocks = [setting.draw(jax.random.fold_in(KEY, i), BLOCK) for i in range(3)]
    x, y = jax.tree.map(lambda *parts: jnp.concatenate(parts), *blocks)
    one = lambda params, x, y: setting.objective.loss(matrices.predict(params, x), y)  # noqa: E731
    gradients = jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))(setting.params, x, y)
    found = matrices.mean_over(blocks, ("tr G", "tr EF"), setting, KEY)
    np.testing.assert_allclose(found["tr EF"], optax.tree.norm(gradients, squared=True) / len(x), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["matched noise", "labels from the model"])
def test_in_a_model_that_is_right_all_agree_as_examples_grow(sweeps, name):
    found = sweeps[name]
    for distances in (found.hessian, found.fisher, found.empirical):
        assert exponent(distances) == pytest.approx(-0.5, abs=0.1)
    assert found.trace_ratio[-1] == pytest.approx(1, abs=0.05)
    assert found.cosine[-1] > 0.99


@pytest.mark.slow
def test_another_unit_of_the_noise_scales_the_empirical_fisher(sweeps):
    found = sweeps["noise of variance 4"]
    assert found.trace_ratio[-1] == pytest.approx(4, rel=0.05)
    assert found.cosine[-1] > 0.99
    assert found.empirical[-1] == pytest.approx(3, rel=0.1)
    assert exponent(found.in_unit) == pytest.approx(-0.5, abs=0.1)
    assert exponent(found.hessian) == pytest.approx(-0.5, abs=0.1)


@pytest.mark.slow
def test_noise_that_depends_on_the_inputs_turns_the_empirical_fisher(sweeps):
    found = sweeps["noise of variance x₁²"]
    assert found.empirical[-1] > 0.1
    assert exponent(found.empirical) > -0.15
    assert found.cosine[-1] < 0.95
    assert exponent(found.hessian) == pytest.approx(-0.5, abs=0.1)  # E[r|x] is still 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a wrong model", "an overconfident model"])
def test_in_a_model_that_is_wrong_neither_agrees(sweeps, name):
    found = sweeps[name]
    for distances in (found.hessian, found.empirical):
        assert distances[-1] > 2 * found.fisher[-1]
        assert exponent(distances) > -0.25  # nearer to a plateau than to −0.5; the sampling error still falls
    assert exponent(found.fisher) == pytest.approx(-0.5, abs=0.1)  # its labels are the model's own


@pytest.mark.slow
def test_outer_products_of_jacobians_are_gauss_newton_for_one_output_only(sweeps):
    np.testing.assert_allclose(sweeps["matched noise"].outer_cosine, 1, atol=1e-12)
    assert (sweeps["labels from the model"].outer_cosine < 0.95).all()


@pytest.mark.slow
def test_residuals_that_vanish_take_the_hessian_to_gauss_newton_and_the_empirical_fisher_to_zero(of):
    found, losses = along_training(of["no noise"], KEY, BLOCK, steps=15)
    assert losses[-1] < 1e-3 * losses[0]
    assert found.hessian[0] > 0.1
    assert found.trace_ratio[0] > 0.1
    assert found.hessian[-1] < 0.01
    assert found.trace_ratio[-1] < 1e-3


def test_the_integrals_of_the_limit():
    u = np.linspace(0, 50, 500_001)
    p = 1 / (1 + np.exp(u))  # σ(−u)
    assert np.trapezoid(p**2, u) == pytest.approx(math.log(2) - 0.5, abs=1e-8)
    assert np.trapezoid(p * (1 - p), u) == pytest.approx(0.5, abs=1e-8)
    assert pytest.approx(0.386294, abs=1e-6) == LIMIT


def test_the_limit_for_logistic_regression_on_a_grid(wide):
    objective = hfopt.Objective(lambda params, x: x @ params, optax.losses.sigmoid_binary_cross_entropy)
    x = jnp.stack([a.ravel() for a in jnp.meshgrid(jnp.linspace(-1, 1, 4_000), jnp.linspace(-1, 1, 11))], axis=1)
    params = 100 * jnp.array([1.0, 0.3])
    value_fn = objective.bind((x, (x @ params > 0).astype(x.dtype)))
    G, EF = (operator(value_fn, params).to_dense() for operator in (hfopt.gauss_newton, hfopt.empirical_fisher))
    assert jnp.trace(EF) / jnp.trace(G) == pytest.approx(LIMIT, rel=0.003)
    np.testing.assert_allclose(EF, LIMIT * G, atol=0.003 * jnp.linalg.norm(G))  # the direction too


@pytest.mark.slow
def test_growing_weights_take_a_network_to_the_limit(of):
    found = growing_weights(of["labels without noise"], KEY, (1, 16), 64 * BLOCK, repeats=4)
    assert found[0] > 1.1 * LIMIT
    assert found[1] == pytest.approx(LIMIT, rel=0.02)


def test_with_few_examples_none_is_left_near_a_boundary(of):
    (ratio,) = growing_weights(of["labels without noise"], KEY, (1e5,), BLOCK, repeats=1)
    assert ratio < 0.01


def test_a_missed_claim_is_exit_code_1(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(approximations, "main", lambda folder, seed, console: asked.append((folder, seed)) or seed == 3)
    assert main(["approximations", "--out", str(tmp_path), "--seed", "3"]) == 0
    assert main(["approximations"]) == 1
    assert asked == [(tmp_path, 3), (Path("runs/approximations"), 0)]


@pytest.mark.slow
def test_tables_and_figures_are_made_of_the_numbers(sweeps, tmp_path):
    ratios, trained = {"N = 400": [0.5, 0.4]}, {"no noise": (sweeps["matched noise"], [3.0, 2.0, 1.0])}
    console = Console(file=io.StringIO(), width=160)
    figures.print_tables(console, {"H − G = S": 2e-16}, sweeps, SIZES, trained, ratios, (1, 2))
    figures.print_claims(console, [Claim("all is well", "1.5", True), Claim("nothing is lost", "2", False)])
    printed = console.file.getvalue()
    for text in ("2e-16", f"{sweeps['a wrong model'].hessian[-1]:.4f} (", "3 → 1", "× 2", "holds", "MISSED"):
        assert text in printed
    for path in (
        figures.draw_sizes(sweeps, SIZES, tmp_path / "sizes.png"),
        figures.draw_limits(trained, ratios, (1, 2), LIMIT, tmp_path / "limits.png"),
    ):
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_shows_what_it_claims(tmp_path, capsys):
    assert main(["approximations", "--out", str(tmp_path / "figures")]) == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "approximations.png",
        "approximations_limits.png",
    }
    assert "MISSED" not in capsys.readouterr().out
