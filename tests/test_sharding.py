"""A step on many devices, and in two processes, is the step of one device, with one all-reduce a CG iteration."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from hfopt import sharding

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "sharding.md").read_text(encoding="utf-8")
# Compilation is what these tests spend their time on; LLVM's share of it is not under test.
UNOPTIMISED = "--xla_backend_optimization_level=0"


def start(*arguments: object, flags: str = "") -> subprocess.Popen:
    """Start Python on CPU, warnings being errors there too."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{UNOPTIMISED} {flags}"}
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen) -> str:
    printed, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-4000:]
    return printed


@pytest.mark.slow
def test_steps_on_eight_devices_are_those_of_one():
    # One test, since the program compiles for most of a minute.
    report = json.loads(output(start("-m", "tests.sharded_steps", flags="--xla_force_host_platform_device_count=8")))
    assert report["devices"] == 8
    for name, (one, *sharded) in report["comparisons"].items():
        single = name.endswith("float32")
        assert one["collectives"] == []
        for many in sharded:
            np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5 if single else 1e-6, err_msg=name)
            distance = np.linalg.norm(np.subtract(many["params"], one["params"])) / np.linalg.norm(one["params"])
            assert distance < (1e-4 if single else 1e-6), name
    # The unchunked program has one in either branch, the last iteration being half a product; the chunked one has it in
    # the loop over chunks.
    for name in ("mlp", "cnn-float32"):
        whole, *chunked = (many["collectives"] for many in report["comparisons"][name][1:])
        assert whole == ["all-reduce"] * 2, name
        assert chunked == [["all-reduce"]] * len(chunked), name
    assert "30 rows of `batch[0]` do not divide by the 8 devices" in report["rejection"]
    assert "Drop 6 rows, or pad with 2" in report["rejection"]


@pytest.mark.slow
def test_steps_and_operators_on_a_mesh_with_explicit_axes_are_those_without_a_mesh():
    report = json.loads(output(start("-m", "tests.explicit_steps", flags="--xla_force_host_platform_device_count=4")))
    assert report["devices"] == 4
    assert len(report["without"]) == len(report["explicit"]) == 17
    for name, expected in report["without"].items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(report["explicit"][name], expected, atol=1e-6 * scale, rtol=0, err_msg=name)
    assert set(report["check"]) == {"ok"}


@pytest.mark.slow
def test_a_run_saved_on_eight_devices_goes_on_with_any_number(tmp_path):
    program = start("-m", "tests.restored_steps", tmp_path, flags="--xla_force_host_platform_device_count=8")
    report = json.loads(output(program))
    for count in ("1", "2", "8"):
        np.testing.assert_allclose(report[count], report["straight"], rtol=1e-6)
    assert len(set(report["straight"])) == len(report["straight"])


# CG amplifies rounding: at the defaults another order of the rows on one device changes the last loss by 1e-3. A few
# plain iterations do not, and show that the two processes compute the same.
@pytest.mark.slow
@pytest.mark.float32
@pytest.mark.parametrize(
    ("transformation", "rtol"),
    [
        ("hfopt.hessian_free()", 1e-2),
        ("hfopt.hessian_free(solver=hfopt.cg(max_steps=5), preconditioner=None)", 1e-5),
    ],
)
def test_the_documented_script_prints_the_same_losses_in_two_processes(
    tmp_path, monkeypatch, capsys, transformation, rtol
):
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    assert "hfopt.hessian_free()" in script
    script = script.replace("hfopt.hessian_free()", transformation)
    path = tmp_path / "train.py"
    path.write_text(script, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    processes = [start(path, coordinator, 2, index) for index in range(2)]
    try:
        first, second = map(output, processes)
    finally:
        for process in processes:
            process.kill()

    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    exec(compile(script, "train.py", "exec"), {})
    # Gloo prints lines of its own.
    losses = lambda printed: [float(loss) for loss in re.findall(r"^\d+ (\S+)$", printed, re.MULTILINE)]  # noqa: E731
    expected = losses(capsys.readouterr().out)
    assert len(expected) == 5
    assert expected[-1] < 0.8 * expected[0]
    np.testing.assert_allclose(losses(first), expected, rtol=rtol)
    assert losses(second) == []


def test_a_leaf_without_rows_is_named():
    with pytest.raises(ValueError, match=r"`batch\['x'\]` is a scalar"):
        sharding.shard_batch({"x": np.float32(1)}, sharding.data_mesh())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "localhost:1234"}, "not without `processes` and `index`"),
        ({"processes": 2, "index": 0}, "not without `coordinator`"),
        ({"coordinator": "localhost", "processes": 2, "index": 0}, '"host:port"'),
        ({"coordinator": "localhost:1234", "processes": 2, "index": 2}, "from 0 to 1, got 2"),
    ],
)
def test_arguments_of_start_processes_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        sharding.start_processes(**arguments)


def test_what_started_the_processes_must_be_found(monkeypatch):
    def initialize(*_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="found nothing that started several processes"):
        sharding.start_processes()


def test_processes_start_before_devices_are_used():
    jax.devices()
    with pytest.raises(RuntimeError, match="before"):
        sharding.start_processes("localhost:1234", 1, 0)
