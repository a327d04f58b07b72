"""One network in two frameworks: the same losses, and reports that are exact."""

import jax
import numpy as np
import pytest

import hfopt
from experiments.examples.frameworks import first_examples, train_linen, train_nnx
from experiments.problems.digits import load_digits


@pytest.mark.slow
def test_linen_and_nnx_take_the_same_steps():
    with jax.enable_x64(True):
        batch = first_examples(load_digits(), 32)
        linen, nnx = (train(hfopt.hessian_free(), batch, 3) for train in (train_linen, train_nnx))
    np.testing.assert_allclose(linen.reported, nnx.reported, rtol=1e-9)
    for run in (linen, nnx):
        assert run.reported == run.evaluated
        assert run.accepted == 3
        assert run.reported[-1] < run.reported[0]
