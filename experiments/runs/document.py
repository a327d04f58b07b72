"""A page of headings, paragraphs, tables and figures: as HTML with the pictures inside the file, and as Markdown."""

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0.3rem; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; padding-bottom: 0.2rem; }
p.verdict { background: #eef4f9; border-left: 4px solid #0072B2; padding: 0.7rem 1rem; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: 0.92rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; margin: 0.8rem 0; }
th, td { padding: 0.18rem 0.8rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { border-bottom: 1px solid #888; font-weight: 600; }
footer { color: #666; font-size: 0.85rem; margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 0.5rem; }
"""


class _Heading(NamedTuple):
    text: str

    def html(self) -> str:
        return f"<h2>{escape(self.text)}</h2>"

    def markdown(self, folder: Path) -> str:
        return f"## {self.text}"


class _Paragraph(NamedTuple):
    text: str
    kind: str

    def html(self) -> str:
        return f'<p class="{escape(self.kind)}">{escape(self.text)}</p>' if self.kind else f"<p>{escape(self.text)}</p>"

    def markdown(self, folder: Path) -> str:
        return f"> {self.text}" if self.kind else self.text


class _Table(NamedTuple):
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        head = "".join(f"<th>{escape(column)}</th>" for column in self.columns)
        body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'

    def markdown(self, folder: Path) -> str:
        rule = "|---" + "|---:" * (len(self.columns) - 1) + "|"
        return "\n".join([_line(self.columns), rule, *map(_line, self.rows)])


class _Figure(NamedTuple):
    picture: Path
    caption: str

    def html(self) -> str:
        data = base64.b64encode(self.picture.read_bytes()).decode()
        image = f'<img alt="{escape(self.caption)}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{escape(self.caption)}</figcaption></figure>"

    def markdown(self, folder: Path) -> str:
        return f"![{self.caption}]({Path(os.path.relpath(self.picture, folder)).as_posix()})"


class Page:
    """Collects the parts of a page in their order. Texts are text, not HTML; a figure is a PNG file."""

    def __init__(self, title: str, subtitle: str) -> None:
        self._title = title
        self._parts: list[_Heading | _Paragraph | _Table | _Figure] = [_Paragraph(subtitle, "")]

    def heading(self, text: str) -> None:
        self._parts.append(_Heading(text))

    def paragraph(self, text: str, kind: str = "") -> None:
        """A paragraph; of kind `verdict` it stands out."""
        self._parts.append(_Paragraph(text, kind))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column is set to the left, the others to the right."""
        self._parts.append(_Table(columns, rows))

    def figure(self, picture: Path, caption: str) -> None:
        """A PNG file, with what there is to see in it."""
        self._parts.append(_Figure(picture, caption))

    def write(self, path: Path, footer: str) -> Path:
        """Writes the page as self-contained HTML; `footer` says what it was made with."""
        parts = "\n".join([f"<h1>{escape(self._title)}</h1>", *(part.html() for part in self._parts)])
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>'
        html = f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}\n<title>{escape(self._title)}</title></head>\n'
        text = f"{html}<body>\n{parts}\n<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
        path.write_text(text, encoding="utf-8")
        return path

    def write_markdown(self, path: Path, footer: str) -> Path:
        """Writes the page as Markdown, which refers to the pictures where they are."""
        parts = [f"# {self._title}", *(part.markdown(path.parent) for part in self._parts), "---", footer]
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        return path


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |"
