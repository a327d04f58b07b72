"""The doctor: it finds every ailment it knows of, and has nothing to say about the healthy."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import hfopt
from hfopt import checks
from hfopt.analysis.report import Finding, Report, Status
from hfopt.flax import linen

pytestmark = pytest.mark.float32
CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels


def predict(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


@pytest.fixture
def params():
    one, two = jax.random.split(jax.random.key(0))
    return {"in": jax.random.normal(one, (5, 6)) / 2, "out": jax.random.normal(two, (6, 3)) / 2}


@pytest.fixture
def batch():
    return jax.random.normal(jax.random.key(1), (16, 5)), jnp.arange(16) % 3


def one_hot(batch):
    return batch[0], jax.nn.one_hot(batch[1], 3)


def examine(predict, loss, batch, params, **bind) -> Report:
    return hfopt.check(hfopt.Objective(predict, loss, l2=1e-3).bind(batch, **bind), params)


def assert_only(report: Report, name: str, status: Status, words: str) -> None:
    """The finding is there, says what it is about, and nothing else has failed."""
    assert report[name].status is status, str(report)
    assert words in f"{report[name].detail} {report[name].advice}"
    assert report.ok == (status is not Status.FAILED)
    assert [f.name for f in report if f.status is Status.FAILED] == ([name] if status is Status.FAILED else [])


@pytest.mark.parametrize("bind", [{}, {"chunk_size": 5}], ids=["whole", "chunked"])
def test_a_healthy_model_passes(params, batch, bind):
    report = examine(predict, CROSS_ENTROPY, batch, params, **bind)
    assert {finding.status for finding in report} == {Status.OK}, str(report)
    assert "MiB" in report["cost"].detail


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_wide_network_passes_in_either_precision(dtype):
    """‖θ‖ is then large, and f bends over a small part of it."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((64, 512), (512, 512), (512, 10))
    params = [(jax.random.normal(k, s) * (2 / s[0]) ** 0.5).astype(dtype) for k, s in zip(keys, shapes, strict=False)]

    def predict(params, x):
        for weights in params[:-1]:
            x = jax.nn.relu(x @ weights)
        return (x @ params[-1]).astype(jnp.float32)

    inputs = jax.random.normal(keys[3], (32, 64)).astype(dtype)
    report = hfopt.check(hfopt.Objective(predict, CROSS_ENTROPY).bind((inputs, jnp.arange(32) % 10)), params)
    assert report.ok, str(report)
    assert report["gradient"].status is Status.OK


def test_a_sum_instead_of_losses_is_found(params, batch):
    report = examine(predict, lambda z, y: CROSS_ENTROPY(z, y).sum(), batch, params)
    assert_only(report, "evaluation", Status.FAILED, "one value per example")
    assert report["gradient"].status is Status.SKIPPED


def test_losses_that_are_all_the_sum_are_found(params, batch):
    total = lambda z, y: jnp.broadcast_to(CROSS_ENTROPY(z, y).sum(), y.shape)  # noqa: E731
    report = examine(predict, total, batch, params)
    assert report["mean"].status is Status.FAILED
    assert "not their sum" in report["mean"].advice


def test_dropout_that_draws_its_own_key_is_found(params, batch):
    draws = itertools.count()

    def dropping(params, x):
        return predict(params, x * jax.random.bernoulli(jax.random.key(next(draws)), 0.5, x.shape))

    objective = hfopt.Objective(dropping, CROSS_ENTROPY)
    assert checks.determinism(objective.bind(batch), params).status is Status.FAILED
    assert hfopt.check(objective.bind(batch), params)["determinism"].status is Status.FAILED


def test_dropout_with_the_key_of_the_step_is_deterministic(batch):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(nn.Dense(8)(x)))

    model = Model()
    params = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, batch[0])["params"]
    state = linen.TrainState.create(apply_fn=model.apply, params=params, tx=hfopt.hessian_free(), key=jax.random.key(2))
    assert checks.determinism(state.value_fn(CROSS_ENTROPY, batch), params).status is Status.OK


@pytest.mark.parametrize("outputs", ["one array", "two arrays"])
def test_a_loss_that_is_not_convex_is_found(params, batch, outputs):
    welsch = lambda z, y: (1 - jnp.exp(-((z - y) ** 2))).sum(-1)  # noqa: E731
    if outputs == "one array":
        report = examine(predict, welsch, one_hot(batch), params)
    else:  # not small enough to be looked at whole
        both = lambda params, x: {"a": predict(params, x), "b": predict(params, 2 * x)}  # noqa: E731
        report = examine(both, lambda z, y: welsch(z["a"], y) + welsch(z["b"], y), one_hot(batch), params)
    assert_only(report, "convexity", Status.FAILED, "not convex in the outputs")


def test_a_wrong_custom_gradient_is_found(params, batch):
    @jax.custom_jvp
    def activation(x):
        return jnp.tanh(x)

    activation.defjvp(lambda primals, tangents: (jnp.tanh(*primals), 1.5 * tangents[0]))
    report = examine(lambda p, x: activation(x @ p["in"]) @ p["out"], CROSS_ENTROPY, batch, params)
    assert_only(report, "gradient", Status.FAILED, "central differences")


def test_a_rule_that_is_not_symmetric_is_found(params, batch):
    skew = jnp.array([[2.0, 1.0, 0.0], [-1.0, 2.0, 0.0], [0.0, 0.0, 2.0]])

    @jax.custom_jvp
    def half_square(z):
        return 0.5 * (z * z).sum(-1)

    @half_square.defjvp
    def rule(primals, tangents):
        return half_square(*primals), ((primals[0] @ skew) * tangents[0]).sum(-1)

    report = examine(predict, lambda z, y: half_square(z - y), one_hot(batch), params)
    assert report["symmetry"].status is Status.FAILED, str(report)
    assert "not the derivative" in report["symmetry"].advice


def test_an_unused_parameter_is_found(params, batch):
    report = examine(predict, CROSS_ENTROPY, batch, params | {"spare": jnp.ones(4)})
    assert_only(report, "parameters", Status.WARNING, "params['spare']")


def test_examples_that_see_one_another_are_found(params, batch):
    normalising = lambda p, x: predict(p, (x - x.mean(0)) / x.std(0))  # noqa: E731
    report = examine(normalising, CROSS_ENTROPY, batch, params)
    assert_only(report, "chunks", Status.WARNING, "BatchNorm")


def test_low_precision_outputs_are_found(params, batch):
    narrow = lambda p, x: predict(p, x).astype(jnp.bfloat16)  # noqa: E731
    report = examine(narrow, CROSS_ENTROPY, batch, params)
    assert report["dtypes"].status is Status.WARNING
    assert "float32" in report["dtypes"].advice


def test_numbers_that_are_not_finite_are_found(params, batch):
    report = examine(lambda p, x: jnp.sqrt(0 * predict(p, x)), lambda z, y: z.sum(-1), batch, params)
    assert_only(report, "evaluation", Status.FAILED, "params['in']")


def test_the_report_reads_well(params, batch):
    report = examine(predict, CROSS_ENTROPY, batch, params | {"spare": jnp.ones(4)})
    lines = str(report).splitlines()
    assert lines[0] == "hfopt.check: 13 checks, 0 failed, 1 with a warning"
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("warning  parameters") for line in lines)
    with pytest.raises(KeyError, match="there are evaluation, dtypes"):
        report["gradients"]
    assert str(Finding("name", Status.FAILED, "detail", "do this")).splitlines()[1].strip() == "→ do this"


def test_a_plain_function_is_refused(params):
    for no_value_fn in (lambda p: 0.0, None):
        with pytest.raises(TypeError, match=r"hfopt\.Objective"):
            hfopt.check(no_value_fn, params)
