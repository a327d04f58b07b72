"""What trains: one section an optimizer, with its budget and its batches."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from experiments.settings.section import HalfOpenFraction, OpenFraction, Section


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
    # into at random take turns, and it is cut anew when all had theirs; first, last_chunk: the first, the last of the
    # batch, which is in random order unless it is full.
    curvature_from: Literal["fresh", "partition", "first", "last_chunk"] = "fresh"
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
        _require_one_batch(self.batches, "a first-order method")


def _require_one_batch(batches: Batches, method: str) -> None:
    for name in ("curvature", "evaluation"):
        if getattr(batches, name) != "same":
            raise ValueError(f"batches.{name} has no use in {method}; leave it out")


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


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """`optax.adamw`: beside the objective, parameters shrink by learning rate × weight decay a step."""

    weight_decay: NonNegativeFloat = 1e-4


@dataclass(frozen=True, kw_only=True)
class Muon(FirstOrder):
    """`optax.contrib.muon`: orthogonalised momentum for matrices, Adam for all other parameters; both of Nesterov.

    Kernels of convolutions count as matrices of (height · width · channels in, channels out).
    """

    beta: HalfOpenFraction = 0.95
    # Of the parameters that are no matrices; null: that of the matrices.
    adam_learning_rate: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 0.0


@dataclass(frozen=True, kw_only=True)
class LBFGS(Training):
    """`optax.lbfgs`, with its zoom line search."""

    memory_size: PositiveInt = 10
    line_search_steps: PositiveInt = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_batch(self.batches, "L-BFGS")


@dataclass(frozen=True, kw_only=True)
class Somax(Training):
    """`somax.sgn_ce` of python-somax: Gauss-Newton steps of softmax cross-entropy at a constant damping."""

    learning_rate: PositiveFloat = 1.0
    damping: PositiveFloat = 1.0
    max_cg_steps: PositiveInt = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_batch(self.batches, "somax")
        if self.batches.chunk_size is not None:
            raise ValueError("batches.chunk_size has no use in somax; leave it out")


_TAKEN_BY_PRESET = {
    "martens2010": ("initial_damping",),
    "stochastic": ("max_cg_steps", "initial_damping", "trust_radius"),
}


@dataclass(frozen=True, kw_only=True)
class HessianFree(Training):
    """`hfopt.hessian_free`, or one of `hfopt.presets`; null leaves the choice to hfopt's own default."""

    # Fixes all that follows, but for the options that it takes itself.
    preset: Literal["simplenn", "martens2010", "kiros2013", "soap", "stochastic"] | None = None
    # 0: no system is solved, and a step is that of the metric alone.
    max_cg_steps: NonNegativeInt | None = None
    # CG stops when the residual is this fraction of the gradient, instead of by the progress of the quadratic model.
    cg_tolerance: OpenFraction | None = None
    # none: that of the metric, where it has one.
    preconditioner: Literal["jacobi", "squared_gradients", "none"] | None = None
    # What damping measures a step in; null: the parameters.
    metric: Literal["kronecker", "second_moment"] | None = None
    # Of the gradients. 0: none.
    momentum: HalfOpenFraction = 0.0
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
