"""The section of an evaluation's page on the suspicious class: predictive values and the decision curve. No JAX."""

from collections.abc import Mapping
from html import escape
from typing import Any

from mcis.evaluation import figures
from mcis.evaluation.descriptions import PREDICTIVE, meaning, plain_name
from mcis.evaluation.headline import main_part
from mcis.evaluation.html import cell, figure, folded, head, number, row, table
from mcis.evaluation.strata import FEW

ABOUT = (
    "<p>The last class of each organ against the rest, at the decided label. A scan that was rejected, or taken for "
    "another organ, counts as an error: missed if it is of this class, else a false alarm (intention to diagnose). At "
    "other prevalences the predictive values follow from sensitivity and specificity by Bayes' rule; this supposes "
    "that both stay as they are, which easier cases of a screening would not grant.</p>"
)


def clinical_section(found: Mapping[str, Any]) -> str:
    """The section, of all sources together; other sources are folded. "" where no class is suspicious."""
    name, part = main_part(found)
    text = _organs(name, part)
    others = "".join(_organs(source, one, False) for source, one in found["sources"].items() if source != name)
    return ABOUT + text + folded("By source", others) if text else ""


def _organs(source: str, part: Mapping[str, Any], drawn: bool = True) -> str:
    return "".join(_organ(source, organ, one, drawn) for organ, one in part.get("clinical", {}).items())


def _organ(source: str, organ: str, one: Mapping[str, Any], drawn: bool) -> str:
    title = f"{source}, {organ}: {one['class']}, {one['positives']:,} of {one['scans']:,} scans"
    title += f" ({one['positive_groups']:,} of {one['groups']:,} groups)"
    rows, groups = [], {"positives": one["positive_groups"], "others": one["other_groups"]}
    for kind, name, right in (("positives", one["class"], "sensitivity"), ("others", "others", "specificity")):
        cells = [number(f"{n:,}") for n in one["counts"][kind].values()]
        cells.append(cell(one["metrics"].get(right), groups=groups[kind]))
        rows.append(row(f"{name}: {right}", cells, title=meaning(right)))
    columns = map(head, (f"called {one['class']}", "not called so", "not analysed", "share that is right"))
    counts = table("scans", columns, rows)
    lines = []
    for at in one["prevalences"]:
        own = f"{100 * at['prevalence']:.3g} %{', as here' * at['own']}"
        lines.append(row(own, [cell(at.get(name), groups=min(groups.values())) for name in PREDICTIVE]))
    heads = [head(plain_name(name), title=PREDICTIVE[name]) for name in PREDICTIVE]
    tables = counts + table("prevalence", heads, lines)
    text = f"<h3>{escape(title)}</h3>"
    if not drawn or "decision_curve" not in one:
        return text + tables
    enough = min(groups.values()) >= FEW
    curve = figures.decision_curve(
        one["decision_curve"], enough, one["positives"] / one["scans"], f"Decision curve, {source}, {organ}"
    )
    caption = (
        f"decision curve: true positives less false positives, weighted by the odds of the threshold, at this share of "
        f"{escape(one['class'])} scans; useful where it is above both other lines"
        f"{'; the band: 95 % by group' if enough else '; no band: too few groups'}"
    )
    return f'{text}<div class="pair"><div>{tables}</div>{figure(curve, caption)}</div>'
