"""The README's code runs as printed, and does what its text says."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.float32
def test_the_code_blocks_run_in_order(capsys):
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert "StepInfo(loss=" in capsys.readouterr().out
    info = names["state"].info
    assert info.new_loss < 0.8 * names["value_fn"](names["model"].init(names["jax"].random.key(0), names["images"]))
    assert names["curvature_along_gradient"] > 0


def test_the_files_it_shows_and_links_exist():
    root = Path(__file__).parents[1]
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if "://" not in t]
    assert targets
    assert re.findall(r"^[A-Z_]{6,}$", README, flags=re.MULTILINE) == []  # a placeholder for a table
    assert [t for t in targets if not (root / t).exists()] == []
