"""Preconditioners: symmetric positive definite M whose inverse is cheap, and with which CG needs fewer iterations.

CG on (A + λI)x = b takes about as many iterations as M⁻¹(A + λI) has distinct clusters of eigenvalues. Here M is a
diagonal: `SquaredGradients` (Martens) or `Jacobi` (of the Gauss-Newton matrix); `hfopt.solve.nystrom` holds a low-rank
one. A preconditioner is fixed during a solve and refreshed before it, at every step or at every k-th. A refresh that
gives a number that is not finite leaves everything as it was, and is tried again at the next step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax

from hfopt.curvature.diagonal import probed_diagonal, squared_gradients
from hfopt.curvature.operator import Operator
from hfopt.objective import ValueFn
from hfopt.vectors import Diagonal, wide_dtype

Inverse = Callable[[Any], Any]


class Preconditioner(Protocol):
    """How to build M and apply M⁻¹. A state is a NamedTuple of arrays with a field ``setup_products``."""

    def init(self, params: Any) -> Any:
        """The state before the first step; with it M⁻¹ is a multiple of the identity."""

    def update(self, state: Any, operator: Operator, value_fn: ValueFn, params: Any) -> Any:
        """The state for this step's solve: call it once a step, before the solve.

        ``state.setup_products`` is what it spent, in operator products: a pass forwards and backwards counts as one.
        """

    def inverse(self, state: Any, damping: Any) -> Inverse:
        """r ↦ M⁻¹ r on trees like the parameters, for A + λI with λ = ``damping``: what `hfopt.cg` takes."""


class DiagonalState(NamedTuple):
    """State of a diagonal preconditioner."""

    age: jax.Array  # int32: steps since `init` that were not lost to a failed refresh
    setup_products: jax.Array  # int32: products' worth of work in the last update
    diagonal: Any  # D + 1/C, shaped like the parameters, float32 or wider; zero before the first refresh


@dataclass(frozen=True)
class SquaredGradients:
    """M = (Σ c_i g_i² + λ + 1/C)^power, a diagonal; g_i the gradient of example i without the l2 term.

    The mean of squares is exact and over the gradient batch; ``hfopt.squared_gradients`` is its short name. It is the
    diagonal of the empirical Fisher matrix, raised to a power that tempers it. Counted as one product: on CPU the
    squares of a CNN's gradients, a few examples at a time, cost what its gradient costs.

    Args:
      power: 0.75 after Martens; 1 where the parameters' scales differ by decades; 0 is the identity.
      every: refresh at every so many steps.

    Raises:
      ValueError: ``power`` is not in [0, 1], or ``every`` is not a positive integer.

    Source: Martens, "Deep learning via Hessian-free optimization", ICML 2010, section 4.7. The paper has the sum of the
    squares where his published code and this have the mean, and 1/C is an addition of that code.
    """

    power: float = 0.75
    every: int = 1

    def __post_init__(self) -> None:
        check_power("squared_gradients", self.power)
        check_count("squared_gradients", "every", self.every)

    def init(self, params: Any) -> DiagonalState:
        """The state before the first step."""
        return _zero_diagonal(params)

    def update(self, state: DiagonalState, operator: Operator, value_fn: ValueFn, params: Any) -> DiagonalState:
        """The state for this step's solve. ``operator`` is not used."""

        def compute(state: DiagonalState) -> DiagonalState:
            diagonal = _regularised(squared_gradients(value_fn, params), value_fn)
            return state._replace(setup_products=jnp.int32(1), diagonal=diagonal)

        return refreshed(state, self.every, compute)

    def inverse(self, state: DiagonalState, damping: Any) -> Inverse:
        """r ↦ M⁻¹ r."""
        return diagonal_inverse(state.diagonal, damping, self.power)


@dataclass(frozen=True)
class Jacobi:
    """M = (diag G + λ)^power, with the diagonal of the Gauss-Newton matrix estimated by random signs.

    Whatever the curvature of the solve is, the diagonal is that of G, 1/C included, which is positive. One estimate
    costs one pass over the curvature batch and errs by about √(2 / probes) of each entry. ``hfopt.jacobi``.

    Args:
      probes: groups of examples with a probe each; more are no dearer in arithmetic. A model that cannot be applied to
        a part of its batch is probed four times as a whole.
      power: 1 is the diagonal itself; less tempers it.
      decay: the diagonal is decay · old + (1 − decay) · new at a refresh; 0 forgets, 0.9 averages over about ten.
      every: refresh at every so many steps.
      seed: of the random signs; a refresh at step t uses a key of its own, made from the seed and t.

    Raises:
      ValueError: ``power`` not in [0, 1], ``decay`` not in [0, 1), or ``probes`` or ``every`` not a positive integer.

    References:
      `hfopt.curvature.diagonal.probed_diagonal`; Chapelle & Erhan, "Improved preconditioner for Hessian free
      optimization", 2011.
    """

    probes: int = 16
    power: float = 1.0
    decay: float = 0.0
    every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_power("jacobi", self.power)
        check_count("jacobi", "probes", self.probes)
        check_count("jacobi", "every", self.every)
        if not 0 <= self.decay < 1:
            raise ValueError(f"jacobi: `decay` must be in [0, 1), got {self.decay}.")

    def init(self, params: Any) -> DiagonalState:
        """The state before the first step."""
        return _zero_diagonal(params)

    def update(self, state: DiagonalState, operator: Operator, value_fn: ValueFn, params: Any) -> DiagonalState:
        """The state for this step's solve. ``operator`` is not used."""

        def compute(state: DiagonalState) -> DiagonalState:
            key = jax.random.fold_in(jax.random.key(self.seed), state.age)
            new = _regularised(probed_diagonal(value_fn, params, key, self.probes), value_fn)
            share = jnp.where(state.age == 0, 1.0, 1.0 - self.decay)
            diagonal = jax.tree.map(lambda old, new: old + share.astype(old.dtype) * (new - old), state.diagonal, new)
            return state._replace(setup_products=jnp.int32(1), diagonal=diagonal)

        return refreshed(state, self.every, compute)

    def inverse(self, state: DiagonalState, damping: Any) -> Inverse:
        """r ↦ M⁻¹ r."""
        return diagonal_inverse(state.diagonal, damping, self.power)


def diagonal_inverse(diagonal: Any, damping: Any, power: float) -> Inverse:
    """r ↦ (D + λ)^(−power) r for D ≥ 0.

    Entries below the square of machine epsilon times the largest are raised to it (a dead parameter at λ = 0), and an
    all-zero D + λ is taken for the identity, so that the inverse is always finite.
    """
    damped = jax.tree.map(lambda d: d + jnp.asarray(damping).astype(d.dtype), diagonal)
    widest = max((leaf.dtype for leaf in jax.tree.leaves(damped)), key=lambda d: jnp.finfo(d).bits)
    top = jnp.stack([jnp.max(leaf, initial=0).astype(widest) for leaf in jax.tree.leaves(damped)]).max()

    def invert(d: jax.Array) -> jax.Array:
        limits = jnp.finfo(d.dtype)
        floor = jnp.maximum(limits.eps**2 * top.astype(d.dtype), limits.tiny)
        return jnp.where(top > 0, jnp.maximum(d, floor), 1) ** -power

    return Diagonal(jax.tree.map(invert, damped))


State = TypeVar("State", bound=Any)


def refreshed(state: State, every: int, compute: Callable[[State], State]) -> State:
    """``state`` one step older, replaced by ``compute(state)`` when its age is a multiple of ``every``.

    A result that is not finite is dropped; the state does not age then, so that the next step tries again.
    """

    def older(state: State) -> State:
        return state._replace(age=optax.safe_increment(state.age))

    def refresh(state: State) -> State:
        new = compute(state)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new)]).all()
        return optax.tree.where(finite, older(new), state._replace(setup_products=new.setup_products))

    def keep(state: State) -> State:
        return older(state)._replace(setup_products=jnp.int32(0))

    if every == 1:
        return refresh(state)
    return jax.lax.cond(state.age % every == 0, refresh, keep, state)


def check_count(where: str, name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where}: `{name}` must be a positive integer, got {value!r}.")


def check_power(where: str, power: float) -> None:
    """Raise ValueError unless 0 ≤ ``power`` ≤ 1."""
    if not 0 <= power <= 1:
        raise ValueError(f"{where}: `power` must be in [0, 1], got {power}.")


def _zero_diagonal(params: Any) -> DiagonalState:
    diagonal = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide_dtype(p)), params)  # split as the parameters are
    return DiagonalState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), diagonal)


def _regularised(diagonal: Any, value_fn: ValueFn) -> Any:
    """D + 1/C, with 1/C where the penalty's mask keeps a parameter."""
    objective = value_fn.objective
    return jax.tree.map(jnp.add, diagonal, objective.penalised(optax.tree.full_like(diagonal, objective.l2)))
