"""Whether the loss is a mean over examples that do not look at one another: the whole batch against its halves."""

from dataclasses import replace
from typing import NamedTuple

from hfopt.analysis.case import Case, eps
from hfopt.analysis.report import Finding, Status
from hfopt.batch import Batch
from hfopt.objective import ValueFn

_PENALTY_ROUNDING = 10


class _Halves(NamedTuple):
    """Losses, without the penalty."""

    whole: float
    first: float
    second: float
    mean: float  # of the halves, by their weights
    rounding: float

    def agree(self, a: float, b: float, tolerance: float) -> bool:
        return abs(a - b) <= tolerance * max(abs(a), abs(b)) + self.rounding


def mean_and_chunks(case: Case) -> tuple[Finding, Finding]:
    """mean: the losses are no sums over the batch; chunks: none depends on what else is in the batch."""
    half = case.count // 2
    if half == 0:
        return _skipped("there is one example only")
    try:
        halves = _evaluated(case, half)
    except Exception as error:  # whatever a model raises that takes its batch as a whole only
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        return _skipped(f"the model takes its batch only as a whole: bind it without `chunk_size` ({reason[:200]})")
    if halves.agree(halves.whole, halves.mean, 1e-4):
        return (
            Finding("mean", Status.OK, "the loss of a batch is no sum over its examples"),
            Finding("chunks", Status.OK, "the loss of the whole is the mean of those of its halves"),
        )
    if halves.agree(halves.whole, halves.first + halves.second, 0.1):
        detail = (
            f"the losses of the halves, {halves.first:.6g} and {halves.second:.6g}, add up to that of the whole, "
            f"{halves.whole:.6g}"
        )
        advice = "The losses grow with the batch: return each example's own loss, not their sum."
        return Finding("mean", Status.FAILED, detail, advice), Finding("chunks", Status.SKIPPED, "the loss is no mean")
    return (
        Finding("mean", Status.OK, "the loss of a batch is no sum over its examples"),
        Finding(
            "chunks",
            Status.WARNING,
            f"the loss of {2 * half} examples is {halves.whole:.6g}, the mean of those of its halves {halves.mean:.6g}",
            "The examples see one another (BatchNorm on the statistics of the batch), or a dropout mask has another "
            "shape: value, gradient and products agree only at one and the same chunk_size.",
        ),
    )


def _evaluated(case: Case, half: int) -> _Halves:
    parts = [case.part(rows) for rows in (slice(2 * half), slice(half), slice(half, 2 * half))]
    weights = [1.0 if part.weights is None else float(part.weights.sum()) for part in parts]
    if not all(weights):
        parts, weights = [part._replace(weights=None) for part in parts], [1.0] * 3
    penalty = float(case.value_fn.objective.penalty(case.params))
    whole, first, second = (float(case.value(case.params, _on(part, case))) - penalty for part in parts)
    mean = (weights[1] * first + weights[2] * second) / (weights[1] + weights[2])
    return _Halves(whole, first, second, mean, _PENALTY_ROUNDING * eps(case.evaluated[0]) * abs(penalty))


def _skipped(reason: str) -> tuple[Finding, Finding]:
    return Finding("mean", Status.SKIPPED, reason), Finding("chunks", Status.SKIPPED, reason)


def _on(batch: Batch, case: Case) -> ValueFn:
    return replace(case.value_fn, batch=batch, evaluation_batch=None, curvature_batch=None, chunk_size=None)
