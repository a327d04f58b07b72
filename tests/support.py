"""What people bring, and what becomes of it: ``python -m tests.support`` writes the table into docs/models.md.

Every row names the test that shows it, as a function or as an entry of a table of cases, and a test looks that it is
there.
"""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
_BEGIN, _END = "<!-- table of tests/support.py -->\n", "<!-- end of the table -->\n"


class Row(NamedTuple):
    what: str
    answer: str
    write: str  # what to write, or how it is meant
    module: str
    shown_by: str  # a test, or a table of cases
    case: str = ""  # the entry of that table


RIGHT, REFUSED, DOCTOR = "right", "refused", "`hfopt.check` fails"
_BORDERS, _OUTPUTS, _DOCTOR = "tests.test_borders", "tests.curvature.test_outputs", "tests.analysis.problems"

ROWS = [
    Row(
        "complex outputs of real parameters",
        RIGHT,
        "as pairs of reals, in every operator",
        _OUTPUTS,
        "PROBLEMS",
        "wave",
    ),
    Row(
        "a predicted class or a mask among the outputs",
        RIGHT,
        "left alone, joined again for the loss",
        _OUTPUTS,
        "PROBLEMS",
        "with_class",
    ),
    Row(
        "an auxiliary loss that all examples share, among the outputs",
        RIGHT,
        "in G and H; `empirical_fisher` and `outer_product` refuse it",
        _OUTPUTS,
        "PROBLEMS",
        "with_scalar",
    ),
    Row(
        "several labels for one output, (N, 1) and (N, 4)",
        RIGHT,
        "G is that of the loss, the Fisher matrix counts every label",
        _OUTPUTS,
        "PROBLEMS",
        "annotators",
    ),
    Row("outputs (N, 1) and targets (N,)", DOCTOR, "give both one shape", _DOCTOR, "BROKEN", "(N, 1) against (N,)"),
    Row(
        "a tuple from `predict` for a loss of one array",
        REFUSED,
        "`loss=lambda outputs, targets: loss(outputs[0], targets)`",
        _BORDERS,
        "REFUSED",
        "outputs: a tuple for a loss of one array",
    ),
    Row(
        "absolute, quantile and hinge losses",
        RIGHT,
        "steps take the B of the smoothed loss; the matrix G itself is 0, and `hfopt.check` says so",
        "tests.test_straight_losses",
        "STRAIGHT",
        "absolute",
    ),
    Row(
        "a loss with settings: a dataclass, a module",
        RIGHT,
        "compared by identity",
        "tests.test_objective",
        "test_losses_with_settings_are_compared_by_identity",
    ),
    Row(
        "a loss that is not convex in the outputs",
        DOCTOR,
        "`hfopt.fisher`, or `hfopt.hessian`",
        _DOCTOR,
        "BROKEN",
        "a focal loss with a masked class",
    ),
    Row(
        "a loss whose curvature is infinite at a point",
        DOCTOR,
        "smooth it there",
        _DOCTOR,
        "BROKEN",
        "infinite curvature",
    ),
    Row("losses that are a sum", DOCTOR, "each example's own loss", _DOCTOR, "BROKEN", "a sum for the losses"),
    Row(
        "`custom_vjp` with a backward pass that solves or clips",
        RIGHT,
        "J v is the derivative of the backward pass",
        "tests.curvature.test_linearize",
        "MODELS",
        "differential equation",
    ),
    Row(
        "`custom_vjp` with a loop or a callback in its backward pass",
        REFUSED,
        "`jax.custom_jvp`, or a forward mode",
        "tests.curvature.test_linearize",
        "test_a_backward_pass_that_cannot_be_turned_round_is_refused",
    ),
    Row("a wrong `custom_jvp`", DOCTOR, "the rule is not the derivative", _DOCTOR, "BROKEN", "a wrong custom_jvp"),
    Row(
        "a graph, or any batch that is a whole",
        RIGHT,
        "with every preconditioner; without `chunk_size`",
        "tests.curvature.test_diagonal",
        "test_a_graph_is_trained_with_every_preconditioner",
    ),
    Row(
        "a model of one batch size",
        RIGHT,
        "without `chunk_size`",
        "tests.curvature.test_diagonal",
        "test_a_model_of_one_batch_size_is_trained",
    ),
    Row(
        "recurrent nets, tied weights, equations with derivatives by the inputs, BatchNorm, bfloat16, float64",
        RIGHT,
        "",
        "tests.analysis.test_doctor",
        "test_a_healthy_problem_passes",
    ),
    Row(
        "NaN in examples of weight 0",
        RIGHT,
        "they do not count",
        "tests.test_objective",
        "test_what_is_not_finite_in_examples_of_weight_zero_does_not_count",
    ),
    Row(
        "weights that are negative, NaN or all 0",
        REFUSED,
        "",
        "tests.test_objective",
        "test_weights_that_make_no_mean_are_refused",
    ),
    Row(
        "sparse arrays (BCOO) in the batch",
        REFUSED,
        "`.todense()`, columns and values of every row, or a closure",
        _BORDERS,
        "REFUSED",
        "batch: sparse inputs",
    ),
    Row(
        "`l2` as an array, traced too",
        RIGHT,
        "a sweep compiles once; f has a derivative by it",
        "tests.test_objective",
        "test_a_sweep_of_the_penalty_compiles_once_and_finds_every_minimum",
    ),
    Row(
        "`l2_mask` of strings, or of another structure",
        REFUSED,
        "booleans, shaped like the parameters or a prefix",
        "tests.test_objective",
        "test_penalties_that_do_not_fit_are_refused",
    ),
    Row(
        "parameters that are no arrays: activations, names",
        REFUSED,
        "`eqx.partition(model, eqx.is_inexact_array)`",
        _BORDERS,
        "REFUSED",
        "parameters: an activation",
    ),
    Row(
        "running statistics among the parameters",
        REFUSED,
        "`variables['params']`; `hfopt.flax.linen.TrainState` carries the others",
        _BORDERS,
        "REFUSED",
        "parameters: running statistics",
    ),
    Row(
        "Flax's own `nnx.Optimizer` or `TrainState` in `make_train_step`",
        REFUSED,
        "those of `hfopt.flax`",
        _BORDERS,
        "REFUSED",
        "flax: its own nnx.Optimizer",
    ),
    Row(
        "gradients that are missing, None or of another shape",
        REFUSED,
        "`jax.grad(value_fn)(params)`",
        _BORDERS,
        "REFUSED",
        "gradient: an entry is missing",
    ),
    Row(
        "the state of another optimizer, or a dictionary of its fields",
        REFUSED,
        "`tx.init(params)`, and restore into it",
        _BORDERS,
        "REFUSED",
        "state: a dictionary",
    ),
    Row(
        "`value` of shape (1,)",
        REFUSED,
        "`jax.value_and_grad(value_fn)(params)`",
        _BORDERS,
        "REFUSED",
        "value: of shape (1,)",
    ),
    Row("a seed for a key", REFUSED, "`jax.random.key(0)`", _BORDERS, "REFUSED", "key: a seed for a trace"),
    Row(
        "`optax.inject_hyperparams(hfopt.hessian_free)`",
        REFUSED,
        "with `static_args=('curvature',)`",
        _BORDERS,
        "REFUSED",
        "curvature: taken for a schedule",
    ),
    Row(
        "parameters split by an explicit axis",
        RIGHT,
        "but for `hfopt.nystrom`",
        "tests.test_placement",
        "test_parameters_may_be_split_by_an_explicit_axis",
    ),
    Row(
        "batches on a mesh with explicit axes",
        RIGHT,
        "rows stay where they are as long as they divide",
        "tests.test_placement",
        "test_a_step_on_an_explicit_mesh_is_the_step_without_one",
    ),
    Row(
        "a step inside `shard_map` or `pmap`",
        REFUSED,
        "`jax.jit(step)` and `hfopt.sharding.shard_batch`",
        "tests.test_placement",
        "test_a_step_of_replicas_is_refused_with_the_way_to_write_it",
    ),
    Row(
        "a product inside `shard_map`, averaged",
        RIGHT,
        "it is a mean over examples",
        "tests.test_placement",
        "test_products_of_replicas_may_be_averaged",
    ),
    Row(
        "`jax_debug_nans`, `jax_debug_infs`, `jax_check_tracer_leaks`, `jax_enable_checks`",
        RIGHT,
        "a rejected step reports ρ = −∞, which `jax_debug_infs` stops at",
        "tests.test_debugging",
        "test_every_step_runs_under_every_setting",
    ),
    Row(
        "objectives in units of 1e-27 or 1e20",
        RIGHT,
        "norms, eigenpairs and verdicts; steps are made for losses of order one, and `hfopt.check` warns",
        "tests.analysis.test_critical_points",
        "test_the_verdict_does_not_depend_on_the_unit_of_the_objective",
    ),
]


def render() -> str:
    """The table in Markdown."""
    lines = ["| what | | |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {row.what} | {row.answer} | {row.write} |" for row in ROWS)]) + "\n"


def is_there(row: Row) -> bool:
    """Whether the test that shows a row exists."""
    shown = getattr(import_module(row.module), row.shown_by, None)
    return row.case in shown if row.case else callable(shown)


def page_with_table(page: str) -> str:
    """``page`` with the table between its marks brought up to date."""
    before, rest = page.split(_BEGIN)
    return before + _BEGIN + render() + _END + rest.split(_END)[1]


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"Wrote {PAGE.name}.")
