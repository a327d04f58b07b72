"""The texts have the probabilities that the grammar gives them, and the Transformer sees only what came before."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import chisquare, norm

from experiments.problems.build import build_problem
from experiments.problems.grammar import Language, as_examples, build_grammar, entropy, excess_nats, write_texts
from experiments.problems.transformer import Transformer
from experiments.runs.runner import build_plan
from experiments.settings import problem as config
from experiments.settings.config_file import load_config
from tests.experiments.conftest import rows

ENGLISH = Language()
FLAT = Language(depth=2)  # whose limit short texts reach


def next_characters(language: Language, text: str) -> dict[str, float]:
    """The probability of every character after a text: the grammar as its docstring says it, one text at a time."""
    levels = [("", "f")]  # what opened each, and its last letter
    for character in text:
        if character in "([{":
            levels.append((character, {"(": "f", "[": "b", "{": "d"}[character]))
        elif character in ")]}":
            levels.pop()
        else:
            levels[-1] = (levels[-1][0], character)
    opened, last = levels[-1]
    found = {"(": 0.2 / 3, "[": 0.2 / 3, "{": 0.2 / 3} if len(levels) <= language.depth else {}
    if opened:
        found[{"(": ")", "[": "]", "{": "}"}[opened]] = 0.2
    successor = "abcdefa"["abcdef".index(last) + 1]
    found |= {letter: 0.6 * (0.9 if letter == successor else 0.02) for letter in "abcdef"}
    total = sum(found.values())
    return {character: weight / total for character, weight in found.items()}


def probability(language: Language, text: str) -> float:
    return float(np.prod([next_characters(language, text[:i])[text[i]] for i in range(len(text))]))


def probabilities(language: Language, length: int) -> dict[str, float]:
    """Of all texts of so many characters that there are."""
    found = {"": 1.0}
    for _ in range(length):
        found = {
            text + character: chance * share
            for text, chance in found.items()
            for character, share in next_characters(language, text).items()
        }
    return found


def as_text(numbers: np.ndarray) -> str:
    return "".join("abcdef([{)]}"[number] for number in numbers)


def test_the_alphabet_is_letters_and_brackets():
    assert ENGLISH.alphabet == "abcdef([{)]}"


@pytest.mark.parametrize("language", [ENGLISH, FLAT])
def test_the_entropy_is_the_sum_over_all_texts(language):
    found = np.array(list(probabilities(language, 4).values()))
    assert found.sum() == pytest.approx(1)
    assert entropy(language, 4) == pytest.approx(-(found * np.log(found)).sum() / 4, rel=1e-12)


def test_every_text_comes_with_its_surprisal():
    texts, surprisal = write_texts(ENGLISH, 50, 40, seed=3)
    expected = [-np.log(probability(ENGLISH, as_text(text))) / 40 for text in texts]
    np.testing.assert_allclose(surprisal, expected, rtol=1e-6)


def test_the_mean_surprisal_is_the_entropy():
    _, surprisal = write_texts(ENGLISH, 20_000, 48, seed=0)
    deviations = (surprisal.mean(dtype=np.float64) - entropy(ENGLISH, 48)) / (surprisal.std() / np.sqrt(len(surprisal)))
    assert abs(deviations) < norm.isf(1e-3)


def test_texts_are_as_frequent_as_probable():
    count = 20_000
    found = Counter(as_text(text) for text in write_texts(FLAT, count, 3, seed=0)[0])
    expected = {text: count * chance for text, chance in probabilities(FLAT, 3).items()}
    common = [text for text, number in expected.items() if number > 10]
    observed = [found[text] for text in common] + [count - sum(found[text] for text in common)]
    predicted = [expected[text] for text in common] + [count - sum(expected[text] for text in common)]
    assert chisquare(observed, predicted).pvalue > 1e-3


def test_texts_are_a_function_of_the_seed():
    first, again, other = (write_texts(ENGLISH, 5, 30, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_model_that_knows_the_grammar_has_no_excess_and_one_that_guesses_has_all_of_it():
    texts, surprisal = write_texts(ENGLISH, 4, 20, seed=0)
    examples = as_examples(ENGLISH, texts, surprisal)
    known = np.full((4, 20, 12), -1e4)
    for row, text in enumerate(texts):
        for i in range(20):
            for character, chance in next_characters(ENGLISH, as_text(text[:i])).items():
                known[row, i, ENGLISH.alphabet.index(character)] = np.log(chance)
    metric = excess_nats(lambda logits, inputs: jnp.asarray(logits))
    knows, guesses = (
        metric.measure(logits, examples.inputs, examples.targets) for logits in (known, np.zeros((4, 20, 12)))
    )
    np.testing.assert_allclose(knows, 0, atol=1e-5)
    np.testing.assert_allclose(guesses, np.log(12) - surprisal, rtol=1e-5)


def test_a_model_is_shown_the_start_and_all_characters_but_the_last():
    texts, surprisal = write_texts(ENGLISH, 3, 10, seed=0)
    examples = as_examples(ENGLISH, texts, surprisal)
    np.testing.assert_array_equal(examples.inputs, np.c_[[12, 12, 12], texts[:, :-1]])
    np.testing.assert_array_equal(examples.targets["characters"], texts)


SMALL = config.Grammar(family="grammar", length=6, width=8, heads=2, layers=1, train_examples=20, test_examples=5)


def test_an_output_depends_on_its_character_and_those_before_alone():
    problem = build_grammar(SMALL)
    params, texts, predict = problem.init(0), problem.dataset.test.inputs, jax.jit(problem.predict)
    outputs = predict(params, texts)
    for position in range(6):
        other = texts.copy()
        other[:, position] = (texts[:, position] + 1) % 13
        moved = np.abs(predict(params, other) - outputs).max(axis=(0, 2))
        assert (moved[:position] == 0).all()
        assert (moved[position:] > 0).all()


@pytest.mark.slow
def test_the_transformer_is_its_matrix_products():
    model = Transformer(symbols=13, outputs=12, length=6, layers=1, width=8, heads=2)
    symbols = np.random.default_rng(0).integers(13, size=(3, 6))
    params = jax.jit(model.init)(jax.random.key(0), symbols)["params"]
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def norm_of(layer, x):
        centred = x - x.mean(-1, keepdims=True)
        return layer["scale"] * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) + layer["bias"]

    x = p["symbol"]["embedding"][symbols] + p["position"]["embedding"]
    attention, y = p["CausalAttention_0"], norm_of(p["LayerNorm_0"], x)
    query, key, value = (dense(attention[name], y).reshape(3, 6, 2, 4) for name in ("query", "key", "value"))
    scores = np.einsum("nqhd,nkhd->nhqk", query, key) / 2  # √4
    scores = np.where(np.tril(np.ones((6, 6), bool)), scores, -np.inf)
    heads = np.einsum("nhqk,nkhd->nqhd", softmax(scores, axis=-1), value)
    x = x + dense(attention["out"], heads.reshape(3, 6, 8))
    y = dense(p["Dense_0"], norm_of(p["LayerNorm_1"], x))
    gelu = y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))) / 2
    x = x + dense(p["Dense_1"], gelu)
    expected = dense(p["Dense_2"], norm_of(p["LayerNorm_2"], x))
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, symbols), expected, rtol=1e-4, atol=1e-5)


def test_every_kernel_is_a_matrix():
    params = jax.eval_shape(lambda: build_grammar(SMALL).init(0))
    assert {leaf.ndim for leaf in jax.tree.leaves(params)} == {1, 2}


@pytest.mark.slow
def test_the_loss_is_the_mean_over_characters_and_training_lowers_the_excess(tmp_path):
    path = tmp_path / "grammar.yaml"
    path.write_text(
        "name: grammar\noptimizer: adam\n"
        "problem: {family: grammar, length: 6, width: 8, heads: 2, layers: 1, train_examples: 200, test_examples: 50}\n"
        "optimizers: {adam: {steps: 60, learning_rate: 1.0e-2}}\n"
    )
    plan = build_plan(config := load_config(path), build_problem(config.problem))
    first, *_, last = rows(plan)
    test = plan.problem.dataset.test
    logits = np.asarray(jax.jit(plan.problem.predict)(plan.problem.init(0), test.inputs), np.float64)
    own = np.take_along_axis(log_softmax(logits, axis=-1), test.targets["characters"][..., None], axis=-1)
    assert first["test_loss"] == pytest.approx(-own.mean(), rel=1e-5)
    assert first["test_excess_nats"] == pytest.approx(-own.mean() - test.targets["surprisal"].mean(), rel=1e-4)
    assert 0 < last["test_excess_nats"] < 0.5 * first["test_excess_nats"]


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width is 10, which is not a multiple of heads, 4"):
        config.Grammar(family="grammar", width=10, heads=4, train_examples=2)
