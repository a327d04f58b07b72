"""curves3pt: synthetic 28×28 grey images, each of one smooth curve through three random points.

The three points p₀, p₁, p₂ are uniform in the unit square, and the curve is the parabola through them,

    c(t) = (1 − 2t)(1 − t) p₀ + 4t(1 − t) p₁ + t(2t − 1) p₂,  0 ≤ t ≤ 1,   c(0) = p₀, c(½) = p₁, c(1) = p₂.

It leaves the square by at most 1/8, so that a frame of [−1/8, 9/8]² holds all of it. The ink
at the centre q of a pixel is the integral of a Gaussian brush along the curve, and its grey level saturates with the
ink:

    ink(q) = (σ√2π)⁻¹ ∫ exp(−‖q − c(t)‖² / 2σ²) ‖c'(t)‖ dt,   level = 1 − exp(−DARKNESS · ink),   in [0, 1),

which away from the ends of a straight stroke is 1 − exp(−DARKNESS · exp(−d² / 2σ²)) at the distance d.

This follows the description of a data set of Hinton & Salakhutdinov, "Reducing the dimensionality of data with neural
networks", Science 313, 2006, whose true dimension is 6 too. It is not that data set: the width of the brush was chosen
so that the squared error (summed over pixels, mean over 10,000 new images) of the 18 principal components of 20,000
images is near the 5.90 that they report, and errors of networks are comparable in their magnitude only.
"""

import numpy as np

SIDE = 28
BRUSH = 1.225  # σ, in pixels
DARKNESS = 3.0  # the ink in the middle of a stroke takes away all but exp(−3) = 5 % of the light

_FRAME = 1 / 8  # how far a parabola leaves the square of its points: max of t(1 − 2t)
_MARGIN = 2.0  # pixels around the frame, for the width of the stroke
_NODES = 64  # of Gauss's rule in t, which puts more of them near the ends, where the curve is fast
_AT_ONCE = 500  # images, to bound memory


def curve_images(count: int, seed: int) -> np.ndarray:
    """Grey levels 0 … 255, (count, 28, 28) uint8: a function of the seed, in which more images begin with the same.

    Raises:
      ValueError: `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"curve_images: `count` must be at least 1, got {count}.")
    points = np.random.default_rng(seed).random((count, 3, 2))
    parts = [_render(points[start : start + _AT_ONCE]) for start in range(0, count, _AT_ONCE)]
    return np.rint(255 * np.concatenate(parts)).astype(np.uint8)


def parabolas(points: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """c(t) and c'(t), each (n, times, 2), of the parabolas through `points` (n, 3, 2)."""
    t = times
    weights = np.stack([(1 - 2 * t) * (1 - t), 4 * t * (1 - t), t * (2 * t - 1)], axis=1)
    slopes = np.stack([4 * t - 3, 4 - 8 * t, 4 * t - 1], axis=1)
    return weights @ points, slopes @ points


def _render(points: np.ndarray) -> np.ndarray:
    """Levels (n, 28, 28) in [0, 1); the first coordinate of a point goes down the image, the second across."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    scale = (SIDE - 2 * _MARGIN) / (1 + 2 * _FRAME)  # pixels a unit
    curve, velocity = parabolas(points, (1 + nodes) / 2)
    centres = _MARGIN + scale * (curve + _FRAME)
    lengths = scale * np.linalg.norm(velocity, axis=-1) * weights / 2
    # exp(−‖q − c‖²/2σ²) is a factor for the row times one for the column, so the integral is a matrix product.
    pixels = np.arange(SIDE) + 0.5
    factors = np.exp(-0.5 * ((pixels - centres[..., np.newaxis]) / BRUSH) ** 2)  # (n, nodes, 2, 28)
    rows = factors[:, :, 0] * lengths[..., np.newaxis]
    ink = rows.transpose(0, 2, 1) @ factors[:, :, 1] / (BRUSH * np.sqrt(2 * np.pi))
    return 1 - np.exp(-DARKNESS * ink)
