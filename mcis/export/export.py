"""`mcis export --out DIR`: weights as one file that runs without mcis, StableHLO for JAX or ONNX.

The folder holds model.stablehlo or model.onnx; metadata.json, which describes inputs and outputs; run.py (a copy of
`mcis.export.run`), which runs the model on images; and LICENSE, the licence of the weights, if they have one.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
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
"""From model inputs, uint8 (B, INPUT_SIZE, INPUT_SIZE, 3), to named arrays of B rows."""

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms that a StableHLO file is lowered for."""
OPSET = 18
"""Operator set of ONNX files: one that most runtimes support, not the newest."""
FILES = ("metadata.json", "run.py", "LICENSE", "model.stablehlo", "model.onnx")
"""Names of the files of an export."""
GET_JAX2ONNX = (
    "--format=onnx needs jax2onnx, which is not installed. It requires an older Orbax than mcis does, so install it "
    "into a separate environment: `make .venv-onnx/.installed` in a checkout of mcis; elsewhere install mcis and then "
    "jax2onnx==0.17.0 into a new one (the Orbax that it installs reads the weights as well)"
)

OUTPUTS = {
    "organ": "index into organs; the number of organs means unsupported",
    "choice": "index into organs of the router's first choice; equal to organ if that was fixed at export",
    "organ_prob": "the router's probability of its first choice; NaN if the organ was fixed at export",
    "novelty": "out-of-distribution score: distance from the router's training scans as a multiple of the threshold; "
    "above 1 the scan is unsupported; NaN without this check",
    "needed": "smallest organ_prob of a supported scan; NaN if the organ was fixed at export",
    "label": "index into the organ's classes, as operating_point decides it: not always the most probable class; -1: "
    "unsupported, or no classifier of this organ",
    "label_probs": "calibrated probability of each of the organ's classes, in their order; 0 beyond them",
    "segmented": "whether a segmenter processed the scan; if not, the mask is 0 without meaning",
    "mask": "probability that a pixel of the model input is lesion; apply thresholds.mask on the scan's own grid",
    "confidence": "probability of the label times the Dice that the segmenter predicts for the mask; NaN: unsupported",
    "review": "1: the confidence is below the organ's limit, or the organ uncertain, a person should check it; 0: "
    "neither; -1: no limit",
    "label_set": "whether each of the organ's classes remains possible: its probability reaches thresholds.label_set, "
    "or it is label; all false: unsupported, no label, or no such limits",
    "outer": "threshold of mask for the outer outline, as in thresholds.outer; NaN: not segmented, or none was fitted",
    "certain": "smallest organ_prob of a certain organ: a supported scan below it may be of another kind and has "
    "review 1; NaN: unsupported, the organ was fixed at export, or there is no such limit",
    "organ_probs": "the router's probability of each of classes, in their order",
}
"""Description of each output."""

PREPROCESSING = {
    "colour": "RGB; grey images have three equal channels; alpha is blended onto black",
    "depth": "more than 8 bits are scaled linearly from the image's minimum and maximum to [0, 255]",
    "content_crop": "the bounding box of all contours of at least 1 % of the image, of what differs by more than 20 "
    "grey levels from the median of its outermost pixels (Gaussian 5x5 before, two erosions and two dilations 3x3 "
    "after); at least half the image along either axis; the whole image without such a contour",
    "letterbox": f"the crop is resized so that its longer side has {INPUT_SIZE} pixels (OpenCV's INTER_AREA when "
    f"shrinking, else INTER_LINEAR) and centred in a black square of {INPUT_SIZE}",
    "standardisation": "part of the model, as is resizing to each network's own size: pass uint8 in [0, 255]",
    "code": "read, letterbox and unletterbox of run.py do exactly this",
}


def cascade_function(bundle: Mapping[str, "Weights"], options: "InferenceOptions") -> Function:
    """The cascade of a bundle, with its weights as constants; returns the fields of `cascade.Prediction` by name.

    ValueError where the bundle lacks a network or the operating point that the options ask for.
    """
    from mcis.inference import cascade

    tasks = {name: one.task for name, one in bundle.items()}
    predict = cascade.make_cascade(tasks, options)
    variables = {name: one.variables for name, one in bundle.items()}
    cascade.operating_point(options, variables, cascade.label_experts(tasks))  # else the error comes while tracing
    return lambda image: dict(vars(predict(variables, image)))


def network_function(weights: "Weights", unrolled: bool = False) -> Function:
    """One task's network or ensemble with calibration and CRF: "organ_probs" or "label_probs" (B, K), and "mask".

    Args:
      weights: the weights of the task.
      unrolled: compute the networks of an ensemble one by one instead of in a loop, which is slow in ONNX runtimes.
    """
    import jax

    from mcis.tasks.apply import make_expert, place

    expert, variables = make_expert(weights.task), weights.variables
    if unrolled:
        variables = jax.device_get(place(variables))

    def function(image: "jax.Array") -> dict[str, "jax.Array"]:
        outputs = expert(variables, image)
        label = "organ_probs" if weights.task.organ is None else "label_probs"
        named = {label: outputs.label, "mask": outputs.mask}
        return {name: value for name, value in named.items() if value is not None}

    return function


def outputs_of(function: Function) -> dict[str, Any]:
    """Name -> shape and dtype of one row of each of the function's outputs."""
    import jax

    shapes = jax.eval_shape(function, jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), "uint8"))
    return {name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in shapes.items()}


def to_stablehlo(function: Function) -> bytes:
    """The function for any batch size of 1 and more, serialized by `jax.export`, for PLATFORMS."""
    import jax
    import jax.export

    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, INPUT_SIZE, INPUT_SIZE, 3), "uint8")
    return bytes(jax.export.export(jax.jit(function), platforms=PLATFORMS)(image).serialize())


def to_onnx(function: Function, metadata: Mapping[str, Any]) -> bytes:
    """The function for any batch size as an ONNX file of standard operators, with metadata in its metadata_props.

    Raises:
      ValueError: jax2onnx is not installed, or cannot convert the function.
    """
    try:
        import jax2onnx
    except ImportError:
        raise ValueError(GET_JAX2ONNX) from None
    import logging

    import jax
    import onnx

    from mcis.ops.lowering import plain_forms

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of every shape that only the runtime knows
    names = list(metadata["outputs"])

    def in_order(x: "jax.Array") -> tuple["jax.Array", ...]:
        outputs = function(x)
        return tuple(outputs[name] for name in names)

    image = jax.ShapeDtypeStruct(("batch", INPUT_SIZE, INPUT_SIZE, 3), "uint8")
    options = {"model_name": f"mcis {metadata['what']}", "input_names": ["image"], "output_names": names}
    try:
        with plain_forms():
            model = jax2onnx.to_onnx(in_order, [image], opset=OPSET, **options)
        onnx.checker.check_model(model, full_check=True)  # checks shapes too: some converted operators are inconsistent
    except Exception as error:  # the converter fails in many ways on what it does not support
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{metadata['what']} cannot be converted to ONNX ({reason}); use --format=stablehlo") from None
    if domains := {node.domain for node in model.graph.node} - {""}:
        raise ValueError(f"{metadata['what']} needs operators of {', '.join(domains)}; use --format=stablehlo")
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    return model.SerializeToString()


def metadata_of(
    bundle: Mapping[str, "Weights"], options: "InferenceOptions", outputs: Mapping[str, Any], licence: str | None
) -> dict[str, Any]:
    """The content of metadata.json, except "format" and "model".

    Args:
      bundle: the exported weights.
      options: the options of the export.
      outputs: the result of `outputs_of`.
      licence: text of the weights' licence.
    """
    from mcis.checkpoints.checkpoint import versions
    from mcis.inference.cascade import THRESHOLD, label_experts, operating_point
    from mcis.ops.metrics import MASK_THRESHOLD

    routed = options.task is None and options.organ is None
    thresholds: dict[str, Any] = {"mask": MASK_THRESHOLD, "content_px": MIN_CONTENT}
    if routed:
        fitted = bundle["route"].variables.get("threshold", THRESHOLD)
        thresholds["organ_prob"] = float(fitted if options.threshold is None else options.threshold)
        if "certain" in bundle["route"].variables:
            thresholds["certain"] = float(bundle["route"].variables["certain"])
        if options.novelty and "novelty" in bundle["route"].variables:
            thresholds["novelty"] = 1.0
    if options.task is None:
        fits = {name: weights.variables.get("calibration", {}) for name, weights in bundle.items()}
        thresholds["review"] = {name: float(fit["review"]) for name, fit in fits.items() if "review" in fit}
        variables = {name: one.variables for name, one in bundle.items()}
        point = operating_point(options, variables, label_experts({name: one.task for name, one in bundle.items()}))
        what: dict[str, Any] = {"what": "cascade", "operating_point": point}
        sets = {
            name: dict(zip(bundle[name].task.classes, map(float, fit["label_set"]), strict=True))
            for name, fit in fits.items()
            if "label_set" in fit
        }
        outer = {name: float(one["outer"]) for name, one in variables.items() if "outer" in one}
        thresholds |= {name: each for name, each in (("label_set", sets), ("outer", outer)) if each}
        if point is not None:
            thresholds["shift"] = {
                name: dict(zip(bundle[name].task.classes, map(float, fit["points"][point]), strict=True))
                for name, fit in fits.items()
                if "points" in fit
            }
    else:
        task = bundle[options.task].task
        what = {"what": task.name, "organ": task.organ, "classes": list(task.classes)}
    tasks = {}
    for name, weights in bundle.items():
        task = weights.task
        tasks[name] = {fact: weights.manifest[fact] for fact in ("classes", "epoch", "validation", "versions")} | {
            "model": task.model,
            "size_px": task.size,
            "networks": weights.networks,
            "sources": list(task.sources),
            "sha256": weights.manifest["files"],
        }
    shape = ["batch", INPUT_SIZE, INPUT_SIZE, 3]
    return what | {
        "notice": mcis.NOTICE,
        "input": {"name": "image", "dtype": "uint8", "shape": shape, "layout": "NHWC, RGB"},
        "preprocessing": PREPROCESSING,
        "outputs": {
            name: {"dtype": leaf.dtype.name, "shape": ["batch", *leaf.shape], "meaning": OUTPUTS[name]}
            for name, leaf in outputs.items()
        },
        "organs": [{"name": o.name, "scan": o.scan, "classes": o.classes, "lesions": o.lesions} for o in ORGANS],
        "thresholds": thresholds,
        "refuses_thumbnails": routed and options.novelty,
        "asked": dataclasses.asdict(options),
        "weights": {"licence": licence, "tasks": tasks},
        "versions": versions(),
    }


def check_out(out: pathlib.Path) -> None:
    """ValueError unless `out` does not exist, is an empty folder, or holds an export and nothing else."""
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {"a file"}
    if names and not ("metadata.json" in names and names <= set(FILES)):
        reason = ", ".join(sorted(names - set(FILES))[:3]) or "no metadata.json"
        raise ValueError(f"{out} exists and is not an export ({reason}); choose another --out")


def write(out: pathlib.Path, metadata: dict[str, Any], model: bytes, licence: str | None) -> None:
    """Write an export atomically; it replaces an older one."""
    out = out.absolute()
    temporary, old = (out.with_name(f".{out.name}.{suffix}") for suffix in ("tmp", "old"))
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    file = f"model.{metadata['format']}"
    (temporary / file).write_bytes(model)
    facts = {"file": file, "bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()}
    text = json.dumps({"model": facts} | metadata, indent=1) + "\n"
    (temporary / "metadata.json").write_text(text, encoding="utf-8")
    shutil.copyfile(run.__file__, temporary / "run.py")
    if licence is not None:
        (temporary / "LICENSE").write_text(licence, encoding="utf-8")
    check_out(out)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)
