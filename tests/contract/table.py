"""The contract as a table: ``python -m tests.contract.table`` writes it into docs/optax.md."""

from pathlib import Path

from tests.contract.optimizers import OPTIMIZERS, Optimizer
from tests.contract.properties import PROPERTIES

PAGE = Path(__file__).parents[2] / "docs" / "optax.md"
_BEGIN, _END = "<!-- table of tests/contract -->\n", "<!-- end of the table -->\n"


def applies(name: str, optimizer: Optimizer) -> bool:
    """Whether the property means anything for the optimizer."""
    return name != "inject_hyperparams" or optimizer.injected is not None


def render() -> str:
    """The table in Markdown."""
    rows = [["", *(f"`{name}`" for name in OPTIMIZERS), "remark"], ["---", *[":---:"] * len(OPTIMIZERS), "---"]]
    for name, (_, note, refused) in PROPERTIES.items():
        cell = "refused" if refused else "yes"
        rows.append([name, *(cell if applies(name, o) else "–" for o in OPTIMIZERS.values()), note])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def page_with_table(page: str) -> str:
    """``page`` with the table between its marks brought up to date."""
    before, rest = page.split(_BEGIN)
    return before + _BEGIN + render() + _END + rest.split(_END)[1]


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
    print(f"Wrote {PAGE.name}.")
