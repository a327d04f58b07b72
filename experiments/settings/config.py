"""What an experiment is: frozen dataclasses that mirror the YAML files of `configs/` key for key.

Every field's annotation carries its range; `file.py` reads a file into these classes and turns what does
not fit into a message. A field without a default must be written in the file.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from experiments.settings.optimizers import LBFGS, SGD, Adam, AdamW, HessianFree, Muon, Somax, Training
from experiments.settings.problem import Problem
from experiments.settings.section import FolderName, Section

OptimizerName = Literal["hessian_free", "adam", "adamw", "muon", "sgd", "lbfgs", "somax"]


@dataclass(frozen=True, kw_only=True)
class Optimizers(Section):
    """The settings of every optimizer this problem can be trained with."""

    hessian_free: HessianFree | None = None
    adam: Adam | None = None
    adamw: AdamW | None = None
    muon: Muon | None = None
    sgd: SGD | None = None
    lbfgs: LBFGS | None = None
    somax: Somax | None = None

    def configured(self) -> tuple[OptimizerName, ...]:
        """Names of those the file has settings for, in the order of this class."""
        return tuple(name for name in get_args(OptimizerName) if getattr(self, name) is not None)


@dataclass(frozen=True, kw_only=True)
class Recording(Section):
    """When to look and when to save; neither changes the numbers of a run nor counts as training time."""

    evaluate_every_epochs: PositiveFloat = 1.0
    # Or: so many times, at steps that grow geometrically, so that early and late times are resolved alike.
    evaluations: Annotated[int, Field(ge=2)] | None = None
    evaluation_chunk_size: PositiveInt = 2000
    # Whether evaluations give the largest eigenvalue of the Hessian on the training set too: 20 products each.
    sharpness: bool = False
    # Whether a finished run draws its loss into its folder.
    figure: bool = True
    # Least training time between two checkpoints. 0: one after every step.
    checkpoint_every_seconds: NonNegativeFloat = 20.0


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One experiment: a problem, the optimizer that runs, and the settings of all it can be compared with."""

    name: FolderName
    seed: NonNegativeInt = 0
    problem: Problem
    optimizer: OptimizerName = "hessian_free"
    optimizers: Optimizers
    recording: Recording = Recording()

    def __post_init__(self) -> None:
        if self.optimizer not in self.optimizers.configured():
            configured = ", ".join(self.optimizers.configured()) or "none"
            raise ValueError(
                f"optimizer is '{self.optimizer}' but optimizers.{self.optimizer} is missing (configured: {configured})"
            )

    @property
    def training(self) -> Training:
        """The settings of the optimizer that runs."""
        settings: Training = getattr(self.optimizers, self.optimizer)
        return settings

    def only(self, optimizer: OptimizerName) -> "Config":
        """This experiment with one optimizer: it runs, and the settings of the others are left out."""
        alone = Optimizers(**{optimizer: getattr(self.optimizers, optimizer)})
        return replace(self, optimizer=optimizer, optimizers=alone)
