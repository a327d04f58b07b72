"""What a comparison is: one problem, a budget for each kind of optimizer, and the baselines with what is tuned of them.

    configs/compare/<name>.yaml  a comparison: the problem, the budgets, the seeds, the number that decides
    configs/baselines.yaml       the baselines, the same for every comparison
    configs/tuned/<name>.yaml    what `python -m experiments tune` found for its baselines, and how

Every run of a comparison is an ordinary experiment.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter

from experiments.config import Config, OptimizerName
from experiments.errors import ConfigError
from experiments.optimizer_config import LBFGS, Training
from experiments.problem_config import Problem
from experiments.section import FolderName, HalfOpenFraction, NonEmptySeeds, OpenFraction, Section, slug
from experiments.settings_file import check_settings, load_settings, plain, read_settings

BASELINES = Path("configs/baselines.yaml")
TUNED = Path("configs/tuned")
OURS = "hessian_free"  # the label of hfopt's row, at its defaults
Value = int | float | str
_TRAINING: TypeAdapter[Any] = TypeAdapter(Training)
_PROBLEM: TypeAdapter[Any] = TypeAdapter(Problem)


@dataclass(frozen=True, kw_only=True)
class Baseline(Section):
    """An optimizer with fixed settings, and the grid that the others are chosen from.

    A learning rate is tried at every value of `tune`, and beyond them as long as the best is at an edge.
    """

    label: str
    optimizer: OptimizerName
    set: dict[str, Value | bool] = field(default_factory=dict)
    tune: Annotated[dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]], Field(min_length=1)]

    def candidates(self) -> list[dict[str, Value]]:
        """Every combination of the values to choose from."""
        return [dict(zip(self.tune, values, strict=True)) for values in itertools.product(*self.tune.values())]


@dataclass(frozen=True, kw_only=True)
class Budgets(Section):
    """How long each kind of optimizer trains, and on which batches. Null: that kind does not take part.

    hessian_free has no other settings: it runs at its defaults on every problem. A first-order method is to take at
    least its seconds, so that it is never the one in a hurry.
    """

    hessian_free: Training
    first_order: Training | None = None
    lbfgs: LBFGS | None = None


@dataclass(frozen=True, kw_only=True)
class Quick(Section):
    """The small edition of a comparison: this share of every budget."""

    share: OpenFraction


@dataclass(frozen=True, kw_only=True)
class Comparison(Section):
    """One problem for all optimizers."""

    name: FolderName
    title: str
    about: str
    # A public result for these baselines on this problem, with its source, or why there is none.
    reference: str
    problem: Problem
    # What decides, as recorded: 'train_loss', 'test_accuracy', …, and its direction.
    measure: str = "train_loss"
    higher_is_better: bool = False
    # The value of it that is to be reached; null: what the best baseline reaches from all its seeds.
    target: PositiveFloat | None = None
    # By what the baselines are tuned: the same, or a loss. With a target: by how soon it is reached, where it is.
    tune_by: str | None = None
    # Part of the training set held out while tuning (labelled images only).
    validation_fraction: HalfOpenFraction = 0.0
    budgets: Budgets
    # Labels of the baselines that take part; null: all.
    baselines: tuple[str, ...] | None = None
    # By label: grids that suit this problem, instead of those in the file of the baselines.
    grids: dict[str, dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]]] = field(default_factory=dict)
    seeds: NonEmptySeeds = (0, 1, 2)
    tuning_seeds: NonEmptySeeds = (100,)
    evaluations: PositiveInt = 80
    evaluation_chunk_size: PositiveInt = 2000
    quick: Quick = Quick(share=0.1)

    def __post_init__(self) -> None:
        if shared := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(f"tuning_seeds must not be among the seeds, but both have {shared}")

    @property
    def score(self) -> tuple[str, bool]:
        """What the baselines are tuned by, and whether more of it is better."""
        if self.tune_by is None:
            return self.measure, self.higher_is_better
        return self.tune_by, False


class Tuned(NamedTuple):
    """The values chosen for one baseline."""

    label: str
    values: dict[str, Value]


class Row(NamedTuple):
    """One optimizer of a comparison: its label, its name, its settings, and which of them were tuned."""

    label: str
    optimizer: OptimizerName
    settings: dict[str, Any]
    tuned: dict[str, Value]


def load_comparison(path: str | Path) -> Comparison:
    """Reads and checks one comparison.

    Raises:
      ConfigError: as `load_settings`.
    """
    return load_settings(TypeAdapter(Comparison), Path(path))


def load_baselines(path: Path = BASELINES) -> tuple[Baseline, ...]:
    """Reads and checks the file of the baselines.

    Raises:
      ConfigError: as `load_settings`.
    """

    @dataclass(frozen=True, kw_only=True)
    class File(Section):
        baselines: tuple[Baseline, ...]

    return load_settings(TypeAdapter(File), path).baselines


def taking_part(comparison: Comparison, baselines: Sequence[Baseline]) -> list[Baseline]:
    """Those that the comparison asks for and has a budget for, with the grids that it has for them.

    Raises:
      ConfigError: it asks for one that there is not.
    """
    labels = [baseline.label for baseline in baselines]
    wanted = labels if comparison.baselines is None else comparison.baselines
    for label in (*wanted, *comparison.grids):
        if label not in labels:
            raise ConfigError(f"{comparison.name}: there is no baseline '{label}'; there are {', '.join(labels)}")
    return [
        replace(one, tune={**one.tune, **comparison.grids.get(one.label, {})})
        for one in baselines
        if one.label in wanted and _budget(comparison, one.optimizer) is not None
    ]


def ours(comparison: Comparison) -> Row:
    """hessian_free at its defaults, with the budget and the batches it has on this problem."""
    return Row(OURS, "hessian_free", plain(_TRAINING, comparison.budgets.hessian_free), {})


def row_of(comparison: Comparison, baseline: Baseline, values: Mapping[str, Value]) -> Row:
    """A baseline with chosen values."""
    kind: TypeAdapter[Any] = TypeAdapter(LBFGS) if baseline.optimizer == "lbfgs" else _TRAINING
    settings = {**plain(kind, _budget(comparison, baseline.optimizer)), **baseline.set, **values}
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
      ConfigError: there is no such file, or it lacks a baseline; the message says how to make it.
    """
    path = tuned_file(comparison, folder)
    remedy = f"make it with: python -m experiments tune configs/compare/{comparison.name}.yaml"
    if not path.exists():
        raise ConfigError(f"{path}: the baselines of {comparison.name} are not tuned yet; {remedy}")
    chosen = {found["label"]: found["chosen"] for found in read_settings(path)["baselines"]}
    rows = []
    for baseline in baselines:
        if baseline.label not in chosen:
            raise ConfigError(f"{path}: has no '{baseline.label}'; {remedy}")
        rows.append(row_of(comparison, baseline, chosen[baseline.label]))
    return rows


def title_of(values: Mapping[str, Value]) -> str:
    """Chosen values as a person reads them: 'learning_rate 0.003, b2 0.99'."""
    return ", ".join(f"{key} {value if isinstance(value, str) else f'{value:g}'}" for key, value in values.items())


def folder_of(values: Mapping[str, Value]) -> str:
    """The same as part of the name of a folder."""
    return slug(" ".join(f"{key} {json.dumps(value)}" for key, value in values.items()))


def _budget(comparison: Comparison, optimizer: OptimizerName) -> Training | None:
    return comparison.budgets.lbfgs if optimizer == "lbfgs" else comparison.budgets.first_order
