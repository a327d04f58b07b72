"""SOAP for one matrix, after Vyas et al. 2024, algorithms 3 and 4, in the letters of the paper.

Where the paper leaves open how it begins: Q_L and Q_R are the identity, and the bases are renewed for the first time
after the first gradient. Both moments are corrected for their bias, as Adam's are. ``ours`` adds what the package
does: V follows the bases, as a diagonal covariance would, and a little of the identity is added to a factor, so that
where it has no rank its basis stays.
"""

from typing import NamedTuple

import numpy as np


class State(NamedTuple):
    L: np.ndarray
    R: np.ndarray
    Q_L: np.ndarray
    Q_R: np.ndarray
    V: np.ndarray
    M: np.ndarray
    t: int


def start(m: int, n: int) -> State:
    return State(np.zeros((m, m)), np.zeros((n, n)), np.eye(m), np.eye(n), np.zeros((m, n)), np.zeros((m, n)), 0)


def step(
    state: State, G: np.ndarray, beta1: float, beta2: float, f: int, ours: bool = True
) -> tuple[np.ndarray, State]:
    """N, the direction of the step, and the next state; eigenvectors anew after the first step and every f-th."""
    L, R, Q_L, Q_R, V, M, t = state
    t += 1
    rotated = Q_L.T @ G @ Q_R
    M = beta1 * M + (1 - beta1) * G
    V = beta2 * V + (1 - beta2) * rotated * rotated
    N = (Q_L.T @ M @ Q_R / (1 - beta1**t)) / np.sqrt(V / (1 - beta2**t))
    N = Q_L @ N @ Q_R.T
    L = beta2 * L + (1 - beta2) * G @ G.T
    R = beta2 * R + (1 - beta2) * G.T @ G
    if t == 1 or t % f == 0:
        T_L, T_R = Q_L.T, Q_R.T
        Q_L, Q_R = eigenvectors(L, Q_L, ours), eigenvectors(R, Q_R, ours)
        if ours:
            V = ((T_L @ Q_L) ** 2).T @ V @ (T_R @ Q_R) ** 2
    return N, State(L, R, Q_L, Q_R, V, M, t)


def eigenvectors(P: np.ndarray, Q: np.ndarray, ours: bool) -> np.ndarray:
    """Algorithm 4: one step of the power iteration, and QR."""
    shift = np.sqrt(np.finfo(float).eps) * np.trace(P) / len(P) if ours else 0.0
    return np.linalg.qr((P + shift * np.eye(len(P))) @ Q)[0]
