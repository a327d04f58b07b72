"""Losses, dense derivatives and two small models, in float64 NumPy.

The references see a model through two functions only, ``forward(theta, x) -> z`` of shape (N, K) and
``jacobian(theta, x) -> J`` of shape (N, K, n), where theta is a flat vector of n parameters. From those follow

    f = (l2/2)‖theta‖² + (1/N) Σ xi_i,        g = l2·theta + (1/N) Σ J_iᵀ r_i,        G = l2·I + (1/N) Σ J_iᵀ B_i J_i,

with xi_i the loss of example i, r_i its gradient and B_i its Hessian with respect to the outputs z_i.

A flat theta lists the arrays of a model in the order of its ``shapes``, each in C order: kernel, then bias, layer by
layer. ``jax.flatten_util.ravel_pytree`` of the list of those arrays gives the same vector.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Forward = Callable[[Array, Array], Array]
Jacobian = Callable[[Array, Array], Array]
Shapes = Sequence[tuple[int, ...]]


class Loss(NamedTuple):
    """A loss of outputs z and targets y, both (N, K), and its derivatives with respect to z."""

    value: Callable[[Array, Array], Array]  # (N,)
    gradient: Callable[[Array, Array], Array]  # (N, K)
    hessian: Callable[[Array, Array], Array]  # (N, K, K)


class Model(NamedTuple):
    """A model as the references need it, and the shapes of the arrays in its flat theta."""

    forward: Forward
    jacobian: Jacobian
    shapes: Shapes


# --- losses --------------------------------------------------------------------------------------------------------


def sigmoid(z: Array) -> Array:
    """1/(1 + e^{−z}), written with tanh so that no exponential overflows."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def softmax(z: Array) -> Array:
    """e^{z_k} / Σ_j e^{z_j} along the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _diagonal(d: Array) -> Array:
    """The matrices (N, K, K) that have the rows of d, (N, K), on their diagonals."""
    return d[:, :, None] * np.eye(d.shape[1])


def _softmax_value(z: Array, y: Array) -> Array:
    top = z.max(axis=1)
    return y.sum(axis=1) * (top + np.log(np.exp(z - top[:, None]).sum(axis=1))) - (y * z).sum(axis=1)


def _softmax_hessian(z: Array, y: Array) -> Array:
    p = softmax(z)
    return y.sum(axis=1)[:, None, None] * (_diagonal(p) - p[:, :, None] * p[:, None, :])


# Σ_k (z_k − y_k)², without a half: simpleNN, MATLAB/cnn/lossgrad_subset.m and Python/train.py ("MSELoss").
squared = Loss(
    value=lambda z, y: ((z - y) ** 2).sum(axis=1),
    gradient=lambda z, y: 2.0 * (z - y),
    hessian=lambda z, y: _diagonal(np.full(z.shape, 2.0)),
)

# −Σ_k y_k log softmax(z)_k on one-hot targets: simpleNN, Python/train.py ("CrossEntropy").
softmax_cross_entropy = Loss(
    value=_softmax_value,
    gradient=lambda z, y: y.sum(axis=1, keepdims=True) * softmax(z) - y,
    hessian=_softmax_hessian,
)

# Σ_k log(1 + e^{z_k}) − y_k z_k, summed over the outputs: Martens 2010, logistic outputs with their canonical loss.
sigmoid_cross_entropy = Loss(
    value=lambda z, y: (np.logaddexp(0.0, z) - y * z).sum(axis=1),
    gradient=lambda z, y: sigmoid(z) - y,
    hessian=lambda z, y: _diagonal(sigmoid(z) * (1.0 - sigmoid(z))),
)


LOSSES = {"squared": squared, "softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}


# --- the objective and its dense derivatives -----------------------------------------------------------------------


def value(forward: Forward, loss: Loss, l2: float, theta: Array, x: Array, y: Array) -> float:
    """f(theta) = (l2/2)‖theta‖² + (1/N) Σ xi_i."""
    return float(0.5 * l2 * theta @ theta + loss.value(forward(theta, x), y).mean())


def example_gradients(forward: Forward, jacobian: Jacobian, loss: Loss, theta: Array, x: Array, y: Array) -> Array:
    """The gradients J_iᵀ r_i of the single losses, (N, n), without the l2 term."""
    return np.einsum("nkp,nk->np", jacobian(theta, x), loss.gradient(forward(theta, x), y))


def gradient(forward: Forward, jacobian: Jacobian, loss: Loss, l2: float, theta: Array, x: Array, y: Array) -> Array:
    """g = l2·theta + (1/N) Σ J_iᵀ r_i, of shape (n,)."""
    return l2 * theta + example_gradients(forward, jacobian, loss, theta, x, y).mean(axis=0)


def gauss_newton(
    forward: Forward, jacobian: Jacobian, loss: Loss, l2: float, theta: Array, x: Array, y: Array
) -> Array:
    """G = l2·I + (1/N) Σ J_iᵀ B_i J_i, of shape (n, n)."""
    J, B = jacobian(theta, x), loss.hessian(forward(theta, x), y)
    BJ = B @ J
    return l2 * np.eye(theta.size) + np.tensordot(J, BJ, axes=([0, 1], [0, 1])) / len(x)


# --- flat parameters -----------------------------------------------------------------------------------------------


def unpack(theta: Array, shapes: Shapes) -> list[Array]:
    """The arrays of the given shapes that theta lists one after another."""
    ends = np.cumsum([prod(s) for s in shapes])
    return [part.reshape(s) for part, s in zip(np.split(theta, ends[:-1]), shapes, strict=True)]


def pack(arrays: Sequence[Array]) -> Array:
    """The inverse of ``unpack``."""
    return np.concatenate([a.ravel() for a in arrays])


# --- an autoencoder of sigmoid units -------------------------------------------------------------------------------


def _autoencoder_forward(theta: Array, x: Array, *, shapes: Shapes) -> Array:
    return _sigmoid_layers(theta, x, shapes)[0]


def _sigmoid_layers(theta: Array, x: Array, shapes: Shapes) -> tuple[Array, list[Array]]:
    """The logits, and the input of every layer."""
    parts, inputs = unpack(theta, shapes), [x]
    for W, b in zip(parts[:-2:2], parts[1:-2:2], strict=True):
        inputs.append(sigmoid(inputs[-1] @ W + b))
    return inputs[-1] @ parts[-2] + parts[-1], inputs


def _autoencoder_jacobian(theta: Array, x: Array, *, shapes: Shapes) -> Array:
    """Backpropagation of every output at once: D = dz/d(pre-activation), (N, K, width), from the last layer back."""
    z, inputs = _sigmoid_layers(theta, x, shapes)
    kernels, (N, K) = unpack(theta, shapes)[::2], z.shape
    D, blocks = np.broadcast_to(np.eye(K), (N, K, K)), []
    for layer in reversed(range(len(kernels))):
        a = inputs[layer]
        blocks = [np.einsum("ni,nkj->nkij", a, D).reshape(N, K, -1), D, *blocks]
        D = (D @ kernels[layer].T) * (a * (1.0 - a))[:, None, :]
    return np.concatenate(blocks, axis=2)


def autoencoder(sizes: Sequence[int]) -> Model:
    """Sigmoid layers of the given sizes, inputs first; the outputs are logits (their sigmoid belongs to the loss)."""
    shapes = [s for i, o in pairwise(sizes) for s in ((i, o), (o,))]
    return Model(partial(_autoencoder_forward, shapes=shapes), partial(_autoencoder_jacobian, shapes=shapes), shapes)


def sparse_start(shapes: Shapes, rng: np.random.Generator, connections: int = 15) -> Array:
    """Sparse initialisation: each unit takes at most 15 inputs with weights N(0, 1), biases 0 (Martens 2010, §5)."""
    arrays = [np.zeros(s) for s in shapes]
    for W in arrays[::2]:
        for column in W.T:
            chosen = rng.choice(column.size, min(connections, column.size), replace=False)
            column[chosen] = rng.standard_normal(chosen.size)
    return pack(arrays)


# --- a convolutional network ---------------------------------------------------------------------------------------


def _windows(x: Array, size: int) -> Array:
    """All size × size windows of x, (..., H, W, C) → (..., H, W, C, size, size), zero-padded to keep H and W."""
    p = size // 2
    padded = np.pad(x, [(0, 0)] * (x.ndim - 3) + [(p, p), (p, p), (0, 0)])
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(-3, -2))


def _convolve(x: Array, kernel: Array) -> Array:
    """Cross-correlation with stride 1: (..., H, W, C) with a kernel (s, s, C, O), s odd → (..., H, W, O)."""
    return np.einsum("...hwcij,ijco->...hwo", _windows(x, len(kernel)), kernel)


def _pool(x: Array) -> tuple[Array, Array]:
    """2 × 2 max pooling of (N, H, W, C): the maxima, and the mask (N, H, W, C) of the first maximum of each window."""
    N, H, W, C = x.shape
    blocks = x.reshape(N, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 5, 2, 4).reshape(N, H // 2, W // 2, C, 4)
    first = np.eye(4)[blocks.argmax(axis=-1)]
    mask = first.reshape(N, H // 2, W // 2, C, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(x.shape)
    return blocks.max(axis=-1), mask


def _upsample(d: Array) -> Array:
    """Each cell of (N, K, H, W, C) repeated over its 2 × 2 window."""
    return d.repeat(2, axis=2).repeat(2, axis=3)


class _Layers(NamedTuple):
    z: Array  # (N, K)
    s1: Array  # pre-activation of the first convolution
    mask: Array  # where its 2 × 2 maxima are
    x2: Array  # input of the second convolution
    s2: Array  # its pre-activation


def _cnn_layers(theta: Array, x: Array, shapes: Shapes) -> _Layers:
    K1, b1, K2, b2, W, b = unpack(theta, shapes)
    s1 = _convolve(x, K1) + b1
    x2, mask = _pool(np.maximum(s1, 0.0))
    s2 = _convolve(x2, K2) + b2
    return _Layers(np.maximum(s2, 0.0).reshape(len(x), -1) @ W + b, s1, mask, x2, s2)


def _cnn_forward(theta: Array, x: Array, *, shapes: Shapes) -> Array:
    return _cnn_layers(theta, x, shapes).z


def _cnn_jacobian(theta: Array, x: Array, *, shapes: Shapes) -> Array:
    """Backpropagation of every output at once; max pooling and ReLU pass derivatives where they passed values."""
    z, s1, mask, x2, s2 = _cnn_layers(theta, x, shapes)
    (_, _, K2, _, W, _), (N, K) = unpack(theta, shapes), z.shape
    I = np.broadcast_to(np.eye(K), (N, K, K))  # noqa: E741
    dW = np.einsum("ni,nkj->nkij", np.maximum(s2, 0.0).reshape(N, -1), I)
    D2 = np.broadcast_to(W.T, (N, K, len(W))).reshape(N, K, *s2.shape[1:]) * (s2 > 0)[:, None]
    d2 = np.einsum("nhwcij,nkhwo->nkijco", _windows(x2, len(K2)), D2)
    back = _convolve(D2, K2[::-1, ::-1].swapaxes(2, 3))
    D1 = _upsample(back) * (mask * (s1 > 0))[:, None]
    d1 = np.einsum("nhwcij,nkhwo->nkijco", _windows(x, len(unpack(theta, shapes)[0])), D1)
    blocks = [d1, D1.sum(axis=(2, 3)), d2, D2.sum(axis=(2, 3)), dW, I]
    return np.concatenate([block.reshape(N, K, -1) for block in blocks], axis=2)


def cnn(side: int = 6, channels: tuple[int, int, int] = (1, 3, 4), outputs: int = 4, kernel: int = 3) -> Model:
    """convolution, ReLU, 2 × 2 max pooling, convolution, ReLU, linear: images (N, side, side, C) → (N, K).

    Convolutions are zero-padded to keep the size and have stride 1; kernels are (height, width, in, out), as in Flax.
    """
    c0, c1, c2 = channels
    features = (side // 2) ** 2 * c2
    shapes = [(kernel, kernel, c0, c1), (c1,), (kernel, kernel, c1, c2), (c2,), (features, outputs), (outputs,)]
    return Model(partial(_cnn_forward, shapes=shapes), partial(_cnn_jacobian, shapes=shapes), shapes)


def he_start(shapes: Shapes, rng: np.random.Generator) -> Array:
    """Kernels N(0, 2/fan_in), biases 0: the initialisation of simpleNN (Python/train.py, after He et al. 2015)."""
    kernels = [rng.standard_normal(s) * np.sqrt(2.0 / prod(s[:-1])) for s in shapes[::2]]
    return pack([a for k, s in zip(kernels, shapes[1::2], strict=True) for a in (k, np.zeros(s))])


# --- problems ------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A model, where to start, and its data."""

    model: Model
    theta: Array
    x: Array
    y: Array


def cnn_problem(seed: int = 0, examples: int = 24) -> Problem:
    """Images of noise (N, 6, 6, 1) with one-hot labels of four classes, 290 parameters: small, and hard to fit."""
    rng, model = np.random.default_rng(seed), cnn()
    x = rng.standard_normal((examples, 6, 6, 1))
    y = np.eye(4)[rng.integers(0, 4, examples)]
    return Problem(model, he_start(model.shapes, rng), x, y)


def autoencoder_problem(seed: int = 0, examples: int = 40, sizes: Sequence[int] = (16, 10, 4, 10, 16)) -> Problem:
    """Rows in (0, 1) with three latent dimensions, to be reproduced through a bottleneck of four: 440 parameters."""
    rng, model = np.random.default_rng(seed), autoencoder(sizes)
    codes = rng.standard_normal((examples, 3)) @ rng.standard_normal((3, sizes[0]))
    x = sigmoid(2.0 * codes)
    return Problem(model, sparse_start(model.shapes, rng), x, x)


def overshooting_problem() -> Problem:
    """One logit t of two opposite cases, f = log(1 + e^t) − t/2, at t = 6.

    There is hardly any curvature there: with little damping the full step goes far beyond the minimum at t = 0.
    """
    x, y = np.zeros((2, 1)), np.array([[0.0], [1.0]])
    return Problem(autoencoder((1, 1)), np.array([0.0, 6.0]), x, y)


class AutoencoderCase(NamedTuple):
    """An `autoencoder_problem`, and the initial damping and number of curvature chunks to run it with."""

    sizes: tuple[int, ...]
    seed: int
    damping: float
    chunks: int


# Five iterations of each decide everything with a `martens_numpy.margin` above 1e-7, and between them they stop CG at
# various steps, choose the last iterate and earlier ones, and raise, keep and lower λ. With the published λ = 45 the
# decisions on problems this small hang on rounding errors.
AUTOENCODER_CASES = [
    AutoencoderCase((16, 8, 16), seed=4, damping=0.3, chunks=1),
    AutoencoderCase((16, 8, 16), seed=4, damping=0.3, chunks=4),
    AutoencoderCase((16, 8, 16), seed=3, damping=0.1, chunks=4),
    AutoencoderCase((16, 8, 16), seed=2, damping=0.1, chunks=4),
    AutoencoderCase((16, 10, 4, 10, 16), seed=2, damping=0.3, chunks=1),
]
