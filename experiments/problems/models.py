"""Flax models for images: inputs (n, height, width, channels) -> logits (n, classes)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.settings.problem import CNN as CNNSettings
from experiments.settings.problem import MLP as MLPSettings
from experiments.settings.problem import ResNet as ResNetSettings

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


class ResNet(nn.Module):
    """A convolution, stages of residual blocks, and a dense layer on the mean over the image.

    Normalised in groups of channels within an image (Wu & He, "Group normalization", 2018), where the network of He,
    Zhang, Ren & Sun, "Deep residual learning for image recognition", 2016, section 4.2, has BatchNorm. With the latter
    the loss of an example depends on its batch: no mean over examples is left for chunks, samples of the curvature and
    trial points to agree on, and a second set of statistics goes with the parameters.
    """

    channels: tuple[int, ...]
    blocks: int
    groups: int
    classes: int
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(self.channels[0], (3, 3), use_bias=False)(images)
        x = self.activation(nn.GroupNorm(self.groups)(x))
        for stage, channels in enumerate(self.channels):
            for block in range(self.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = ResidualBlock(channels, stride, self.groups, self.activation)(x)
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    channels: int
    stride: int
    groups: int
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.Conv(self.channels, (3, 3), self.stride, use_bias=False)(x)
        y = self.activation(nn.GroupNorm(self.groups)(y))
        y = nn.GroupNorm(self.groups)(nn.Conv(self.channels, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.GroupNorm(self.groups)(nn.Conv(self.channels, (1, 1), self.stride, use_bias=False)(x))
        return self.activation(x + y)


def build_model(settings: MLPSettings | CNNSettings | ResNetSettings, classes: int) -> nn.Module:
    """The network that a configuration describes."""
    activation = _ACTIVATIONS[settings.activation]
    match settings:
        case MLPSettings():
            return MLP(settings.hidden, classes, activation)
        case ResNetSettings():
            return ResNet(settings.channels, settings.blocks, settings.groups, classes, activation)
    pool = nn.max_pool if settings.pool == "max" else nn.avg_pool
    return CNN(settings.channels, settings.kernels, classes, activation, pool)
