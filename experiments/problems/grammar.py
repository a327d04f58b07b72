"""Text of a probabilistic grammar, whose best possible loss is known exactly, for a model that predicts its characters.

A text is a walk over nested levels: each character opens a level, closes the present one, or adds a letter to it.

    text → ( letter | "(" text ")" | "[" text "]" | "{" text "}" )*

What makes it need a memory: a level is closed by the bracket that it was opened with, and its letters go around a
cycle, a b c d e f a …, which goes on after a nested level from where it was before it. So both the bracket that closes
a level and the letter that follows it depend on characters any distance away. The levels that the brackets open begin
at a, c and e, and so does the outermost at a.

A text starts at level 0, so the levels and their letters are functions of the characters before, and the entropy of the
next character is that of the choice made there, which depends on the depth d alone: in nats,

    h(d) = H(open, close, letter | d) + P(open | d) log(brackets) + P(letter | d) H(letter),

and the least mean cross-entropy of any model on texts of T characters is (1/T) Σ_t Σ_d P(d_t = d) h(d), where the depth
d_t is a Markov chain. (Source: the chain rule of entropy; Cover & Thomas, Elements of Information Theory, 2006, section
2.5 and theorem 5.4.3.) Brackets as the task of a Transformer: Hahn, "Theoretical limitations of self-attention", 2020;
limits of depth: Yao, Peng, Papadimitriou & Narasimhan, "Self-attention networks can process bounded hierarchical
languages", 2021.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from experiments.problems.dataset import Dataset, Examples
from experiments.problems.problem import Metric, Params, Problem
from experiments.problems.transformer import Transformer

if TYPE_CHECKING:
    from experiments.settings.problem import Grammar as Settings

# One seed each for the training and the test set: runs of different seeds differ by their initial parameters alone.
_TRAIN_SEED, _TEST_SEED = 0, 1


@dataclass(frozen=True)
class Language:
    """The grammar's symbols and probabilities.

    depth: of nested levels, at most. opening, closing: probabilities of a new level and of the end of the present one;
    at level 0, or at the greatest depth, what is impossible leaves its share to the others in proportion.
    regular: probability of the next letter of the cycle; the others share the rest alike.
    """

    letters: str = "abcdef"
    brackets: tuple[str, ...] = ("()", "[]", "{}")
    depth: int = 4
    opening: float = 0.2
    closing: float = 0.2
    regular: float = 0.9

    @property
    def alphabet(self) -> str:
        """Letters, opening and closing brackets, in the order that numbers them from 0."""
        opening, closing = (("".join(pair[side] for pair in self.brackets)) for side in (0, 1))
        return self.letters + opening + closing

    @property
    def start(self) -> int:
        """The number of what stands before the first character: one more than those of the alphabet."""
        return len(self.alphabet)

    def moves(self) -> np.ndarray:
        """(depth + 1, 3): the probabilities of opening, closing and a letter at every depth."""
        weights = np.tile([self.opening, self.closing, 1 - self.opening - self.closing], (self.depth + 1, 1))
        weights[-1, 0] = weights[0, 1] = 0
        return weights / weights.sum(axis=1, keepdims=True)

    def steps(self) -> np.ndarray:
        """(letters,): the probability of 0, 1, 2 … letters onwards in the cycle, from that before."""
        others = len(self.letters) - 1
        return np.where(np.arange(others + 1) == 1, self.regular, (1 - self.regular) / others)

    def first_letters(self) -> np.ndarray:
        """(brackets,): the letter before the most probable first one of a level, by what it was opened with."""
        return (2 * np.arange(len(self.brackets)) - 1) % len(self.letters)


def entropy(language: Language, length: int) -> float:
    """Mean entropy of a character given those before, over texts of so many: the least possible loss, in nats."""
    moves = language.moves()
    opened, closed, lettered = moves.T
    choices = np.array([_entropy(row) for row in moves])
    at_depth = choices + opened * np.log(len(language.brackets)) + lettered * _entropy(language.steps())
    # Column-stochastic: from the depths of one character to those of the next.
    chain = np.diag(lettered) + np.diag(opened[:-1], -1) + np.diag(closed[1:], 1)
    depths, total = np.eye(language.depth + 1)[0], 0.0
    for _ in range(length):
        total += depths @ at_depth
        depths = chain @ depths
    return float(total / length)


def _entropy(probabilities: np.ndarray) -> float:
    possible = probabilities[probabilities > 0]
    return float(-(possible * np.log(possible)).sum())


def write_texts(language: Language, examples: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts, a function of the arguments alone, and how probable they are.

    Returns:
      The characters' numbers in the alphabet, (examples, length) int32, and the surprisal −log P(text) / length in nats
      a character, (examples,) float32, whose expectation is the entropy.
    """
    random = np.random.default_rng(seed)
    letters, brackets, rows = len(language.letters), len(language.brackets), np.arange(examples)
    moves, steps, first = language.moves(), language.steps(), language.first_letters()
    depth = np.zeros(examples, int)
    # By level: what it was opened with, and its last letter.
    bracket, letter = np.zeros((2, examples, language.depth + 1), int)
    letter[:, 0] = first[0]
    texts, surprisal = np.empty((examples, length), np.int32), np.zeros(examples)
    for position in range(length):
        move = (random.random((examples, 1)) > moves[depth].cumsum(axis=1)[:, :-1]).sum(axis=1)
        opens, closes, adds = (move == kind for kind in range(3))
        new_bracket, step = random.integers(brackets, size=examples), random.choice(letters, size=examples, p=steps)
        surprisal -= np.log(moves[depth, move]) - opens * np.log(brackets) + adds * np.log(steps[step])
        own_bracket, next_letter = bracket[rows, depth], (letter[rows, depth] + step) % letters
        texts[:, position] = np.select(
            (opens, closes), (letters + new_bracket, letters + brackets + own_bracket), next_letter
        )
        letter[rows[adds], depth[adds]] = next_letter[adds]
        depth += opens.astype(int) - closes
        bracket[rows[opens], depth[opens]] = new_bracket[opens]
        letter[rows[opens], depth[opens]] = first[new_bracket[opens]]
    return texts, (surprisal / length).astype(np.float32)


def build_grammar(settings: "Settings") -> Problem:
    """A Transformer that predicts every character of a text from those before it.

    Inputs are (n, length) int32, the start and all characters but the last; targets {"characters": (n, length) int32,
    "surprisal": (n,) float32}; outputs are logits (n, length, alphabet). The metric, `excess_nats`, is the mean
    cross-entropy minus the mean surprisal of the same texts: an estimate of the divergence of the model from the
    grammar, in nats a character, with far less noise than the loss minus the entropy. It has a mean of zero where the
    model knows the grammar, and on a training set that it has learned by heart it is negative.
    """
    language = Language(depth=settings.depth)
    model = Transformer(
        symbols=language.start + 1,
        outputs=len(language.alphabet),
        length=settings.length,
        layers=settings.layers,
        width=settings.width,
        heads=settings.heads,
    )
    initialise = jax.jit(model.init)
    train, test = (
        as_examples(language, *write_texts(language, count, settings.length, seed))
        for count, seed in ((settings.train_examples, _TRAIN_SEED), (settings.test_examples, _TEST_SEED))
    )

    def predict(params: Params, inputs: jax.Array) -> jax.Array:
        return model.apply({"params": params}, inputs)

    return Problem(
        Dataset(train, test),
        init=lambda seed: initialise(jax.random.key(seed), train.inputs[:1])["params"],
        predict=predict,
        loss=next_character_loss,
        metric=excess_nats(predict),
        l2=settings.l2,
        precision=settings.precision,
    )


def as_examples(language: Language, texts: np.ndarray, surprisal: np.ndarray) -> Examples:
    """Texts as what a model is shown and what it is to predict."""
    before = np.pad(texts[:, :-1], ((0, 0), (1, 0)), constant_values=language.start)
    return Examples(before, {"characters": texts, "surprisal": surprisal})


def next_character_loss(logits: jax.Array, targets: Any) -> jax.Array:
    """Softmax cross-entropy in nats, (n, length)."""
    # As one-hot rows: with labels the derivative is a scatter, which XLA's CPU backend does element by element.
    rows = jax.nn.one_hot(targets["characters"], logits.shape[-1], dtype=logits.dtype)
    return optax.losses.softmax_cross_entropy(logits, rows)


def excess_nats(predict: Callable[[Params, Any], jax.Array]) -> Metric:
    """The cross-entropy of a text minus its surprisal, in nats a character."""

    def measure(params: Params, inputs: Any, targets: Any) -> jax.Array:
        return next_character_loss(predict(params, inputs), targets).mean(axis=-1) - targets["surprisal"]

    return Metric("excess_nats", measure, format="{:.4f}")
