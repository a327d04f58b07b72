"""The theory pages: every formula has code under it that confirms it, and the links of all documents lead somewhere."""

import re

import pytest

from tests.cases import slowly
from tests.test_readme import ROOT, run_blocks

DOCS = ROOT / "docs"
PAGES = ["split.md", "gauss_newton.md", "losses.md", "quadratic_form.md", "fishers.md", "metric.md"]
DISPLAY = r"^\$\$\n(.*?)\n\$\$$"


@pytest.mark.float32
@pytest.mark.parametrize("page", [page if page == "losses.md" else slowly(page) for page in PAGES])
def test_the_code_under_the_formulas_confirms_them(page):
    run_blocks(DOCS / "theory" / page, {})


@pytest.mark.parametrize("page", PAGES)
def test_every_displayed_formula_has_code_directly_under_it(page):
    text = (DOCS / "theory" / page).read_text(encoding="utf-8")
    ends = [match.end() for match in re.finditer(DISPLAY, text, flags=re.DOTALL | re.MULTILINE)]
    assert len(ends) > 5
    assert text.count("$") == 4 * len(ends)  # no other mathematics, inline or broken
    assert all(text[end:].startswith("\n\n```python\n") for end in ends)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert all(re.search(r"\b(assert|assert_allclose|same|check)\b", block) for block in blocks[1:])


@pytest.mark.parametrize("page", PAGES)
def test_formulas_read_the_same_before_and_after_markdown(page):
    """GitHub takes backslashes off punctuation and pairs of underscores and asterisks for emphasis, in formulas too."""
    text = (DOCS / "theory" / page).read_text(encoding="utf-8")
    for formula in re.findall(DISPLAY, text, flags=re.DOTALL | re.MULTILINE):
        assert "\n" not in formula
        assert re.findall(r"\\[^A-Za-z]|[*<>`]|(?<![A-Za-z])_|\]\(", formula) == [], formula


def test_the_index_lists_every_page():
    listed = re.findall(r"^\d\. \[.*\]\((.*)\)", (DOCS / "theory" / "index.md").read_text("utf-8"), flags=re.MULTILINE)
    assert listed == PAGES
    assert {path.name for path in (DOCS / "theory").glob("*.md")} == {"index.md", *PAGES}


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_links_between_the_documents_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in targets if link and not (page.parent / link).exists()] == []
