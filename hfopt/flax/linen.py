"""Flax linen: a training state that gives a second-order step what it needs, with BatchNorm and dropout.

A model with dropout and BatchNorm is a function of more than parameters and inputs. For the length of a step it must
not be: gradient, products and trial losses are of one function, with one mask, and whatever the model writes down as it
is called is dropped. `TrainState.value_fn` makes that function, and `TrainState.apply_gradients` lets the statistics
move once, by the pass over the batch at the parameters that the gradient was taken at, if the step was accepted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import optax
from flax import struct
from flax.training import train_state

from hfopt.flax.training import averaged, evaluated, extended, may_move, metrics
from hfopt.losses import Loss
from hfopt.objective import Objective, ValueFn


@dataclass(frozen=True, eq=False)
class Model:
    """``apply_fn`` with everything but parameters and inputs held fixed: what `Objective` calls ``predict``."""

    apply_fn: Callable[..., Any]
    variables: Mapping[str, Any]
    rngs: Mapping[str, jax.Array]
    arguments: Mapping[str, Any]

    def __call__(self, params: Any, inputs: Any) -> Any:
        """The outputs."""
        return self.run(params, inputs)[0]

    def run(self, params: Any, inputs: Any) -> tuple[Any, Any]:
        """The outputs, and the collections as the model leaves them."""
        variables, mutable = {"params": params, **self.variables}, list(self.variables)
        return self.apply_fn(variables, inputs, rngs=dict(self.rngs), mutable=mutable, **self.arguments)


class TrainState(train_state.TrainState):
    """``flax.training.train_state.TrainState`` for any optimizer: Adam, L-BFGS or Hessian-free Newton.

    Make it by ``create``, as Flax's own, with what the model has of:

    Attributes:
      variables: the collections besides ``params``, such as ``{"batch_stats": …}``.
      key: of dropout. Every step folds its number in, and all of a step sees one mask.
      streams: the names of the model's random streams.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax, hfopt
      >>> from hfopt.flax import linen
      >>> model, images, labels = nn.Dense(3), jnp.eye(4), jnp.array([0, 1, 2, 0])
      >>> params = model.init(jax.random.key(0), images)["params"]
      >>> state = linen.TrainState.create(apply_fn=model.apply, params=params, tx=hfopt.hessian_free())
      >>> train_step = linen.make_train_step(optax.losses.softmax_cross_entropy_with_integer_labels)
      >>> for _ in range(3):
      ...     state, metrics = train_step(state, (images, labels))
      >>> bool(metrics["new_loss"] < metrics["loss"])
      True
    """

    variables: Any = struct.field(default_factory=dict)
    key: jax.Array | None = None
    streams: tuple[str, ...] = struct.field(pytree_node=False, default=("dropout",))

    def objective(
        self,
        loss: Loss,
        *,
        l2: float = 0.0,
        l2_mask: Any = None,
        precision: str | None = "highest",
        arguments: Mapping[str, Any] | None = None,
        curvature_arguments: Mapping[str, Any] | None = None,
    ) -> Objective:
        """The objective of this step: the model with its variables and this step's masks.

        Args:
          loss, l2, l2_mask, precision: see `hfopt.Objective`.
          arguments: keyword arguments of the model's call, such as ``{"train": True}``.
          curvature_arguments: those of the call that curvature products linearise, such as ``{"train": False}`` for
            the running statistics of BatchNorm instead of those of the batch. ``None``: the same.
        """
        rngs: dict[str, jax.Array] = {}
        if self.key is not None:
            key = jax.random.fold_in(self.key, self.step)
            rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(self.streams)}
        model = partial(Model, self.apply_fn, self.variables, rngs)
        linearised = None if curvature_arguments is None else model(curvature_arguments)
        return Objective(model(arguments or {}), loss, l2, l2_mask, precision, linearised)

    def value_fn(self, loss: Loss, batch: Any, *, bind: Mapping[str, Any] | None = None, **options: Any) -> ValueFn:
        """`objective` joined with a batch; ``bind`` are further arguments of `hfopt.Objective.bind`.

        Call it inside the jitted step: it holds this step's variables and key.
        """
        return self.objective(loss, **options).bind(batch, **(bind or {}))

    def apply_gradients(
        self,
        *,
        grads: Any,
        value: Any = None,
        grad: Any = None,
        value_fn: Callable[[Any], Any] | None = None,
        extra_args: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> "TrainState":
        """A step of the optimizer; ``value``, ``grad`` and ``value_fn`` reach it as extra arguments.

        Flax's own sends all keyword arguments to ``replace``; so does this with the others.

        Args:
          grads: the gradient at ``params``.
          value: f there, from ``jax.value_and_grad``.
          grad: the true gradient, where ``grads`` is something else; ``None``: ``grads``.
          value_fn: from `value_fn`. The collections in ``variables`` move by its pass over the batch, once, and not
            at all where the optimizer says that it rejected the step.
          extra_args: further ones for the optimizer.
          changes: further fields to replace.
        """
        tx = extended(self.tx)
        given = {name: x for name, x in (("value", value), ("value_fn", value_fn)) if x is not None}
        update = partial(tx.update, grad=grads if grad is None else grad, **given, **(extra_args or {}))
        # Flax's method does the rest: it calls `update` with gradients, state and parameters alone.
        stand_in = self.replace(tx=optax.GradientTransformation(tx.init, update))
        after = super(TrainState, stand_in).apply_gradients(grads=grads, **changes).replace(tx=self.tx)
        if not isinstance(value_fn, ValueFn) or not self.variables or "variables" in changes:
            return after
        if not isinstance(model := value_fn.objective.predict, Model):
            return after
        moved = averaged(value_fn, lambda inputs: model.run(self.params, inputs)[1])
        return after.replace(variables=optax.tree.where(may_move(after.opt_state, moved), moved, self.variables))


def make_train_step(
    loss: Loss, *, bind: Mapping[str, Any] | None = None, donate: bool = False, exact_loss: bool = False, **options: Any
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted training step for the plain case: ``train_step(state, batch) -> (state, metrics)``.

    Args:
      loss: one value an example; see `hfopt.Objective`.
      bind: arguments of `hfopt.Objective.bind`, such as ``{"curvature_batch": "auto", "chunk_size": 500}``; shares are
        of the batch of the step, batches among them are the same for all steps.
      donate: let the memory of the old state be used for the new one. Nothing that is in it may be used afterwards,
        the parameters that the first state was created from included.
      exact_loss: report f by a forward pass of its own, which equals ``jax.jit(value_fn)(params)`` bit for bit. The f
        of ``jax.value_and_grad``, reported otherwise, costs nothing and may differ from that in the last place.
      options: as for `TrainState.objective`.

    Returns:
      A function. ``metrics["loss"]`` is f at the parameters before the step; where the optimizer is of this package,
      the fields of its `hfopt.StepInfo` or `hfopt.DirectionInfo` are there too.
    """

    @partial(jax.jit, donate_argnums=(0,) if donate else ())
    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        if not isinstance(state, TrainState):
            kind = type(state)
            raise TypeError(
                "make_train_step: `state` must be hfopt.flax.linen.TrainState.create(apply_fn=…, params=…, tx=…), "
                f"which gives a step its `value_fn`, got {kind.__module__}.{kind.__qualname__}."
            )
        value_fn = state.value_fn(loss, batch, bind=bind, **options)
        value, grad = jax.value_and_grad(value_fn)(state.params)
        reported = evaluated(value_fn, state.params) if exact_loss else value
        state = state.apply_gradients(grads=grad, value=value, value_fn=value_fn)
        return state, metrics(state.opt_state) | {"loss": reported}

    return train_step
