"""What a sweep is: settings × problems × seeds, read from a YAML file as strictly as an experiment is.

A cell of the sweep is one setting on one problem. Its runs differ in their seed alone, and each is an ordinary
experiment: the problem's configuration file with the overrides of the problem and of the setting.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, TypeAdapter

from experiments.settings.config import Config, OptimizerName
from experiments.settings.config_file import load_config
from experiments.settings.errors import ConfigError
from experiments.settings.file import load_settings
from experiments.settings.section import FolderName, HalfOpenFraction, NonEmptySeeds, Section, slug

Label = Annotated[str, Field(pattern=r"[A-Za-z0-9]")]  # its letters and digits become the name of a folder
Value = int | float | str


@dataclass(frozen=True, kw_only=True)
class ProblemChoice(Section):
    """A configuration file, by its path from the sweep's, and what it is overridden with."""

    label: Label
    config: str
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setting(Section):
    """An optimizer with its overrides: a row of each problem's table.

    `problems`: labels of those it runs on; null: all. `tune`: dotted keys with the values to choose from, where
    several keys make a grid.
    """

    label: Label
    optimizer: OptimizerName
    set: tuple[str, ...] = ()
    problems: tuple[str, ...] | None = None
    tune: dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sweep(Section):
    """All of it. Settings with `tune` first run with every value from the `tuning_seeds`.

    The value of least median `tune_by` is the one that then runs from the `seeds`. `validation_fraction` of the
    training set is held out while tuning, and only then.
    """

    name: FolderName
    seeds: NonEmptySeeds
    tuning_seeds: tuple[NonNegativeInt, ...] = ()
    tune_by: Literal["train_loss", "validation_loss"] = "validation_loss"
    validation_fraction: HalfOpenFraction = 0.0
    problems: Annotated[tuple[ProblemChoice, ...], Field(min_length=1)]
    rows: Annotated[tuple[Setting, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        folders = [slug(f"{problem.label} {row.label}") for problem in self.problems for row in self.rows]
        _require_distinct("the labels of problems and rows", folders)
        _require_distinct("seeds", self.seeds)
        _require_distinct("tuning_seeds", self.tuning_seeds)
        labels = [problem.label for problem in self.problems]
        for row in self.rows:
            for label in row.problems or ():
                if label not in labels:
                    raise ValueError(f"row '{row.label}' is for problem '{label}', which is not among {labels}")
        if any(row.tune for row in self.rows):
            if not self.tuning_seeds:
                raise ValueError("a row has `tune`, so tuning_seeds are needed")
            if self.tune_by == "validation_loss" and not self.validation_fraction:
                raise ValueError("tune_by: validation_loss needs a validation_fraction above 0")
        if shared := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(f"tuning_seeds must not be among the seeds, but both have {shared}")


class Cell(NamedTuple):
    """One setting on one problem; `values` are those of its tuned keys, () as long as none are chosen."""

    problem: ProblemChoice
    row: Setting
    values: tuple[tuple[str, Value], ...] = ()

    @property
    def chosen(self) -> str:
        """The values as a person reads them: 'learning_rate 0.003'."""
        return ", ".join(f"{short(key)} {value}" for key, value in self.values)

    @property
    def title(self) -> str:
        return f"{self.problem.label}: {self.row.label}" + (f" ({self.chosen})" if self.values else "")

    def candidates(self) -> list["Cell"]:
        """This cell with each combination of values it can be tuned to; the cell alone if there is nothing to tune."""
        grid = itertools.product(*self.row.tune.values())
        return [self._replace(values=tuple(zip(self.row.tune, values, strict=True))) for values in grid]

    def edges(self) -> list[str]:
        """The chosen numbers that are the least or the greatest tried, so that a better one may lie beyond:
        'learning_rate 0.1 is the greatest tried'."""
        found = []
        for key, value in self.values:
            tried = [other for other in self.row.tune[key] if not isinstance(other, str)]
            for which, edge in (("least", min), ("greatest", max)):
                if len(tried) > 1 and value == edge(tried):
                    found.append(f"{short(key)} {value} is the {which} tried")
        return found

    def config(self, seed: int, validation_fraction: float = 0.0) -> Config:
        """The experiment of one seed.

        Its name, and so its run folder, tells cells and tuned values apart.

        Raises:
          ConfigError: the problem's file or an override is wrong; the message names the cell.
        """
        overrides = [*self.problem.set, f"optimizer={self.row.optimizer}", *self.row.set]
        overrides += [f"{key}={json.dumps(value)}" for key, value in self.values]
        name = slug(f"{self.problem.label} {self.row.label} {self.chosen}")
        overrides += [f"name={json.dumps(name)}", f"seed={seed}"]
        if validation_fraction:
            overrides.append(f"problem.data.validation_fraction={validation_fraction}")
        try:
            return load_config(self.problem.config, overrides, origin="sweep").only(self.row.optimizer)
        except ConfigError as error:
            raise ConfigError(f"{self.title}: {error}") from None


def load_sweep(path: str | Path) -> Sweep:
    """Reads and checks a sweep; the paths of its configurations become relative to the current folder.

    Raises:
      ConfigError: the file cannot be read or does not describe a sweep; the message is that of `load_settings`.
    """
    path = Path(path)
    sweep = load_settings(TypeAdapter(Sweep), path)
    located = tuple(replace(problem, config=str(path.parent / problem.config)) for problem in sweep.problems)
    return replace(sweep, problems=located)


def cells(sweep: Sweep) -> Iterator[Cell]:
    """Problem by problem, the settings that are for it."""
    for problem in sweep.problems:
        for row in sweep.rows:
            if row.problems is None or problem.label in row.problems:
                yield Cell(problem, row)


def short(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def _require_distinct(what: str, values: Sequence[object]) -> None:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{what} must differ, but {', '.join(repeated)} comes more than once")
