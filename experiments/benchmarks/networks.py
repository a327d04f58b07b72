"""The networks that products are measured on, stock Flax, with batches of random data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import hfopt
from experiments.problems.models import CNN, MLP
from hfopt.objective import Memory

_CLASSES = 10


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm beside a shortcut; the first one halves the image where ``stride`` is 2."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        strides = (self.stride, self.stride)
        y = nn.Conv(self.channels, (3, 3), strides, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=False)(y))
        y = nn.Conv(self.channels, (3, 3), use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=False)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.channels, (1, 1), strides, use_bias=False)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A convolution, a residual block for each number of channels, and a dense layer on the mean over the image."""

    channels: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(self.channels[0], (3, 3))(x))
        for i, channels in enumerate(self.channels):
            x = ResidualBlock(channels, 1 if i == 0 else 2)(x)
        return nn.Dense(_CLASSES)(x.mean(axis=(1, 2)))


class LSTM(nn.Module):
    """One LSTM layer over a sequence, and a dense layer on its last state."""

    features: int = 128
    unroll: int = 1  # steps of the sequence that one turn of the loop does

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        states = nn.RNN(nn.OptimizedLSTMCell(self.features), unroll=self.unroll)(x)
        return nn.Dense(_CLASSES)(states[:, -1])


class Transformer(nn.Module):
    """Pre-norm encoder layers, and a dense layer on the mean over the sequence."""

    width: int = 128
    heads: int = 4
    layers: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.width)(x)
        for _ in range(self.layers):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads)(y, y)
            y = nn.LayerNorm()(x)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(y)))
        return nn.Dense(_CLASSES)(nn.LayerNorm()(x).mean(axis=1))


@dataclass(frozen=True)
class Network:
    """A model and the shape of its batch.

    target: of a product over one value_and_grad, on CPU. rounds: interleaved ones to take the median of. countable: the
    same model in a form in which XLA's counts are complete, if it has loops of its own.
    """

    key: str  # short, for the command line
    name: str
    model: nn.Module
    shape: tuple[int, ...]  # of the inputs, examples first
    target: float
    rounds: int
    chunk_size: int | None = None
    countable: nn.Module | None = None
    precision: str = "highest"

    def params(self) -> Any:
        """θ₀."""
        variables = jax.jit(self.model.init)(jax.random.key(0), jnp.zeros((2, *self.shape[1:])))
        return {"params": variables["params"]}

    def bind(self, *, chunked: bool = True, countable: bool = False, memory: Memory = "auto") -> hfopt.ValueFn:
        """Softmax cross-entropy on random data; BatchNorm uses the statistics of the batch."""
        model = self.countable if countable and self.countable is not None else self.model
        loss = optax.losses.softmax_cross_entropy_with_integer_labels
        objective = hfopt.Objective(_without_statistics(model), loss, precision=self.precision)
        key = jax.random.key(1)
        batch = jax.random.normal(key, self.shape), jax.random.randint(key, self.shape[:1], 0, _CLASSES)
        return objective.bind(batch, chunk_size=self.chunk_size if chunked else None, memory=memory)


def _without_statistics(model: nn.Module) -> Callable[[Any, Any], Any]:
    return lambda params, x: model.apply(params, x, mutable="batch_stats")[0]


_CNN = CNN((32, 64, 64), (5, 3, 3), _CLASSES, nn.relu, nn.max_pool)  # of simpleNN
NETWORKS = (
    Network("mlp", "MLP 784-500-250-10, batch 512", MLP((500, 250), _CLASSES, nn.relu), (512, 784), 1.17, rounds=41),
    Network("cnn", "CNN of simpleNN, batch 256", _CNN, (256, 28, 28, 1), 1.0, rounds=5),
    Network("chunked", "the CNN in 4 chunks", _CNN, (256, 28, 28, 1), 1.15, rounds=5, chunk_size=64),
    Network("resnet", "ResNet with BatchNorm, batch 64", ResNet(), (64, 32, 32, 3), 1.2, rounds=11),
    Network("lstm", "LSTM over 50 steps, batch 64", LSTM(), (64, 50, 32), 1.6, rounds=21, countable=LSTM(unroll=50)),
    Network("transformer", "Transformer, 2 layers, batch 32", Transformer(), (32, 32, 64), 1.3, rounds=21),
)
