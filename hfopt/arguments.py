"""Checks of numbers at the boundary."""

from typing import Any

import jax


def require_positive(where: str, **values: Any) -> None:
    """Raise ValueError, by the name of the argument of ``where``, for a number that is not above zero.

    Arrays of JAX pass: their values may not be known yet, as under ``optax.inject_hyperparams``.
    """
    for name, value in values.items():
        if not isinstance(value, jax.Array) and not value > 0:
            raise ValueError(f"{where}: `{name}` must be positive, got {value}.")
