"""Arrays seen as stacks of matrices: nothing is lost, and what has one shape is one stack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfopt.solve.blocks import Blocks, Cut, cut


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((), None),
        ((5,), None),
        ((1, 7, 1), None),
        ((1, 1, 1, 64), None),
        ((3, 4), Cut((), (0,), (1,))),
        ((1, 7, 9), Cut((), (1,), (2,))),
        ((0, 5, 3), None),
        ((3, 3, 16, 32), Cut((), (0, 1, 2), (3,))),  # a convolution: height · width · in × out
        ((5, 5, 1, 32), Cut((), (0, 1, 2), (3,))),
        ((1, 1, 64, 64), Cut((), (0, 1, 2), (3,))),
        ((3, 3, 3, 4, 8), Cut((), (0, 1, 2, 3), (4,))),
        ((64, 4, 16), Cut((1,), (0,), (2,))),  # queries: a matrix a head
        ((4, 16, 64), Cut((0,), (1,), (2,))),  # and how attention comes out
        ((12, 64, 256), Cut((0,), (1,), (2,))),  # layers under a scan, or experts
        ((12, 64, 4, 16), Cut((0, 2), (1,), (3,))),  # layers of queries
        ((12, 12, 64, 768), Cut((0, 1), (2,), (3,))),  # layers of how attention comes out
        ((6, 4, 16, 64), Cut((0, 1), (2,), (3,))),
        ((6, 3, 3, 8, 8), Cut((0,), (1, 2, 3), (4,))),  # layers of convolutions
        ((2, 6, 3, 3, 8, 8), Cut((0, 1), (2, 3, 4), (5,))),
    ],
)
def test_axes_are_told_apart_by_shape_alone(shape, found):
    assert cut(shape) == found


@pytest.fixture
def tree():
    return {
        "dense": jnp.arange(6.0).reshape(2, 3),
        "other": [jnp.arange(6.0).reshape(2, 3) + 10, jnp.arange(24.0).reshape(2, 3, 4)],
        "convolution": jnp.arange(3 * 3 * 5 * 2.0).reshape(3, 3, 5, 2),
        "heads": jnp.arange(5 * 2 * 3.0).reshape(5, 2, 3),
        "half": jnp.arange(24.0, dtype=jnp.bfloat16).reshape(4, 3, 2),
        "bias": jnp.arange(5.0),
        "scale": jnp.array(3.0),
        "row": jnp.arange(7.0).reshape(1, 7),
        "scales": [jnp.arange(3.0).reshape(1, 1, 1, 3), jnp.arange(3.0).reshape(1, 1, 1, 3) + 5],
    }


@pytest.mark.parametrize("longest", [1, 3, 512])
def test_splitting_and_joining_give_the_tree_back(longest, tree):
    blocks = Blocks.of(tree, longest)
    stacks = blocks.split(tree)
    assert [stack.shape for stack in stacks] == [group.shape for group in blocks.groups]
    jax.tree.map(np.testing.assert_array_equal, blocks.join(stacks), jax.tree.map(lambda x: x.astype(float), tree))
    assert {stack.dtype for stack in stacks} == {jnp.dtype(jnp.float64), jnp.dtype(jnp.float32)}


def test_matrices_of_one_shape_are_one_stack_and_vectors_one_row(tree):
    shapes = {group.shape for group in Blocks.of(tree, 512).groups}
    assert (2, 2, 3) in shapes  # dense and other[0]
    assert (1, 1, 1 + 5 + 7 + 3 + 3) in shapes
    apart = [group.shape for group in Blocks.of(tree, 1).groups]
    assert apart.count((1, 2, 3)) == 2  # nothing of them is rotated, so joining them would only copy


def test_a_head_is_a_matrix_of_its_own(tree):
    blocks = Blocks.of({"q": tree["heads"]}, 512)
    (stack,) = blocks.split({"q": tree["heads"]})
    np.testing.assert_array_equal(stack, np.moveaxis(np.asarray(tree["heads"]), 1, 0))
