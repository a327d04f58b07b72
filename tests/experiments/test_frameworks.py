"""One network in two frameworks: the same losses."""

import numpy as np
import pytest

import hfopt
from experiments.frameworks import first_examples, train_linen, train_nnx
from experiments.problems.digits import load_digits


@pytest.mark.slow
def test_linen_and_nnx_take_the_same_steps():
    batch = first_examples(load_digits(), 32)
    linen, nnx = (train(hfopt.hessian_free(), batch, 3) for train in (train_linen, train_nnx))
    np.testing.assert_allclose(linen.reported, nnx.reported, rtol=1e-9)  # float64
    for run in (linen, nnx):
        np.testing.assert_allclose(run.reported, run.evaluated, rtol=1e-15)
        assert run.accepted == 3
        assert run.reported[-1] < run.reported[0]
