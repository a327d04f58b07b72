"""A network that is its own teacher, targets that keep or break the conditions of `approximations.py`, and matrices."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import hfopt

BLOCK = 400  # examples that matrices are formed of at once
SIZES = (400, 1_600, 6_400, 25_600, 102_400)
_INPUTS, _HIDDEN, _CLASSES = 4, 5, 3
_TX = hfopt.hessian_free()

Examples = tuple[jax.Array, jax.Array]  # inputs and targets
Matrices = dict[str, np.ndarray]

_QUANTITIES: dict[str, Callable[[hfopt.ValueFn, Any, jax.Array], jax.Array]] = {
    "G": lambda f, params, key: hfopt.gauss_newton(f, params).to_dense(),
    "H": lambda f, params, key: hfopt.hessian(f, params).to_dense(),
    "S": lambda f, params, key: hfopt.residual_hessian(f, params).to_dense(),
    "EF": lambda f, params, key: hfopt.empirical_fisher(f, params).to_dense(),
    "F": lambda f, params, key: hfopt.fisher(f, params, key).to_dense(),  # of one label drawn for every example
    "exact F": lambda f, params, key: hfopt.fisher(f, params, samples="exact").to_dense(),
    "JJ": lambda f, params, key: hfopt.outer_product(f, params).to_dense(),
    "tr G": lambda f, params, key: hfopt.gauss_newton(f, params).trace(),
    "tr EF": lambda f, params, key: hfopt.empirical_fisher(f, params).trace(),
}
_COMPARED = ("G", "H", "EF", "F", "JJ")


class Setting(NamedTuple):
    """What the targets are, and where the matrices are taken."""

    name: str
    objective: hfopt.Objective
    params: Any  # of the teacher
    noise: Callable[..., jax.Array]  # key, shape -> e
    targets: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # x, z, e -> y
    variance: float = 1.0  # s² of the noise, in the unit in which the loss expects 1

    def draw(self, key: jax.Array, count: int) -> Examples:
        """Standard normal inputs x, with targets made of them, the teacher's outputs z and noise e shaped like z."""
        x, z, e = _draw(self.noise, self.params, key, count)
        return x, self.targets(x, z, e)


class Measures(NamedTuple):
    """How the matrices compare with G, in the Frobenius norm."""

    hessian: Any  # |H − G| / |G|
    fisher: Any  # |F − G| / |G|
    empirical: Any  # |EF − G| / |G|
    in_unit: Any  # |EF/s² − G| / |G|
    trace_ratio: Any  # tr EF / tr G
    cosine: Any  # ⟨EF, G⟩ / (|EF| |G|)
    outer_cosine: Any  # the same for mean JᵀJ
    least_eigenvalue: Any  # of H


def predict(params: Any, x: jax.Array) -> jax.Array:
    """One hidden layer of tanh."""
    return jnp.tanh(x @ params["in"] + params["shift"]) @ params["out"] + params["bias"]


@partial(jax.jit, static_argnums=1)
def random_params(key: jax.Array, outputs: int) -> Any:
    """A network whose hidden units bend where standard normal inputs are."""
    shapes = {"in": (_INPUTS, _HIDDEN), "shift": (_HIDDEN,), "out": (_HIDDEN, outputs), "bias": (outputs,)}
    scales = {"in": _INPUTS**-0.5, "shift": 0.5, "out": 1.0, "bias": 0.5}
    keys = jax.random.split(key, len(shapes))
    return {name: scales[name] * jax.random.normal(k, shapes[name]) for name, k in zip(shapes, keys, strict=True)}


def settings(key: jax.Array) -> dict[str, Setting]:
    """Regressions and classifications by their names."""
    for_teacher, for_classes, for_bias = jax.random.split(key, 3)
    regression = hfopt.Objective(predict, optax.losses.l2_loss)
    classification = hfopt.Objective(predict, optax.losses.softmax_cross_entropy_with_integer_labels)
    teacher, classes = random_params(for_teacher, 1), random_params(for_classes, _CLASSES)
    bias = beyond_the_model(regression, teacher, for_bias)
    noisy = partial(Setting, objective=regression, params=teacher, noise=jax.random.normal)
    # The largest of z + e, with e from the Gumbel distribution, is a label drawn from softmax(z).
    labelled = partial(Setting, objective=classification, params=classes, noise=jax.random.gumbel)
    all_of_them = [
        noisy("matched noise", targets=lambda x, z, e: z + e),
        noisy("noise of variance 4", targets=lambda x, z, e: z + 2 * e, variance=4),
        noisy("noise of variance x₁²", targets=lambda x, z, e: z + x[:, :1] * e),
        noisy("a wrong model", targets=lambda x, z, e: z + bias(x)),
        noisy("no noise", targets=lambda x, z, e: z),
        labelled("labels from the model", targets=lambda x, z, e: (z + e).argmax(axis=-1)),
        labelled("an overconfident model", targets=lambda x, z, e: (z / 2 + e).argmax(axis=-1)),
        labelled("labels without noise", targets=lambda x, z, e: z.argmax(axis=-1)),
    ]
    return {setting.name: setting for setting in all_of_them}


@partial(jax.jit, static_argnums=(0, 3))
def _draw(noise: Any, params: Any, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    for_inputs, for_noise = jax.random.split(key)
    x = jax.random.normal(for_inputs, (count, _INPUTS))
    z = predict(params, x)
    return x, z, noise(for_noise, z.shape)


def beyond_the_model(objective: hfopt.Objective, params: Any, key: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """x₁x₂ less its projection on the columns of J, scaled to variance 1.

    A bias of the targets that leaves the gradient zero: no step from ``params`` explains it. The projection is J w with
    w = (mean JᵀJ)⁻¹ mean Jᵀx₁x₂, the Gauss-Newton step for targets z + x₁x₂.
    """
    product = lambda x: x[:, :1] * x[:, 1:2]  # noqa: E731
    rest = lambda x, w: product(x) - jax.jvp(lambda p: predict(p, x), (params,), (w,))[1]  # noqa: E731

    @jax.jit
    def fit(x: jax.Array) -> tuple[Any, jax.Array]:
        value_fn = objective.bind((x, predict(params, x) + product(x)))
        gradient, unravel = ravel_pytree(jax.grad(value_fn)(params))
        w = unravel(-jnp.linalg.solve(hfopt.gauss_newton(value_fn, params).to_dense(), gradient))
        return w, rest(x, w).std()

    w, deviation = fit(jax.random.normal(key, (SIZES[3], _INPUTS)))
    return jax.jit(lambda x: rest(x, w) / deviation)


def mean_over(blocks: Iterable[Examples], names: tuple[str, ...], setting: Setting, key: jax.Array) -> Matrices:
    """Matrices and traces over all blocks together: being means over examples, the means of those of the blocks."""
    bound = (setting.objective.bind(block) for block in blocks)
    found = [_form(names, f, setting.params, jax.random.fold_in(key, i)) for i, f in enumerate(bound)]
    return {name: np.mean([np.asarray(one[name]) for one in found], axis=0) for name in names}


@partial(jax.jit, static_argnums=0)
def _form(names: tuple[str, ...], value_fn: hfopt.ValueFn, params: Any, key: jax.Array) -> dict[str, jax.Array]:
    return {name: _QUANTITIES[name](value_fn, params, key) for name in names}


def measure(found: Matrices, variance: float = 1.0) -> Measures:
    """The measures of the matrices that are compared."""
    G, H, EF, F, JJ = (found[name] for name in _COMPARED)
    norm = np.linalg.norm
    distance = lambda A: norm(A - G) / norm(G)  # noqa: E731
    cosine = lambda A: np.vdot(A, G) / (norm(A) * norm(G))  # noqa: E731
    return Measures(
        hessian=distance(H),
        fisher=distance(F),
        empirical=distance(EF),
        in_unit=distance(EF / variance),
        trace_ratio=np.trace(EF) / np.trace(G),
        cosine=cosine(EF),
        outer_cosine=cosine(JJ),
        least_eigenvalue=np.linalg.eigvalsh(H)[0],
    )


def against_size(setting: Setting, key: jax.Array, sizes: Sequence[int], repeats: int) -> Measures:
    """Every measure at the teacher's parameters as an array over ``sizes``: means over draws of the data."""
    means = []
    for size in sizes:
        rows = []
        for one in jax.random.split(jax.random.fold_in(key, size), repeats):
            for_data, for_labels = jax.random.split(one)
            found = mean_over(_blocks(setting, for_data, size), _COMPARED, setting, for_labels)
            rows.append(measure(found, setting.variance))
        means.append(np.mean(rows, axis=0))
    return Measures(*np.transpose(means))


def slope(sizes: Sequence[int], distances: Sequence[float]) -> float:
    """The exponent a of distance ∝ Nᵃ, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(distances), 1)[0])


def along_training(setting: Setting, key: jax.Array, count: int, steps: int) -> tuple[Measures, list[float]]:
    """Every measure before each step of `hfopt.hessian_free` and after the last, and the losses there.

    It starts near the teacher: between it and a start drawn anew there may be a poor local minimum.
    """
    for_data, for_start, for_labels = jax.random.split(key, 3)
    blocks = list(_blocks(setting, for_data, count))
    value_fn = setting.objective.bind(jax.tree.map(lambda *parts: jnp.concatenate(parts), *blocks))
    start = random_params(for_start, setting.params["bias"].size)
    params = jax.tree.map(lambda teacher, other: teacher + 0.5 * other, setting.params, start)
    state, rows, losses = _TX.init(params), [], []
    for _ in range(steps + 1):
        rows.append(measure(mean_over(blocks, _COMPARED, setting._replace(params=params), for_labels)))
        params, state, value = _step(params, state, value_fn)
        losses.append(float(value))
    return Measures(*np.transpose(rows)), losses


@jax.jit
def _step(params: Any, state: Any, value_fn: hfopt.ValueFn) -> tuple[Any, Any, jax.Array]:
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = _TX.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
    return optax.apply_updates(params, updates), state, value


def growing_weights(setting: Setting, key: jax.Array, scales: Sequence[float], count: int, repeats: int) -> list[float]:
    """tr EF / tr G with the logits multiplied by each of ``scales``: means over draws of the data."""
    ratios = []
    for scale in scales:
        scaled = setting._replace(params=setting.params | {k: scale * setting.params[k] for k in ("out", "bias")})
        rows = []
        for one in jax.random.split(key, repeats):  # the same inputs for every scale
            found = mean_over(_blocks(scaled, one, count), ("tr G", "tr EF"), scaled, one)
            rows.append(found["tr EF"] / found["tr G"])
        ratios.append(float(np.mean(rows)))
    return ratios


def identities(setting: Setting, key: jax.Array) -> dict[str, float]:
    """Errors of what holds exactly, relative to |G|; S and EF − G are formed example by example, without hfopt."""
    x, y = setting.draw(key, BLOCK)
    found = mean_over([(x, y)], _COMPARED, setting, key) | mean_over([(x, y)], ("S", "exact F"), setting, key)
    G, H, EF, S = (found[name] for name in ("G", "H", "EF", "S"))
    by_hand, gap = (np.asarray(A) for A in _by_hand(setting.objective.loss, setting.params, x, y))
    error = lambda A: float(np.linalg.norm(A) / np.linalg.norm(G))  # noqa: E731
    return {
        "H − G = S": error(H - G - S),
        "S = mean Σ rₖ∇²zₖ": error(S - by_hand),
        "EF − G = mean Jᵀ(rrᵀ − B)J": error(EF - G - gap),
        "Fisher = G": error(found["exact F"] - G),
    }


@partial(jax.jit, static_argnums=0)
def _by_hand(loss: Any, params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """mean Σ_k r_k ∇²z_k and mean Jᵀ(r rᵀ − B)J, from every example's own derivatives."""
    flat, unravel = ravel_pytree(params)
    model = lambda w, x: predict(unravel(w), x)  # noqa: E731
    one = lambda z, y: loss(z, y).sum()  # noqa: E731
    z = predict(params, x)
    r, B = jax.vmap(jax.grad(one))(z, y), jax.vmap(jax.hessian(one))(z, y)
    J, second = (jax.vmap(derivative(model), (None, 0))(flat, x) for derivative in (jax.jacrev, jax.hessian))
    middle = r[:, :, None] * r[:, None, :] - B
    return jnp.einsum("ik,ikab->ab", r, second) / len(x), jnp.einsum("ika,ikl,ilb->ab", J, middle, J) / len(x)


def _blocks(setting: Setting, key: jax.Array, count: int) -> Iterable[Examples]:
    return (setting.draw(jax.random.fold_in(key, i), BLOCK) for i in range(count // BLOCK))
