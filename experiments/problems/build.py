"""The section `problem` of a configuration made concrete, whatever its family."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from experiments.problems.autoencoders import build_autoencoder
from experiments.problems.classification import build_classification
from experiments.problems.dataset import Examples
from experiments.problems.grammar import build_grammar
from experiments.problems.physics import build_physics
from experiments.problems.problem import Problem
from experiments.problems.recurrent import build_recurrent
from experiments.problems.regression import build_regression
from experiments.settings import problem as config


def numerics(settings: config.Problem) -> AbstractContextManager[Any]:
    """The precision that a problem asks for, inside of which it is built and everything is computed."""
    return jax.enable_x64(True) if settings.float64 else nullcontext()


def build_problem(settings: config.Problem, data_dir: str | os.PathLike[str] | None = None) -> Problem:
    """Loads or makes the data and builds the rest; in double precision if so configured, inside `numerics`.

    Args:
      data_dir: the root of the data sets; see `storage.py`. Most families make their data themselves.

    Raises:
      DataError: the data cannot be had, or has fewer examples than the configuration asks for.
    """
    problem = _build(settings, data_dir)
    return _in_double_precision(problem) if settings.float64 else problem


def _build(settings: config.Problem, data_dir: str | os.PathLike[str] | None) -> Problem:
    match settings:
        case config.Classification():
            return build_classification(settings, data_dir)
        case config.Autoencoder():
            return build_autoencoder(settings, data_dir)
        case config.Recurrent():
            return build_recurrent(settings)
        case config.Physics():
            return build_physics(settings)
        case config.Regression():
            return build_regression(settings)
        case config.Grammar():
            return build_grammar(settings)
    raise TypeError(f"no problem is described by {type(settings).__name__}")


def _in_double_precision(problem: Problem) -> Problem:
    """The same data and initial parameters, as float64 where they are float32."""

    def wide(leaf: Any) -> Any:
        return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf

    return replace(
        problem,
        dataset=problem.dataset.map(lambda part: Examples(*jax.tree.map(wide, (part.inputs, part.targets)))),
        init=lambda seed: jax.tree.map(wide, problem.init(seed)),
    )
