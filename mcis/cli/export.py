"""`mcis export --out DIR`: weights as one file that runs without mcis, StableHLO or ONNX."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

import mcis
from mcis.cli.common import PathText, run
from mcis.export import export
from mcis.inference.options import InferenceOptions, takes


@dataclasses.dataclass(frozen=True)
class Export:
    """Weights as one file that runs without mcis, with metadata.json and run.py. Research use, not a medical device.

    Attributes:
      out: output folder. An older export in it is replaced; any other content is an error.
      format: stablehlo (for JAX): the cascade or one task; onnx: one task only.
      weights: folder of a bundle of weights; by default the bundled weights.
      inference: how the networks are run.
    """

    out: Annotated[PathText, tyro.conf.arg(metavar="DIR")]
    format: Literal["stablehlo", "onnx"] = "stablehlo"
    weights: Annotated[PathText | None, takes("DIR")] = None
    inference: tyro.conf.OmitArgPrefixes[InferenceOptions] = InferenceOptions()


def main(argv: Sequence[str]) -> int:
    """The command."""
    return run("mcis export", Export, _export, argv)


def _export(options: Export) -> int:
    inference = options.inference.check()
    out = pathlib.Path(options.out)
    export.check_out(out)
    if options.format == "onnx" and inference.task is None:
        raise ValueError("--format=onnx needs one network, --task=NAME; export the cascade with --format=stablehlo")

    from mcis.checkpoints.bundle import BUNDLED, first_networks, load_bundle
    from mcis.tasks.table import task_named

    folder = pathlib.Path(options.weights or BUNDLED)
    bundle = load_bundle(folder)
    if inference.task is not None:
        task_named(inference.task)
        if inference.task not in bundle:
            raise ValueError(f"these weights have no {inference.task}; they have: {', '.join(bundle)}")
        bundle = {inference.task: bundle[inference.task]}
    elif inference.organ is not None:
        bundle = {name: weights for name, weights in bundle.items() if weights.task.organ == inference.organ}
        if not bundle:
            raise ValueError(f"these weights have no network for --organ={inference.organ}")
    bundle = first_networks(bundle, inference.members)
    if inference.task is not None:
        function = export.network_function(bundle[inference.task], unrolled=options.format == "onnx")
    else:
        function = export.cascade_function(bundle, inference)
    licence = (folder / "LICENSE").read_text(encoding="utf-8") if (folder / "LICENSE").is_file() else None
    outputs = export.outputs_of(function)
    metadata = {"format": options.format} | export.metadata_of(bundle, inference, outputs, licence)
    onnx = options.format == "onnx"
    model = export.to_onnx(function, metadata) if onnx else export.to_stablehlo(function)
    export.write(out, metadata, model, licence)
    print(mcis.NOTICE)
    print(f"{out}: {metadata['what']}, {len(model) / 1e6:.1f} MB, {', '.join(outputs)}")
    if point := metadata.get("operating_point"):
        print(f"labels are decided at the operating point {point}")
    print(f"`python {out / 'run.py'} scan.png` runs it without mcis; metadata.json describes it")
    return 0
