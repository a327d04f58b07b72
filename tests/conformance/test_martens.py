"""`presets.martens2010` takes the same decisions as an independent NumPy transcription of the published method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.control.backtracking import walk_back
from hfopt.solve.preconditioners import SquaredGradients
from tests.cases import slowly
from tests.conformance import martens_numpy, models_numpy

ITERATIONS = 5
# Where the package parts from the source, as its docstring says.
OURS = martens_numpy.Deviations(ratio_of_step_taken=True, ratio_over_all=True, reset_on_rejection=True)
REASONS = {"progress": hfopt.Stop.PROGRESS, "limit": hfopt.Stop.CAP, "curvature": hfopt.Stop.NEGATIVE_CURVATURE}


def autoencoder(params, x):
    """The network of `models_numpy.autoencoder`, in JAX: sigmoid layers, logits out."""
    *hidden, (w, b) = zip(params[::2], params[1::2], strict=True)
    for kernel, bias in hidden:
        x = jax.nn.sigmoid(x @ kernel + bias[None])
    return x @ w + b[None]


def _summed_cross_entropy(z, y):
    return optax.sigmoid_binary_cross_entropy(z, y).sum(axis=-1)


OBJECTIVE = hfopt.Objective(autoencoder, _summed_cross_entropy, l2=martens_numpy.WEIGHT_DECAY)
SOLVER = hfopt.cg(250, hfopt.relative_progress(5e-4), keep_ratio=1.3)


@jax.jit
def _solve(params, start, damping, value_fn):
    """The inner part of a step, opened up: M, the CG trace, the kept iterates and the chosen one."""
    operator = hfopt.gauss_newton(value_fn, params)
    preconditioner = SquaredGradients()
    state = preconditioner.update(preconditioner.init(params), operator, value_fn, params)
    rhs = optax.tree.scale(-1, jax.grad(value_fn)(params))
    inverse = preconditioner.inverse(state, damping)
    result = SOLVER.solve(operator, rhs, start, damping=damping, preconditioner=inverse)
    choice = walk_back(result, result.kept, lambda d: value_fn(optax.apply_updates(params, d)))
    return result, choice, inverse(optax.tree.ones_like(params))


FIRST, *FURTHER = models_numpy.AUTOENCODER_CASES


@pytest.mark.parametrize("case", [FIRST, *map(slowly, FURTHER)], ids=str)
def test_five_iterations_agree(case):
    model, theta, x, _ = models_numpy.autoencoder_problem(case.seed, sizes=case.sizes)
    chunks = martens_numpy.rotating_chunks(len(x), case.chunks, ITERATIONS)
    records = martens_numpy.run(
        model.forward, model.jacobian, theta, x, x, ITERATIONS, chunks, damping=case.damping, deviations=OURS
    )
    # The decisions compared below are not taken by rounding.
    assert min(map(martens_numpy.margin, records)) > 1e-7
    tx = hfopt.presets.martens2010(case.damping)

    @jax.jit
    def step(params, state, value_fn):
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    params = [jnp.asarray(p) for p in models_numpy.unpack(theta, model.shapes)]
    state = tx.init(params)
    for record, chunk in zip(records, chunks, strict=True):
        value_fn = OBJECTIVE.bind((x, x), curvature_batch=(x[chunk], x[chunk]))
        start = optax.tree.scale(0.95, state.solution)
        np.testing.assert_allclose(ravel_pytree(start)[0], record.start, rtol=1e-6, atol=1e-9)
        result, choice, inverse_ones = _solve(params, start, state.next_damping, value_fn)
        np.testing.assert_allclose(1 / ravel_pytree(inverse_ones)[0], record.preconditioner, rtol=1e-9)
        # Rounding in φ is relative to the largest value of the trace.
        np.testing.assert_allclose(
            result.values[: record.cg_steps + 1], record.phi, rtol=1e-7, atol=1e-8 * np.abs(record.phi).max()
        )
        kept = result.kept.steps[: int(result.kept.filled)].tolist()
        assert sorted({*kept, record.cg_steps}) == sorted(set(record.kept_indices))
        assert choice.cg_step == record.chosen_index
        assert result.stop == REASONS[record.stop_reason]

        params, state = step(params, state, value_fn)
        info = state.info
        assert info.cg_steps == record.cg_steps
        assert info.step_size == pytest.approx(record.step_size, rel=1e-12)
        assert info.damping == pytest.approx(record.damping, rel=1e-12)
        assert info.reduction_ratio == pytest.approx(record.ratio, rel=1e-6)
        assert state.next_damping == pytest.approx(record.damping_after, rel=1e-12)
        assert info.loss == pytest.approx(record.f, rel=1e-8)
        assert info.new_loss == pytest.approx(record.new_f, rel=1e-8)


def test_the_published_constants_are_the_defaults():
    state = hfopt.presets.martens2010().init({"w": jnp.ones(3)})
    assert state.next_damping == martens_numpy.INITIAL_DAMPING
