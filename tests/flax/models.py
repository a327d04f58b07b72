"""One network with BatchNorm and dropout in linen and in NNX, and a batch for it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
L2, RATE, WIDTH = 1e-3, 0.3, 12


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(WIDTH)(x))
        x = nn.Dropout(RATE, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


class NNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body = nnx.Linear(5, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(RATE, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(nnx.relu(self.norm(self.body(x)))))


def batch(count: int = 24, seed: int = 1) -> tuple[jax.Array, jax.Array]:
    one, two = jax.random.split(jax.random.key(seed))
    inputs = jax.random.normal(one, (count, 5), jnp.float32)
    return inputs, jax.random.randint(two, (count,), 0, 3)
