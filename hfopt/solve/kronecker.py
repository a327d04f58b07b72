"""The metric of the gradients: M = Q √v Qᵀ, in the eigenbasis of Kronecker factors.

For an array seen as a matrix, with the gradient g as a matrix beside it, L = E[g gᵀ] and R = E[gᵀ g] have eigenbases
Q_L and Q_R. In them the second moments of the gradients are nearest to a diagonal, v = E[(Q_Lᵀ g Q_R)²], and

    M: s ↦ Q_L (√v ∘ (Q_Lᵀ s Q_R)) Q_Rᵀ        P = Q (D + λ√v) Qᵀ,  D = E[(Q_Lᵀ V Q_R)²]

with V = Jᵀ B^½ z for random signs z, so that D is the diagonal of the curvature in the same basis, and P preconditions
G + λM. The basis is Shampoo's (Gupta, Koren & Singer 2018), kept by orthogonal iteration, and (λM)⁻¹m is the step of
SOAP (Vyas et al. 2024) at the learning rate 1/λ; that M measures the steps of Newton's method, and D, are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hfopt.curvature.diagonal import probed_diagonal
from hfopt.curvature.operator import Operator
from hfopt.objective import ValueFn
from hfopt.solve.blocks import Blocks
from hfopt.solve.metrics import AverageState, Coordinates, Product, Scaled, averaged, finite, start
from hfopt.solve.preconditioners import check_count
from hfopt.vectors import Diagonal, vdot, widened, widest_dtype

Stacks = list[jax.Array]  # one a group of `Blocks`: (count, rows, columns)

_FIRST_PROBES = 8  # as many times as later


class Sides(NamedTuple):
    """Something square for either side of a stack of matrices; ``()`` for a side that is not rotated."""

    left: Any  # (count, rows, rows)
    right: Any  # (count, columns, columns)


class KroneckerState(NamedTuple):
    """State of `Kronecker`; all of it in at least float32."""

    seen: jax.Array  # int32: gradients
    factors: list[Sides]  # L and R: running averages, a stack a group
    bases: list[Sides]  # Q_L and Q_R
    moment: Stacks  # v before its bias correction, in the bases
    average: Any  # an `AverageState` of the gradients in the bases; () without momentum
    probed: jax.Array  # int32: times that D was estimated
    curvature: Any  # D before its bias correction, in the bases; () where no system is ever solved


@dataclass(frozen=True)
class Kronecker:
    """M = Q √v Qᵀ and the preconditioner Q (D + λ√v) Qᵀ, in one; ``hfopt.kronecker``.

    Any array of two axes or more is a matrix, or a stack of them, with no need to know what layer it is of: see
    `hfopt.solve.blocks.cut`. Vectors and scalars have the basis they are given in, and so has a side that is too long;
    an array with no other sides is measured as Adam would. All M scales with the objective, so that λ has
    the unit 1 / parameter: at λ = 100 a step (λM)⁻¹m moves every coordinate of the basis by about 0.01.

    What it keeps for a matrix of r rows and c columns, in numbers: 2r² + 2c² (for a side that is too long: none),
    r c for v, r c with momentum, and r c where CG runs.

    Args:
      decay: of the running averages of factors, v and D.
      longest: the longest side of a matrix that is rotated, and a quarter of the longest of a convolution. To rotate a
        side of n costs as much as the gradient of n examples costs in that matrix, and a convolution is applied at
        every position of an example.
      every: renew the bases at every so many steps.
      carry: let v and D follow the bases when these are renewed. In SOAP's paper they stay what they were.
      probes: for D, a step; eight times as many at the first, and wherever the curvature has no probes of its own (in
        chunks, or other than the Gauss-Newton matrix), as many groups of the batch with one each.

    Raises:
      ValueError: an argument out of its range.

    References:
      Gupta, Koren & Singer, "Shampoo: preconditioned stochastic tensor optimization", ICML 2018; George et al., "Fast
      approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018; Vyas et al., "SOAP:
      improving and stabilizing Shampoo using Adam", 2024.
    """

    decay: float = 0.95
    longest: int = 256
    every: int = 10
    carry: bool = True
    probes: int = 1

    invertible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"kronecker: `decay` must lie in [0, 1), got {self.decay}.")
        for name in ("longest", "every", "probes"):
            check_count("kronecker", name, getattr(self, name))

    def init(self, params: Any, *, momentum: bool, curved: bool) -> KroneckerState:
        """No gradients seen, and the bases that the arrays are given in."""
        blocks = Blocks.of(params, self.longest)
        # Without arrays: the placeholder by which optax.tree.map_params finds the parts of the state that are like
        # them. Where that finds a leaf, it leaves what there is in its place alone.
        if not blocks.groups:
            leaf = jnp.zeros(0)
            return KroneckerState(leaf, leaf, leaf, leaf, leaf, leaf, leaf)  # type: ignore[arg-type]
        zeros = lambda: [jnp.zeros(group.shape, group.dtype) for group in blocks.groups]  # noqa: E731

        def sides(make: Any) -> list[Sides]:
            square = lambda group, n: jnp.broadcast_to(make(n, dtype=group.dtype), (group.matrices, n, n)).copy()  # noqa: E731
            return [
                Sides(
                    square(group, group.rows) if group.left else (),
                    square(group, group.columns) if group.right else (),
                )
                for group in blocks.groups
            ]

        return KroneckerState(
            seen=jnp.zeros((), jnp.int32),
            factors=sides(lambda n, dtype: jnp.zeros((n, n), dtype)),
            bases=sides(jnp.eye),
            moment=zeros(),
            average=start(zeros(), momentum),
            probed=jnp.zeros((), jnp.int32),
            curvature=zeros() if curved else (),
        )

    def geometry(
        self, state: KroneckerState, gradient: Any, momentum: Any, value_fn: ValueFn, params: Any
    ) -> "KroneckerGeometry":
        """See `hfopt.solve.metrics.Metric.geometry`. A gradient that is not finite, or whose square is not, is passed
        over."""
        blocks = Blocks.of(params, self.longest)
        # A basis is renewed from the gradients before this one: a gradient in a basis made of itself alone has only a
        # few coordinates that are not rounding.
        due = (state.seen == 1) | ((state.seen > 0) & (state.seen % self.every == 0))
        state = jax.lax.cond(due, partial(_renewed, carry=self.carry), lambda state: state, state)
        stacks = blocks.split(gradient)
        rotated = _rotate(state.bases, stacks)
        squares = [jnp.square(g) for g in rotated]
        sound = jnp.isfinite(vdot(rotated, rotated))
        average, mean = averaged(state.average, rotated, momentum, sound)
        after = state._replace(
            seen=jnp.where(sound, optax.safe_increment(state.seen), state.seen),
            factors=self._averaged(state.factors, stacks, sound),
            moment=[jnp.where(sound, self._mixed(v, s), v) for v, s in zip(state.moment, squares, strict=True)],
            average=average,
        )
        return KroneckerGeometry(self, blocks, after, mean, gradient if momentum is None else None)

    def _averaged(self, factors: list[Sides], stacks: Stacks, sound: jax.Array) -> list[Sides]:
        """L and R with one gradient more, if it is sound."""

        def mixed(factor: Any, square: Callable[[], jax.Array]) -> Any:
            return factor if isinstance(factor, tuple) else jnp.where(sound, self._mixed(factor, square()), factor)

        def both(f: Sides, g: jax.Array) -> Sides:
            t = _transposed(g)
            return Sides(mixed(f.left, lambda: _product(g, t)), mixed(f.right, lambda: _product(t, g)))

        return list(map(both, factors, stacks))

    def _mixed(self, old: jax.Array, new: jax.Array) -> jax.Array:
        return self.decay * old + (1 - self.decay) * new

    def _corrected(self, stacks: Stacks, count: jax.Array) -> Stacks:
        """Without the bias of a running average that began at zero."""
        return [x / (1 - self.decay ** jnp.maximum(count, 1).astype(x.dtype)) for x in stacks]


@dataclass(frozen=True)
class KroneckerGeometry:
    """M at one step, and the average gradient."""

    rule: Kronecker
    blocks: Blocks
    state: KroneckerState
    mean: Stacks  # m in the bases
    given: Any  # m where it is what was given
    products: Any = 0

    @property
    def average(self) -> Any:
        """m."""
        return self.blocks.join(_unrotate(self.state.bases, self.mean)) if self.given is None else self.given

    @property
    def coordinates(self) -> Coordinates:
        """Stacks in the bases: there M and P are diagonal, and a product with the curvature is all that is rotated."""
        return Coordinates(self._into, lambda x: self.blocks.join(_unrotate(self.state.bases, x)), self.mean)

    @property
    def curvature(self) -> Stacks:
        """D without the bias of its start, in the coordinates; zero before the first probes."""
        return self.rule._corrected(self.state.curvature, self.state.probed)

    @property
    def product(self) -> Product:
        """x ↦ Qᵀ M Q x."""
        return Diagonal(self._roots())

    def form(self, vector: Any) -> jax.Array:
        """vᵀMv: one rotation."""
        return vdot(self._roots(), list(map(jnp.square, self._into(vector))))

    def scaled(self, damping: jax.Array) -> Scaled:
        """(λM)⁻¹m: from m in the bases, one rotation."""
        solution = [m / (damping.astype(m.dtype) * r) for m, r in zip(self.mean, self._roots(), strict=True)]
        return Scaled(self.blocks.join(_unrotate(self.state.bases, solution)), vdot(self.mean, solution))

    def curved(self, operator: Operator, value_fn: ValueFn, params: Any) -> "KroneckerGeometry":
        """With D from new probes: of the operator's own linearisation where it has them."""
        state, rule = self.state, self.rule
        key = jax.random.fold_in(jax.random.key(0), state.seen)
        # The first D is all there is: one probe has entries near zero where there is curvature.
        count = jnp.where(state.probed == 0, _FIRST_PROBES, 1) * rule.probes
        if operator.probe is None:
            new = probed_diagonal(value_fn, params, key, _FIRST_PROBES * rule.probes, coordinates=self._into)
            spent = jnp.int32(1)
        else:
            new, spent = self._probed(operator.probe, key, count)
        objective = value_fn.objective
        # 1/C is the same on all of an array, so the same in every basis of it.
        penalty = self.blocks.split(objective.penalised(optax.tree.full_like(widened(params), objective.l2)))
        curvature = [rule._mixed(old, d + p) for old, d, p in zip(state.curvature, new, penalty, strict=True)]
        after = state._replace(probed=optax.safe_increment(state.probed), curvature=curvature)
        return replace(self, state=optax.tree.where(finite(curvature), after, state), products=spent)

    def inverse(self, damping: Any) -> Product:
        """x ↦ (D + λ√v)⁻¹ x."""
        damping = jnp.asarray(damping)
        damped = [d + damping.astype(r.dtype) * r for d, r in zip(self.curvature, self._roots(), strict=True)]
        return Diagonal([1 / d for d in damped])

    def _roots(self) -> Stacks:
        """√v̂, at least machine epsilon times its root mean square over all parameters: what never has a gradient but
        rounding has no direction either. 1 where no gradient was seen, or all were zero."""
        moment = self.rule._corrected(self.state.moment, self.state.seen)
        mean = jnp.sqrt(
            optax.tree.sum([v.sum().astype(widest_dtype(moment)) for v in moment]) / optax.tree.size(moment)
        )

        def root(v: jax.Array) -> jax.Array:
            floor = jnp.finfo(v.dtype).eps * mean.astype(v.dtype)
            return jnp.where(mean > 0, jnp.maximum(jnp.sqrt(v), floor), 1)

        return list(map(root, moment))

    def _into(self, tree: Any) -> Stacks:
        return _rotate(self.state.bases, self.blocks.split(tree))

    def _probed(
        self, probe: Callable[[jax.Array], tuple[Any, ...]], key: jax.Array, count: jax.Array
    ) -> tuple[Stacks, jax.Array]:
        """The mean of u ∘ w over ``count`` probes, in the bases and not below zero; and what it cost, in products.

        A probe with a root of B is a pass backwards, and half a product; one without is two, and a product with B.
        """

        def add(i: jax.Array, total: Stacks) -> Stacks:
            u, *w = map(self._into, probe(jax.random.fold_in(key, i)))
            return [t + a * b for t, a, b in zip(total, u, w[0] if w else u, strict=True)]

        zeros = jax.tree.map(jnp.zeros_like, self.state.curvature)
        total = jax.lax.fori_loop(0, count, add, zeros)
        passes = len(jax.eval_shape(probe, key))
        return [jnp.maximum(x / count.astype(x.dtype), 0) for x in total], (count * passes + 1) // 2


def _renewed(state: KroneckerState, carry: bool) -> KroneckerState:
    """The same in bases that are one orthogonal iteration nearer to the eigenvectors of the factors.

    What is kept in the old bases moves with them: an average by the turn T = QᵀQ' of either side, second moments by its
    squares, which is what the turn makes of a diagonal covariance. Left as they were, they would measure directions by
    the gradients of others; on convolutions with one side rotated the loss then ended 20 times as high.
    """

    def iterated(factor: Any, basis: Any) -> Any:
        if isinstance(basis, tuple):
            return basis
        # A little of the identity, which has all vectors for eigenvectors: in what the factor does not span the basis
        # then stays as it was, instead of following the rounding of zero.
        little = jnp.finfo(factor.dtype).eps ** 0.5 * jnp.trace(factor, axis1=-2, axis2=-1) / factor.shape[-1]
        return jnp.linalg.qr(_product(factor, basis) + little[:, None, None] * basis)[0]

    def turn(old: Any, new: Any) -> Any:
        return old if isinstance(old, tuple) else _product(_transposed(old), new)

    pairs = zip(state.factors, state.bases, strict=True)
    bases = [Sides(iterated(f.left, b.left), iterated(f.right, b.right)) for f, b in pairs]
    turns = [
        Sides(turn(old.left, new.left), turn(old.right, new.right)) for old, new in zip(state.bases, bases, strict=True)
    ]
    squared = jax.tree.map(jnp.square, turns)
    average = state.average
    if isinstance(average, AverageState):
        average = average._replace(total=_rotate(turns, average.total))
    state = state._replace(bases=bases, average=average)
    if not carry:
        return state
    curvature = _rotate(squared, state.curvature) if state.curvature else state.curvature
    return state._replace(moment=_rotate(squared, state.moment), curvature=curvature)


_product = partial(jnp.matmul, precision="highest")


def _transposed(stack: jax.Array) -> jax.Array:
    return jnp.swapaxes(stack, -1, -2)


def _rotate(bases: list[Sides], stacks: Stacks) -> Stacks:
    """Q_Lᵀ x Q_R."""

    def rotate(basis: Sides, x: jax.Array) -> jax.Array:
        x = x if isinstance(basis.left, tuple) else _product(_transposed(basis.left), x)
        return x if isinstance(basis.right, tuple) else _product(x, basis.right)

    return list(map(rotate, bases, stacks))


def _unrotate(bases: list[Sides], stacks: Stacks) -> Stacks:
    """Q_L x Q_Rᵀ."""

    def unrotate(basis: Sides, x: jax.Array) -> jax.Array:
        x = x if isinstance(basis.left, tuple) else _product(basis.left, x)
        return x if isinstance(basis.right, tuple) else _product(x, _transposed(basis.right))

    return list(map(unrotate, bases, stacks))
