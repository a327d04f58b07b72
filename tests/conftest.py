"""Strict numerics for the tests of the package: float64, no implicit dtype or rank promotion.

The experiments run as users run them, in float32 with JAX's defaults; so does any test marked `float32`.
"""

import experiments  # noqa: F401 - before NumPy and JAX: it keeps LAPACK's threads from waiting for XLA's

# isort: split
from collections.abc import Iterator
from contextlib import ExitStack

import jax
import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "float32: run with JAX's default precision and promotion, as users do")


@pytest.fixture(autouse=True)
def _numerics(request: pytest.FixtureRequest) -> Iterator[None]:
    with ExitStack() as stack:
        if "experiments" not in request.path.parts and not request.node.get_closest_marker("float32"):
            stack.enter_context(jax.enable_x64(True))
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
            stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield
