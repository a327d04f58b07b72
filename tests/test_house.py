"""The house: which module may import which, how long a file may grow, and examples that run."""

import ast
import doctest
import importlib
import pkgutil
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import experiments
import hfopt

PACKAGE = Path(hfopt.__file__).parent
EXPERIMENTS = Path(experiments.__file__).parent

# Data flows down these lists: a module imports only from lines above its own, or from its own line.
ORDER = [
    ["arguments", "convolutions", "placement", "outputs"],
    ["batch", "vectors"],
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
# A room imports from those named for it, and from itself.
ROOMS = {
    "settings": [],
    "problems": ["settings"],
    "training": ["settings", "problems"],
    "runs": ["settings", "problems", "training"],
    "suite": ["settings", "problems", "training", "runs"],
    "laboratory": ["settings", "problems", "training", "runs"],
    "benchmarks": ["settings", "problems"],
    "examples": ["problems"],
}
FLOOR = {"__init__", "__main__"}
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def _files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def _name(path: Path, package: Path) -> str:
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    """Full names of all modules, and of all names taken from modules, that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", _files(PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in _imports(path):
        top, _, rest = name.partition(".")
        assert top != "experiments"
        assert not name.startswith("jax._src")
        assert not name.startswith("jax.extend.core") or part == "convolutions"
        if top == "hfopt" and (room := rest.split(".")[0]) in LEVEL:
            assert LEVEL[room] <= LEVEL[part], f"{path.name} imports {name}"


def test_the_door_and_the_rooms_are_all_that_stands_on_the_floor():
    assert {path.stem for path in EXPERIMENTS.glob("*.py")} == FLOOR
    assert {path.relative_to(EXPERIMENTS).parts[0] for path in EXPERIMENTS.rglob("*/*.py")} == set(ROOMS)
    tests = {path.relative_to(Path(__file__).parent / "experiments").parts[0] for path in _tests_of_rooms()}
    assert tests == set(ROOMS)


def _tests_of_rooms() -> list[Path]:
    return list((Path(__file__).parent / "experiments").rglob("*/test_*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_the_rooms_named_for_it(room):
    for path in _files(EXPERIMENTS / room):
        for name in _imports(path):
            top, _, rest = name.partition(".")
            if top == "experiments" and rest:
                assert rest.split(".")[0] in (room, *ROOMS[room]), f"{path.name} imports {name}"


def test_nothing_of_the_experiments_imports_in_a_circle():
    modules = {_name(path, EXPERIMENTS): path for path in _files(EXPERIMENTS)}
    graph = {name: (_imports(path) & set(modules)) - {name} for name, path in modules.items()}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "path", [*_files(PACKAGE), *_files(EXPERIMENTS)], ids=lambda p: str(p.relative_to(PACKAGE.parent))
)
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
