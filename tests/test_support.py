"""The table of what is supported is that of the tests, and every row has its test."""

import pytest

from tests.support import PAGE, ROWS, is_there, page_with_table


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_every_row_is_shown_by_a_test(row):
    assert is_there(row)


def test_the_table_in_the_docs_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_table(page), "run python -m tests.support"
