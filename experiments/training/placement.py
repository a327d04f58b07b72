"""Runs on several devices: parameters and data whole on each, and the rows of a batch split over them.

A batch is asked for by the numbers of its rows. Each device is given its share of these numbers and takes its rows
itself; where a batch does not divide, some rows are repeated with weight zero, which changes no mean.
"""

from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.settings.errors import ConfigError
from experiments.training.batches import Rows
from hfopt import sharding


class Share(NamedTuple):
    """Numbers of rows and their weights, split over devices."""

    rows: Any
    weights: Any


def mesh_of(devices: int) -> Mesh:
    """A mesh of so many devices of this machine; CPUs are simulated if JAX has not yet looked for devices.

    Raises:
      ConfigError: there are fewer.
    """
    with suppress(RuntimeError):  # JAX has its devices already
        jax.config.update("jax_num_cpu_devices", devices)
    found = jax.devices()
    if len(found) < devices:
        raise ConfigError(f"asked for {devices} devices, but JAX has {len(found)} of kind {found[0].device_kind}")
    return sharding.data_mesh(found[:devices])


def split(rows: Rows, examples: int, mesh: Mesh) -> Rows:
    """The same batches, each a `Share`; those of the curvature are numbers of rows of the data as well."""
    gradient = np.arange(examples, dtype=np.int32) if rows.gradient is None else rows.gradient
    curvature = None if rows.curvature is None else gradient[rows.curvature]
    share = lambda numbers: None if numbers is None else _share(numbers, mesh)  # noqa: E731
    return Rows(share(gradient), share(curvature), share(rows.evaluation))


def _share(numbers: np.ndarray, mesh: Mesh) -> Any:
    missing = -len(numbers) % mesh.size
    weights = np.arange(len(numbers) + missing) < len(numbers)  # widened to the precision of the means
    return sharding.shard_batch(Share(np.resize(numbers, len(weights)), weights), mesh)
