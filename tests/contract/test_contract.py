"""Every transformation in every wrapper of Optax: the numbers that Optax defines, or an error that says what to do."""

import jax
import pytest

from tests.contract.optimizers import OPTIMIZERS
from tests.contract.properties import PROPERTIES
from tests.contract.table import PAGE, applies, page_with_table

# By what they take: much compiling for little arithmetic.
DEAR = (
    "inject_hyperparams",
    "named_chain",
    "apply_if_finite",
    "conditionally_mask",
    "conditionally_transform",
    "apply_every",
    "freeze",
    "scale_by_backtracking_linesearch",
    "scale_by_zoom_linesearch",
    "vmap over seeds",
    "bfloat16 parameters",
)
CELLS = [(name, prop) for name in OPTIMIZERS for prop in PROPERTIES]


def fast(name: str, prop: str) -> bool:
    if name == "scale_by_gauss_newton":
        return prop in ("inject_hyperparams", "scale_by_backtracking_linesearch")
    return name == "hessian_free" and prop not in DEAR


@pytest.mark.parametrize(
    ("name", "prop"), [cell if fast(*cell) else pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS]
)
def test_contract(name, prop):
    if not applies(prop, OPTIMIZERS[name]):
        pytest.skip("no number of its own to schedule")
    with jax.numpy_dtype_promotion("standard"):  # Optax's own wrappers need it
        PROPERTIES[prop].check(OPTIMIZERS[name])


def test_the_table_in_the_docs_is_that_of_the_tests():
    page = PAGE.read_text()
    assert page == page_with_table(page), "run python -m tests.contract.table"
