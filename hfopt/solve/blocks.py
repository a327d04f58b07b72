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

from hfopt.placement import placed_as, whole
from hfopt.vectors import wide_dtype

# The longest side of the window of a convolution.
_WINDOW = 11
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
    four, a window (two sides that are equal, or one of them 1, up to 11) makes a convolution, whose rows are height ·
    width · channels in; of five so do three equal ones. Any longer array is a stack of what its last axes are. Shapes
    cannot tell all: as many heads as layers, up to eleven, look like a window.
    """
    rank = len(shape)
    if 0 in shape:
        return None
    if rank in (4, 5) and _is_window(shape[:-2]) and shape[-1] > 1 and prod(shape[:-1]) > 1:
        return Cut((), tuple(range(rank - 1)), (rank - 1,))
    if rank > 3 and shape[0] > 1:
        inner = cut(shape[1:])
        if inner is None:
            return None
        moved = Cut(*(tuple(axis + 1 for axis in part) for part in inner))
        return moved._replace(stack=(0, *moved.stack))
    axes = [axis for axis, length in enumerate(shape) if length > 1]
    if len(axes) < 2:
        return None
    *leading, last = axes
    *stack, rows = sorted(leading, key=lambda axis: shape[axis])
    return Cut(tuple(sorted(stack)), (rows,), (last,))


def _is_window(sides: Sequence[int]) -> bool:
    alike = len({side for side in sides if side > 1 or len(sides) > 2}) <= 1
    return alike and max(sides) <= _WINDOW


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

    leaves: tuple[Any, ...]  # of the example
    tree: Any  # their structure
    groups: tuple[Group, ...]

    @staticmethod
    def of(tree: Any, longest: int) -> "Blocks":
        """The blocks of trees like ``tree``.

        Sides are worked on up to the length ``longest``, of convolutions up to four times that. An array both of whose
        sides are longer is a group of its own, since joining would only copy it.
        """
        leaves, structure = jax.tree.flatten(tree)
        gathered: dict[Any, list[Member]] = {}
        for i, leaf in enumerate(leaves):
            shape = jnp.shape(leaf)
            found, dtype = cut(shape), jnp.dtype(wide_dtype(leaf))
            if found is None:
                gathered.setdefault((0, 0, dtype, False, False, None), []).append(
                    Member(i, tuple(range(len(shape))), 1)
                )
                continue
            used = (*found.stack, *found.rows, *found.columns)
            order = (*used, *(axis for axis in range(len(shape)) if axis not in used))
            count, rows, columns = (prod(shape[axis] for axis in part) for part in found)
            most = longest * (_OF_CONVOLUTIONS if len(found.rows) > 1 else 1)
            left, right = rows <= most, columns <= most
            alone = None if left or right else i
            gathered.setdefault((rows, columns, dtype, left, right, alone), []).append(Member(i, order, count))
        groups = []
        for (rows, columns, dtype, left, right, _), members in gathered.items():
            if rows == 0:
                rows, columns = 1, sum(jnp.size(leaves[member.leaf]) for member in members)
            groups.append(Group(tuple(members), rows, columns, dtype, left, right))
        return Blocks(tuple(leaves), structure, tuple(groups))

    def split(self, tree: Any) -> list[jax.Array]:
        """``tree`` as one stack a group, in at least float32."""
        leaves = list(map(whole, jax.tree.leaves(tree)))

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
        """The tree that ``stacks`` are of, in their dtypes, every leaf placed as that of the example is."""
        leaves: list[Any] = [None] * len(self.leaves)
        for group, stack in zip(self.groups, stacks, strict=True):
            row = group.is_row
            lengths = [jnp.size(self.leaves[m.leaf]) if row else m.matrices for m in group.members]
            parts = jnp.split(stack, np.cumsum(lengths)[:-1], axis=2 if row else 0)
            for member, part in zip(group.members, parts, strict=True):
                shape = jnp.shape(self.leaves[member.leaf])
                permuted = part.reshape([shape[axis] for axis in member.order])
                leaves[member.leaf] = jnp.transpose(permuted, tuple(np.argsort(member.order)))
        return placed_as(jax.tree.unflatten(self.tree, leaves), jax.tree.unflatten(self.tree, self.leaves))
