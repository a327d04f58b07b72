"""Flax NNX: modules as objectives, and an optimizer that gives a second-order step what it needs.

An NNX module changes as it is called: dropout counts its keys, BatchNorm moves its statistics. For the length of a step
it must not. `value_fn` takes the module apart; every evaluation merges it anew from the same pieces, so that gradient,
products and trial losses see one mask and one set of statistics. `Optimizer.update` lets the module move on once: its
random streams always, its statistics if the step was accepted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import optax
from flax import nnx

from hfopt.flax.training import averaged, evaluated, extended, may_move, metrics
from hfopt.losses import Loss
from hfopt.objective import Objective, ValueFn

Call = Callable[[Any, Any], Any]  # module, inputs -> outputs


@dataclass(frozen=True, eq=False)
class Model:
    """A module with everything but parameters and inputs held fixed: what `Objective` calls ``predict``."""

    graph: Any
    rest: tuple[Any, Any, Any]  # random streams; all else that is not trained; what was sown
    wrt: Any
    call: Call

    def __call__(self, params: Any, inputs: Any) -> Any:
        """The outputs."""
        return self.run(params, inputs)[0]

    def run(self, params: Any, inputs: Any) -> tuple[Any, tuple[Any, Any]]:
        """The outputs, and random streams and statistics as the module leaves them; what it sows is dropped."""
        module = nnx.merge(self.graph, params, *self.rest)
        outputs = self.call(module, inputs)
        return outputs, _split(module, self.wrt)[2][:2]


def params(module: Any, wrt: Any = nnx.Param) -> Any:
    """The variables that ``wrt`` selects, as a pytree of arrays: what `value_fn` is a function of."""
    return _split(module, wrt)[1]


def objective(
    module: Any,
    loss: Loss,
    *,
    wrt: Any = nnx.Param,
    call: Call = lambda module, inputs: module(inputs),
    curvature_call: Call | None = None,
    l2: float = 0.0,
    l2_mask: Any = None,
    precision: str | None = "highest",
) -> Objective:
    """The objective of a step: the module with its statistics and masks as they are now.

    Args:
      module: not changed.
      loss, l2, l2_mask, precision: see `hfopt.Objective`.
      wrt: a filter for what is trained; the optimizer's.
      call: how the module is called.
      curvature_call: how it is called for the products, such as ``lambda module, x: (module.eval(), module(x))[1]`` for
        the running statistics of BatchNorm instead of those of the batch. ``None``: the same.
    """
    graph, _, rest = _split(module, wrt)
    model = partial(Model, graph, rest, wrt)
    return Objective(
        model(call), loss, l2, l2_mask, precision, None if curvature_call is None else model(curvature_call)
    )


def value_fn(module: Any, loss: Loss, batch: Any, *, bind: Mapping[str, Any] | None = None, **options: Any) -> ValueFn:
    """`objective` joined with a batch; ``bind`` are further arguments of `hfopt.Objective.bind`.

    A function of `params`. Call it inside the jitted step: it holds what the module holds now.
    """
    return objective(module, loss, **options).bind(batch, **(bind or {}))


class Optimizer(nnx.Optimizer):
    """``nnx.Optimizer`` for any transformation: Adam, L-BFGS or Hessian-free Newton.

    Example:
      >>> import jax, jax.numpy as jnp, optax, hfopt
      >>> from flax import nnx
      >>> from hfopt.flax import nnx as hf
      >>> model, images, labels = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.eye(4), jnp.array([0, 1, 2, 0])
      >>> optimizer = hf.Optimizer(model, hfopt.hessian_free(), wrt=nnx.Param)
      >>> train_step = hf.make_train_step(optax.losses.softmax_cross_entropy_with_integer_labels)
      >>> for _ in range(3):
      ...     metrics = train_step(model, optimizer, (images, labels))
      >>> bool(metrics["new_loss"] < metrics["loss"])
      True
    """

    def update(
        self,
        model: Any,
        grads: Any,
        /,
        *,
        value: Any = None,
        grad: Any = None,
        value_fn: Callable[[Any], Any] | None = None,
        **extra_args: Any,
    ) -> Any:
        """A step: parameters, optimizer state, and once what else the model moves as it is called.

        Args:
          model: the module.
          grads: the gradient at `params`, from ``jax.grad`` of a `value_fn`, or from ``nnx.grad``.
          value: f there.
          grad: the true gradient, where ``grads`` is something else; ``None``: ``grads``.
          value_fn: from `value_fn`.
          extra_args: passed on to the transformation.

        Returns:
          The updates.

        Raises:
          ValueError: ``value_fn`` is a function of other variables than ``wrt`` selects.
        """
        module = value_fn.objective.predict if isinstance(value_fn, ValueFn) else None
        if isinstance(module, Model) and module.wrt != self.wrt:
            raise ValueError(
                f"Optimizer.update: `value_fn` was made with wrt={module.wrt} and the optimizer with wrt={self.wrt}; "
                "give both the same filter."
            )
        here, grads = params(model, self.wrt), nnx.as_pure(grads)
        extra_args |= {name: x for name, x in (("value", value), ("value_fn", value_fn)) if x is not None}
        state, grad = nnx.as_pure(self.opt_state), grads if grad is None else nnx.as_pure(grad)
        updates, state = extended(self.tx).update(grads, state, here, grad=grad, **extra_args)
        nnx.update(model, optax.apply_updates(here, updates))
        nnx.update(self.opt_state, nnx.state(state))
        self.step[...] += 1
        if isinstance(value_fn, ValueFn) and isinstance(module, Model):
            streams, others = averaged(value_fn, lambda inputs: module.run(here, inputs)[1])
            nnx.update(model, streams)
            nnx.update(model, optax.tree.where(may_move(state, others), others, module.rest[1]))
        return updates


def make_train_step(
    loss: Loss, *, bind: Mapping[str, Any] | None = None, exact_loss: bool = False, **options: Any
) -> Callable[[Any, Optimizer, Any], dict[str, jax.Array]]:
    """The jitted training step for the plain case: ``train_step(model, optimizer, batch) -> metrics``.

    Args:
      loss: one value an example; see `hfopt.Objective`.
      bind: arguments of `hfopt.Objective.bind`, such as ``{"curvature_batch": "auto", "chunk_size": 500}``; shares are
        of the batch of the step, batches among them are the same for all steps.
      exact_loss: report f by a forward pass of its own, which equals ``jax.jit(value_fn)(params)`` bit for bit. The f
        of ``jax.value_and_grad``, reported otherwise, costs nothing and may differ from that in the last place.
      options: as for `objective`; what is trained is the optimizer's ``wrt``.

    Returns:
      A function that changes model and optimizer in place. ``metrics["loss"]`` is f at the parameters before the step;
      where the transformation is of this package, the fields of its `hfopt.StepInfo` or `hfopt.DirectionInfo` are there
      too.
    """

    @nnx.jit
    def train_step(model: Any, optimizer: Optimizer, batch: Any) -> dict[str, jax.Array]:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                "make_train_step: `optimizer` must be hfopt.flax.nnx.Optimizer(model, tx, wrt=nnx.Param), which gives "
                f"a step its `value_fn`, got {_full_name(type(optimizer))}."
            )
        f = value_fn(model, loss, batch, bind=bind, wrt=optimizer.wrt, **options)
        here = params(model, optimizer.wrt)
        value, grad = jax.value_and_grad(f)(here)
        reported = evaluated(f, here) if exact_loss else value
        optimizer.update(model, grad, value=value, value_fn=f)
        return metrics(nnx.as_pure(optimizer.opt_state)) | {"loss": reported}

    return train_step


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _split(module: Any, wrt: Any) -> tuple[Any, Any, tuple[Any, Any, Any]]:
    """The graph, what is trained, and (random streams, all else, what was sown), as arrays that no call changes."""
    graph, trained, streams, sown, others = nnx.split(module, wrt, nnx.RngState, nnx.Intermediate, ...)
    return graph, nnx.as_pure(trained), (nnx.as_pure(streams), nnx.as_pure(others), nnx.as_pure(sown))
