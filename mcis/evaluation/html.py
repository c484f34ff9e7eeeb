"""Parts of an evaluation's page: lists of facts, tables, captioned figures. No JAX.

Texts from data are escaped here; arguments that are HTML already say so.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from mcis.evaluation.descriptions import meaning, plain_name
from mcis.evaluation.strata import FEW
from mcis.ops.metrics import with_interval

NO_WIDTH = "the same in every resampling, which is no certainty: for a rate of 0 in n groups, up to 3 / n is plausible"
"""What an interval without width means: the rule of three."""


def fact_list(facts: Mapping[str, Any], more: str = "") -> str:
    """Names and values; `more` are further entries, HTML."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{rows}{more}</dl>'


def _title(text: str) -> str:
    """The attribute that shows a text where the pointer rests."""
    return f' title="{escape(text)}"' if text else ""


def head(name: str, note: str = "", title: str = "") -> str:
    """A head of a column of numbers, with a note in small print, and a text to show where the pointer rests."""
    small = f"<small>{escape(note)}</small>" if note else ""
    return f'<th class="n"{_title(title)}>{escape(name)}{small}</th>'


def metric_head(name: str) -> str:
    """The head of a metric's column."""
    return head(plain_name(name), title=meaning(name))


def number(text: Any, style: str = "") -> str:
    """A cell of a number that is already formatted."""
    return f'<td class="{f"n {style}".strip()}">{text}</td>'


def cell(found: Mapping[str, float | None] | None, sign: str = "", groups: int = FEW) -> str:
    """A cell of a value and its interval, empty for None; with `sign` "+" a difference.

    Of fewer than FEW groups an interval would be too narrow: the cell says so in place of it. An interval without width
    is no certainty: a rate of 0 or 1 stays so in every resampling.
    """
    if found is None:
        return "<td></td>"
    value, ends = with_interval(found, sign).split(" ", 1)
    if groups < FEW:
        ends = f'<abbr title="fewer than {FEW} groups: an interval would be too narrow">few</abbr>'
    elif found["low"] is not None and found["low"] == found["high"] and not sign:
        ends = f'<abbr title="{NO_WIDTH}">no width</abbr>'
    return number(f"{value} <small>{ends}</small>")


def row(name: str, cells: Iterable[str], style: str = "", title: str = "") -> str:
    """A row of a table: its name, with a text to show where the pointer rests, and cells, HTML."""
    kind = f' class="{style}"' if style else ""
    return f"<tr{kind}><th{_title(title)}>{escape(name)}</th>{''.join(cells)}</tr>"


def metric_row(name: str, cells: Iterable[str], style: str = "") -> str:
    """A row of a metric: its name in print and in report.json, and cells, HTML."""
    kind = f' class="{style}"' if style else ""
    head = f"<th{_title(meaning(name))}>{escape(plain_name(name))} <small>{escape(name)}</small></th>"
    return f"<tr{kind}>{head}{''.join(cells)}</tr>"


def table(corner: str, heads: Iterable[str], rows: Iterable[str], style: str = "") -> str:
    """A table that scrolls sideways where it is too wide: heads and rows, HTML."""
    top = f"<thead><tr><th>{escape(corner)}</th>{''.join(heads)}</tr></thead>"
    kind = f' class="{style}"' if style else ""
    return f'<div class="wide" tabindex="0"><table{kind}>{top}<tbody>{"".join(rows)}</tbody></table></div>'


def folded(summary: str, text: str) -> str:
    """HTML that is shown on a click; "" where there is none."""
    return f"<details><summary>{escape(summary)}</summary>{text}</details>" if text else ""


def figure(svg: str, caption: str, broad: bool = False) -> str:
    """An SVG below its caption, both HTML; as broad as the page, or next to others."""
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{' class=broad' if broad else ''}>{text}{svg}</figure>"
