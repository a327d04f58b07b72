"""How much memory a Gauss-Newton product over a whole data set takes: the temporaries of the compiled program."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import hfopt
from experiments.benchmarks.measuring import Row, temporary_bytes
from experiments.problems.models import CNN

TITLE = "Temporary memory of one Gauss-Newton product over MNIST-sized data, CNN of simpleNN (MiB)"
NOTE = (
    "Compiled for the number of examples and read from the program, which is not run; the data themselves (180 MiB for "
    "60,000 images) are arguments and do not count. keep: residuals of all examples. recompute: those of one chunk."
)
_MIB = 2**20
_CHUNK = 500


def measure(sizes: tuple[int, ...] = (6_000, 15_000, 60_000), image: int = 28) -> list[Row]:
    """A row for each way to compute the product and number of examples."""
    model = CNN((32, 64, 64), (5, 3, 3), 10, nn.relu, nn.max_pool)
    objective = hfopt.Objective(model.apply, optax.losses.softmax_cross_entropy_with_integer_labels)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, image, image, 1)))

    def product(chunk_size: int | None, memory: Any, params: Any, v: Any, batch: Any) -> Any:
        return hfopt.gauss_newton(objective.bind(batch, chunk_size=chunk_size, memory=memory), params) @ v

    ways = {
        f"chunks of {_CHUNK}, recompute": (_CHUNK, "recompute", 1024.0),
        f"chunks of {_CHUNK}, auto": (_CHUNK, "auto", None),
        f"chunks of {_CHUNK}, keep": (_CHUNK, "keep", None),
        "all at once": (None, "auto", None),
    }
    rows = []
    for way, (chunk_size, memory, target) in ways.items():
        for count in sizes:
            batch = (
                jax.ShapeDtypeStruct((count, image, image, 1), jnp.float32),
                jax.ShapeDtypeStruct((count,), jnp.int32),
            )
            used = temporary_bytes(partial(product, chunk_size, memory), params, params, batch) / _MIB
            rows.append(Row(f"{count:,} images", way, used, target))
    return rows
