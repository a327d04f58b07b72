"""Natural policy gradient on CartPole: the gradient of one function, the curvature of another.

The gradient is that of the expected return, −mean A log π(a|s). The metric is the Fisher matrix of the policy on the
states it visits, F = mean JᵀBJ of its log-likelihood, which is the Gauss-Newton matrix of a cross-entropy on these
states. `hfopt.scale_by_gauss_newton` solves (F + λI) d = g for the gradient it is given, and the step, a multiple of
−d, is shortened to what a divergence of δ between the old and the new policy allows: ½ sᵀ(F + λI)s ≤ δ.

Source: Kakade, "A natural policy gradient", 2001; the bound is that of Schulman et al., "Trust region policy
optimization", 2015.
"""

import time
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import hfopt
from experiments.problems.cartpole import LIMIT, Episode, play

SOLVED = 475.0  # mean return over the episodes of an evaluation
_EPISODES, _EVALUATION = 32, 100
_RATE, _DIVERGENCE, _DAMPING, _CG_STEPS, _DISCOUNT = 5.0, 0.02, 1e-2, 10, 0.99
_HIDDEN = 32


class Network(nn.Module):
    """The logits of the two actions."""

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        return nn.Dense(2)(nn.tanh(nn.Dense(_HIDDEN)(observations)))


class Result(NamedTuple):
    """What became of one seed."""

    seed: int
    returns: list[float]  # mean over the training episodes of each iteration
    evaluation: float  # mean over `_EVALUATION` new episodes of the most likely actions
    seconds: float

    @property
    def solved(self) -> bool:
        """Whether the evaluation reached `SOLVED`."""
        return self.evaluation >= SOLVED


_NETWORK = Network()
_OBJECTIVE = hfopt.Objective(_NETWORK.apply, optax.losses.softmax_cross_entropy_with_integer_labels)


def bounded_step(rate: float, bound: float) -> optax.GradientTransformationExtraArgs:
    """d ↦ −min(rate, √(2 · bound / gᵀd)) d: with d = (F + λI)⁻¹ g, a step of ½ sᵀ(F + λI)s ≤ bound."""

    def update(updates: Any, state: Any, params: Any = None, *, grad: Any, **extra_args: Any) -> tuple[Any, Any]:
        del params, extra_args
        slope = jnp.maximum(optax.tree.vdot(grad, updates), jnp.finfo(jnp.float32).tiny)
        return optax.tree.scale(-jnp.minimum(rate, jnp.sqrt(2 * bound / slope)), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


_TX = optax.chain(
    hfopt.scale_by_gauss_newton(solver=hfopt.cg(_CG_STEPS), damping=_DAMPING, warm_start=None),  # so gᵀd = dᵀ(F + λI)d
    bounded_step(_RATE, _DIVERGENCE),
)


@jax.jit
def improve(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
    """One iteration: play, and take a step. Returns the mean return of the episodes played too."""
    sample = lambda observation, key: jax.random.categorical(key, _NETWORK.apply(params, observation))  # noqa: E731
    episodes = jax.vmap(partial(play, sample))(jax.random.split(key, _EPISODES))
    advantages, alive = _advantages(episodes), episodes.alive.astype(jnp.float32)
    # The states visited, with the actions taken there; padding has weight zero.
    flat = Episode(*(x.reshape(-1, *x.shape[2:]) for x in episodes))
    value_fn = _OBJECTIVE.bind((flat.observations, flat.actions, flat.alive))

    def surrogate(params: Any) -> jax.Array:
        losses = _OBJECTIVE.loss(_NETWORK.apply(params, flat.observations), flat.actions)
        return jnp.vdot(advantages.ravel() * alive.ravel(), losses) / alive.sum()

    grad = jax.grad(surrogate)(params)
    updates, state = _TX.update(grad, state, params, grad=grad, value_fn=value_fn)
    return optax.apply_updates(params, updates), state, alive.sum(1).mean()


def _advantages(episodes: Episode) -> jax.Array:
    """Discounted returns to go, at most 1, less their mean over the episodes that live at that step."""
    alive = episodes.alive.astype(jnp.float32)
    backwards = lambda later, now: (now + _DISCOUNT * later, now + _DISCOUNT * later)  # noqa: E731
    to_go = jax.vmap(lambda r: jax.lax.scan(backwards, 0.0, r, reverse=True)[1])(alive)
    baseline = (to_go * alive).sum(0) / jnp.maximum(alive.sum(0), 1)
    return (1 - _DISCOUNT) * (to_go - baseline) * alive


@jax.jit
def evaluate(params: Any, key: jax.Array) -> jax.Array:
    """The mean return of the most likely actions over `_EVALUATION` episodes."""
    greedy = lambda observation, key: jnp.argmax(_NETWORK.apply(params, observation))  # noqa: E731
    episodes = jax.vmap(partial(play, greedy))(jax.random.split(key, _EVALUATION))
    return episodes.alive.sum(1).mean()


def solve(seed: int, iterations: int) -> Result:
    """Train one policy."""
    began = time.perf_counter()
    start, training, evaluation = jax.random.split(jax.random.key(seed), 3)
    params = _NETWORK.init(start, jnp.zeros(4))
    state, returns = _TX.init(params), []
    for key in jax.random.split(training, iterations):
        params, state, mean = improve(params, state, key)
        returns.append(float(mean))
    return Result(seed, returns, float(evaluate(params, evaluation)), time.perf_counter() - began)


def main(seeds: int, iterations: int, console: Console) -> bool:
    """Train from several seeds and print a table; whether all of them solved it."""
    table = Table(
        title=f"CartPole by natural policy gradient: {iterations} iterations of {_EPISODES} episodes",
        caption=f"Solved: a mean return of at least {SOLVED:.0f} of {LIMIT} over {_EVALUATION} new episodes.",
    )
    for column in ("seed", "return in training", "first ≥ 475 at iteration", f"return over {_EVALUATION}", "seconds"):
        table.add_column(column, justify="right")
    results = [solve(seed, iterations) for seed in range(seeds)]
    for result in results:
        first = next((str(i) for i, mean in enumerate(result.returns, 1) if mean >= SOLVED), "–")
        row = (
            str(result.seed),
            f"{result.returns[-1]:.1f}",
            first,
            f"{result.evaluation:.1f}",
            f"{result.seconds:.1f}",
        )
        table.add_row(*row)
    console.print(table)
    console.print(f"Solved from {sum(r.solved for r in results)} of {seeds} seeds.", highlight=False)
    return all(result.solved for result in results)
