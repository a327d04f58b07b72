"""Checks at the boundary: of numbers, and of masks of parameters."""

from typing import Any

import jax
import numpy as np


def require_positive(where: str, **values: Any) -> None:
    """Raise ValueError, by the name of the argument of ``where``, for a number that is not above zero.

    Arrays of JAX pass: their values may not be known yet, as under ``optax.inject_hyperparams``.
    """
    for name, value in values.items():
        if not isinstance(value, jax.Array) and not value > 0:
            raise ValueError(f"{where}: `{name}` must be positive, got {value}.")


def is_traced(value: Any) -> bool:
    """Whether ``value`` has no numbers now: it is being traced, or only its shape is known."""
    return isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct)


def require_scalar(where: str, name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless ``value`` is a real number of at least 0, or an array of shape ()."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number and not isinstance(value, np.ndarray | jax.Array):
        raise TypeError(f"{where}: `{name}` must be a number, got {value!r}.")
    if not number and (np.ndim(value) != 0 or not np.issubdtype(value.dtype, np.number)):
        raise ValueError(
            f"{where}: `{name}` must be one real number, got shape {value.shape} and dtype {value.dtype}. For several, "
            "map over them: jax.vmap of a function that makes the objective."
        )
    if not is_traced(value) and not np.asarray(value) >= 0:
        raise ValueError(f"{where}: `{name}` must be at least 0, got {value}.")


def require_key(where: str, key: Any) -> None:
    """Raise TypeError for a key that is none, such as the seed to make one from."""
    if isinstance(key, jax.Array | np.ndarray):
        raw = key.dtype == np.uint32 and key.shape[-1:] == (2,)  # what jax.random.PRNGKey makes
        if raw or jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
            return
        got = f"an array of dtype {key.dtype} and shape {key.shape}"
    else:
        got = repr(key)
    raise TypeError(f"{where}: `key` must be a key such as jax.random.key(0), got {got}.")


def check_mask(where: str, name: str, mask: Any) -> None:
    """Raise TypeError unless every entry of a mask of parameters is True or False."""
    for path, entry in jax.tree.leaves_with_path(mask):
        if not isinstance(entry, bool | np.bool_):
            raise TypeError(
                f"{where}: entries of `{name}` must be True or False, {name}{jax.tree_util.keystr(path)} is {entry!r}."
            )


def full_mask(where: str, name: str, mask: Any, params: Any) -> Any:
    """The mask, a pytree of booleans or a callable that makes one, with one boolean for every parameter.

    Raises:
      TypeError: an entry is not a boolean.
      ValueError: it is neither shaped like the parameters nor a prefix of them.
    """
    mask = mask(params) if callable(mask) else mask
    check_mask(where, name, mask)
    try:
        return jax.tree.map(lambda kept, part: jax.tree.map(lambda _: kept, part), mask, params)
    except (ValueError, TypeError):
        raise ValueError(
            f"{where}: `{name}` must be shaped like the parameters or a prefix of them, {jax.tree.structure(params)}; "
            f"got {jax.tree.structure(mask)}."
        ) from None
