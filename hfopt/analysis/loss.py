"""The loss as a function of the outputs: are labels and outputs of one shape, is B ⪰ 0, and is there any B at all?"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hfopt.analysis.case import Case, name_of
from hfopt.analysis.measured import normal
from hfopt.analysis.report import Finding, Status
from hfopt.batch import Examples, size
from hfopt.curvature.diagonal import wide_dtype
from hfopt.losses import Loss, is_known, mean_loss, output_hessian
from hfopt.outputs import of_coordinates

_EXACT_OUTPUTS = 64  # numbers an example, up to which B is looked at whole
_PROBES = 16
_PLACES = {"at the outputs": 0.0, "one standard deviation away": 1.0, "three away": 3.0}


def shapes(case: Case) -> tuple[Finding]:
    """Whether outputs and targets broadcast, so that every output meets the targets of other examples."""
    objective, rows = case.value_fn.objective, case.value_fn.batch
    outputs = jax.eval_shape(lambda p, x: objective.predict(p, x), case.params, rows.inputs)
    losses = jax.eval_shape(objective.loss, outputs, rows.targets).shape
    z, y = ([jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (outputs, rows.targets))
    if len(z) != 1 or len(y) != 1:
        return (Finding("shapes", Status.OK, f"losses {losses}"),)
    detail = f"outputs {z[0]}, targets {y[0]}, losses {losses}"
    if losses in (z[0], y[0]) or len(z[0]) == len(y[0]) or losses != _broadcast(z[0], y[0]):
        return (Finding("shapes", Status.OK, detail),)
    advice = "Every output meets the targets of all examples. Give both one shape: predict(…)[..., 0], or y[:, None]."
    return (Finding("shapes", Status.FAILED, detail, advice),)


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return jnp.broadcast_shapes(*shapes)
    except ValueError:
        return None


class _Seen(NamedTuple):
    """Of B at some outputs."""

    low: jax.Array  # the least finite uᵀB_i u over examples: eigenvalues where outputs are few, otherwise probes
    high: jax.Array  # the largest
    finite: jax.Array  # bool: all of them are
    flat: Any  # like the outputs, bool: the loss has a slope there, and B u = 0 for a random u
    apart: jax.Array  # ‖B u as known by name − as derivative‖ / ‖·‖


def convexity_and_curvature(case: Case) -> tuple[Finding, Finding]:
    """convexity: B ⪰ 0, at the outputs and around them; curvature: there is some B wherever there is a slope."""
    outputs = case.measured.outputs
    loss = of_coordinates(case.value_fn.objective.loss, outputs, case.measured.others)
    look = jax.jit(lambda z, rows, spread, key: _seen(loss, _moved(z, spread, key), rows, key))
    seen = {where: look(outputs, case.first_chunk, spread, case.key) for where, spread in _PLACES.items()}
    return _convexity(seen, case), _curvature(list(seen.values()), case)


def _convexity(seen: dict[str, _Seen], case: Case) -> Finding:
    if not seen["at the outputs"].finite:
        return Finding(
            "convexity",
            Status.FAILED,
            "B, the second derivative of the loss by the outputs, is not finite at the outputs",
            "Its gradient is: look for a power below 2, or a root, of a difference that is 0, and smooth it there.",
        )
    where, lowest = min(((name, float(s.low)) for name, s in seen.items()), key=lambda pair: pair[1])
    highest = max(float(s.high) for s in seen.values())
    if lowest >= -max(1e-4, 4 * case.coarsest) * max(highest, -lowest):
        return Finding("convexity", Status.OK, "B ⪰ 0 at the outputs and around them")
    return Finding(
        "convexity",
        Status.FAILED,
        f"the loss is not convex in the outputs: uᵀBu = {lowest:.2e} {where}, against {highest:.2e} at most",
        "G is then indefinite. Take a convex loss, hfopt.fisher for a log-likelihood, or hfopt.hessian, with which "
        "hessian_free follows negative curvature.",
    )


def _curvature(seen: list[_Seen], case: Case) -> Finding:
    flat = [{name_of(p, "outputs") for p, leaf in jax.tree.leaves_with_path(s.flat) if leaf} for s in seen]
    if everywhere := set.intersection(*flat):
        return Finding(
            "curvature",
            Status.FAILED,
            f"the loss is a straight line in {', '.join(sorted(everywhere))}: B = 0, and G sees nothing of it",
            "Steps take the B of a smoothed loss for it. Smooth it yourself where G is what you want: "
            "optax.losses.huber_loss for an absolute error, softplus for a hinge or a quantile; or take "
            "hfopt.empirical_fisher, which is made of gradients.",
        )
    if flat[0]:
        detail = f"B = 0 in {', '.join(sorted(flat[0]))} at these outputs, though not elsewhere"
        return Finding("curvature", Status.WARNING, detail, "While that is so, a step follows the gradient alone.")
    if not (apart := float(seen[0].apart)) <= max(1e-3, 4 * case.coarsest):
        detail = f"B as it is known for this loss and B as its derivative differ by {apart:.1e} of their size"
        return Finding("curvature", Status.FAILED, detail, "Wrap the loss in a function of your own, and report this.")
    return Finding("curvature", Status.OK, "the loss bends in every output that it depends on")


def _moved(outputs: Any, spread: jax.Array, key: jax.Array) -> Any:
    """The outputs and noise of ``spread`` times their standard deviation; what is not finite stays."""

    def move(z: jax.Array, noise: jax.Array) -> jax.Array:
        x = jnp.where(jnp.isfinite(z), z, 0).astype(wide_dtype(z))
        away = jnp.asarray(spread, x.dtype) * (x.std() + 1e-3) * noise.astype(x.dtype)
        return z + away.astype(z.dtype)

    return jax.tree.map(move, outputs, normal(key, outputs))


def _seen(loss: Loss, outputs: Any, rows: Examples, key: jax.Array) -> _Seen:
    product = output_hessian(loss, outputs, rows)
    forms = _forms(product, outputs, size(rows), key)
    finite = jnp.isfinite(forms)
    kept = jnp.where(finite, forms, 0)
    u = normal(key, outputs)
    slope, bu = jax.grad(lambda z: mean_loss(loss, z, rows))(outputs), product(u)
    flat = jax.tree.map(lambda r, b: jnp.any(r != 0) & ~jnp.any(b != 0), slope, bu)
    apart = jnp.zeros(())
    if is_known(loss, outputs, rows.targets):
        derived = output_hessian(lambda z, y: loss(z, y), outputs, rows)(u)
        ours, theirs = (x.astype(wide_dtype(x)) for x in (bu, derived))
        apart = jnp.abs(ours - theirs).max() / jnp.maximum(jnp.abs(theirs).max(), jnp.finfo(theirs.dtype).tiny)
    return _Seen(kept.min(), kept.max(), finite.all(), flat, apart)


def _forms(product: Callable[[Any], Any], outputs: Any, count: int, key: jax.Array) -> jax.Array:
    """uᵀB_i u over examples: all eigenvalues where the outputs are few, else of random u."""
    leaves, tree = jax.tree.flatten(outputs)
    rows = [jnp.ndim(leaf) > 0 and leaf.shape[0] == count for leaf in leaves]
    width = sum(leaf.size for leaf in leaves) // count
    if len(leaves) == 1 and all(rows) and width <= _EXACT_OUTPUTS:
        (leaf,) = leaves
        basis = jnp.broadcast_to(jnp.eye(width, dtype=leaf.dtype)[:, None], (width, count, width))
        columns = jax.lax.map(lambda e: product(jax.tree.unflatten(tree, [e.reshape(leaf.shape)])), basis)
        matrices = jnp.moveaxis(jax.tree.leaves(columns)[0].reshape(width, count, width), 0, -1)
        return jnp.linalg.eigvalsh((matrices + jnp.moveaxis(matrices, -1, -2)).astype(wide_dtype(leaf)) / 2)

    def form(key: jax.Array) -> jax.Array:
        u = normal(key, outputs)
        terms = jax.tree.map(lambda a, b: (a * b).astype(wide_dtype(a)), u, product(u))
        if all(rows):  # else some output is shared by all examples
            terms = jax.tree.map(lambda t: t.reshape(count, -1).sum(1), terms)
        else:
            terms = jax.tree.map(jnp.sum, terms)
        leaves = jax.tree.leaves(terms)
        dtype = max((leaf.dtype for leaf in leaves), key=lambda dtype: jnp.finfo(dtype).bits)
        return reduce(jnp.add, [leaf.astype(dtype) for leaf in leaves])

    return jax.lax.map(form, jax.random.split(key, _PROBES))
