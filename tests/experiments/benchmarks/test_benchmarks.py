"""The benchmarks on small networks: what they count against closed forms, and how they are reported and compared."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from experiments.benchmarks import command, compiling, memory, products, report, scaling, step
from experiments.benchmarks.measuring import Row, flops
from experiments.benchmarks.networks import NETWORKS, Network
from experiments.benchmarks.peers import PEERS
from experiments.problems.models import MLP
from experiments.settings.errors import ExperimentError
from tests.cases import relative_error

pytestmark = pytest.mark.float32
SMALL = Network("mlp", "small", MLP((96,), 10, nn.relu), (256, 128), 1.2, rounds=1)
CHUNKED = Network("chunked", "chunked", MLP((16,), 10, nn.relu), (64, 8), 1.2, rounds=1, chunk_size=16)


def test_the_arithmetic_of_a_product_is_that_of_its_matrices():
    """Layers of a·b weights: a gradient multiplies by each 3 times, a product 4 times, and by the first once less."""
    first, second = 128 * 96, 96 * 10
    expected = (2 * first + 4 * second) / (2 * first + 3 * second)
    (row,) = products.measure(1, networks=[SMALL])
    assert row.details["arithmetic"] == pytest.approx(expected, rel=0.05)
    assert row.target == 1.2
    assert row.lowest == row.value == row.highest > 0


@pytest.mark.slow
def test_a_chunked_network_has_its_gradient_measured_too():
    assert [row.path for row in products.measure(1, networks=[CHUNKED])] == [
        "hfopt, keep",
        "hfopt, recompute",
        "its value_and_grad",
    ]


def test_the_product_of_a_peer_is_the_same_product():
    pytest.importorskip("somax")
    value_fn, params = SMALL.bind(), SMALL.params()
    theirs, ours = (curvature(value_fn, params)(params) for curvature in (PEERS["somax"], products._ours))
    assert relative_error(theirs, ours) < 1e-5
    paths = {row.path for row in products.measure(1, ["somax"], [SMALL])}
    assert paths == {"hfopt", "somax", "hfopt / somax"}


@pytest.mark.slow
def test_the_plain_product_is_the_same_product():
    value_fn, params = SMALL.bind(), SMALL.params()
    plain, ours = (curvature(value_fn, params)(params) for curvature in (products._plain, products._ours))
    assert relative_error(plain, ours) < 1e-5


@pytest.mark.slow
def test_memory_is_that_of_a_chunk_or_grows_with_the_examples(monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK", 10)
    used = {(row.path, row.name): row.value for row in memory.measure((200, 400), image=8)}
    recomputed, kept = "chunks of 10, recompute", "chunks of 10, keep"
    assert used[recomputed, "400 images"] == pytest.approx(used[recomputed, "200 images"], rel=0.02)
    assert used[kept, "400 images"] > 1.5 * used[kept, "200 images"] > used[recomputed, "200 images"]


@pytest.mark.slow
def test_a_step_spends_the_products_and_losses_of_its_iterations():
    rows = step.measure(1, SMALL)
    assert [row.target for row in rows] == [pytest.approx(1.2 * (k + 2)) for k in (10, 10, 50, 50)]
    # One more product for the residual at the warm start; a loss for the trial step, and one to judge the last step.
    assert [(row.details["products"], row.details["losses"]) for row in rows] == [(11, 2), (10, 2), (51, 2), (50, 2)]


@pytest.mark.slow
def test_the_steps_of_simplenn_lower_its_objective():
    rows = step.measure_simplenn(1, size=8, steps=3)
    assert [row.name for row in rows] == ["value_and_grad", "product", "step 1", "step 2", "step 3"]
    values = [row.details["f"] for row in rows[2:]]
    assert values == sorted(values, reverse=True)
    assert all(row.details["CG iterations"] >= 1 for row in rows[2:])


@pytest.mark.slow
def test_compiling_is_timed_anew_in_every_round(monkeypatch):
    cleared, clear = [], jax.clear_caches
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(clear()))
    (row,) = compiling.measure(2, [SMALL])
    assert len(cleared) == 4  # both programs in both rounds; which of them takes longer is for a quiet machine to say
    assert row.details.keys() == {"value_and_grad (s)", "step (s)"}


@pytest.mark.slow
def test_the_work_of_a_step_divides_among_devices():
    rows = scaling.measure((1, 2, 4))
    assert len(rows) == 8
    assert all(row.met for row in rows)
    for one, two, four, constant in (rows[:4], rows[4:]):
        assert one.details["collectives"] == "none"
        assert "all-reduce" in two.details["collectives"]
        assert two.details["collectives"] == four.details["collectives"]
        assert constant.value == 1


def test_operations_are_those_of_the_program():
    counted = flops(lambda a, b: a @ b, jnp.ones((30, 20)), jnp.ones((20, 50)))
    assert counted == pytest.approx(2 * 30 * 20 * 50, rel=0.01)


ROWS = [
    Row.timed("net", "hfopt", [1.0, 2.0, 1.1], target=1.2, seconds=3.0),
    Row("net", "counted", 100.0, target=50.0),
]


def test_a_table_shows_targets_met_and_missed(capsys):
    report.print_table("Title", "a note", ROWS, None, Console())
    printed = capsys.readouterr().out
    assert "1.00 … 2.00" in printed
    assert "≤ 1.20 met" in printed
    assert "≤ 50.00 MISSED" in printed
    assert "a note" in printed


def test_a_stored_baseline_shows_regressions(tmp_path, capsys):
    path = tmp_path / "baseline.json"
    report.save_baseline("products", ROWS, path)
    baseline = report.load_baseline("products", path)
    assert baseline.values == {("net", "hfopt"): 1.1, ("net", "counted"): 100.0}
    report.save_baseline("products", [Row("other net", "hfopt", 2.0)], path)
    assert len(report.load_baseline("products", path).values) == 3
    worse = [Row.timed("net", "hfopt", [1.2]), Row("net", "counted", 101.5), Row("net", "other", 1.0)]
    found = [report.is_regression(row, baseline.values.get((row.name, row.path))) for row in worse]
    assert found == [False, True, False]  # what is timed is uncertain, what is counted is not
    report.print_table("Title", "", worse, baseline, Console())
    printed = capsys.readouterr().out
    assert "+9%" in printed
    assert "new" in printed
    with pytest.raises(ExperimentError, match="no baseline of 'step'"):
        report.load_baseline("step", path)


def test_the_command_compares_and_prints_json(monkeypatch, capsys):
    rows = [Row("MLP", "hfopt", 1.5)]
    monkeypatch.setattr(products, "measure", lambda *_: rows)
    monkeypatch.setattr(command, "load_baseline", lambda what: report.Baseline("", {("MLP", "hfopt"): 1.0}))
    assert command.main(["products", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["value"] == 1.5
    assert command.main(["products", "--compare"]) == 1
    assert "+50%" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["products", "--rounds", "0"], ["convergence", "--C", "-1"]])
def test_wrong_arguments_are_exit_code_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2


def test_the_stored_baseline_names_rows_that_exist():
    stored = report.load_baseline("products").values
    assert {name for name, _ in stored} == {network.name for network in NETWORKS}
