"""B = Hess_z ξ: the closed forms have the spectra the theory says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hfopt.batch import Examples
from hfopt.losses import output_hessian


def _dense(loss, outputs, targets) -> np.ndarray:
    """B of one example with coefficient one."""
    product = output_hessian(loss, outputs[None], Examples(outputs[None], targets[None], jnp.ones(1)))
    return np.stack([product(e[None])[0] for e in jnp.eye(outputs.size)])


def test_softmax_has_rank_k_minus_one_null_vector_one_and_eigenvalues_below_a_half():
    for key in jax.random.split(jax.random.key(0), 20):
        logits = 4 * jax.random.normal(key, (5,))
        hessian = _dense(optax.softmax_cross_entropy_with_integer_labels, logits, jnp.array(2))
        eigenvalues = np.linalg.eigvalsh(hessian)
        np.testing.assert_allclose(hessian @ np.ones(5), 0, atol=1e-15)
        assert np.sum(eigenvalues > 1e-14) == 4
        assert eigenvalues.max() <= 0.5


def test_two_equal_logits_reach_the_bound_of_a_half():
    logits = jnp.array([0.0, 0.0, -200.0])
    hessian = _dense(optax.softmax_cross_entropy_with_integer_labels, logits, jnp.array(0))
    assert np.linalg.eigvalsh(hessian).max() == pytest.approx(0.5, abs=1e-14)


@pytest.mark.parametrize(("loss", "expected"), [(optax.squared_error, 2.0), (optax.l2_loss, 1.0)])
def test_squared_losses_have_constant_hessians(loss, expected):
    # The three outputs are averaged, so each carries a third.
    np.testing.assert_allclose(_dense(loss, jnp.arange(3.0), jnp.ones(3)), expected * np.eye(3) / 3, rtol=1e-15)


def test_saturated_logits_give_finite_products():
    for loss, target in (
        (optax.softmax_cross_entropy_with_integer_labels, jnp.array(0)),
        (optax.sigmoid_binary_cross_entropy, jnp.array([1.0, 0.0])),
    ):
        assert np.isfinite(_dense(loss, jnp.array([1e4, -1e4]), target)).all()
