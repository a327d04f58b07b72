"""Flax models for images: inputs (n, height, width, channels) -> logits (n, classes)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments import config

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": nn.sigmoid,
    "softplus": nn.softplus,
    "gelu": nn.gelu,
}


class MLP(nn.Module):
    """Fully connected layers on the flattened image."""

    hidden: tuple[int, ...]
    classes: int
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(len(images), -1)
        for width in self.hidden:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


class CNN(nn.Module):
    """Blocks of convolution (stride 1, padded to keep the size), activation and 2×2 pooling; then one dense layer.

    An odd height or width is padded by the pooling, so an 8×8 image survives three blocks (8, 4, 2, 1).
    """

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    classes: int
    activation: Callable[[jax.Array], jax.Array]
    pool: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for channels, kernel in zip(self.channels, self.kernels, strict=True):
            x = self.activation(nn.Conv(channels, (kernel, kernel), padding="SAME")(x))
            x = self.pool(x, (2, 2), strides=(2, 2), padding="SAME")
        return nn.Dense(self.classes)(x.reshape(len(x), -1))


def build_model(settings: config.MLP | config.CNN, classes: int) -> nn.Module:
    """The network that a configuration describes."""
    activation = _ACTIVATIONS[settings.activation]
    if isinstance(settings, config.MLP):
        return MLP(settings.hidden, classes, activation)
    pool = nn.max_pool if settings.pool == "max" else nn.avg_pool
    return CNN(settings.channels, settings.kernels, classes, activation, pool)
