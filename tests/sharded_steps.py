"""Steps on one device and on batches sharded over all of them, as JSON: ``python -m tests.sharded_steps``.

A program of its own, since JAX fixes the number of simulated devices when it starts.
"""

import json
import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt import sharding

STEPS, ROWS, CHUNK = 5, 32, 16
# Few iterations: on these networks ten of them amplify rounding a million times, on one device as well.
CG_STEPS = 5


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.tanh(nn.Dense(8, param_dtype=x.dtype)(x.reshape(len(x), -1)))
        return nn.Dense(4, param_dtype=x.dtype)(x)


class CNN(nn.Module):
    normalised: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(4, (3, 3), param_dtype=x.dtype)(x)
        if self.normalised:
            x = nn.BatchNorm(use_running_average=False, param_dtype=x.dtype)(x)
        x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        return nn.Dense(4, param_dtype=x.dtype)(x.reshape(len(x), -1))


def train(
    model: nn.Module,
    dtype: str,
    sharded: bool,
    chunk_size: int | None = None,
    memory: Any = "auto",
    split_parameters: bool = False,
    metric: bool = False,
) -> dict[str, Any]:
    """A few steps: the losses, the parameters they end in, and the collectives of a CG iteration."""

    def predict(params: Any, x: jax.Array) -> jax.Array:
        return model.apply(params, x, mutable="batch_stats")[0]  # statistics of the batch, used and discarded

    objective = hfopt.Objective(predict, optax.losses.softmax_cross_entropy_with_integer_labels, l2=1e-3)
    solver = hfopt.cg(max_steps=CG_STEPS)
    # λ in the unit of the metric; the bases are renewed at two of the steps.
    options = {"preconditioner": None, "damping": hfopt.trust_damping(10.0), "momentum": 0.5}
    ours = hfopt.hessian_free(solver=solver, metric=hfopt.kronecker(every=3), **options) if metric else None
    tx = hfopt.hessian_free(solver=solver) if ours is None else ours

    def train_step(params: Any, state: Any, batch: Any) -> Any:
        value_fn = objective.bind(batch, chunk_size=chunk_size, memory=memory)
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state, value

    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        batch = rng.normal(size=(ROWS, 6, 6, 1)).astype(dtype), rng.integers(4, size=ROWS)
        params = {"params": jax.jit(model.init)(jax.random.key(0), batch[0])["params"]}
        state = tx.init(params)
        if sharded:
            mesh = sharding.data_mesh()
            batch, (params, state) = sharding.shard_batch(batch, mesh), sharding.replicate((params, state), mesh)
            if split_parameters:
                params = jax.tree.map(partial(split, mesh), params)
                state = tx.init(params)
        step = jax.jit(train_step).lower(params, state, batch).compile()
        losses = []
        for _ in range(STEPS):
            params, state, value = step(params, state, batch)
            losses.append(float(value))
        parameters = np.asarray(ravel_pytree(params)[0]).tolist()
        return {"losses": losses, "params": parameters, "collectives": cg_collectives(step.as_text())}


def split(mesh: jax.sharding.Mesh, leaf: jax.Array) -> jax.Array:
    """The leaf with its first axis that divides split over the devices, or whole."""
    axis = next((i for i, length in enumerate(leaf.shape) if length % mesh.size == 0), None)
    spec = [] if axis is None else [None] * axis + list(mesh.axis_names)
    return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))


def cg_collectives(program: str) -> list[str]:
    """The collectives in the body of the CG loop of a compiled program, those of the loops inside it included."""
    computations: dict[str, list[str]] = {}
    for line in program.splitlines():
        if opening := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computations[opening[1]] = current = []
        elif computations:
            current.append(line)

    def collectives(name: str) -> list[str]:
        found = []
        for line in computations[name]:
            found += re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", line)
            called = re.findall(r"=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)", line)  # body=%a, branch_computations={%a, %b}
            names = [name.removeprefix("%") for group in called for name in group.split(", ")]
            found += [collective for name in names if name in computations for collective in collectives(name)]
        return found

    # The CG loop is the one that carries the values of the model at each iteration: max_steps + 1 numbers.
    loops = re.findall(rf"\bf\d\d\[{CG_STEPS + 1}\][^\n]* while\([^\n]* body=%?([\w.\-]+)", program)
    assert len(loops) == 1, loops
    return collectives(loops[0])


def rejection(rows: int) -> str:
    """What `shard_batch` says to a number of rows that does not divide."""
    try:
        sharding.shard_batch((np.zeros((rows, 3)), np.zeros(rows)), sharding.data_mesh())
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    mlp, cnn, normalised = MLP(), CNN(), CNN(normalised=True)
    # One device first. BatchNorm normalises over a chunk, so it is compared with the same chunks.
    comparisons = {
        "mlp": [train(mlp, "float64", False), train(mlp, "float64", True), train(mlp, "float64", True, CHUNK)],
        "cnn": [train(cnn, "float64", False), train(cnn, "float64", True), train(cnn, "float64", True, CHUNK)],
        "cnn-float32": [
            train(cnn, "float32", False),
            train(cnn, "float32", True),
            train(cnn, "float32", True, CHUNK, "keep"),
            train(cnn, "float32", True, CHUNK, "recompute"),
        ],
        "split-parameters": [
            train(mlp, "float64", False),
            train(mlp, "float64", True, split_parameters=True),
            train(mlp, "float64", True, CHUNK, split_parameters=True),
        ],
        "metric": [
            train(mlp, "float64", False, metric=True),
            train(mlp, "float64", True, metric=True),
            train(mlp, "float64", True, split_parameters=True, metric=True),
        ],
        "batch-norm": [train(normalised, "float64", sharded) for sharded in (False, True)],
        "batch-norm-chunked": [train(normalised, "float64", sharded, CHUNK) for sharded in (False, True)],
    }
    print(json.dumps({"devices": jax.device_count(), "comparisons": comparisons, "rejection": rejection(30)}))


if __name__ == "__main__":
    main()
