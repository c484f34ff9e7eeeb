"""A process that reads untrusted files: one request per line on standard input, a JSON header and bytes in return.

No JAX. Nothing is pickled: a compromised decoder could send anything, so the caller accepts only JSON and pixels.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mcis.imaging import archives, formats, image_files, search
from mcis.imaging.dicom import seg
from mcis.imaging.nifti import reader as nifti_reader
from mcis.imaging.scan import ScanError

Response = tuple[dict[str, Any], bytes]

READY = b"ready\n"
"""First line of a process that can take requests."""
PR_SET_PDEATHSIG = 1


def read(path: str, frame: int) -> Response:
    """One frame of a file: a `pool.Header`, and the pixels."""
    scan = formats.read(path, frame)
    geometry = {} if scan.slice_geometry is None else dataclasses.asdict(scan.slice_geometry)
    stated = {one.header: one.organs for one in scan.stated}
    fields = {"shape": scan.image.shape, "notes": scan.notes, "spacing": scan.spacing, "aspect": scan.aspect}
    return fields | geometry | {"stated": stated}, scan.image.tobytes()


def frames(path: str) -> Response:
    """{"frames": number of frames of a file, "other": its kind if it holds no scan, else null}."""
    other = search.no_scan(path)
    return {"frames": formats.format_of(path).count(path), "other": other}, b""


def unpack(path: str, folder: str, files: int, size: int) -> Response:
    """`archives.unpack`."""
    return archives.unpack(path, folder, files, size), b""


def segmentation(
    sources: Sequence[str], frames: Sequence[int], masks: Sequence[str | None], organ: str, named: bool
) -> Response:
    """The masks of a volume as one file of its format; {"suffix"}.

    Args:
      sources: files of the volume.
      frames: frame of each mask.
      masks: image files; None for an empty mask.
      organ: as for `dicom.seg.encode`.
      named: likewise.
    """
    images = [None if mask is None else (image_files.read(mask).image[..., 0] > 0).astype(np.uint8) for mask in masks]
    empty = np.zeros_like(next(image for image in images if image is not None))
    arrays = [empty if image is None else image for image in images]
    if formats.format_of(sources[0]).name == "NIfTI":
        return {"suffix": ".nii.gz"}, nifti_reader.encode(sources[0], dict(zip(frames, arrays, strict=True)))
    return {"suffix": ".dcm"}, seg.encode(sources, arrays, frames=frames, organ=organ, named=named)


OPERATIONS: dict[str, Callable[..., Response]] = {
    "read": read,
    "frames": frames,
    "unpack": unpack,
    "segmentation": segmentation,
}


def respond(request: dict[str, Any]) -> Response:
    """The response to a request; its error, if the operation fails."""
    name = request.pop("operation")
    try:
        return OPERATIONS[name](**request)
    except MemoryError:
        subject = f"{request['path']}: " if name == "read" else ""
        return {"error": f"{subject}needs more memory than is allowed for reading"}, b""
    except (ScanError, OSError) as error:
        return {"error": str(error), "series": error.series if isinstance(error, ScanError) else None}, b""


def end_with_parent() -> None:
    """Ask the system (Linux only) to kill this process when its parent ends, even while a decoder runs."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_memory(size: int) -> None:
    """Let this process allocate at most `size` more bytes, where the system can enforce that."""
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status") as file:
        used = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + size, used + size))


def main() -> None:
    """Respond to requests until standard input ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all processes of a job; the parent ends this one
    end_with_parent()
    responses = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders may print
    limit_memory(int(sys.argv[-1]))
    responses.write(READY)
    responses.flush()
    for line in sys.stdin.buffer:
        header, data = respond(json.loads(line))
        responses.write(json.dumps({**header, "bytes": len(data)}).encode() + b"\n")
        responses.write(data)
        responses.flush()


if __name__ == "__main__":
    main()
