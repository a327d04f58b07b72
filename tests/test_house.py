"""The house: which module may import which, how long a file may grow, and examples that run."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import hfopt

PACKAGE = Path(hfopt.__file__).parent

# Data flows down this list: a module imports only from lines above its own, or from its own line.
ORDER = [
    ["arguments", "convolutions", "batch", "vectors"],
    ["losses"],
    ["objective"],
    ["curvature"],
    ["solve"],
    ["control"],
    ["state", "choices"],
    ["system"],
    ["attempt"],
    ["transform"],
    ["presets", "wrappers"],
    ["analysis", "flax"],
    ["sharding"],
    ["__init__"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """The parts of the package that a file imports, and the top-level packages."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in _imports(path):
        top, _, rest = name.partition(".")
        assert top != "experiments"
        assert not name.startswith("jax._src")
        assert name != "jax.extend.core" or part == "convolutions"
        if top == "hfopt" and rest:
            assert LEVEL[rest.split(".")[0]] <= LEVEL[part], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 350


def _modules() -> list[str]:
    return ["hfopt", *(m.name for m in pkgutil.walk_packages(hfopt.__path__, "hfopt."))]


@pytest.mark.float32
@pytest.mark.parametrize("name", _modules())
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_name_is_documented():
    for name in hfopt.__all__:
        assert getattr(hfopt, name).__doc__, name
