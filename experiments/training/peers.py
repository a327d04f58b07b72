"""Optimizers of other packages as Optax transformations: the optional extra `peers`."""

from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.problems.problem import LOSSES
from experiments.settings import optimizers as config
from experiments.settings.errors import ConfigError, ExperimentError

PEERS = ("somax",)  # names of optimizers, which are those of the modules they come from


def is_installed(peer: str) -> bool:
    """Whether the package of one of `PEERS` is there."""
    return find_spec(peer) is not None


class SomaxState(NamedTuple):
    """inner: somax's own. products: of the last step."""

    inner: Any
    products: jax.Array


_REFRESHED_EVERY = 10  # iterations after which somax computes CG's residual anew, if there can be more of them


def somax(settings: config.Somax) -> optax.GradientTransformationExtraArgs:
    """`somax.sgn_ce`: Gauss-Newton steps of softmax cross-entropy by conjugate gradients, at a constant damping.

    It takes the gradient itself, of the loss without penalty. A product is counted for each iteration of CG, each
    residual computed anew, and the residual of its warm start.

    Raises:
      ExperimentError: python-somax is not installed.
      ConfigError (at an update): the loss is another one, there is a penalty, or the examples have weights.
    """
    if not is_installed("somax"):
        raise ExperimentError("optimizer somax needs python-somax: pip install 'hfopt[peers]'")
    import somax

    def method(predict: Any) -> Any:
        return somax.sgn_ce(
            predict_fn=predict,
            lam0=settings.damping,
            learning_rate=settings.learning_rate,
            maxiter=settings.max_cg_steps,
            stabilise_every=_REFRESHED_EVERY,
        )

    def init(params: Any) -> SomaxState:
        return SomaxState(method(None).init(params), jnp.zeros((), jnp.int32))

    def update(
        grads: Any, state: SomaxState, params: Any = None, *, value_fn: Any, **unused: Any
    ) -> tuple[Any, SomaxState]:
        objective, (inputs, targets, *weights) = value_fn.objective, value_fn.batch
        if any(weight is not None for weight in weights):
            raise ConfigError("optimizer somax knows no weights of examples, which batches split over devices have")
        if objective.loss is not LOSSES["softmax_cross_entropy"] or objective.l2:
            raise ConfigError("optimizer somax is for softmax_cross_entropy without l2; leave it out here")
        batch, key = {"x": inputs, "y": targets}, jax.random.key(0)  # which CG makes no use of
        with jax.default_matmul_precision(objective.precision):
            after, inner, info = method(objective.predict).step(params, batch, state.inner, key)
        iterations = info["cg_iters"]
        refreshed = iterations // _REFRESHED_EVERY if settings.max_cg_steps > _REFRESHED_EVERY else 0
        products = iterations + refreshed + 1
        return optax.tree.sub(after, params), SomaxState(inner, products.astype(jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)
