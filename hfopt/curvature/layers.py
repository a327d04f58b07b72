"""Layers: the leaves of a parameter tree in the groups that a model made them in."""

from typing import Any

import jax

LAYER_SEPARATOR = "/"


def layers(tree: Any) -> dict[str, tuple[int, ...]]:
    """The layers of a parameter tree, by name: numbers of the leaves, in the order of ``jax.tree.leaves``.

    The leaves that share a parent are a layer, which has the parent's path for a name: ``params/Dense_0`` for the
    kernel and bias of a Flax layer. A leaf at the root is a layer of its own.
    """
    found: dict[str, list[int]] = {}
    for i, (path, _) in enumerate(jax.tree.leaves_with_path(tree)):
        found.setdefault(_name(path[:-1] or path), []).append(i)
    return {name: tuple(leaves) for name, leaves in found.items()}


def leaf_names(tree: Any) -> list[str]:
    """The path of every leaf, in the order of ``jax.tree.leaves``."""
    return [_name(path) for path, _ in jax.tree.leaves_with_path(tree)]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=LAYER_SEPARATOR)
