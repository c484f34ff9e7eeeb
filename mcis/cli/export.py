"""`mcis export --out DIR`: weights as one file that runs without mcis, StableHLO or ONNX."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import mcis
from mcis.export.export import (
    cascade_function,
    check_out,
    described,
    network_function,
    outputs_of,
    to_onnx,
    to_stablehlo,
    write,
)


def main(argv: Sequence[str]) -> int:
    """The command."""
    import tyro

    from mcis.cli.common import exit_status, parse_dataclass
    from mcis.inference.options import InferenceOptions

    @dataclasses.dataclass(frozen=True)
    class Export:
        """Weights as a file that runs without mcis, with metadata.json and run.py. Research use, not a medical device.

        Attributes:
          out: folder to make; an older export is replaced, anything else is left alone.
          format: stablehlo, which JAX runs, of the cascade or of one task; onnx of one task.
          weights: folder of a set of weights; by default those that come with mcis.
          asked: what the networks are asked.
        """

        out: str
        format: Literal["stablehlo", "onnx"] = "stablehlo"
        weights: str | None = None
        asked: tyro.conf.OmitArgPrefixes[InferenceOptions] = InferenceOptions()

    options = parse_dataclass(Export, argv, "mcis export")
    return exit_status("mcis export", lambda: _main(options))


def _main(options: Any) -> int:
    from mcis.files import expand_user

    asked = options.asked.check()
    out = expand_user(options.out)
    check_out(out)
    if options.format == "onnx" and asked.task is None:
        raise ValueError("--format=onnx takes one network, --task=NAME; the cascade goes into --format=stablehlo")

    from mcis.checkpoints.bundle import BUNDLED, first_networks, load_bundle
    from mcis.tasks.table import task_named

    folder = pathlib.Path(options.weights or BUNDLED)
    found = load_bundle(folder)
    if asked.task is not None:
        task_named(asked.task)
        if asked.task not in found:
            raise ValueError(f"these weights have no {asked.task}; they have: {', '.join(found)}")
        found = {asked.task: found[asked.task]}
    elif asked.organ is not None:
        found = {name: one for name, one in found.items() if one.task.organ == asked.organ}
        if not found:
            raise ValueError(f"these weights have nothing for --organ={asked.organ}")
    found = first_networks(found, asked.members)
    if asked.task is not None:
        function = network_function(found[asked.task], apart=options.format == "onnx")
    else:
        function = cascade_function(found, asked)
    licence = (folder / "LICENSE").read_text(encoding="utf-8") if (folder / "LICENSE").is_file() else None
    metadata = {"format": options.format} | described(found, asked, outputs_of(function), licence)
    model = to_stablehlo(function) if options.format == "stablehlo" else to_onnx(function, metadata)
    write(out, metadata, model, licence)
    print(mcis.NOTICE)
    print(f"{out}: {metadata['what']}, {len(model) / 1e6:.1f} MB, {', '.join(metadata['outputs'])}")
    print(f"python {out / 'run.py'} scan.png takes a picture through it, without mcis; metadata.json says all about it")
    return 0
