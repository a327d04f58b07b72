"""One network in linen and in NNX, with BatchNorm and dropout, trained by one optimizer: the same losses from both.

The network has the shape of a ResNet-18: a convolution, four stages of two residual blocks, and a dense layer, with
channels that fit a CPU. Both start from the same parameters and see the same dropout masks, so what differs is only how
the frameworks hold their state.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from rich.console import Console
from rich.table import Table

import hfopt
import hfopt.flax.linen as hf_linen
import hfopt.flax.nnx as hf_nnx
from experiments.problems.dataset import Dataset

CHANNELS = (8, 16, 32, 64)
_DROPOUT, _L2 = 0.2, 1e-4
_LOSS = optax.losses.softmax_cross_entropy_with_integer_labels


class LinenBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm beside a shortcut."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(nn.Conv(self.channels, (3, 3), strides, use_bias=False)(x)))
        y = norm()(nn.Conv(self.channels, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.Conv(self.channels, (1, 1), strides, use_bias=False)(x)
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    """The network in linen."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(CHANNELS[0], (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        for stage, channels in enumerate(CHANNELS):
            for block in range(2):
                x = LinenBlock(channels, 2 if stage > 0 and block == 0 else 1)(x, train)
        x = x.mean(axis=(1, 2))
        if train:
            x = dropped(x, self.make_rng("dropout"))
        return nn.Dense(self.classes)(x)


class NNXBlock(nnx.Module):
    """Two 3×3 convolutions with BatchNorm beside a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int, rngs: nnx.Rngs) -> None:
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.first, self.second = conv(inputs, channels, (3, 3), stride), conv(channels, channels, (3, 3))
        self.norms = nnx.List([nnx.BatchNorm(channels, rngs=rngs) for _ in range(2)])
        self.shortcut = None if inputs == channels else conv(inputs, channels, (1, 1), stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y))
        return nnx.relu((x if self.shortcut is None else self.shortcut(x)) + y)


class LinenDropout(nnx.Module):
    """Dropout whose masks are those of `LinenResNet` in a `hfopt.flax.linen.TrainState` with the same key."""

    def __init__(self, key: jax.Array) -> None:
        self.key, self.count, self.deterministic = nnx.RngKey(key), nnx.RngCount(jnp.uint32(0)), False

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.deterministic:
            return x
        key = jax.random.fold_in(jax.random.fold_in(self.key[...], self.count[...]), 0)
        self.count[...] += 1
        return dropped(x, _FirstKey().apply({}, rngs={"dropout": key}))


class _FirstKey(nn.Module):
    def __call__(self) -> jax.Array:
        return self.make_rng("dropout")


class NNXResNet(nnx.Module):
    """The network in NNX."""

    def __init__(self, inputs: int, classes: int, key: jax.Array, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(inputs, CHANNELS[0], (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(CHANNELS[0], rngs=rngs)
        widths = [CHANNELS[0], *(channels for channels in CHANNELS for _ in range(2))]
        strides = [2 if stage > 0 and block == 0 else 1 for stage in range(len(CHANNELS)) for block in range(2)]
        shapes = zip(widths, widths[1:], strides, strict=False)
        self.blocks = nnx.List([NNXBlock(a, b, stride, rngs) for a, b, stride in shapes])
        self.dropout = LinenDropout(key)
        self.dense = nnx.Linear(CHANNELS[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.dense(self.dropout(x.mean(axis=(1, 2))))

    def load(self, params: Any) -> None:
        """Take over the parameters of a `LinenResNet`."""
        self.conv.kernel[...] = params["Conv_0"]["kernel"]
        for i, block in enumerate(self.blocks):
            given = params[f"LinenBlock_{i}"]
            convs = [block.first, block.second] + ([] if block.shortcut is None else [block.shortcut])
            for j, conv in enumerate(convs):
                conv.kernel[...] = given[f"Conv_{j}"]["kernel"]
        self.dense.kernel[...] = params["Dense_0"]["kernel"]


def dropped(x: jax.Array, key: jax.Array) -> jax.Array:
    """x with a share of its entries zero and the others scaled up."""
    keep = 1 - _DROPOUT
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0)


class Run(NamedTuple):
    """One framework's training: the losses it reported, and the same losses by `value_fn` in a program of its own."""

    reported: list[float]
    evaluated: list[float]
    accepted: int
    seconds: float


def train_linen(tx: Any, batch: Any, steps: int) -> Run:
    """``steps`` steps on one batch, in linen."""
    model, (images, labels) = LinenResNet(10), batch
    variables = _wide(model.init(jax.random.key(0), images[:1]))
    state = hf_linen.TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=tx,
        variables={"batch_stats": variables["batch_stats"]},
        key=jax.random.key(1),
    )
    options: dict[str, Any] = {"l2": _L2, "arguments": {"train": True}}
    train_step = hf_linen.make_train_step(_LOSS, exact_loss=True, **options)
    evaluate = jax.jit(lambda state: state.value_fn(_LOSS, (images, labels), **options)(state.params))

    def step() -> tuple[jax.Array, Any]:
        nonlocal state
        value = evaluate(state)
        state, metrics = train_step(state, batch)
        return value, metrics

    return _record(step, steps)


def train_nnx(tx: Any, batch: Any, steps: int) -> Run:
    """``steps`` steps on one batch, in NNX, from the parameters that `train_linen` starts from."""
    images, _ = batch
    model = NNXResNet(images.shape[-1], 10, jax.random.key(1), nnx.Rngs(0))
    nnx.update(model, _wide(nnx.as_pure(nnx.state(model, (nnx.Param, nnx.BatchStat)))))
    model.load(_wide(LinenResNet(10).init(jax.random.key(0), images[:1])["params"]))
    optimizer = hf_nnx.Optimizer(model, tx, wrt=nnx.Param)
    train_step = hf_nnx.make_train_step(_LOSS, l2=_L2, exact_loss=True)
    evaluate = nnx.jit(lambda model, batch: hf_nnx.value_fn(model, _LOSS, batch, l2=_L2)(hf_nnx.params(model)))
    return _record(lambda: (evaluate(model, batch), train_step(model, optimizer, batch)), steps)


def _record(step: Callable[[], tuple[jax.Array, Any]], steps: int) -> Run:
    began, reported, evaluated, accepted = time.perf_counter(), [], [], 0
    for _ in range(steps):
        value, metrics = step()
        evaluated.append(float(value))
        reported.append(float(metrics["loss"]))
        accepted += int(metrics.get("accepted", 1))
    return Run(reported, evaluated, accepted, time.perf_counter() - began)


def first_examples(dataset: Dataset, count: int) -> Any:
    """The first training examples, standardised, in JAX's default precision."""
    images = np.asarray(dataset.train.inputs[:count], float)
    images = (images - images.mean()) / images.std()
    return jnp.asarray(images), jnp.asarray(dataset.train.targets[:count])


def _wide(tree: Any) -> Any:
    """Floating arrays in JAX's default precision, float64 where it is enabled."""
    return jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def main(dataset: Dataset, examples: int, steps: int, console: Console) -> bool:
    """Train both and print their losses side by side; whether reports are exact and the two agree.

    Single precision does not let them agree: conjugate gradients amplify rounding.
    """
    batch = first_examples(dataset, examples)
    linen, other = (train(hfopt.hessian_free(), batch, steps) for train in (train_linen, train_nnx))
    table = Table(
        title=f"hessian_free on a small ResNet-18 with BatchNorm and dropout: {examples} images, {batch[0].dtype}",
        caption="apart: the reported loss, less value_fn(params) in a program of its own.",
    )
    for column in ("step", "linen", "apart", "nnx", "apart", "difference"):
        table.add_column(column, justify="right")
    for i in range(steps):
        a, b = linen.reported[i], other.reported[i]
        apart = (f"{run.reported[i] - run.evaluated[i]:.0e}" for run in (linen, other))
        table.add_row(str(i + 1), f"{a:.6f}", next(apart), f"{b:.6f}", next(apart), f"{abs(a - b):.1e}")
    console.print(table)
    pairs = [pair for run in (linen, other) for pair in zip(run.reported, run.evaluated, strict=True)]
    unequal = sum(a != b for a, b in pairs)
    furthest = max(abs(a - b) / abs(a) for a, b in zip(linen.reported, other.reported, strict=True))
    console.print(
        f"Reported losses that equal value_fn(params) bit for bit: {2 * steps - unequal} of {2 * steps}. "
        f"Largest relative difference of the frameworks: {furthest:.1e}. "
        f"Accepted steps: {linen.accepted} and {other.accepted} of {steps}. "
        f"Seconds with compiling: {linen.seconds:.0f} and {other.seconds:.0f}.",
        highlight=False,
    )
    return unequal == 0 and (furthest <= 1e-5 or batch[0].dtype != np.float64)
