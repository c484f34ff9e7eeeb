"""Pieces of an evaluation's page: a list of facts, a figure's cell, a captioned picture. No JAX.

Texts from data go through `html.escape` here; a picture and its caption are HTML already.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from mcis.ops.metrics import with_interval


def fact_list(facts: Mapping[str, Any], more: str = "") -> str:
    """Names and values; `more` are further entries, as HTML."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{rows}{more}</dl>'


def cell(found: Mapping[str, float | None] | None, sign: str = "") -> str:
    """A table's cell: a value and its interval, empty for None; with `sign` "+" a difference."""
    if found is None:
        return "<td></td>"
    value, ends = with_interval(found, sign).split(" ", 1)
    return f'<td class="n">{value} <small>{ends}</small></td>'


def figure(svg: str, caption: str, broad: bool = False) -> str:
    """A picture below its caption, as broad as the page or one of several beside each other."""
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{' class=broad' if broad else ''}>{text}{svg}</figure>"
