"""What can be trained on: one section a family of problems, with the data and the models that it takes."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from experiments.settings.section import HalfOpenFraction, NonEmptySizes, Section, Sizes

Activation = Literal["relu", "tanh", "sigmoid", "softplus", "gelu"]


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
class ResNet(Section):
    """Residual blocks with GroupNorm: the network of He et al. 2016 for CIFAR-10, of any width and depth."""

    kind: Literal["resnet"]
    # One stage each; every stage but the first halves the image.
    channels: NonEmptySizes = (16, 32, 64)
    # A stage has so many.
    blocks: PositiveInt = 1
    # That channels are normalised in.
    groups: PositiveInt = 8
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        if any(channels % self.groups for channels in self.channels):
            raise ValueError(f"channels {list(self.channels)} are not all multiples of groups, which is {self.groups}")


@dataclass(frozen=True, kw_only=True)
class Family(Section):
    """Common to all problems: f(θ) = l2/2 ‖θ‖² + mean over examples of the loss."""

    l2: NonNegativeFloat = 0.0
    # Of matrix products in training: 'highest' keeps float32 out of TF32 and bf16 passes; evaluation always uses it.
    precision: Literal["highest", "high", "default"] = "highest"
    # Whether data, parameters and all arithmetic are in double precision.
    float64: bool = False


@dataclass(frozen=True, kw_only=True)
class Classification(Family):
    """Images with labels."""

    family: Literal["classification"]
    data: Data
    model: Annotated[MLP | CNN | ResNet, Discriminator("kind")]
    loss: Literal["softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error"] = "softmax_cross_entropy"


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Family):
    """Images, and a network that passes them through a code of few numbers."""

    family: Literal["autoencoder"]
    data: Literal["digits", "mnist", "curves3pt"]
    # From the first hidden layer to the code; the decoder mirrors those before the code.
    hidden: NonEmptySizes
    activation: Activation = "sigmoid"
    initialisation: Literal["sparse", "flax"] = "sparse"
    # The first so many; null: all there are.
    train_examples: PositiveInt | None = None
    test_examples: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class Recurrent(Family):
    """Long-dependency tasks for a recurrent network of tanh units."""

    family: Literal["recurrent"]
    task: Literal["addition", "multiplication", "xor", "temporal_order", "temporal_order_3bit", "memorization"]
    # T, in steps: what the answers depend on lies so far back.
    length: Annotated[int, Field(ge=20)]
    hidden: Annotated[int, Field(ge=15)] = 100
    # Memorization has 32 sequences, which are its training and its test set whatever is written here.
    train_examples: PositiveInt
    test_examples: PositiveInt = 1000
    # Of the initial recurrent weights; and the deviations of the initial weights from the inputs and to the outputs.
    spectral_radius: PositiveFloat = 1.1
    input_scale: PositiveFloat = 0.1
    output_scale: PositiveFloat = 0.1


@dataclass(frozen=True, kw_only=True)
class Physics(Family):
    """A differential equation whose residuals a network is to bring to zero."""

    family: Literal["physics"]
    equation: Literal["poisson2d", "poisson5d", "heat"]
    hidden: NonEmptySizes
    points: PositiveInt
    boundary_points: PositiveInt
    boundary_weight: PositiveFloat = 1.0


@dataclass(frozen=True, kw_only=True)
class Regression(Family):
    """Least squares of a given condition number, logistic regression on real data, and a function to fit."""

    family: Literal["regression"]
    task: Literal["ill_conditioned", "logistic", "function"]
    examples: PositiveInt = 1000  # of the made data of ill_conditioned and function
    # Of ill_conditioned: the number of weights, and λmax/λmin of the Hessian before l2 is added.
    features: PositiveInt = 100
    condition_number: Annotated[float, Field(ge=1)] = 1e8
    hidden: Sizes = ()  # of function: the widths of its tanh network

    def __post_init__(self) -> None:
        if self.task == "ill_conditioned" and self.examples < self.features:
            raise ValueError(
                f"fewer examples ({self.examples}) than features ({self.features}) make the Hessian singular"
            )
        if self.task == "logistic" and self.l2 == 0:
            raise ValueError("logistic needs an l2 above 0, or nearly separable classes have no minimum")
        if self.task == "function" and not self.hidden:
            raise ValueError("function needs hidden: the widths of its network")


@dataclass(frozen=True, kw_only=True)
class Grammar(Family):
    """Text of a probabilistic grammar, for a Transformer that predicts its characters."""

    family: Literal["grammar"]
    # Characters of a text.
    length: PositiveInt = 32
    # Of nested brackets, at most.
    depth: PositiveInt = 4
    layers: PositiveInt = 2
    width: PositiveInt = 32
    heads: PositiveInt = 2
    train_examples: PositiveInt
    test_examples: PositiveInt = 1000

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, which is not a multiple of heads, {self.heads}")


Problem = Annotated[Classification | Autoencoder | Recurrent | Physics | Regression | Grammar, Discriminator("family")]
