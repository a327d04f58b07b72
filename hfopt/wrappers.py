"""Training some of the parameters: a mask-aware wrapper of a second-order transformation.

``optax.masked`` hands the transformation gradients with holes in them, but a `ValueFn` that wants every parameter. Here
the value function is restricted as well: with the frozen parameters fixed it is a function of the others alone, so that
linear system, trial losses and state are those of the smaller problem.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from hfopt import arguments
from hfopt.choices import check_structure
from hfopt.curvature.average import check_value_fn
from hfopt.objective import Objective, ValueFn


def masked(tx: optax.GradientTransformationExtraArgs, mask: Any) -> optax.GradientTransformationExtraArgs:
    """``tx`` on the parameters that ``mask`` keeps; the others do not move.

    The solve is that of the sub-matrix of the curvature, not a cut-out of the whole solution. Unlike
    ``optax.masked``, which passes the gradient of the other parameters through for a later transformation, their
    updates are zero: a second-order update is complete.

    Args:
      tx: `hessian_free` or any transformation whose update takes what that of ``optax.lbfgs`` takes.
      mask: a pytree of booleans shaped like the parameters, or a prefix of it; or a callable that makes one from them.

    Returns:
      A transformation whose state is that of ``tx`` on the kept parameters, so that ``state.info`` reads as always.
      Frozen parameters may have any dtype; where the batch is chunked, one that has a gradient.

    Raises:
      ValueError: the mask does not fit the parameters, or keeps none of them; ``params`` is missing.
      TypeError: an entry of the mask is not a boolean.

    Example:
      >>> import jax, jax.numpy as jnp, optax, hfopt
      >>> objective = hfopt.Objective(lambda p, x: jnp.tanh(x @ p["body"]) @ p["head"], optax.squared_error)
      >>> params = {"body": jnp.eye(2), "head": jnp.ones(2)}
      >>> tx = hfopt.masked(hfopt.hessian_free(), {"body": False, "head": True})
      >>> value_fn = objective.bind((jnp.eye(2), jnp.zeros(2)))
      >>> value, grad = jax.value_and_grad(value_fn)(params)
      >>> updates, state = tx.update(grad, tx.init(params), params, value=value, grad=grad, value_fn=value_fn)
      >>> float(jnp.abs(updates["body"]).max()), bool(jnp.abs(updates["head"]).max() > 0)
      (0.0, True)
    """

    def keep(tree: Any, chosen: Any) -> Any:
        return jax.tree.map(lambda kept, leaf: leaf if kept else optax.MaskedNode(), chosen, tree)

    def init(params: Any) -> Any:
        return tx.init(keep(params, _full_mask(mask, params)))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        grad: Any = None,
        value_fn: ValueFn | None = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("masked: `params` is missing; call tx.update(grad, state, params, …, value_fn=value_fn).")
        if value_fn is not None:
            check_value_fn(value_fn)
            check_structure("masked", params, value_fn)
        chosen = _full_mask(mask, params)
        if grad is not None:
            extra_args["grad"] = keep(grad, chosen)
        if value_fn is not None:
            restricted = _restricted(value_fn.objective, params, partial(keep, chosen=chosen))
            extra_args["value_fn"] = replace(value_fn, objective=restricted)
        step, state = tx.update(keep(updates, chosen), state, keep(params, chosen), **extra_args)
        return _merged(step, jax.tree.map(jnp.zeros_like, params)), state

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True, eq=False)
class _Restricted(Objective):
    """``whole`` as a function of the parameters that ``keep`` keeps, with the others as in ``params``.

    Its penalty counts the others too, so that its value is that of the whole.
    """

    whole: Any = None
    params: Any = None
    keep: Any = None

    takes_masked: ClassVar[bool] = True

    def penalty(self, params: Any) -> Any:
        """½ l2 ‖θ‖² of all parameters."""
        return self.whole.penalty(_merged(params, self.params))

    def penalised(self, tree: Any) -> Any:
        """``tree`` with the parameters outside `l2_mask` set to zero."""
        zeros = jax.tree.map(jnp.zeros_like, self.params)
        return self.keep(self.whole.penalised(_merged(tree, zeros)))


def _restricted(whole: Objective, params: Any, keep: Callable[[Any], Any]) -> Objective:
    predict = lambda kept, x: whole.predict(_merged(kept, params), x)  # noqa: E731
    curved = whole.curvature_predict
    linearised = None if curved is None else lambda kept, x: curved(_merged(kept, params), x)
    return _Restricted(predict, whole.loss, whole.l2, None, whole.precision, linearised, whole, params, keep)


def _is_hole(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _merged(kept: Any, others: Any) -> Any:
    """``kept`` with its holes filled from ``others``."""
    return jax.tree.map(lambda k, other: other if _is_hole(k) else k, kept, others, is_leaf=_is_hole)


def _full_mask(mask: Any, params: Any) -> Any:
    """The mask with one boolean for every parameter."""
    full = arguments.full_mask("masked", "mask", mask, params)
    if jax.tree.leaves(full) and not any(jax.tree.leaves(full)):
        raise ValueError("masked: `mask` keeps none of the parameters, so there is nothing to train.")
    return full
