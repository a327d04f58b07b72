"""What an experiment is: frozen dataclasses that mirror the YAML files of `configs/` key for key.

Every field's annotation carries its range; `settings_file.py` reads a file into these classes and turns what does
not fit into a message. A field without a default must be written in the file.
"""

from dataclasses import dataclass, fields, replace
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import ConfigDict, Discriminator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

OpenFraction = Annotated[float, Field(gt=0, lt=1)]
HalfOpenFraction = Annotated[float, Field(ge=0, lt=1)]
Sizes = tuple[PositiveInt, ...]
NonEmptySizes = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
Activation = Literal["relu", "tanh", "sigmoid", "softplus", "gelu"]
OptimizerName = Literal["hessian_free", "adam", "sgd"]


class Section:
    """Base of all sections: no conversion between types, no unknown keys, no NaN or infinity."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """Which images, and how many of them."""

    name: Literal["digits", "mnist", "fashion_mnist", "cifar10"]
    # Stratified subset of the training set, drawn once for all seeds; null: all of it.
    train_examples: PositiveInt | None = None
    # Part of the training set held out, besides the test set, to choose hyper-parameters on.
    validation_fraction: HalfOpenFraction = 0.0


@dataclass(frozen=True, kw_only=True)
class MLP(Section):
    """Fully connected network on the flattened image."""

    kind: Literal["mlp"]
    hidden: Sizes
    activation: Activation = "relu"


@dataclass(frozen=True, kw_only=True)
class CNN(Section):
    """Blocks of convolution, activation and 2×2 pooling, then one dense layer: the CNN of simpleNN by default."""

    kind: Literal["cnn"]
    channels: NonEmptySizes = (32, 64, 64)
    kernels: NonEmptySizes = (5, 3, 3)
    activation: Activation = "relu"
    pool: Literal["max", "average"] = "max"

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.kernels):
            raise ValueError(
                f"channels and kernels describe the same blocks, got {len(self.channels)} and {len(self.kernels)}"
            )


@dataclass(frozen=True, kw_only=True)
class Problem(Section):
    """f(θ) = l2/2 ‖θ‖² + mean over examples of the loss."""

    data: Data
    model: Annotated[MLP | CNN, Discriminator("kind")]
    loss: Literal["softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error"] = "softmax_cross_entropy"
    l2: NonNegativeFloat = 0.0
    # Of matrix products in training: 'highest' keeps float32 out of TF32 and bf16 passes; evaluation always uses it.
    precision: Literal["highest", "high", "default"] = "highest"


@dataclass(frozen=True, kw_only=True)
class Growth(Section):
    """A size multiplied by `factor` every so many steps, and rounded, until it is all there is."""

    factor: Annotated[float, Field(gt=1)]
    every_steps: PositiveInt


@dataclass(frozen=True, kw_only=True)
class Batches(Section):
    """What a step sees: its gradient, its curvature, and the objective that its trial points are judged by."""

    # 'full', or the number of examples in a mini-batch.
    gradient: PositiveInt | Literal["full"] = "full"
    gradient_growth: Growth | None = None
    # 'same', or how many of the gradient's examples (a number, or a fraction of them) serve the curvature.
    curvature: PositiveInt | OpenFraction | Literal["same"] = "same"
    curvature_growth: Growth | None = None
    # Which of the gradient's examples those are. fresh: drawn anew each step; partition: parts that the batch is cut
    # into at random take turns, and it is cut anew when all had theirs; last_chunk: the last of the batch.
    curvature_from: Literal["fresh", "partition", "last_chunk"] = "fresh"
    # 'same' as the gradient, the 'curvature' sample, or how many of the training set (a number, or a fraction of it)
    # are drawn anew each step.
    evaluation: PositiveInt | OpenFraction | Literal["same", "curvature"] = "same"
    # Examples computed at a time, which bounds memory and changes no result; null: all at once.
    chunk_size: PositiveInt | None = None
    # What chunked products do with the residuals of the forward pass; see `hfopt.Objective.bind`.
    memory: Literal["auto", "keep", "recompute"] = "auto"

    def __post_init__(self) -> None:
        both_counts = isinstance(self.gradient, int) and isinstance(self.curvature, int)
        if both_counts and self.curvature > self.gradient:  # type: ignore[operator]
            raise ValueError(
                f"the curvature sample is drawn from the gradient batch, so curvature ({self.curvature}) "
                f"must not exceed gradient ({self.gradient})"
            )
        if self.gradient == "full" and self.gradient_growth is not None:
            raise ValueError("gradient_growth has no use with gradient: full; leave it out")
        if self.memory != "auto" and self.chunk_size is None:
            raise ValueError(f"memory: {self.memory} has no use without a chunk_size; leave it out, or give one")
        if self.curvature == "same":
            idle = {
                "curvature_growth": self.curvature_growth is not None,
                f"curvature_from: {self.curvature_from}": self.curvature_from != "fresh",
                "evaluation: curvature": self.evaluation == "curvature",
            }
            for name, given in idle.items():
                if given:
                    raise ValueError(f"{name} has no use with curvature: same; leave it out, or give curvature a size")


@dataclass(frozen=True, kw_only=True)
class Training(Section):
    """Common to all optimizers: a budget, in epochs or steps (whichever ends first), and the batches."""

    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    batches: Batches = Batches()

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            raise ValueError("give a budget: epochs, steps, or both (then whichever ends first)")


@dataclass(frozen=True, kw_only=True)
class FirstOrder(Training):
    """A learning rate (per step), constant or falling to zero over the budget along a cosine."""

    learning_rate: PositiveFloat
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("curvature", "evaluation"):
            if getattr(self.batches, name) != "same":
                raise ValueError(f"batches.{name} has no use in a first-order method; leave it out")


@dataclass(frozen=True, kw_only=True)
class Adam(FirstOrder):
    """`optax.adam`."""

    b1: HalfOpenFraction = 0.9
    b2: HalfOpenFraction = 0.999
    eps: PositiveFloat = 1e-8


@dataclass(frozen=True, kw_only=True)
class SGD(FirstOrder):
    """`optax.sgd`."""

    momentum: HalfOpenFraction = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")


_TAKEN_BY_PRESET = {
    "martens2010": ("initial_damping",),
    "stochastic": ("max_cg_steps", "initial_damping", "trust_radius"),
}


@dataclass(frozen=True, kw_only=True)
class HessianFree(Training):
    """`hfopt.hessian_free`, or one of `hfopt.presets`; null leaves the choice to hfopt's own default."""

    # Fixes all that follows, but for the options that it takes itself.
    preset: Literal["simplenn", "martens2010", "kiros2013", "stochastic"] | None = None
    max_cg_steps: PositiveInt | None = None
    # CG stops when the residual is this fraction of the gradient, instead of by the progress of the quadratic model.
    cg_tolerance: OpenFraction | None = None
    damping: Literal["trust", "levenberg_marquardt", "constant"] = "trust"
    initial_damping: PositiveFloat | None = None
    trust_region: Literal["earned", "constant", "none"] = "earned"
    # The bound on half the squared length of a step in the norm of the damped curvature; at trust level one if earned.
    trust_radius: PositiveFloat | None = None
    line_search: Literal["full_step", "armijo", "fixed_step"] = "full_step"
    # Fraction of the last solution that CG starts from. 0: from zero.
    warm_start: HalfOpenFraction | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset is not None:
            self._check_preset(self.preset)
        if self.damping == "trust" and self.trust_region != "earned":
            raise ValueError("damping: trust needs trust_region: earned; choose levenberg_marquardt or constant")
        if self.trust_radius is not None and self.trust_region == "none":
            raise ValueError("trust_radius has no use with trust_region: none; leave it out")

    def _check_preset(self, preset: str) -> None:
        taken = _TAKEN_BY_PRESET.get(preset, ())
        common = {field.name for field in fields(Training)} | {"preset"}
        options = [field for field in fields(self) if field.name not in common]
        fixed = [field.name for field in options if getattr(self, field.name) != field.default]
        fixed = [name for name in fixed if name not in taken]
        if fixed:
            takes = f"takes only {', '.join(taken)}" if taken else "takes no options"
            raise ValueError(f"preset: {preset} {takes}; leave out {', '.join(fixed)}")


@dataclass(frozen=True, kw_only=True)
class Optimizers(Section):
    """The settings of every optimizer this problem can be trained with."""

    hessian_free: HessianFree | None = None
    adam: Adam | None = None
    sgd: SGD | None = None

    def configured(self) -> tuple[OptimizerName, ...]:
        """Names of those the file has settings for, in the order of this class."""
        return tuple(name for name in get_args(OptimizerName) if getattr(self, name) is not None)


@dataclass(frozen=True, kw_only=True)
class Recording(Section):
    """When to look and when to save; neither changes the numbers of a run nor counts as training time."""

    evaluate_every_epochs: PositiveFloat = 1.0
    evaluation_chunk_size: PositiveInt = 2000
    # Whether evaluations give the largest eigenvalue of the Hessian on the training set too: 20 products each.
    sharpness: bool = False
    # Least training time between two checkpoints. 0: one after every step.
    checkpoint_every_seconds: NonNegativeFloat = 20.0


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One experiment: a problem, the optimizer that runs, and the settings of all it can be compared with."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # it becomes the name of a folder
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
