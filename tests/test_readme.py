"""The code of the README and of the docs runs as printed, and does what the text says."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.cases import slowly

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    "stochastic.md",
    "optax.md",
    slowly("curvature.md"),
]  # the script of sharding.md is run by the tests of sharding, in processes of its own


def run_blocks(page: Path, names: dict[str, object]) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.float32
def test_the_code_blocks_run_in_order(capsys):
    names: dict[str, object] = {}
    run_blocks(ROOT / "README.md", names)
    assert "StepInfo(loss=" in capsys.readouterr().out
    info = names["state"].info
    assert info.new_loss < 0.8 * names["value_fn"](names["model"].init(names["jax"].random.key(0), names["images"]))
    assert names["curvature_along_gradient"] > 0


@pytest.mark.float32
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_the_docs_runs(page):
    run_blocks(ROOT / "docs" / page, {})


RECIPES = re.split(r"^## ", (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


@pytest.mark.float32
@pytest.mark.parametrize(
    "recipe",
    [recipe if "Plain" in recipe else slowly(recipe) for recipe in RECIPES],
    ids=[recipe.splitlines()[0] for recipe in RECIPES],
)
def test_recipes_run_and_the_loop_after_goes_further(recipe):
    title = recipe.splitlines()[0]
    for package in ("equinox", "jaxopt"):
        if f"import {package}" in recipe:
            pytest.importorskip(package)
    before, *after = (code for code in re.findall(r"```python\n(.*?)```", recipe, flags=re.DOTALL))
    names: dict[str, object] = {}
    exec(compile(before, title, "exec"), names)
    reached = names.get("value")
    exec(compile(after[0], title, "exec"), names)
    if reached is None:  # jaxopt: the same least squares
        np.testing.assert_allclose(names["steps"], names["undamped"], atol=1e-4)
        np.testing.assert_allclose(names["adaptive"], names["damped"], atol=1e-3)
    else:
        value = names["metrics"]["loss"] if "metrics" in names else names["value"]
        assert float(value) < float(reached)
    for code in after[1:]:
        exec(compile(code, title, "exec"), names)


def test_the_files_it_shows_and_links_exist():
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if "://" not in t]
    assert targets
    assert re.findall(r"^[A-Z_]{6,}$", README, flags=re.MULTILINE) == []  # a placeholder for a table
    assert [t for t in targets if not (ROOT / t).exists()] == []
