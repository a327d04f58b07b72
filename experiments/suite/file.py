"""What a comparison is: one problem, a budget for each kind of optimizer, and the baselines with their grids.

configs/compare/<name>.yaml  a comparison: the problem, the budgets, the seeds, the number that decides
configs/baselines.yaml       the baselines, the same for every comparison
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter

from experiments.settings.config import OptimizerName
from experiments.settings.errors import ConfigError
from experiments.settings.file import load_settings
from experiments.settings.optimizers import LBFGS, Training
from experiments.settings.problem import Classification, Problem
from experiments.settings.section import FolderName, HalfOpenFraction, NonEmptySeeds, OpenFraction, Section
from experiments.training.peers import PEERS, is_installed

BASELINES = Path("configs/baselines.yaml")
OURS = "hessian_free"  # the label of hfopt's row, at its defaults
Value = int | float | str


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

    hessian_free has no other settings: it runs at its defaults on every problem. A second row of it that is tuned has
    the same budget. Verdicts are at equal time: that hessian_free takes longer than the others shows where it ends, and
    wins nothing there. In profiles, which count whoever gets to a target, it may.
    """

    hessian_free: Training
    first_order: Training | None = None
    lbfgs: LBFGS | None = None


@dataclass(frozen=True, kw_only=True)
class Aims(Section):
    """What is hoped of hessian_free at its defaults, in medians over the seeds; the page says what was met."""

    # The measure at the end of its run; and which baselines are to be worse than what, in the time that this takes.
    reach: PositiveFloat | None = None
    behind: dict[str, PositiveFloat] = field(default_factory=dict)
    # At equal time a better measure than every baseline; or at its own end one that is at least as good.
    ahead_of_all: bool = False
    as_good_as_any: bool = False
    # The target in so many times fewer seconds than any first-order baseline takes; from at least so many seeds; and
    # there with at most this share of the examples that a baseline takes.
    times_sooner: PositiveFloat | None = None
    seeds: PositiveInt | None = None
    examples_of: dict[str, PositiveFloat] = field(default_factory=dict)


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
    # By what the baselines are tuned: the same, or a loss. With a target, first of all by how soon the measure reaches
    # it on the training set.
    tune_by: str | None = None
    # Part of the training set held out while tuning (labelled images only).
    validation_fraction: HalfOpenFraction = 0.0
    budgets: Budgets
    aims: Aims = Aims()
    # Labels of the baselines that take part; null: all of Optax.
    baselines: tuple[str, ...] | None = None
    # Labels of further rows: baselines of other packages, which take part where these are installed, and hessian_free
    # with tuned settings, which has no say in the verdict.
    also: tuple[str, ...] = ()
    # By label: grids that suit this problem, instead of those in the file of the baselines.
    grids: dict[str, dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]]] = field(default_factory=dict)
    # Those below 10 are what the defaults of hessian_free were chosen with.
    seeds: NonEmptySeeds = (10, 11, 12)
    tuning_seeds: NonEmptySeeds = (100,)
    evaluations: PositiveInt = 80
    evaluation_chunk_size: PositiveInt = 2000
    # Of every budget, in the quick edition.
    quick_share: OpenFraction = 0.1

    def __post_init__(self) -> None:
        if shared := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(f"tuning_seeds must not be among the seeds, but both have {shared}")
        if (self.aims.times_sooner or self.aims.seeds or self.aims.examples_of) and self.target is None:
            raise ValueError("aims.times_sooner, seeds and examples_of need a target")
        if self.aims.behind and self.aims.reach is None:
            raise ValueError("aims.behind needs aims.reach")
        if self.aims.seeds is not None and self.aims.seeds > len(self.seeds):
            raise ValueError(f"aims.seeds is {self.aims.seeds}, but there are {len(self.seeds)} seeds")
        if self.budgets.first_order is None and self.budgets.lbfgs is None:
            raise ValueError("budgets needs first_order or lbfgs: there is nothing to compare with")
        if self.baselines == ():
            raise ValueError("baselines is empty; leave it out to have all of them")
        if self.score[0].startswith("test_"):
            raise ValueError(f"the test set is not for tuning: with measure {self.measure}, give tune_by another one")
        if self.score[0].startswith("validation_") != (self.validation_fraction > 0):
            raise ValueError("tune_by a validation measure and a validation_fraction above 0 need each other")
        if self.validation_fraction and not isinstance(self.problem, Classification):
            raise ValueError("validation_fraction is for labelled images (family: classification) alone")

    @property
    def score(self) -> tuple[str, bool]:
        """What the baselines are tuned by, and whether more of it is better."""
        if self.tune_by is None:
            return self.measure, self.higher_is_better
        return self.tune_by, self.higher_is_better and not self.tune_by.endswith("_loss")

    @property
    def seen_in_training(self) -> str:
        """The measure on the training set, by which tuning may judge."""
        return self.measure.replace("test_", "train_", 1)

    def budget_of(self, optimizer: OptimizerName) -> Training | None:
        """The budget of its kind of optimizer; None if that does not take part."""
        match optimizer:
            case "hessian_free":
                return self.budgets.hessian_free
            case "lbfgs":
                return self.budgets.lbfgs
            case _:
                return self.budgets.first_order


_COMPARISON: TypeAdapter[Any] = TypeAdapter(Comparison)


def load_comparison(path: str | Path) -> Comparison:
    """Reads and checks one comparison.

    Raises:
      ConfigError: as `load_settings`.
    """
    return load_settings(_COMPARISON, Path(path))


def load_baselines(path: Path = BASELINES) -> tuple[Baseline, ...]:
    """Reads and checks the file of the baselines.

    Raises:
      ConfigError: as `load_settings`.
    """

    @dataclass(frozen=True, kw_only=True)
    class File(Section):
        baselines: tuple[Baseline, ...]

    found = load_settings(TypeAdapter(File), path).baselines
    labels = [OURS, *(baseline.label for baseline in found)]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"{path}: labels must differ, but {', '.join(repeated)} comes more than once (or is ours)")
    return found


def taking_part(comparison: Comparison, baselines: Sequence[Baseline]) -> list[Baseline]:
    """Those that the comparison asks for and has a budget for, with the grids that it has for them.

    Baselines whose package is not installed are left out.

    Raises:
      ConfigError: it asks for one that there is not, or in the wrong place.
    """
    labels = [baseline.label for baseline in baselines]
    further = [baseline.label for baseline in baselines if baseline.optimizer in (*PEERS, OURS)]
    usual = [label for label in labels if label not in further]
    wanted = usual if comparison.baselines is None else comparison.baselines
    for label in (*wanted, *comparison.also, *comparison.grids):
        if label not in labels:
            raise ConfigError(f"{comparison.name}: there is no baseline '{label}'; there are {', '.join(labels)}")
    for label in (*comparison.aims.behind, *comparison.aims.examples_of):
        if label not in wanted:
            raise ConfigError(f"{comparison.name}: aims name '{label}', but only {', '.join(wanted)} take part")
    for named, wrong, other in ((comparison.also, usual, "baselines"), (wanted, further, "also")):
        if misplaced := [label for label in named if label in wrong]:
            raise ConfigError(f"{comparison.name}: name '{misplaced[0]}' under {other}")
    there = {one.label for one in baselines if one.optimizer not in PEERS or is_installed(one.optimizer)}
    wanted = [*wanted, *(label for label in comparison.also if label in there)]
    return [
        replace(one, tune={**one.tune, **comparison.grids.get(one.label, {})})
        for one in baselines
        if one.label in wanted and comparison.budget_of(one.optimizer) is not None
    ]
