"""What every benchmark measures with: programs that take turns, and what a compiled program says of itself."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax


@dataclass(frozen=True)
class Row:
    """One line of a table. ``name`` and ``path`` tell the lines of a benchmark apart."""

    name: str
    path: str  # which of several ways to the same thing
    value: float  # what is compared with the target, and with earlier measurements
    target: float | None = None  # the most that `value` should be
    lowest: float | None = None  # of the rounds whose median `value` is; None for what is counted, or known, not timed
    highest: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.value <= self.target

    @classmethod
    def timed(cls, name: str, path: str, ratios: Sequence[float], target: float | None = None, **details: Any) -> "Row":
        """The median of repeated measurements, with their range."""
        return cls(name, path, statistics.median(ratios), target, min(ratios), max(ratios), details)


def interleaved(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each program in each round, the programs taking turns; compiled and run once before."""
    for program in programs.values():
        jax.block_until_ready(program())
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[name].append(time.perf_counter() - start)
    return times


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of the program before XLA optimises it: the body of a loop counts once."""
    analysis: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return float(analysis["flops"])


def temporary_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """The most memory the compiled program has in use at once besides its arguments and results."""
    analysis: Any = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def machine() -> str:
    """One line: processor or accelerator, cores, versions."""
    device = jax.devices()[0]
    kind = platform.machine() if device.platform == "cpu" else device.device_kind
    return (
        f"{jax.device_count()} × {device.platform} ({kind}), {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )
