"""What a step in the metric of the gradients costs, with no CG iteration and with one, over one value_and_grad.

Curvature and judging are on the first quarter of the batch. A basis is renewed at every tenth step, so that what is
timed are tens of steps in a row, taking turns with as many gradients; the same step without rotations, and without
judging, says where the time goes.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import optax

import hfopt
from experiments.benchmarks.measuring import Row, interleaved
from experiments.benchmarks.networks import NETWORKS, Network
from experiments.benchmarks.step import loop
from hfopt.control.line_search import LineSearchResult

TITLE = "One step in the metric of the gradients / one value_and_grad, renewals of the bases included"
NOTE = (
    "Curvature and judging on a quarter of the batch. Products and losses are what the step computed besides its own "
    "value_and_grad. Adam and Muon are Optax's."
)
_ROUNDS = 40
_RENEWED = 10  # steps from one renewal of the bases to the next
# By the key of a network: the most that a step without CG, and with one iteration, should cost.
_TARGETS = {"cnn": (1.4, 1.8), "mlp": (2.0, 2.5)}
_OTHERS = (1.5, 2.0)


@dataclass(frozen=True)
class _Unjudged:
    """Every step is taken."""

    def search(self, trial_loss: Any, loss: jax.Array, slope: jax.Array, full_step_loss: Any = None) -> Any:
        return LineSearchResult(jax.numpy.ones_like(slope), loss, jax.numpy.bool_(True), jax.numpy.int32(0))


def measure(rounds: int | None = None, networks: Sequence[Network] = NETWORKS) -> list[Row]:
    """Rows of each network but the chunked one."""
    return [row for network in networks if network.chunk_size is None for row in _rows(network, rounds or _ROUNDS)]


def _rows(network: Network, rounds: int) -> list[Row]:
    value_fn, params = network.bind(), network.params()
    part = value_fn.objective.bind(value_fn.batch, curvature_batch=0.25)
    metric = hfopt.kronecker(every=_RENEWED)
    none, one = _TARGETS.get(network.key, _OTHERS)
    # So short are the steps that the loop stays where it is.
    adam, muon = (optax.with_extra_args_support(make(1e-9)) for make in (optax.adam, optax.contrib.muon))
    programs: dict[str, Callable[[], Any]] = {
        "gradient": partial(jax.jit(lambda params, f: jax.value_and_grad(f)(params)), params, value_fn),
        "no CG": loop(_step(0, metric), params, part),
        "no CG, no judging": loop(_step(0, metric, _Unjudged()), params, value_fn),
        "no CG, no rotation": loop(_step(0, hfopt.kronecker(longest=1)), params, part),
        "one CG iteration": loop(_step(1, metric), params, part),
        "Adam": loop(adam, params, value_fn),
        "Muon": loop(muon, params, value_fn),
    }
    times = interleaved(programs, max(1, rounds // _RENEWED) * _RENEWED)
    targets = {"no CG": none, "one CG iteration": one}
    return [_row(network, name, times, programs, targets.get(name)) for name in list(programs)[1:]]


def _step(iterations: int, metric: Any, line_search: Any = None) -> optax.GradientTransformationExtraArgs:
    return hfopt.hessian_free(
        solver=hfopt.cg(max_steps=iterations, stop=()),
        preconditioner=None,
        damping=hfopt.constant_damping(1e12),
        metric=metric,
        trust_region=None,
        line_search=hfopt.fixed_step() if line_search is None else line_search,
        momentum=0.5,
        warm_start=None,
    )


def _row(
    network: Network,
    name: str,
    times: Mapping[str, Sequence[float]],
    programs: Mapping[str, Callable[[], Any]],
    target: float | None,
) -> Row:
    turns = range(0, len(times[name]), _RENEWED)
    total = lambda which, i: statistics.fmean(times[which][i : i + _RENEWED])  # noqa: E731
    ratios = [total(name, i) / total("gradient", i) for i in turns]
    info = getattr(programs[name](), "info", None)
    counted = {} if info is None else {"products": int(info.products), "losses": int(info.evaluations)}
    return Row.timed(network.name, name, ratios, target, **counted)
