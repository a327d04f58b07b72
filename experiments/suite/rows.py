"""The rows of a comparison: optimizers with given or tuned settings, and the experiment of each.

    configs/tuned/<name>.yaml    what `python -m experiments tune` found for its baselines, and how

Every run of a comparison is an ordinary experiment.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from experiments.settings.config import Config, OptimizerName
from experiments.settings.errors import NotTunedError
from experiments.settings.file import check_settings, plain, read_settings
from experiments.settings.optimizers import LBFGS, Training
from experiments.settings.problem import Problem
from experiments.settings.section import slug
from experiments.suite.file import OURS, Baseline, Comparison, Value
from experiments.training.peers import PEERS

_TRAINING: TypeAdapter[Any] = TypeAdapter(Training)
_PROBLEM: TypeAdapter[Any] = TypeAdapter(Problem)
_COMPARISON: TypeAdapter[Any] = TypeAdapter(Comparison)
_BASELINE: TypeAdapter[Any] = TypeAdapter(Baseline)

TUNED = Path("configs/tuned")


class Row(NamedTuple):
    """One optimizer of a comparison: its label, its name, its settings, and which of them were tuned."""

    label: str
    optimizer: OptimizerName
    settings: dict[str, Any]
    tuned: dict[str, Value]


def ours(comparison: Comparison) -> Row:
    """hessian_free at its defaults, with the budget and the batches it has on this problem."""
    return Row(OURS, "hessian_free", plain(_TRAINING, comparison.budgets.hessian_free), {})


def row_of(comparison: Comparison, baseline: Baseline, values: Mapping[str, Value]) -> Row:
    """A baseline with chosen values."""
    kind: TypeAdapter[Any] = TypeAdapter(LBFGS) if baseline.optimizer == "lbfgs" else _TRAINING
    settings = {**plain(kind, comparison.budget_of(baseline.optimizer)), **baseline.set, **values}
    return Row(baseline.label, baseline.optimizer, settings, dict(values))


def config_of(
    comparison: Comparison, row: Row, seed: int, *, share: float = 1.0, name: str | None = None, held_out: float = 0.0
) -> Config:
    """The experiment of one row and one seed.

    Args:
      share: of the budget; schedules shrink with it.
      name: of the folder of its runs; None: the row's label.
      held_out: fraction of the training set.

    Raises:
      ConfigError: the settings do not fit the optimizer.
    """
    problem = plain(_PROBLEM, comparison.problem)
    if held_out:
        problem["data"]["validation_fraction"] = held_out
    settings = {
        "name": slug(row.label) if name is None else name,
        "seed": seed,
        "problem": problem,
        "optimizer": row.optimizer,
        "optimizers": {row.optimizer: scaled(row.settings, share)},
        "recording": {
            "evaluations": comparison.evaluations,
            "evaluation_chunk_size": comparison.evaluation_chunk_size,
            "figure": False,
        },
    }
    return check_settings(TypeAdapter(Config), settings, f"{comparison.name}, {row.label}")


def scaled(settings: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Settings of an optimizer with this share of its budget, at least one step."""
    found = dict(settings)
    if found.get("epochs") is not None:
        found["epochs"] *= share
    if found.get("steps") is not None:
        found["steps"] = max(1, round(found["steps"] * share))
    return found


def tuned_file(comparison: Comparison, folder: Path = TUNED) -> Path:
    """Where the tuning of a comparison is stored."""
    return folder / f"{comparison.name}.yaml"


def load_tuned(comparison: Comparison, baselines: Iterable[Baseline], folder: Path = TUNED) -> list[Row]:
    """The rows of the baselines with the values chosen for them.

    Raises:
      NotTunedError: there is no such file, it lacks a baseline that is no peer, or it was made for other settings; the
        message says how to make it.
    """
    path = tuned_file(comparison, folder)
    remedy = f"run: python -m experiments tune configs/compare/{comparison.name}.yaml"
    if not path.exists():
        raise NotTunedError(f"{path}: the baselines of {comparison.name} are not tuned yet; {remedy}")
    stored = read_settings(path)
    if stored["tuned_for"] != tuned_for(comparison):
        raise NotTunedError(f"{path}: {comparison.name} was tuned for another problem, budget or measure; {remedy}")
    entries = {entry["label"]: entry for entry in stored["baselines"]}
    rows = []
    for baseline in baselines:
        entry = entries.get(baseline.label)
        if entry is None and baseline.optimizer in PEERS:  # tuned where its package was not installed
            continue
        if entry is None or entry["tuned_for"] != row_tuned_for(comparison, baseline):
            raise NotTunedError(f"{path}: '{baseline.label}' was not tuned, or with another grid or budget; {remedy}")
        rows.append(row_of(comparison, baseline, entry["chosen"]))
    return rows


def tuned_for(comparison: Comparison) -> dict[str, Any]:
    """The settings of a comparison that what is chosen depends on, as they are stored with it."""
    settings = plain(_COMPARISON, comparison)
    budgets = {kind: settings["budgets"][kind] for kind in ("first_order", "lbfgs")}
    keys = ("problem", "measure", "higher_is_better", "target", "tune_by", "validation_fraction", "tuning_seeds")
    return {**{key: settings[key] for key in keys}, "budgets": budgets}


def row_tuned_for(comparison: Comparison, baseline: Baseline) -> dict[str, Any]:
    """What of one row it depends on besides: its entry, and the budget of hessian_free where it is a row of that."""
    settings: dict[str, Any] = plain(_BASELINE, baseline)
    if baseline.optimizer == OURS:
        settings["budget"] = plain(_TRAINING, comparison.budgets.hessian_free)
    return settings


def title_of(values: Mapping[str, Value]) -> str:
    """Chosen values as a person reads them: 'learning_rate 0.003, b2 0.99'."""
    return ", ".join(f"{key} {value if isinstance(value, str) else f'{value:g}'}" for key, value in values.items())


def folder_of(values: Mapping[str, Value]) -> str:
    """The same as part of the name of a folder."""
    return slug(" ".join(f"{key} {json.dumps(value)}" for key, value in values.items()))
