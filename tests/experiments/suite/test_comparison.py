"""Several optimizers side by side: the table shows the numbers that were recorded."""

import re

import pytest

from experiments.runs.runner import Result
from experiments.settings.config_file import load_config
from experiments.settings.errors import ConfigError
from experiments.suite.comparison import compare, markdown_table

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_comparison_runs_every_optimizer_the_file_configures(comparison):
    results, folder, _ = comparison
    assert [result.summary["optimizer"] for result in results] == ["hessian_free", "adam", "sgd"]
    assert [result.folder.name for result in results] == ["hessian_free-seed0", "adam-seed0", "sgd-seed0"]
    assert (folder / "small" / "comparison-seed0.png").read_bytes().startswith(PNG)


def test_the_table_has_one_row_a_run_with_the_numbers_of_its_summary(comparison):
    results, folder, output = comparison
    markdown = (folder / "small" / "comparison-seed0.md").read_text()
    assert markdown == markdown_table(results)
    header, rule, *rows = markdown.splitlines()
    assert header == "| optimizer | train loss | test accuracy | steps | products | seconds |"
    assert rule.count("|") == header.count("|") == 7
    for row, result in zip(rows, results, strict=True):
        summary = result.summary
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == summary["optimizer"]
        assert float(cells[1]) == pytest.approx(summary["train_loss"], rel=5e-3)
        assert cells[3:5] == [str(summary["steps"]), str(summary["products"])]
        assert re.search(r"\s+".join(map(re.escape, cells)), output)


def test_what_is_printed_off_a_terminal_has_no_control_codes_and_fits_80_columns(comparison):
    output = comparison[2]
    assert "\x1b" not in output
    assert "\r" not in output
    table = output[output.index("parameters") : output.index("table: ")]
    assert max(len(line) for line in table.splitlines()) <= 80


def test_a_diverged_run_is_marked(comparison):
    result = comparison[0][0]
    marked = Result(result.folder, result.summary | {"status": "diverged", "train_loss": float("nan")})
    assert "| hessian_free (diverged) | nan |" in markdown_table([marked])


def test_an_optimizer_without_settings_cannot_be_compared(comparison, console, small_file, tmp_path):
    with pytest.raises(ConfigError, match=r"optimizers\.adm is missing .*hessian_free, adam, sgd"):
        compare(load_config(small_file), ["adm"], runs=tmp_path, console=console)
