"""How the work of a step divides among devices: simulated ones, and the programs that XLA compiles for them.

JAX fixes the number of simulated devices when it starts, so each number has a process of its own:
`python -m experiments.benchmarks.scaling` is what runs in it.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import jax

import hfopt
from experiments.benchmarks.measuring import Row
from experiments.benchmarks.networks import NETWORKS
from experiments.benchmarks.step import train_step
from experiments.settings.errors import ExperimentError
from hfopt import sharding

TITLE = "Operations of one device in a step, times the number of devices, over those of the step on one device"
NOTE = (
    "A batch sharded over simulated devices; operations and collectives are those in the program of one device, the "
    "body of a loop counted once. 1.00: the work falls as 1 / devices."
)
_DEVICES = (1, 2, 4, 8)
_TARGET = 1.1


def measure(devices: tuple[int, ...] = _DEVICES) -> list[Row]:
    """A row for each network and number of devices."""
    reports = {count: _report_of(count) for count in devices}
    rows = []
    for name in reports[devices[0]]:
        one = reports[devices[0]][name]["flops"] * devices[0]
        for count in devices:
            found = reports[count][name]
            details = {"Mflop a device": found["flops"] / 1e6, "collectives": found["collectives"]}
            path = f"{count} devices" if count > 1 else "1 device"
            rows.append(Row(name, path, found["flops"] * count / one, _TARGET, details=details))
        counts = [sum(reports[count][name]["counted"].values()) for count in devices if count > 1]
        rows.append(Row(name, "most / fewest collectives", max(counts) / min(counts), 1.0))
    return rows


def _report_of(devices: int) -> dict[str, Any]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "experiments.benchmarks.scaling"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise ExperimentError(f"the process with {devices} simulated devices failed:\n{process.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(process.stdout)
    return report


def _report() -> dict[str, Any]:
    """Operations and collectives of a step on all devices of this process, for the MLP and the CNN."""
    report = {}
    mesh, tx = sharding.data_mesh(), hfopt.hessian_free()
    for network in NETWORKS[:2]:
        value_fn, params = network.bind(), network.params()
        params, state = sharding.replicate((params, tx.init(params)), mesh)
        value_fn = sharding.shard_batch(value_fn, mesh)
        step = jax.jit(lambda *arguments: train_step(tx, *arguments)).lower(params, state, value_fn).compile()
        collectives = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", str(step.as_text()))
        counted = Counter(collectives)
        report[network.name] = {
            "flops": dict(step.cost_analysis() or {})["flops"],
            "counted": counted,
            "collectives": ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items())) or "none",
        }
    return report


if __name__ == "__main__":
    print(json.dumps(_report()))
