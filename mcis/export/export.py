"""`mcis export --out DIR`: weights as one file that needs nothing of mcis, StableHLO for JAX or ONNX.

The folder holds model.stablehlo or model.onnx, metadata.json, which says what goes in and what comes out, and run.py
(`mcis.export.run`), which takes a picture through it; and the weights' licence where they have one.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import mcis
from mcis.export import run
from mcis.imaging.letterbox import INPUT_SIZE, MIN_CONTENT
from mcis.organs import ORGANS

if TYPE_CHECKING:
    import jax

    from mcis.checkpoints.bundle import Weights
    from mcis.inference.options import InferenceOptions

Function = Callable[["jax.Array"], dict[str, "jax.Array"]]
"""Canvases, uint8 (B, INPUT_SIZE, INPUT_SIZE, 3), to named arrays of B rows."""

PLATFORMS = ("cpu", "cuda", "tpu")
"""What StableHLO is lowered for; one file serves them all."""
OPSET = 18
"""Of the ONNX file: that which most runtimes read, not the newest."""
FILES = ("metadata.json", "run.py", "LICENSE", "model.stablehlo", "model.onnx")
"""All that an export may hold."""
GET_JAX2ONNX = (
    "--format=onnx needs jax2onnx, which is not installed. It asks for an older Orbax than mcis does, so give it an "
    "environment of its own: `make .venv-onnx/.installed` in a checkout of mcis makes one; elsewhere install mcis and "
    "then jax2onnx==0.17.0 into a new one (the Orbax that it brings reads weights as well)"
)

OUTPUTS = {
    "organ": "index into organs; as many as there are organs: unsupported",
    "choice": "the router's first choice, index into organs; the organ itself where it was fixed at export",
    "organ_prob": "the router's probability of its first choice; NaN where the organ was fixed at export",
    "novelty": "distance from the scans the router learned from, in units of what is allowed: above 1 it is "
    "unsupported; NaN where that is not asked",
    "needed": "the smallest organ_prob that is believed; NaN where the organ was fixed at export",
    "label": "index into the organ's classes; -1: unsupported, or no classifier of that organ",
    "label_probs": "calibrated probability of each of the organ's classes, in their order; 0 past them",
    "segmented": "whether the scan was given to a segmenter; where not, its mask is 0 and means nothing",
    "mask": "probability that a pixel of the canvas is lesion; to be cut at thresholds.mask on the scan's own grid",
    "confidence": "the label's probability times the Dice that the mask expects of itself; NaN where unsupported",
    "review": "1: the confidence is below the organ's limit, so that somebody should look; 0: not; -1: no limit",
    "organ_probs": "the router's probability of each of classes, in their order",
}
"""What each output means."""

PREPROCESSING = {
    "colour": "RGB; grey pictures have three equal channels; alpha is laid over black",
    "depth": "more than 8 bits are scaled linearly from the picture's minimum and maximum to [0, 255]",
    "content_crop": "the bounding box of all contours of at least 1 % of the picture, of what differs by more than 20 "
    "grey levels from the median of its outermost pixels (Gaussian 5x5 before, two erosions and two dilations 3x3 "
    "after); at least half the picture along either axis; the whole picture where that finds nothing",
    "letterbox": f"the crop is resized so that its longer side has {INPUT_SIZE} pixels (OpenCV's INTER_AREA when "
    f"shrinking, else INTER_LINEAR) and laid into the middle of a black square of {INPUT_SIZE}",
    "standardisation": "inside the model, as is resizing to each network's own size: give it uint8 in [0, 255]",
    "code": "read, fit and unfit of run.py, which do exactly this",
}


def cascade_function(found: Mapping[str, "Weights"], asked: "InferenceOptions") -> Function:
    """The cascade of a set of weights, which are constants in it: the fields of `cascade.Prediction`, by name."""
    from mcis.inference import cascade

    predict = cascade.make_cascade({name: one.task for name, one in found.items()}, asked)
    variables = {name: one.variables for name, one in found.items()}
    return lambda image: dict(vars(predict(variables, image)))


def network_function(weights: "Weights", apart: bool = False) -> Function:
    """One task's network, or ensemble, with calibration and CRF: "organ_probs" or "label_probs" (B, K), "mask".

    Args:
      weights: the task's.
      apart: write an ensemble's networks out one by one, which ONNX has no loop for that a runtime would be quick at.
    """
    import jax

    from mcis.tasks.apply import make_expert, place

    expert, variables = make_expert(weights.task), weights.variables
    if apart:
        variables = jax.device_get(place(variables))

    def function(image: "jax.Array") -> dict[str, "jax.Array"]:
        outputs = expert(variables, image)
        label = "organ_probs" if weights.task.organ is None else "label_probs"
        named = {label: outputs.label, "mask": outputs.mask}
        return {name: value for name, value in named.items() if value is not None}

    return function


def outputs_of(function: Function) -> dict[str, Any]:
    """Name -> shape and type of one row of each of the function's outputs."""
    import jax

    shapes = jax.eval_shape(function, jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), "uint8"))
    return {name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in shapes.items()}


def to_stablehlo(function: Function) -> bytes:
    """The function for any batch of 1 and more, serialized by `jax.export`, for PLATFORMS."""
    import jax
    import jax.export

    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, INPUT_SIZE, INPUT_SIZE, 3), "uint8")
    return bytes(jax.export.export(jax.jit(function), platforms=PLATFORMS)(image).serialize())


@contextlib.contextmanager
def _plain_forms() -> Iterator[None]:
    """Have `lax.platform_dependent` take its default, as JAX2ONNX knows no platforms; it changes JAX likewise."""
    from jax import lax

    chosen = lax.platform_dependent
    lax.platform_dependent = lambda *args, default, **_: default(*args)
    try:
        yield
    finally:
        lax.platform_dependent = chosen


def to_onnx(function: Function, metadata: Mapping[str, Any]) -> bytes:
    """The function for any batch as an ONNX file of standard operators, metadata in its metadata_props as JSON.

    Raises:
      ValueError: jax2onnx is not there, or cannot convert the function.
    """
    try:
        import jax2onnx
    except ImportError:
        raise ValueError(GET_JAX2ONNX) from None
    import logging

    import jax
    import onnx

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # a warning for every shape that it leaves to the runtime
    names = list(metadata["outputs"])

    def in_order(x: "jax.Array") -> tuple["jax.Array", ...]:
        outputs = function(x)
        return tuple(outputs[name] for name in names)

    image = jax.ShapeDtypeStruct(("batch", INPUT_SIZE, INPUT_SIZE, 3), "uint8")
    try:
        with _plain_forms():
            model = jax2onnx.to_onnx(
                in_order,
                [image],
                model_name=f"mcis {metadata['what']}",
                opset=OPSET,
                input_names=["image"],
                output_names=names,
            )
        onnx.checker.check_model(
            model, full_check=True
        )  # shapes as well: some converted operators contradict themselves
    except Exception as error:  # what a converter does not know it meets in many ways
        told = str(error).partition("\n")[0]
        raise ValueError(f"{metadata['what']} cannot be written as ONNX ({told}); --format=stablehlo can") from None
    if domains := {node.domain for node in model.graph.node} - {""}:
        raise ValueError(f"{metadata['what']} needs operators of {', '.join(domains)}; --format=stablehlo can")
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    return model.SerializeToString()


def described(
    found: Mapping[str, "Weights"], asked: "InferenceOptions", outputs: Mapping[str, Any], licence: str | None
) -> dict[str, Any]:
    """What metadata.json says, but for the format and the file of the model.

    Args:
      found: the weights that are exported.
      asked: how.
      outputs: of `outputs_of`.
      licence: of the weights, its text.
    """
    from mcis.checkpoints.checkpoint import versions
    from mcis.inference.cascade import THRESHOLD
    from mcis.ops.metrics import MASK_THRESHOLD

    routed = asked.task is None and asked.organ is None
    thresholds: dict[str, Any] = {"mask": MASK_THRESHOLD, "content_px": MIN_CONTENT}
    if routed:
        fitted = found["route"].variables.get("threshold", THRESHOLD)
        thresholds["organ_prob"] = float(fitted if asked.threshold is None else asked.threshold)
        if asked.novelty and "novelty" in found["route"].variables:
            thresholds["novelty"] = 1.0
    if asked.task is None:
        fits = {name: one.variables.get("calibration", {}) for name, one in found.items()}
        thresholds["review"] = {name: float(fit["review"]) for name, fit in fits.items() if "review" in fit}
    tasks = {}
    for name, one in found.items():
        facts = {fact: one.manifest[fact] for fact in ("classes", "epoch", "validation", "versions")}
        network = {"model": one.task.model, "size_px": one.task.size, "networks": one.networks}
        tasks[name] = facts | network | {"sources": list(one.task.sources), "sha256": one.manifest["files"]}
    side = INPUT_SIZE
    what: dict[str, Any] = {"what": asked.task or "cascade"}
    if asked.task is not None:
        task = found[asked.task].task
        what |= {"organ": task.organ, "classes": list(task.classes)}
    return what | {
        "notice": mcis.NOTICE,
        "input": {"name": "image", "dtype": "uint8", "shape": ["batch", side, side, 3], "layout": "NHWC, RGB"},
        "preprocessing": PREPROCESSING,
        "outputs": {
            name: {"dtype": leaf.dtype.name, "shape": ["batch", *leaf.shape], "meaning": OUTPUTS[name]}
            for name, leaf in outputs.items()
        },
        "organs": [{"name": o.name, "scan": o.scan, "classes": o.classes, "lesions": o.lesions} for o in ORGANS],
        "thresholds": thresholds,
        "refuses_thumbnails": routed and asked.novelty,
        "asked": dataclasses.asdict(asked),
        "weights": {"licence": licence, "tasks": tasks},
        "versions": versions(),
    }


def check_out(out: pathlib.Path) -> None:
    """ValueError unless there is nothing at `out`, an empty folder, or an export and nothing else."""
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {"a file"}
    if names and not ("metadata.json" in names and names <= set(FILES)):
        strange = ", ".join(sorted(names - set(FILES))[:3]) or "no metadata.json"
        raise ValueError(f"{out} is there and is no export ({strange}); name another --out")


def write(out: pathlib.Path, metadata: dict[str, Any], model: bytes, licence: str | None) -> None:
    """Write an export; it appears whole or not at all, and replaces an older one."""
    out = out.absolute()
    aside, old = (out.with_name(f".{out.name}.{suffix}") for suffix in ("tmp", "old"))
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    file = f"model.{metadata['format']}"
    (aside / file).write_bytes(model)
    facts = {"file": file, "bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()}
    text = json.dumps({"model": facts} | metadata, indent=1) + "\n"
    (aside / "metadata.json").write_text(text, encoding="utf-8")
    shutil.copyfile(run.__file__, aside / "run.py")
    if licence is not None:
        (aside / "LICENSE").write_text(licence, encoding="utf-8")
    check_out(out)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
