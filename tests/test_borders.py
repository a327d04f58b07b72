"""What does not fit is refused in one sentence: the argument or the leaf, what it got, and what to write."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from jax.experimental.sparse import BCOO

import hfopt
from hfopt import Operator, spectra
from hfopt.flax import linen
from hfopt.flax import nnx as hf

CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
X, Y = np.ones((4, 3)), np.arange(4) % 2
PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros((1, 2))}


def _objective(**options) -> hfopt.Objective:
    return hfopt.Objective(lambda p, x: x @ p["w"] + p["b"], CROSS_ENTROPY, **options)


def _update(tx=None, *, state=None, grads=None, params=PARAMS, **arguments):
    tx = hfopt.hessian_free() if tx is None else tx
    grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads
    value_fn = _objective().bind((X, Y))
    return tx.update(grads, tx.init(params) if state is None else state, params, value_fn=value_fn, **arguments)


class _Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(x))


def _flax_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    hf.make_train_step(CROSS_ENTROPY)(model, nnx.Optimizer(model, hfopt.hessian_free(), wrt=nnx.Param), (X, Y))


def _flax_state():
    state = train_state.TrainState.create(apply_fn=_Normed().apply, params=PARAMS, tx=hfopt.hessian_free())
    linen.make_train_step(CROSS_ENTROPY)(state, (X, Y))


PAIR = hfopt.Objective(lambda p, x: (x @ p["w"], x), CROSS_ENTROPY)
G = Operator.of_matrix(np.eye(30))
KEYLESS = jnp.zeros((3,), jnp.uint32)

REFUSED = {
    "parameters: an activation": (
        lambda: hfopt.hessian_free().init(eqx.nn.MLP(3, 4, 8, 1, key=jax.random.key(0))),
        TypeError,
        r"params\.activation is relu of type custom_jvp.*eqx\.partition",
    ),
    "parameters: a name": (
        lambda: hfopt.scale_by_gauss_newton().init({"w": jnp.ones(3), "kind": "dense"}),
        TypeError,
        r"params\['kind'\] is the string 'dense'.*eqx\.partition",
    ),
    "parameters: a function": (
        lambda: hfopt.gauss_newton(_objective().bind((X, Y)), PARAMS | {"f": len}),
        TypeError,
        r"params\['f'\] is len of type builtin_function_or_method",
    ),
    "parameters: running statistics": (
        lambda: hfopt.hessian_free().init(_Normed().init(jax.random.key(0), X)),
        ValueError,
        r"params\['batch_stats'\] are running statistics.*variables\['params'\]",
    ),
    "gradient: an entry is missing": (
        lambda: _update(grads={"w": PARAMS["w"]}),
        ValueError,
        r"the gradient \(updates\) has no entry for params\['b'\], of shape \(1, 2\).*jax\.grad\(value_fn\)",
    ),
    "gradient: an entry is None": (
        lambda: _update(grads=PARAMS, grad=PARAMS | {"b": None}),
        ValueError,
        r"the gradient \(grad\) has no entry for params\['b'\]",
    ),
    "gradient: another shape": (
        lambda: _update(hfopt.scale_by_gauss_newton(), grads=PARAMS | {"b": jnp.zeros(2)}),
        ValueError,
        r"\(updates\) at \['b'\] has shape \(2,\), params\['b'\] has \(1, 2\)",
    ),
    "gradient: an entry too many": (
        lambda: _update(grads=PARAMS | {"c": jnp.zeros(2)}),
        ValueError,
        r"has an entry \['c'\] that the parameters do not have",
    ),
    "gradient: another container": (
        lambda: _update(params=list(PARAMS.values()), grads=tuple(PARAMS.values())),
        ValueError,
        r"must have the structure of the parameters, PyTreeDef\(\[\*, \*\]\), got PyTreeDef\(\(\*, \*\)\)",
    ),
    "state: of another optimizer": (
        lambda: _update(state=optax.adam(1e-3).init(PARAMS)),
        TypeError,
        r"`state` must be the HessianFreeState that init\(params\) makes, got tuple.*begin with tx\.init\(params\)",
    ),
    "state: of the other transformation": (
        lambda: _update(state=hfopt.scale_by_gauss_newton().init(PARAMS)),
        TypeError,
        "must be the HessianFreeState.*got GaussNewtonState",
    ),
    "state: a dictionary": (
        lambda: _update(state=hfopt.hessian_free().init(PARAMS)._asdict()),
        TypeError,
        "got dict. It has the fields of one.*restored without a target",
    ),
    "state: of other parameters": (
        lambda: _update(state=hfopt.hessian_free().init({"w": jnp.ones((3, 5)), "b": PARAMS["b"]})),
        ValueError,
        r"state at \['w'\] has shape \(3, 5\), params\['w'\] has \(3, 2\).*tx\.init\(params\) of these",
    ),
    "value: of shape (1,)": (
        lambda: _update(value=jnp.ones(1)),
        ValueError,
        r"`value` must be a scalar, f at `params`, got shape \(1,\)",
    ),
    "outputs: a tuple for a loss of one array": (
        lambda: PAIR.bind((X, Y))(PARAMS),
        TypeError,
        r"`predict` returned a tuple of 2 and `loss`, softmax_cross.*loss=lambda outputs, targets:.*outputs\[0\]",
    ),
    "batch: sparse inputs": (
        lambda: _objective().bind((BCOO.fromdense(jnp.eye(4)), Y)),
        TypeError,
        r"`batch\.inputs` is a sparse BCOO of shape \(4, 4\).*todense",
    ),
    "batch: a sparse part of the inputs": (
        lambda: _objective().bind(({"x": X, "edges": BCOO.fromdense(jnp.eye(4))}, Y)),
        TypeError,
        r"`batch\.inputs\['edges'\]` is a sparse BCOO.*belongs in `predict`, by closure",
    ),
    "flax: its own nnx.Optimizer": (_flax_optimizer, TypeError, r"must be hfopt\.flax\.nnx\.Optimizer.*got flax\.nnx"),
    "flax: its own TrainState": (
        _flax_state,
        TypeError,
        r"must be hfopt\.flax\.linen\.TrainState\.create.*got flax\.training",
    ),
    "curvature: taken for a schedule": (
        lambda: optax.inject_hyperparams(hfopt.hessian_free)(warm_start=0.5).init(PARAMS),
        TypeError,
        r"static_args=\('curvature',\)",
    ),
    "curvature: the Hessian, taken for a schedule": (
        lambda: optax.inject_hyperparams(hfopt.hessian_free)(curvature=hfopt.hessian).init(PARAMS),
        TypeError,
        r"static_args=\('curvature',\)",
    ),
    "key: a seed for the Fisher matrix": (
        lambda: hfopt.fisher(_objective().bind((X, Y)), PARAMS, key=0),
        TypeError,
        r"fisher: `key` must be a key such as jax\.random\.key\(0\), got 0",
    ),
    "key: a seed for a trace": (lambda: G.estimate_trace(0, 10), TypeError, "Operator.estimate_trace: `key` must be"),
    "key: a seed for a diagonal": (
        lambda: G.estimate_diagonal(1, 10),
        TypeError,
        "Operator.estimate_diagonal: `key` must be",
    ),
    "key: a seed for eigenpairs": (
        lambda: spectra.eigenpairs(G, 0, largest=1),
        TypeError,
        "eigenpairs: `key` must be.*got 0",
    ),
    "key: numbers that are none": (
        lambda: spectra.density(G, KEYLESS),
        TypeError,
        r"density: `key` must be.*got an array of dtype uint32 and shape \(3,\)",
    ),
    "operator: times an operator": (lambda: G @ G, TypeError, r"product of two operators.*A @ \(B @ v\)"),
    "operator: over an operator": (lambda: G / G, TypeError, "unsupported operand"),
}


@pytest.mark.float32
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0), np.array([0, 0], np.uint32)])
def test_keys_of_every_kind_are_taken(key):
    assert G.estimate_trace(key, 10).value == pytest.approx(30)
