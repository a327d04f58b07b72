"""The objective f(θ) = ½ l2 ‖θ‖² + Σ c_i ξ_i, and its value function on a batch.

`Objective` is the model: what predicts, what is lost, what is penalised. `Objective.bind` joins it with a batch to a
`ValueFn`, which is at the same time what ``jax.value_and_grad`` differentiates, what a line search evaluates, and what
a curvature operator takes apart again into predict and loss.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax.custom_derivatives import SymbolicZero

from hfopt.arguments import check_mask, full_mask, require_scalar
from hfopt.batch import Batch, Chunks, Examples, as_batch, chunks, examples, part_of, size, sum_over_chunks
from hfopt.convolutions import canonical
from hfopt.losses import Loss, mean_loss
from hfopt.placement import dot

Memory = Literal["auto", "keep", "recompute"]


@dataclass(frozen=True, eq=False)
class Objective:
    """f(θ) = ½ l2 ‖θ‖² + (1/N) Σ_i loss(predict(θ, x_i), y_i).

    Args:
      predict: ``predict(params, inputs) -> outputs``, an array or pytree with a leading batch axis.
      loss: ``loss(outputs, targets) -> losses`` per example, shape (N,) or (N, …), as ``optax.losses`` returns them;
        axes after the first are averaged too.
      l2: 1/C, the weight of the penalty; a non-negative number, or a scalar array, which may be traced: with one jitted
        function a sweep over it compiles once, and f has a derivative by it. It belongs here rather than in a chain
        of gradient transformations, so that value, gradient and curvature agree.
      l2_mask: which parameters the penalty sees: a pytree of booleans shaped like the parameters (or a prefix of it),
        or a callable that makes one from their structure and shapes. ``None``: all.
      precision: of matrix products in value, gradient and curvature, as ``jax.default_matmul_precision`` takes it.
        The default keeps float32 products out of TF32 and bf16 passes on GPU and TPU; ``None`` leaves the setting of
        the surrounding program.
      curvature_predict: what curvature products take for ``predict``, such as the same model with the running
        statistics of BatchNorm instead of those of the batch; ``None``: ``predict`` itself.

    Raises:
      ValueError: ``l2`` is negative or no scalar; at a call, ``l2_mask`` does not fit the parameters.
      TypeError: ``predict`` or ``loss`` is not callable, ``l2`` is no number, or an entry of ``l2_mask`` no boolean.

    Example:
      >>> import jax, jax.numpy as jnp, optax, hfopt
      >>> predict = lambda params, x: x @ params["w"]
      >>> objective = hfopt.Objective(predict, optax.losses.squared_error, l2=1e-3)
      >>> value_fn = objective.bind((jnp.eye(2), jnp.ones(2)))
      >>> float(value_fn({"w": jnp.zeros(2)}))
      1.0
    """

    predict: Callable[[Any, Any], Any]
    loss: Loss
    l2: float | jax.Array = 0.0
    l2_mask: Any = None
    precision: str | None = "highest"
    curvature_predict: Callable[[Any, Any], Any] | None = None

    takes_masked: ClassVar[bool] = False  # whether `predict` takes parameters with `optax.MaskedNode` in them

    def __post_init__(self) -> None:
        for name in ("predict", "loss"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Objective: `{name}` must be callable, got {type(getattr(self, name)).__name__}.")
        require_scalar("Objective", "l2", self.l2)
        if self.l2_mask is not None and not callable(self.l2_mask):
            check_mask("Objective", "l2_mask", self.l2_mask)
        try:
            with self.matmul_precision():
                pass
        except ValueError as error:
            raise ValueError(f"Objective: `precision` is {self.precision!r}: {error}") from None

    # An objective is part of what a jitted function is compiled for.
    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        callables = map(_comparable, (self.predict, self.loss, self.curvature_predict))
        mask = _comparable(self.l2_mask) if callable(self.l2_mask) else _entries(self.l2_mask)
        return (*callables, self.l2, mask, self.precision)

    @property
    def is_penalised(self) -> bool:
        """Whether there may be a penalty: ``l2`` is not a number that is 0."""
        return isinstance(self.l2, jax.Array) or self.l2 != 0

    @property
    def for_curvature(self) -> "Objective":
        """The objective whose curvature is taken."""
        if self.curvature_predict is None:
            return self
        return replace(self, predict=self.curvature_predict, curvature_predict=None)

    def bind(
        self,
        batch: Any,
        curvature_batch: Any = None,
        chunk_size: int | None = None,
        evaluation_batch: Any = None,
        memory: Memory = "auto",
    ) -> "ValueFn":
        """Join the objective with data.

        Args:
          batch: ``(inputs, targets)`` or ``(inputs, targets, weights)``; pytrees whose leaves share their first axis.
          curvature_batch: the examples curvature products average over; ``None``: those of ``batch``. A number in
            (0, 1] takes the first of ``batch``, that share of them rounded up; ``"auto"`` a quarter, but at least as
            many as have 32 labels, positions of a sequence counted singly (integer targets; of others an example counts
            once): fewer judge too noisily. These examples judge the steps, too, unless there is an
            ``evaluation_batch``. That their weights are not all 0 is checked where these are known.
          evaluation_batch: the examples that judge a step: trial losses and the reduction ratio are computed on them;
            ``None``: those of ``batch``. It may be a share of ``batch`` likewise.
          chunk_size: the most examples to evaluate at once. Memory is then that of one chunk, besides what ``memory``
            lets products keep; values, gradients and products are the same sums. ``None``: all at once.
            Chunks are equal; where no number of them up to twice as many as it takes divides the number of examples,
            the data are copied once to fill the last one.
          memory: what chunked products do with what they need of the forward pass (residuals and derivatives of the
            loss), which grows with the number of examples. ``"keep"``: keep it, and products cost what they cost
            unchunked; ``"recompute"``: run every chunk's forward pass again in each product, so that memory is bounded
            by one chunk; ``"auto"``: keep it while that of all examples together takes at most 1 GiB.

        Returns:
          A `ValueFn`: ``value_fn(params)`` is the objective on the batch. It is a pytree whose leaves are the data,
          so a new batch of the same shapes does not recompile a jitted function that takes it.

        Raises:
          ValueError: see `hfopt.batch.as_batch`; or ``chunk_size`` is not a positive integer, ``memory`` none of the
            three, or a share not in (0, 1].
        """
        if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
            raise ValueError(f"Objective.bind: `chunk_size` must be a positive integer or None, got {chunk_size!r}.")
        if memory not in get_args(Memory):
            raise ValueError(f"Objective.bind: `memory` must be one of {get_args(Memory)}, got {memory!r}.")
        batch = as_batch(batch, "batch")
        shared = isinstance(curvature_batch, Real | str) and evaluation_batch is None
        curvature_batch = part_of(batch, curvature_batch, "curvature_batch")
        evaluation_batch = part_of(batch, evaluation_batch, "evaluation_batch")
        if shared:
            evaluation_batch = curvature_batch
        return ValueFn(self, batch, curvature_batch, evaluation_batch, chunk_size, memory)

    def matmul_precision(self) -> AbstractContextManager[Any]:
        """The context in which value, gradient and products are traced."""
        return nullcontext() if self.precision is None else jax.default_matmul_precision(self.precision)

    def penalty(self, params: Any) -> Any:
        """½ l2 ‖θ‖² over the parameters that `l2_mask` keeps."""
        if not self.is_penalised:
            return 0.0
        square = optax.tree.sum(jax.tree.map(dot, params, self.penalised(params)))
        return 0.5 * jnp.asarray(self.l2, square.dtype) * square

    def penalised(self, tree: Any) -> Any:
        """``tree`` with the parameters outside `l2_mask` set to zero."""
        if self.l2_mask is None:
            return tree
        mask = full_mask("Objective", "l2_mask", self.l2_mask, tree)
        return jax.tree.map(lambda keep, leaf: leaf if keep else jnp.zeros_like(leaf), mask, tree)

    def mean_loss(self, params: Any, rows: Examples) -> jax.Array:
        """Σ c_i ξ_i over the rows, without the penalty."""
        return mean_loss(self.loss, self.predict(params, rows.inputs), rows)


def _comparable(function: Any) -> Any:
    """``function``, or something equal for this very object alone, where it has settings and so no hash."""
    try:
        hash(function)
    except TypeError:
        return _Itself(function)
    return function


def _entries(mask: Any) -> Any:
    """A pytree as something that can be compared and hashed."""
    leaves, structure = jax.tree.flatten(mask)
    return tuple(leaves), structure


@dataclass(frozen=True, eq=False)
class _Itself:
    """Equal to nothing but what wraps the very same object."""

    value: Any

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class ValueFn:
    """The objective on a batch: ``value_fn(params) -> scalar``. Made by `Objective.bind`.

    A pytree whose leaves are the batch, and ``l2`` where that is an array, so it may be an argument of a jitted
    function or be built inside one. As a function it is compared by identity: ``jax.jit(value_fn)`` works, and holds
    its batch as a constant.
    """

    objective: Objective
    batch: Batch
    curvature_batch: Batch | None
    evaluation_batch: Batch | None
    chunk_size: int | None
    memory: Memory

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """The data, with their names, and the rest."""
        names = ("batch", "curvature_batch", "evaluation_batch")
        data = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names]
        objective, l2 = self.objective, None
        if isinstance(self.objective.l2, jax.Array):
            objective, l2 = replace(objective, l2=0.0), objective.l2
        return (*data, (jax.tree_util.GetAttrKey("l2"), l2)), (objective, self.chunk_size, self.memory)

    @classmethod
    def tree_unflatten(cls, rest: Any, data: Any) -> "ValueFn":
        """The value function of these data, which may be anything, and this rest."""
        objective, chunk_size, memory = rest
        batch, curvature_batch, evaluation_batch, l2 = data
        if l2 is not None:
            objective = copy(objective)
            object.__setattr__(objective, "l2", l2)  # unchecked: a transformation may put a placeholder there
        return cls(objective, batch, curvature_batch, evaluation_batch, chunk_size, memory)

    @property
    def averaged(self) -> Batch:
        """The examples that curvature products average over."""
        return self.batch if self.curvature_batch is None else self.curvature_batch

    @property
    def judge(self) -> "ValueFn":
        """The objective on the evaluation batch, by which steps are judged; this very function when there is none."""
        if self.evaluation_batch is None:
            return self
        return ValueFn(self.objective, self.evaluation_batch, None, None, self.chunk_size, self.memory)

    def __call__(self, params: Any) -> jax.Array:
        """f(params), a scalar. Differentiable in ``params``."""
        objective = self.objective
        with objective.matmul_precision():
            if self.is_chunked(self.batch):
                return objective.penalty(params) + self._chunked_mean_loss(params)
            return objective.penalty(params) + objective.mean_loss(params, examples(self.batch))

    def is_chunked(self, batch: Batch) -> bool:
        """Whether ``batch`` is larger than one chunk."""
        return self.chunk_size is not None and size(batch) > self.chunk_size

    def _chunked_mean_loss(self, params: Any) -> jax.Array:
        """The mean loss chunk by chunk, with a derivative rule of its own.

        Differentiating a scan over chunks would keep every chunk's residuals and put the convolutions of the backward
        pass into a loop in their slow layout. The rule takes the gradient inside each chunk instead.
        """
        chunked = chunks(examples(self.batch), self.chunk_size)
        evaluate = canonical(self.objective.mean_loss)
        differentiate = canonical(jax.value_and_grad(self.objective.mean_loss))

        # The rows are an argument: a rule that closed over them would outlive the trace they belong to.
        @jax.custom_jvp
        def mean_loss(params: Any, rows: Examples) -> jax.Array:
            return sum_over_chunks(partial(evaluate, params), Chunks(rows, chunked.number))

        def rule(primals: tuple[Any, Examples], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
            params, rows = primals
            if not all(isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(tangents[1])):
                raise TypeError("A chunked objective has no derivative by its batch; bind it without `chunk_size`.")
            value, gradient = sum_over_chunks(partial(differentiate, params), Chunks(rows, chunked.number))
            pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(tangents[0]), strict=True)
            slopes = [dot(g, t).astype(value.dtype) for g, t in pairs if not isinstance(t, SymbolicZero)]
            return value, sum(slopes, jnp.zeros_like(value))

        mean_loss.defjvp(rule, symbolic_zeros=True)
        return mean_loss(params, chunked.rows)
