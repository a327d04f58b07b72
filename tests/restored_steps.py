"""A run saved on eight devices and continued on one, two and eight, as JSON: ``python -m tests.restored_steps FOLDER``.

A program of its own, since JAX fixes the number of simulated devices when it starts.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

import hfopt
from hfopt import sharding
from tests.sharded_steps import CG_STEPS, MLP

BEFORE, AFTER, ROWS = 3, 3, 32


def main(folder: Path) -> dict[str, Any]:
    """The losses of an uninterrupted run on all devices, and of runs restored on fewer."""
    model, tx = MLP(), hfopt.hessian_free(solver=hfopt.cg(CG_STEPS))
    objective = hfopt.Objective(model.apply, optax.losses.softmax_cross_entropy_with_integer_labels, l2=1e-3)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS, 6, 6, 1)), rng.integers(4, size=ROWS)

    @jax.jit
    def train_step(params: Any, state: Any, batch: Any) -> Any:
        value_fn = objective.bind(batch)
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state, value

    def trained(start: Any, mesh: Any, steps: int) -> tuple[Any, list[float]]:
        (params, state), batch, losses = start, sharding.shard_batch(rows, mesh), []
        for _ in range(steps):
            params, state, value = train_step(params, state, batch)
            losses.append(float(value))
        return (params, state), losses

    params = model.init(jax.random.key(0), rows[0])
    everywhere = sharding.data_mesh()
    halfway, _ = trained(sharding.replicate((params, tx.init(params)), everywhere), everywhere, BEFORE)
    report = {"straight": trained(halfway, everywhere, AFTER)[1]}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "halfway", halfway)
        checkpointer.wait_until_finished()
        for count in (1, 2, 8):
            mesh = sharding.data_mesh(jax.devices()[:count])
            blank = sharding.replicate(jax.tree.map(np.zeros_like, (params, tx.init(params))), mesh)
            restored = checkpointer.restore(folder / "halfway", blank)
            assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)} == {count}
            report[str(count)] = trained(restored, mesh, AFTER)[1]
    return report


if __name__ == "__main__":
    with jax.enable_x64(True):
        print(json.dumps(main(Path(sys.argv[1]))))
