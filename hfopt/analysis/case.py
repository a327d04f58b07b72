"""What the checks examine, and what more than one of them needs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from hfopt.analysis.measured import Measured, measured
from hfopt.batch import Batch, Examples, examples, size
from hfopt.objective import ValueFn
from hfopt.outputs import coordinates
from hfopt.placement import whole


@dataclass(frozen=True)
class Case:
    """An objective on a batch, parameters, and the programs that more than one check runs, each compiled once."""

    value_fn: ValueFn
    params: Any
    key: jax.Array
    value: Callable[[Any, ValueFn], jax.Array]
    value_and_grad: Callable[[Any, ValueFn], tuple[jax.Array, Any]]

    @cached_property
    def evaluated(self) -> tuple[jax.Array, Any]:
        """Value and gradient."""
        return self.value_and_grad(self.params, self.value_fn)

    @cached_property
    def first_chunk(self) -> Examples:
        """The rows that curvature products look at first, with their coefficients."""
        rows = examples(self.value_fn.averaged)
        return jax.tree.map(lambda x: whole(x)[: self.value_fn.chunk_size], rows)

    @cached_property
    def measured(self) -> Measured:
        """What products with the Gauss-Newton matrix show."""
        return measured(self.value_fn, self.params, self.first_chunk.inputs, self.key)

    @cached_property
    def coarsest(self) -> float:
        """ε of the narrowest dtype among parameters and outputs."""
        inputs, objective = self.value_fn.batch.inputs, self.value_fn.objective
        outputs = jax.eval_shape(lambda p, x: coordinates(objective.predict(p, x)), self.params, inputs)
        return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves((self.params, outputs)))

    def part(self, rows: slice) -> Batch:
        """Some rows of the batch."""
        return Batch(*jax.tree.map(lambda x: whole(x)[rows], tuple(self.value_fn.batch)))

    @property
    def count(self) -> int:
        """How many examples are evaluated at once."""
        return min(size(self.value_fn.batch), self.value_fn.chunk_size or size(self.value_fn.batch))


def eps(value: jax.Array) -> float:
    """The machine epsilon of its dtype."""
    return float(jnp.finfo(value.dtype).eps)


def name_of(path: Any, root: str = "params") -> str:
    """How a leaf is written in Python."""
    return f"{root}{jax.tree_util.keystr(path)}"
