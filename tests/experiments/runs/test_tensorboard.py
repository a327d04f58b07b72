"""Event files hold what metrics.jsonl holds, read back by their published format, not by the library that wrote them.

A record is its length (8 bytes), the masked CRC-32C of those, the data, and their masked CRC-32C. The data are an
`Event` message in the wire format of protocol buffers: wall_time = 1 (double), step = 2 (varint), summary = 5, which
holds values = 1 with tag = 1, simple_value = 2 (float), tensor = 8 (string_val = 8).
"""

import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.__main__ import main
from tests.experiments.recorded_runs import ROWS, leave_run


def crc32c(data: bytes) -> int:
    """Castagnoli's polynomial, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def records(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    while content:
        length, checksum, content = content[:8], content[8:12], content[12:]
        assert checksum == masked(length)
        size = struct.unpack("<Q", length)[0]
        data, checksum, content = content[:size], content[size : size + 4], content[size + 4 :]
        assert checksum == masked(data)
        yield data


def varint(data: bytes) -> tuple[int, bytes]:
    value = shift = 0
    while True:
        byte, data = data[0], data[1:]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, data


def fields(data: bytes) -> Iterator[tuple[int, object]]:
    """(number, value) of every field of a message."""
    while data:
        key, data = varint(data)
        match key & 7:
            case 0:
                value, data = varint(data)
            case 1:
                value, data = struct.unpack("<d", data[:8])[0], data[8:]
            case 2:
                size, data = varint(data)
                value, data = data[:size], data[size:]
            case 5:
                value, data = struct.unpack("<f", data[:4])[0], data[4:]
        yield key >> 3, value


def events(folder: Path) -> tuple[dict, dict]:
    """({(tag, step): (value, wall time)}, {tag: text}) of the one event file in a folder."""
    (path,) = folder.iterdir()
    scalars, texts = {}, {}
    for record in records(path):
        event = dict(fields(record))
        for _, value in fields(event.get(5, b"")):
            value = dict(fields(value))
            tag = value[1].decode()
            if 8 in value:
                texts[tag] = dict(fields(value[8]))[8].decode()
            else:
                scalars[tag, event.get(2, 0)] = value.get(2, 0.0), event[1]
    return scalars, texts


def test_the_checksum_is_the_published_one():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


def test_every_number_is_a_scalar_at_its_step_and_time(small_file, tmp_path, capsys):
    run = leave_run(tmp_path / "runs", small_file)
    assert main(["tensorboard", str(run), "--out", str(tmp_path / "out")]) == 0
    assert f"1 run; look at them with: tensorboard --logdir {tmp_path / 'out'}" in capsys.readouterr().out
    scalars, texts = events(tmp_path / "out" / "small" / "adam-seed0")

    numbers = {(name, row["step"]): row[name] for row in ROWS for name in row if name not in ("step", "cg_stop")}
    assert {(tag.partition("/")[2], step) for tag, step in scalars} == set(numbers)
    began = (run / "config.yaml").stat().st_mtime
    seconds = {row["step"]: row["seconds"] for row in ROWS}
    for (tag, step), (value, wall_time) in scalars.items():
        assert value == pytest.approx(float(numbers[tag.partition("/")[2], step]), nan_ok=True)
        assert wall_time == began + seconds[step]
    assert math.isnan(scalars["step/loss", 3][0])
    groups = {tag.partition("/")[2]: tag.partition("/")[0] for tag, _ in scalars}
    assert (groups["train_loss"], groups["test_accuracy"]) == ("evaluation", "evaluation")
    assert (groups["products"], groups["loss"], groups["accepted"]) == ("cost", "step", "step")

    for tag, file in (("configuration", "config.yaml"), ("environment", "environment.json")):
        lines = texts[f"{tag}/text_summary"].splitlines()
        assert [line.removeprefix("    ") for line in lines] == (run / file).read_text().splitlines()


def test_folders_of_runs_keep_their_names_and_a_second_export_replaces_the_first(small_file, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    leave_run(runs, small_file, seed=1)
    leave_run(runs / "sweep", small_file, name="cell", status=None)
    for _ in range(2):
        assert main(["tensorboard", str(runs), "--out", str(out)]) == 0
        assert len([path for path in out.rglob("*") if path.is_file()]) == 2
        for folder in ("small/adam-seed1", "sweep/cell/adam-seed0"):
            assert len(events(out / folder)[0]) == sum(len(row) - 1 - ("cg_stop" in row) for row in ROWS)
    assert main(["tensorboard", str(runs / "sweep"), "--out", str(out / "alone")]) == 0
    assert (out / "alone" / "cell" / "adam-seed0").is_dir()


def test_what_cannot_be_exported_is_one_message(small_file, tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "out")]
    run = leave_run(tmp_path / "runs", small_file)
    (tmp_path / "empty").mkdir()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    for path, message in (
        (tmp_path / "none", "none is not a folder"),
        (tmp_path / "empty", "empty is not a run folder, and there is none below it"),
        (run, "needs tensorboardX: pip install 'hfopt[tensorboard]'"),
    ):
        assert main(["tensorboard", str(path), *out]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
