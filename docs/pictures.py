"""Draw the pictures of README.md and docs/python_api.md: `make demo && make pictures`.

    python docs/pictures.py [WEIGHTS]       by default demo/weights, which `make demo` trains on phantoms

README's shows real scans (launch/examples) and the findings of the bundled weights. The page's pictures and printed
output are of phantoms and WEIGHTS, and differ slightly between machines.
"""

import contextlib
import io
import pathlib
import re
import sys
import tempfile
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import mcis
from mcis.inference.predictor import Predictor
from mcis.ops.metrics import dice, mask_counts
from mcis.organs import organ_named

DOCS = pathlib.Path(__file__).parent
EXAMPLES = DOCS.parent / "launch" / "examples"
SHOWN = {
    "brain_tumor_0": "T1 after contrast, a hospital not trained on",
    "breast_benign_0": "BUS-BRA, test split: benign",
    "breast_malignant_0": "BUS-BRA, trained on: malignant",
}
"""Example -> its caption: the first of each class, not chosen by the predictions."""
INK, FAINT, GROUND, BAR = "#1f2328", "#59636e", "#ffffff", "#2f6fde"
"""Colours on an own background, legible on light and dark pages."""
CAPTION: dict = {"color": FAINT, "fontsize": 9, "va": "center", "in_layout": False}


def draw(predictor: Predictor, path: pathlib.Path) -> None:
    """Draw one row per example: scan, organ, label with probabilities, outlined lesion."""
    figure, axes = plt.subplots(
        len(SHOWN), 4, figsize=(10, 2.5 * len(SHOWN)), width_ratios=(1, 0.75, 1.1, 1), facecolor=GROUND
    )
    titles = ("scan", "which organ?", "which class?", "where is the lesion?")
    for (example, caption), row in zip(SHOWN.items(), axes, strict=True):
        result = predictor.predict(EXAMPLES / f"{example}.png")
        finding = result.finding
        for axis in row:
            axis.axis("off")
            axis.set_anchor("NW")
        row[0].imshow(result.image)
        row[0].text(
            0, -0.07, caption, color=FAINT, fontsize=9, va="center", transform=row[0].transAxes, in_layout=False
        )
        organ_text = finding.organ if finding.label is None else organ_named(finding.organ).scan
        row[1].text(0.5, 0.55, organ_text.replace(" ", "\n"), color=INK, fontsize=13, ha="center", va="center")
        row[1].text(0.5, 0.2, f"{finding.organ_prob:.3f}", color=FAINT, fontsize=10, ha="center", va="center")
        if finding.reason is not None:
            reason = textwrap.fill(finding.reason, 30)
            row[2].text(0, 0.5, reason, color=FAINT, fontsize=9, va="center", transform=row[2].transAxes)
        probs = finding.label_probs or {}
        row[2].set(xlim=(-0.02, 1.25), ylim=(len(probs) - 0.3, -0.7) if probs else (1, 0))
        for place, (name, prob) in enumerate(probs.items()):
            row[2].barh(place, prob, height=0.32, color=BAR if name == finding.label else "#b6c2cf")
            weight = "bold" if name == finding.label else "normal"
            row[2].text(0, place - 0.32, name, color=INK, fontsize=10, weight=weight, va="center")
            row[2].text(prob + 0.03, place, f"{prob:.2f}", color=FAINT, fontsize=9, va="center")
        row[3].imshow(result.overlay())
        below = "no mask"
        if result.mask is not None:
            truth = np.asarray(Image.open(EXAMPLES.with_name("outlines") / f"{example}.png").convert("L")) > 127
            counts = mask_counts(result.mask[None, ..., None] > 0, truth[None, ..., None])
            below = f"Dice {dice(**counts).item():.2f} with the published outline"
        row[3].text(0, -0.07, below, transform=row[3].transAxes, **CAPTION)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, color=INK, fontsize=11, pad=10)
    figure.tight_layout(rect=(0, 0.02, 1, 1), w_pad=2, h_pad=3)
    figure.text(0.5, 0.01, mcis.NOTICE, color=FAINT, fontsize=8, ha="center", va="bottom")
    figure.savefig(path, dpi=90)
    plt.close(figure)
    quantize(path, path)


def quantize(picture: pathlib.Path, path: pathlib.Path) -> None:
    """Store a picture with 256 colours, which halves its size; rare colours such as the outline's are kept."""
    Image.open(picture).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


BLOCKS = re.compile(r"(?m)^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.DOTALL)
"""A code block of a page, and its printed output."""


def run(page: str) -> str:
    """The page with the current output of its blocks, run in one namespace; figures go to the working folder."""
    names: dict = {}

    def run_block(block: re.Match) -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(block[1], "python_api.md", "exec"), names)
        printed = output.getvalue()
        return f"```python\n{block[1]}```" + (f"\n\n```text\n{printed}```" if printed else "")

    return BLOCKS.sub(run_block, page)


def main() -> None:
    """Draw all pictures and rewrite docs/python_api.md."""
    weights = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "demo/weights").resolve()
    draw(mcis.load(), DOCS / "picture.png")
    page = DOCS / "python_api.md"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        pathlib.Path("demo").mkdir()
        pathlib.Path("demo/weights").symlink_to(weights)
        text = run(page.read_text(encoding="utf-8"))
        for figure in pathlib.Path().glob("python_api_*.png"):
            quantize(figure, DOCS / figure.name)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    plt.switch_backend("agg")
    main()
