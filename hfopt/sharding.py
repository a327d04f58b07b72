"""Many devices and processes: where the data lies. A thin layer over `jax.sharding` and `jax.distributed`.

The rest of the package names no device and no collective. It writes means over the global batch, and where the rows of
that batch lie on several devices, ``jax.jit`` gives each device its rows and adds the sums up: the same step, with one
all-reduce a CG iteration. So all there is to do is to place the batch (`shard_batch`) and the rest (`replicate`).

References:
  "Distributed arrays and automatic parallelization" and "Introduction to multi-controller JAX", docs.jax.dev.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding


def data_mesh(devices: Sequence[jax.Device] | None = None, axis: str = "data") -> Mesh:
    """A mesh of one axis, along which the rows of a batch are split.

    Args:
      devices: ``None``: all devices of all processes.
      axis: its name.

    Returns:
      A ``Mesh`` of shape (devices,), in the order in which ``jax.make_mesh`` finds them best connected.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Split a batch over the devices of ``mesh``, along the first axis of every leaf.

    Args:
      batch: a pytree of arrays, such as ``(inputs, targets, weights)``. In one process its leaves hold all N rows; in
        several, each process passes the rows it has read, N / processes of them, the same number in each.
      mesh: from `data_mesh`.

    Returns:
      The global batch: leaves of shape (N, …), N / devices rows on each device. Means over rows do not depend on their
      order, so neither does it matter which process holds which.

    Raises:
      ValueError: a leaf is a scalar, or its rows do not divide by the devices of this process.

    Example:
      >>> import jax.numpy as jnp
      >>> from hfopt import sharding
      >>> inputs, targets = sharding.shard_batch((jnp.ones((8, 3)), jnp.ones(8)), sharding.data_mesh())
      >>> inputs.shape
      (8, 3)
    """
    devices = len(mesh.local_devices)
    for path, leaf in jax.tree.leaves_with_path(batch):
        name = f"batch{jax.tree_util.keystr(path)}"
        if jnp.ndim(leaf) == 0:
            raise ValueError(f"shard_batch: `{name}` is a scalar; every leaf needs a leading axis of rows.")
        rows = jnp.shape(leaf)[0]
        if rows % devices:
            raise ValueError(
                f"shard_batch: the {rows} rows of `{name}` do not divide by the {devices} devices of this process. "
                f"Drop {rows % devices} rows, or pad with {-rows % devices} copies of rows that exist, of weight zero: "
                "the batch is then (inputs, targets, weights)."
            )
    return jax.tree.map(partial(_place, NamedSharding(mesh, PartitionSpec(mesh.axis_names))), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy a pytree, such as parameters and optimizer state, whole to every device of ``mesh``.

    In several processes every one passes the same values, for example made from the same seed. That they agree is not
    checked.
    """
    return jax.tree.map(partial(_place, NamedSharding(mesh, PartitionSpec())), tree)


def start_processes(coordinator: str | None = None, processes: int | None = None, index: int | None = None) -> None:
    """Join the processes of one training run; afterwards ``jax.devices()`` are the devices of all of them.

    Call it first, before anything that asks JAX for a device. Without arguments they come from what started the
    processes, as ``jax.distributed`` finds it: SLURM's ``srun``, Open MPI, Kubernetes, a Cloud TPU. Under ``srun`` each
    process is then given one GPU, that of its local index.

    Args:
      coordinator: "host:port" of process 0, the same in every process; the port is any free one there.
      processes: how many there are.
      index: which one this is, from 0 to ``processes`` - 1.

    Raises:
      ValueError: only some of the arguments are given; one is out of range; without arguments, nothing is found that
        started the processes.
      RuntimeError: JAX has used a device already, or the processes are started already.
    """
    given = {"coordinator": coordinator, "processes": processes, "index": index}
    missing = [f"`{name}`" for name, value in given.items() if value is None]
    if len(missing) in (1, 2):
        raise ValueError(
            f"start_processes: pass all of coordinator, processes and index or none, not without "
            f"{' and '.join(missing)}."
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f'start_processes: `coordinator` must be "host:port", got {coordinator!r}.')
    if processes is not None and index is not None and not 0 <= index < processes:
        raise ValueError(f"start_processes: `index` must be from 0 to {processes - 1}, got {index}.")
    try:
        jax.distributed.initialize(coordinator, processes, index)
    except ValueError as error:
        if coordinator is not None:
            raise
        raise ValueError(
            "start_processes: found nothing that started several processes. Under SLURM start the program by `srun`; "
            'elsewhere pass coordinator="host:port", processes and index. A single process needs no start.'
        ) from error


def _place(sharding: Sharding, leaf: Any) -> jax.Array:
    """The global array of which this process holds ``leaf``."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)  # global already
    return jax.make_array_from_process_local_data(sharding, leaf if hasattr(leaf, "shape") else jnp.asarray(leaf))
