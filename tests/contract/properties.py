"""What a transformation is put through. Each check compares numbers with an independent account of what Optax defines,
or expects the refusal that names the way out."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.contract.optimizers import Optimizer
from tests.contract.problem import (
    OBJECTIVE,
    STEPS,
    ByHand,
    add,
    assert_same,
    batches,
    gradient,
    params,
    train_step,
    trajectory,
    value,
)

_HALF = {"in": True, "out": False}
_EVEN = lambda step: step % 2 == 0  # noqa: E731


def _clipped(grad: Any, limit: float) -> Any:
    norm = np.sqrt(sum(float((np.asarray(g) ** 2).sum()) for g in jax.tree.leaves(grad)))
    return jax.tree.map(lambda g: g * min(1.0, limit / norm), grad)


def _chained(wrap: Callable[..., Any], optimizer: Optimizer) -> None:
    inner, at, expected = ByHand(optimizer.make()), params(), []
    for batch in batches():
        at = add(at, inner.step(at, batch, _clipped(gradient(at, batch), 0.05)))
        expected.append(at)
    assert_same(trajectory(wrap(optax.clip_by_global_norm(0.05), optimizer.make())), expected)


def chain(optimizer: Optimizer) -> None:
    _chained(optax.chain, optimizer)


def named_chain(optimizer: Optimizer) -> None:
    _chained(lambda clip, step: optax.named_chain(("clip", clip), ("step", step)), optimizer)


def inject_hyperparams(optimizer: Optimizer) -> None:
    name, schedule = optimizer.injected, optax.linear_schedule(*optimizer.values, STEPS)
    tx = optax.inject_hyperparams(optimizer.make, static_args=optimizer.static)(**{name: schedule})
    at, state, expected = params(), None, []
    for step, batch in enumerate(batches()):
        by_hand = ByHand(optimizer.make(**{name: float(schedule(step))}))
        by_hand.state = by_hand.state if state is None else state
        at = add(at, by_hand.step(at, batch))
        state = by_hand.state
        expected.append(at)
    assert_same(trajectory(tx), expected)


def apply_if_finite(optimizer: Optimizer) -> None:
    data = batches()
    inputs, labels = data[1]
    data[1] = inputs.at[0, 0].set(jnp.nan), labels
    path = trajectory(optax.apply_if_finite(optimizer.make(), 3), data)
    without = trajectory(optimizer.make(), [data[0], *data[2:]])
    assert_same(path, [without[0], without[0], *without[1:]])


def conditionally_mask(optimizer: Optimizer) -> None:
    data = batches()
    path = trajectory(optax.conditionally_mask(optimizer.make(), _EVEN), data)
    without = trajectory(optimizer.make(), data[::2])
    assert_same(path, [without[0], without[0], without[1], without[1]])


def conditionally_transform(optimizer: Optimizer) -> None:
    inner, at, expected = ByHand(optimizer.make()), params(), []
    for step, batch in enumerate(batches()):
        at = add(at, inner.step(at, batch) if step % 2 == 0 else gradient(at, batch))
        expected.append(at)
    assert_same(trajectory(optax.conditionally_transform(optimizer.make(), _EVEN)), expected)


def apply_every(optimizer: Optimizer) -> None:
    inner, at, held, expected = ByHand(optimizer.make()), params(), None, []
    for step, batch in enumerate(batches()):
        update = inner.step(at, batch)
        held = update if held is None else add(held, update)
        if step % 2:
            at, held = add(at, held), None
        expected.append(at)
    assert_same(trajectory(optax.chain(optimizer.make(), optax.apply_every(2))), expected)


def freeze(optimizer: Optimizer) -> None:
    inner, at, expected = ByHand(optimizer.make()), params(), []
    for batch in batches():
        at = at | {"out": add(at["out"], inner.step(at, batch)["out"])}
        expected.append(at)
    assert_same(trajectory(optax.chain(optimizer.make(), optax.freeze(_HALF))), expected)


def masked(optimizer: Optimizer) -> None:
    with pytest.raises(ValueError, match=r"use hfopt\.masked"):
        trajectory(optax.masked(optimizer.make(), _HALF))


def partition(optimizer: Optimizer) -> None:
    groups = {"newton": optimizer.make(), "adam": optax.adam(1e-3)}
    with pytest.raises(ValueError, match=r"use hfopt\.masked"):
        trajectory(optax.partition(groups, {"in": "newton", "out": "adam"}))


def flatten(optimizer: Optimizer) -> None:
    with pytest.raises(ValueError, match=r"optax\.flatten that makes a vector of the parameters, leave it out"):
        trajectory(optax.flatten(optimizer.make()))


def multi_steps(optimizer: Optimizer) -> None:
    inner, at, expected = ByHand(optimizer.make()), params(), []
    data = batches()
    for first, second in zip(data[::2], data[1::2], strict=True):
        expected.append(at)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, gradient(at, first), gradient(at, second))
        at = add(at, inner.step(at, second, mean))
        expected.append(at)
    accumulated = optax.MultiSteps(optimizer.make(), 2, accumulator_dtype=jnp.float64)
    assert_same(trajectory(accumulated), expected, rtol=1e-4)  # means of other rounding, which CG amplifies


def reduce_on_plateau(optimizer: Optimizer) -> None:
    inner, at, expected = ByHand(optimizer.make()), params(), []
    # With so large a tolerance every value but the first is a plateau: the scale halves at the second, third, …
    for step, batch in enumerate(batches()):
        at = add(at, inner.step(at, batch), 0.5**step)
        expected.append(at)
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.0, atol=1e6)
    assert_same(trajectory(optax.chain(optimizer.make(), plateau)), expected)


def schedule_free(optimizer: Optimizer) -> None:
    b1, y = 0.9, params()
    inner, z, x, expected = ByHand(optimizer.make()), y, y, []
    for step, batch in enumerate(batches()):
        z = add(z, inner.step(y, batch))
        x = jax.tree.map(lambda x, z, c=1 / (step + 1): (1 - c) * x + c * z, x, z)
        y = jax.tree.map(lambda x, z: b1 * x + (1 - b1) * z, x, z)
        expected.append(y)
    assert_same(trajectory(optax.contrib.schedule_free(optimizer.make(), learning_rate=1.0, b1=b1)), expected)


def sam(optimizer: Optimizer) -> None:
    tx = optax.contrib.sam(optimizer.make(), optax.chain(optax.contrib.normalize(), optax.sgd(0.1)))
    with pytest.raises(ValueError, match=r"`value_fn` is missing.*optax\.contrib\.sam"):
        tx.update(gradient(params(), batches()[0]), tx.init(params()), params())


def _searched(search: optax.GradientTransformationExtraArgs, optimizer: Optimizer) -> list[tuple[float, ...]]:
    """For each step f, f after it, gᵀd, and gᵀd after it; the step must be a multiple of the update d within."""
    tx, inner, at, seen = optax.chain(optimizer.make(), search), ByHand(optimizer.make()), params(), []
    state, step = tx.init(at), jax.jit(partial(train_step, tx))
    for batch in batches():
        direction, grad = inner.step(at, batch), gradient(at, batch)
        after, state = step(at, state, batch)
        rate = float(optax.tree.get(state, "learning_rate"))
        assert rate > 0
        assert_same(add(after, at, -1), jax.tree.map(lambda d, r=rate: r * d, direction), rtol=1e-6)
        slopes = [rate * float(optax.tree.vdot(g, direction)) for g in (grad, gradient(after, batch))]
        seen.append((float(value(at, batch)), float(value(after, batch)), *slopes))
        at = after
    return seen


def backtracking(optimizer: Optimizer) -> None:
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=20, slope_rtol=1e-2)
    for before, after, slope, _ in _searched(search, optimizer):
        assert after <= before + 1e-2 * slope + 1e-9


def zoom(optimizer: Optimizer) -> None:
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, slope_rtol=1e-3, curv_rtol=0.9)
    for before, after, slope, slope_after in _searched(search, optimizer):
        assert after <= before + 1e-3 * slope + 1e-9
        assert abs(slope_after) <= 0.9 * abs(slope) + 1e-9


def tree_get_and_set(optimizer: Optimizer) -> None:
    by_hand = ByHand(optimizer.make())
    for expected in (1, 2):
        by_hand.step(params(), batches()[0])
        assert int(optax.tree.get(by_hand.state, "step")) == expected
    assert int(optax.tree.get(by_hand.state, "cg_steps")) >= 0
    assert float(optax.tree.get(by_hand.state, "damping")) > 0
    by_hand.state = optax.tree.set(by_hand.state, step=jnp.int32(7))
    by_hand.step(params(), batches()[0])
    assert int(optax.tree.get(by_hand.state, "step")) == 8


def map_params(optimizer: Optimizer) -> None:
    tx = optimizer.make()
    by_hand = ByHand(tx)
    by_hand.step(params(), batches()[0])
    marked = optax.tree.map_params(tx, lambda x: jnp.full_like(x, 7.0), by_hand.state)
    like = {leaf.shape for leaf in jax.tree.leaves(params())}
    for path, leaf in jax.tree.leaves_with_path(marked):
        assert (leaf.shape in like) == bool(leaf.size and (leaf == 7.0).all()), path


def abstract_init(optimizer: Optimizer) -> None:
    tx = optimizer.make()
    abstract, state = jax.eval_shape(tx.init, params()), tx.init(params())
    spec = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert spec(abstract) == spec(state)
    _, after = jax.eval_shape(partial(train_step, tx), params(), abstract, batches()[0])
    assert spec(after) == spec(state)


def scan(optimizer: Optimizer) -> None:
    tx, data = optimizer.make(), batches()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)

    def body(carry: Any, batch: Any) -> Any:
        carry = train_step(tx, *carry, batch)
        return carry, carry[0]

    _, path = jax.jit(lambda *start: jax.lax.scan(body, start, stacked))(params(), tx.init(params()))
    loop = trajectory(tx, data)
    for i in range(len(data)):
        assert_same(jax.tree.map(lambda x, i=i: x[i], path), loop[i])


def ensemble(optimizer: Optimizer) -> None:
    tx = optimizer.make()
    starts = [params(seed) for seed in (0, 1, 2)]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    at, step = stack(starts), jax.jit(jax.vmap(partial(train_step, tx), in_axes=(0, 0, None)))
    state = jax.vmap(tx.init)(at)
    for batch in batches():
        at, state = step(at, state, batch)
    assert_same(at, stack([trajectory(tx, start=start)[-1] for start in starts]), rtol=1e-6)


def donation(optimizer: Optimizer) -> None:
    tx, at = optimizer.make(), params()
    state, step = tx.init(at), jax.jit(partial(train_step, tx), donate_argnums=(0, 1))
    for batch in batches():
        given = (at, state)
        at, state = step(at, state, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given) if leaf.ndim)  # some scalars are not read
    assert_same(at, trajectory(tx)[-1])


def _one_step(optimizer: Optimizer, dtype: Any) -> Any:
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)  # noqa: E731
    tx, at = optimizer.make(), cast(params())
    value_fn = OBJECTIVE.bind(cast(batches()[0]))
    grad = jax.grad(value_fn)(at)
    state = tx.init(at)
    updates, after = jax.jit(lambda at, state, grad: tx.update(grad, state, at, grad=grad, value_fn=value_fn))(
        at, state, grad
    )
    floats = {x.dtype for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    return updates, floats


def float64(optimizer: Optimizer) -> None:
    _, floats = _one_step(optimizer, jnp.float64)
    assert floats == {jnp.dtype("float64")}


def bfloat16(optimizer: Optimizer) -> None:
    narrow, floats = _one_step(optimizer, jnp.bfloat16)
    assert floats <= {jnp.dtype("float32"), jnp.dtype("bfloat16")}
    wide, _ = _one_step(optimizer, jnp.float32)
    a, b = (np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)]) for t in (narrow, wide))
    assert a @ b > 0.98 * np.linalg.norm(a) * np.linalg.norm(b)
    assert 0.8 < np.linalg.norm(a) / np.linalg.norm(b) < 1.25


class Property(NamedTuple):
    """A row of the table."""

    check: Callable[[Optimizer], None]
    note: str = ""
    refused: bool = False  # the check expects our error


PROPERTIES = {
    "chain": Property(chain, "what stands before changes g; nothing that changes the step belongs behind"),
    "named_chain": Property(named_chain),
    "inject_hyperparams": Property(
        inject_hyperparams, 'a number by a schedule; `static_args=("curvature",)`, or it would be called as one'
    ),
    "apply_if_finite": Property(apply_if_finite, "`hessian_free` rejects such steps itself, and learns from them"),
    "conditionally_mask": Property(conditionally_mask),
    "conditionally_transform": Property(conditionally_transform, "passes the raw gradient on at other steps"),
    "apply_every": Property(apply_every, "solves at every step all the same; chunks cost less"),
    "freeze": Property(freeze, "cuts a part out of the whole solution; `hfopt.masked` solves for the rest alone"),
    "masked": Property(masked, "the error names `hfopt.masked`", refused=True),
    "partition, multi_transform": Property(partition, "the error names `hfopt.masked`", refused=True),
    "flatten": Property(flatten, "the objective takes a tree", refused=True),
    "MultiSteps": Property(multi_steps, "solves at every mini-step, on its batch alone: `chunk_size` does better"),
    "contrib.reduce_on_plateau": Property(reduce_on_plateau),
    "contrib.schedule_free": Property(schedule_free),
    "contrib.sam": Property(sam, "passes no `value_fn` on", refused=True),
    "scale_by_backtracking_linesearch": Property(backtracking, "behind; made for `scale_by_gauss_newton`"),
    "scale_by_zoom_linesearch": Property(zoom, "behind; made for `scale_by_gauss_newton`"),
    "tree.get, tree.set": Property(tree_get_and_set),
    "tree.map_params": Property(map_params),
    "abstract init": Property(abstract_init),
    "lax.scan over steps": Property(scan),
    "vmap over seeds": Property(ensemble),
    "donated state": Property(donation),
    "float64": Property(float64),
    "bfloat16 parameters": Property(bfloat16, "CG in float32"),
}
