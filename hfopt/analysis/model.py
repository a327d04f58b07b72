"""The model: do products with its Jacobian belong together, do all parameters act, and what does a step cost?"""

import math
from functools import partial
from typing import Any

import jax

from hfopt.analysis.case import Case, name_of
from hfopt.analysis.measured import Forms, seconds
from hfopt.analysis.report import Finding, Status

# Names under which frameworks keep running statistics.
_STATISTICS = {"batch_stats", "running_mean", "running_var", "moving_mean", "moving_variance", "moving_var"}


def symmetry(case: Case) -> tuple[Finding]:
    """Whether uᵀGv = vᵀGu, uᵀGu is the same by one jvp, and wᵀ(Jv) = vᵀ(Jᵀw)."""
    forms = Forms(*map(float, case.measured.forms))
    scale = max(abs(forms.ugu * forms.vgv) ** 0.5, abs(forms.ugv), abs(forms.vgu), 1e-30)
    apart = max(abs(forms.ugv - forms.vgu), abs(forms.quadratic - forms.ugu)) / scale
    turned = abs(forms.wjv - forms.vjw) / max(abs(forms.wjv), abs(forms.vjw), 1e-30)
    advice = (
        "A rule of custom_jvp, custom_vjp or linear_call is not the derivative, or not the transpose, of its function."
    )
    if not all(map(math.isfinite, forms)):
        detail = f"products are not finite: uᵀGu = {forms.ugu:.3g}, wᵀ(Jv) = {forms.wjv:.3g}"
        return (Finding("symmetry", Status.FAILED, detail, "Look at what the check of convexity says of the loss."),)
    allowed = max(1e-3, 4 * case.coarsest)
    if not turned <= 10 * allowed:
        detail = f"wᵀ(Jv) and vᵀ(Jᵀw) differ by {turned:.1e} of their size: J and Jᵀ are not of one function"
        return (Finding("symmetry", Status.FAILED, detail, advice),)
    if not apart <= allowed:
        detail = f"uᵀGv and vᵀGu, or uᵀGu by one jvp, differ by {apart:.1e} of their size"
        return (Finding("symmetry", Status.FAILED, detail, advice),)
    return (Finding("symmetry", Status.OK, f"uᵀGv = vᵀGu to {apart:.0e}"),)


def parameters(case: Case) -> tuple[Finding]:
    """Whether every array is a parameter and acts on the outputs."""
    paths = [path for path, _ in jax.tree.leaves_with_path(case.params)]
    if statistics := [name_of(path) for path in paths if _words(path) & _STATISTICS]:
        return (
            Finding(
                "parameters",
                Status.FAILED,
                f"running statistics are among the parameters: {', '.join(statistics)}",
                "A step would train them. Give the parameters alone, variables['params'], and let "
                "hfopt.flax.linen.TrainState carry the statistics, or close over them in `predict`.",
            ),
        )
    dead = [name_of(path) for path, used in jax.tree.leaves_with_path(case.measured.used) if not used]
    if dead:
        return (
            Finding(
                "parameters",
                Status.WARNING,
                f"no effect on the outputs: {', '.join(dead)}",
                "Unused, cut off by stop_gradient, or behind units that are all dead. With l2 they only decay; "
                "hfopt.masked leaves them out.",
            ),
        )
    return (Finding("parameters", Status.OK, f"all {len(paths)} arrays act on the outputs"),)


def cost(case: Case) -> tuple[Finding]:
    """Seconds and memory."""
    gradient = seconds(partial(case.value_and_grad, case.params, case.value_fn))
    product, memory = case.measured.seconds, case.measured.memory
    used = "unknown memory" if memory is None else f"{memory / 2**20:.1f} MiB"
    detail = (
        f"value_and_grad {_readable(gradient)}, a product {_readable(product)}: about "
        f"{_readable(2 * gradient + 11 * product)} and {used} for a step of 10 CG iterations, besides data and state"
    )
    return (Finding("cost", Status.OK, detail),)


def _words(path: Any) -> set[str]:
    return set(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))


def _readable(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
