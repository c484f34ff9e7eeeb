"""Parts of an evaluation's page: lists of facts, tables, captioned figures. No JAX.

Texts from data are escaped here; arguments that are HTML already say so.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from mcis.ops.metrics import with_interval


def fact_list(facts: Mapping[str, Any], more: str = "") -> str:
    """Names and values; `more` are further entries, HTML."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{rows}{more}</dl>'


def head(name: str, note: str = "") -> str:
    """A head of a column of numbers, with a note in small print."""
    return f'<th class="n">{escape(name)}{f"<small>{escape(note)}</small>" if note else ""}</th>'


def number(text: Any, style: str = "") -> str:
    """A cell of a number that is already formatted."""
    return f'<td class="{f"n {style}".strip()}">{text}</td>'


def cell(found: Mapping[str, float | None] | None, sign: str = "") -> str:
    """A cell of a value and its interval, empty for None; with `sign` "+" a difference."""
    if found is None:
        return "<td></td>"
    value, ends = with_interval(found, sign).split(" ", 1)
    return number(f"{value} <small>{ends}</small>")


def row(name: str, cells: Iterable[str], style: str = "") -> str:
    """A row of a table: its name, and cells, HTML."""
    return f"<tr{f' class={style}' if style else ''}><th>{escape(name)}</th>{''.join(cells)}</tr>"


def table(corner: str, heads: Iterable[str], rows: Iterable[str], style: str = "") -> str:
    """A table that scrolls sideways where it is too wide: heads and rows, HTML."""
    top = f"<thead><tr><th>{escape(corner)}</th>{''.join(heads)}</tr></thead>"
    kind = f' class="{style}"' if style else ""
    return f'<div class="wide"><table{kind}>{top}<tbody>{"".join(rows)}</tbody></table></div>'


def figure(svg: str, caption: str, broad: bool = False) -> str:
    """An SVG below its caption, both HTML; as broad as the page, or next to others."""
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{' class=broad' if broad else ''}>{text}{svg}</figure>"
