"""Parameters as stacks of matrices: how arrays of any rank are seen by what works on rows and columns.

Arrays whose matrices have one shape are one stack, so that whatever is done with them is one batched kernel a shape.
What has no two sides (biases, scales) is joined into one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hfopt.vectors import wide_dtype

# A leading axis up to this length, followed by another one, is taken for the window of a convolution.
_WINDOW = 16
# How much longer the sides of a convolution may be: it is applied at every position of an example.
_OF_CONVOLUTIONS = 4


class Cut(NamedTuple):
    """The axes of an array that count as a stack of matrices, as their rows and as their columns."""

    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def cut(shape: Sequence[int]) -> Cut | None:
    """How an array of this shape is seen; ``None`` if it has no two sides.

    Two axes are a matrix. Of three, as in attention (width · heads · size of a head, or heads · size · width), experts
    and layers under ``nn.scan``, the shorter of the first two is a stack: no side is the product of unlike things. Of
    four and more, leading axes that are all short are the window of a convolution, whose rows are height · width ·
    channels in; a longer array is a stack of what the other axes are.
    """
    axes = [axis for axis, length in enumerate(shape) if length > 1]
    if len(axes) < 2:
        return None
    *leading, last = axes
    if len(leading) == 1:
        return Cut((), (leading[0],), (last,))
    if len(leading) == 2:
        stack, rows = sorted(leading, key=lambda axis: shape[axis])
        return Cut((stack,), (rows,), (last,))
    *window, _ = leading
    if len(leading) == 3 and all(shape[axis] <= _WINDOW for axis in window):
        return Cut((), tuple(leading), (last,))
    inner = cut([1 if axis == leading[0] else length for axis, length in enumerate(shape)])
    assert inner is not None  # there are more than two axes left
    return inner._replace(stack=(leading[0], *inner.stack))


class Member(NamedTuple):
    """One array of a group."""

    leaf: int  # its place among the leaves
    order: tuple[int, ...]  # its axes: stack, rows, columns, and those of length one
    matrices: int  # how many it is


class Group(NamedTuple):
    """Arrays seen as one stack (count, rows, columns)."""

    members: tuple[Member, ...]
    rows: int
    columns: int
    dtype: Any
    left: bool  # whether the rows, the columns are few enough to work on
    right: bool

    @property
    def is_row(self) -> bool:
        """Whether it is what has no two sides, joined."""
        return self.rows == 1

    @property
    def matrices(self) -> int:
        """How many there are in the stack."""
        return 1 if self.is_row else sum(member.matrices for member in self.members)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the stack."""
        return self.matrices, self.rows, self.columns


@dataclass(frozen=True)
class Blocks:
    """How trees like one example are split into stacks of matrices."""

    like: tuple[Any, ...]  # shapes and dtypes of the leaves
    tree: Any  # their structure
    groups: tuple[Group, ...]

    @staticmethod
    def of(tree: Any, longest: int) -> "Blocks":
        """The blocks of trees like ``tree``.

        Sides are worked on up to the length ``longest``, of convolutions up to four times that. An array both of whose
        sides are longer is a group of its own, since joining would only copy it.
        """
        leaves, structure = jax.tree.flatten(tree)
        like = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        gathered: dict[Any, list[Member]] = {}
        for i, leaf in enumerate(like):
            found, dtype = cut(leaf.shape), jnp.dtype(wide_dtype(leaf))
            if found is None:
                gathered.setdefault((0, 0, dtype, False, False, None), []).append(Member(i, tuple(range(leaf.ndim)), 1))
                continue
            used = (*found.stack, *found.rows, *found.columns)
            order = (*used, *(axis for axis in range(leaf.ndim) if axis not in used))
            count, rows, columns = (prod(leaf.shape[axis] for axis in part) for part in found)
            most = longest * (_OF_CONVOLUTIONS if len(found.rows) > 1 else 1)
            left, right = rows <= most, columns <= most
            alone = None if left or right else i
            gathered.setdefault((rows, columns, dtype, left, right, alone), []).append(Member(i, order, count))
        groups = []
        for (rows, columns, dtype, left, right, _), members in gathered.items():
            if rows == 0:
                rows, columns = 1, sum(like[member.leaf].size for member in members)
            groups.append(Group(tuple(members), rows, columns, dtype, left, right))
        return Blocks(like, structure, tuple(groups))

    def split(self, tree: Any) -> list[jax.Array]:
        """``tree`` as one stack a group, in at least float32."""
        leaves = jax.tree.leaves(tree)

        def stacked(group: Group) -> jax.Array:
            if group.is_row:
                parts = [jnp.asarray(leaves[m.leaf]).astype(group.dtype).reshape(1, 1, -1) for m in group.members]
                return jnp.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
            parts = [
                jnp.transpose(leaves[m.leaf], m.order)
                .astype(group.dtype)
                .reshape(m.matrices, group.rows, group.columns)
                for m in group.members
            ]
            return jnp.concatenate(parts) if len(parts) > 1 else parts[0]

        return [stacked(group) for group in self.groups]

    def join(self, stacks: Sequence[jax.Array]) -> Any:
        """The tree that ``stacks`` are of, in their dtypes."""
        leaves: list[Any] = [None] * len(self.like)
        for group, stack in zip(self.groups, stacks, strict=True):
            row = group.is_row
            lengths = [self.like[m.leaf].size if row else m.matrices for m in group.members]
            parts = jnp.split(stack, np.cumsum(lengths)[:-1], axis=2 if row else 0)
            for member, part in zip(group.members, parts, strict=True):
                shape = self.like[member.leaf].shape
                permuted = part.reshape([shape[axis] for axis in member.order])
                leaves[member.leaf] = jnp.transpose(permuted, tuple(np.argsort(member.order)))
        return jax.tree.unflatten(self.tree, leaves)
