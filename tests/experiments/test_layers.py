"""Data flows one way: a module of the experiments imports only from those above it in this list."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = (
    "errors",
    "arguments",
    "readable",
    "settings_file",
    "section",
    "problem_config",
    "optimizer_config",
    "config",
    "config_file",
    "sweep_file",
    "problems.dataset",
    "problems.storage",
    "problems.digits",
    "problems.idx",
    "problems.cifar10",
    "problems.models",
    "problems.problem",
    "problems.classification",
    "problems.curves",
    "problems.autoencoders",
    "problems.sequences",
    "problems.recurrent",
    "problems.physics",
    "problems.regression",
    "problems.transformer",
    "problems.grammar",
    "problems.build",
    "problems.cartpole",
    "batches",
    "peer_optimizers",
    "optimizers",
    "placement",
    "steps",
    "training",
    "recording",
    "display",
    "figures",
    "runner",
    "pool",
    "comparison",
    "sweep",
    "sweep_report",
    "catalogue",
    "run_page",
    "cleaning",
    "tensorboard_export",
    "extrapolation",
    "policy_gradient",
    "frameworks",
    "approximation_figures",
    "approximations",
    "report_page",
    "suite_file",
    "suite_measures",
    "suite_aims",
    "tuning",
    "suite",
    "suite_figures",
    "suite_page",
    "suite_command",
    "curvature",
    "curvature_figures",
    "curvature_report",
    "benchmarks.measuring",
    "benchmarks.report",
    "benchmarks.networks",
    "benchmarks.peers",
    "benchmarks.products",
    "benchmarks.step",
    "benchmarks.memory",
    "benchmarks.compiling",
    "benchmarks.scaling",
    "benchmarks.preconditioning",
    "benchmarks.convergence",
    "benchmarks.command",
    "__main__",
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "experiments").with_suffix("").parts)


MODULES = {name_of(path): path for path in sorted((ROOT / "experiments").rglob("*.py")) if path.name != "__init__.py"}


def imported(path: Path) -> set[str]:
    """Full names of all modules, and of all names taken from modules, that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_list_names_every_module():
    assert set(MODULES) == set(ORDER)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_above_itself(module):
    ours = {name.removeprefix("experiments.") for name in imported(MODULES[module])} & set(ORDER)
    assert ours <= set(ORDER[: ORDER.index(module)])


def test_the_package_imports_nothing_of_the_experiments():
    for path in (ROOT / "hfopt").rglob("*.py"):
        assert not any(name.partition(".")[0] == "experiments" for name in imported(path)), path
