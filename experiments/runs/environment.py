"""What the numbers of a run may depend on besides its configuration: versions, device, data and source."""

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import experiments
import hfopt
from experiments.problems.dataset import Dataset
from experiments.runs.strict_json import read_json

ENVIRONMENT = "environment.json"
_PACKAGES = ("hfopt", "jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy", "scikit-learn")
_PEERS = ("python-somax",)  # recorded where they are installed


def environment(dataset: Dataset, devices: int = 1) -> dict[str, Any]:
    """What the numbers of a run may depend on besides its configuration; names no path and no machine."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "backend": device.platform,
        "device": device.device_kind,
        "devices": devices,
        "x64": bool(jax.config.read("jax_enable_x64")),
        "packages": {name: version(name) for name in (*_PACKAGES, *filter(_is_there, _PEERS))},
        "source": _source_fingerprint(),
        "data": {
            "training_examples": len(dataset.train),
            "test_examples": len(dataset.test),
            "validation_examples": 0 if dataset.validation is None else len(dataset.validation),
            "sha256": dataset.fingerprint(),
        },
    }


def _is_there(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def described_environment(folder: Path) -> str:
    """What a run was made with, as a person reads it: versions, source, processor or accelerator."""
    found = read_json(folder / ENVIRONMENT)
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    where = f"{found['device']} ({found['system']}, {found['architecture']}, {found['cpus']} cores)"
    return f"Python {found['python']}, {packages}, source {found.get('source', 'unknown')}, on {where}"


def _source_fingerprint() -> str:
    """12 hexadecimal digits that change with any line of `hfopt` or `experiments`."""
    digest = hashlib.sha256()
    for package in (hfopt, experiments):
        root = Path(package.__path__[0])
        for file in sorted(root.rglob("*.py")):
            digest.update(f"{root.name}/{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
