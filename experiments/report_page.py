"""A self-contained HTML page: headings, paragraphs, tables and figures, with the pictures inside the file."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

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


class Page:
    """Collects the parts of a page in their order. Texts are text, not HTML."""

    def __init__(self, title: str, subtitle: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(subtitle)}</p>"]

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, kind: str = "") -> None:
        """A paragraph; of kind `verdict` it stands out."""
        self._parts.append(f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column is set to the left, the others to the right."""
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
        self._parts.append(f'<div class="wide">{table}</div>')

    def figure(self, picture: Path, caption: str) -> None:
        """A PNG file, kept inside the page, with what there is to see in it."""
        data = base64.b64encode(picture.read_bytes()).decode()
        image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        self._parts.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")

    def write(self, path: Path, footer: str) -> Path:
        """Writes the page; `footer` says what it was made with."""
        parts = "\n".join([*self._parts, f"<footer>{escape(footer)}</footer>"])
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>'
        html = f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}\n<title>{escape(self._title)}</title></head>\n'
        path.write_text(f"{html}<body>\n{parts}\n</body>\n</html>\n", encoding="utf-8")
        return path
