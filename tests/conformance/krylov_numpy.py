"""Conjugate gradients from their definition: minimisers over explicit Krylov spaces, by an orthonormal basis."""

import numpy as np

Array = np.ndarray


def positive_definite(n: int = 30, seed: int = 0, condition: float = 1e3) -> tuple[Array, Array]:
    """A random symmetric matrix with eigenvalues spaced geometrically from 1 to the condition number, and a vector."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (Q * np.geomspace(1.0, condition, n)) @ Q.T, rng.standard_normal(n)


def krylov_minimisers(A: Array, b: Array, steps: int) -> list[Array]:
    """The minimisers of ½xᵀAx − bᵀx over span{b, Ab, …, A^{k−1}b} for k = 1 … steps, by an orthonormal basis."""
    V, iterates = np.zeros((b.size, 0)), []
    v = b
    for _ in range(steps):
        v = v - V @ (V.T @ v)
        v = v - V @ (V.T @ v)
        V = np.column_stack([V, v / np.linalg.norm(v)])
        iterates.append(V @ np.linalg.solve(V.T @ A @ V, V.T @ b))
        v = A @ V[:, -1]
    return iterates
