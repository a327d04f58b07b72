"""Newton's method: quadratic convergence, to the optimum that scikit-learn finds."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import command, convergence


@pytest.fixture(scope="module")
def found():
    return convergence.convergence()


def test_the_optimum_is_that_of_scikit_learn(found):
    assert abs(found.relative_difference) <= 1e-8


def test_the_gradient_falls_quadratically_until_rounding(found):
    norms = [step.gradient_norm for step in found.steps]
    last = next(k for k, norm in enumerate(norms) if norm < 1e-9)  # beyond it there is rounding
    assert norms[last - 3] < 1e-2
    # Linear convergence, however fast, would let the last of these ratios grow by orders of magnitude.
    assert max(found.ratios()[:last]) < 50
    assert found.ratios()[last - 1] < 2 * found.ratios()[last - 3]


def test_the_value_at_the_start_is_that_of_guessing(found):
    np.testing.assert_allclose(found.steps[0].value, np.log(2), rtol=1e-15)


def test_the_command_prints_the_steps_and_leaves_float32_the_default(found, monkeypatch, capsys):
    monkeypatch.setattr(convergence, "convergence", lambda C: found)
    assert command.main(["convergence"]) == 0
    printed = capsys.readouterr().out
    assert f"{found.steps[-2].gradient_norm:.2e}" in printed
    assert "relative difference of the objectives" in printed
    assert not jax.config.read("jax_enable_x64")


def test_other_optima_are_exit_code_1(found, monkeypatch):
    wrong = found._replace(reference=found.reference * (1 + 1e-7))
    monkeypatch.setattr(convergence, "convergence", lambda C: wrong)
    assert command.main(["convergence"]) == 1
