"""One process that reads scans: a question a line on standard input, a header line and bytes for an answer. No JAX.

Nothing is pickled on the way: a decoder that was broken into could say to who asks what it likes, and no more than
JSON and pixels are taken from it.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import pathlib
import resource
import signal
import stat
import sys
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mcis.imaging import dicom, dicom_seg, formats, nifti, scan
from mcis.imaging.scan import ScanError

Answer = tuple[dict[str, Any], bytes]

READY = b"ready\n"
"""What a process says first."""


def read(path: str, frame: int) -> Answer:
    """A frame of a file: `readers.Header`, and its pixels."""
    found = formats.format_of(path).read(path, frame)
    place = {} if found.place is None else dataclasses.asdict(found.place)
    return {"shape": found.image.shape, "notes": found.notes, "spacing": found.spacing, **place}, found.image.tobytes()


def frames(path: str) -> Answer:
    """{"frames"}: how many the file has."""
    return {"frames": formats.format_of(path).count(path)}, b""


def unpack(path: str, folder: str, files: int, size: int) -> Answer:
    """Write the scans of a zip archive into a folder, under numbers: the names in it are never used as such.

    Args:
      path: the archive.
      folder: where to.
      files: most entries that are looked at.
      size: most bytes that all of them may have.

    Returns:
      {"entries": [[name, path, or null where it was not unpacked, why not], ...]} of what may be a scan.
    """
    entries: list[list[str | None]] = []
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
            if len(infos) > files:
                raise ScanError(f"an archive of {len(infos)} files; at most {files} are read at once")
            for info in infos:
                if stat.S_ISLNK(info.external_attr >> 16):
                    continue
                suffix = suffix_of(info.filename)
                target = os.path.join(folder, f"{len(entries):06}{suffix}")
                if (why := _refused(info, size)) is None:
                    why = _write(archive, info, target, size)
                if why is None and not suffix and not dicom.nameless(pathlib.Path(target)):
                    os.unlink(target)  # a table, a text: no scan
                    continue
                if why is None:
                    size -= os.path.getsize(target)
                entries.append([info.filename, None if why else target, why])
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"a damaged archive, or none ({type(error).__name__})") from None
    return {"entries": entries}, b""


def _hidden(name: str) -> bool:
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


def _refused(info: zipfile.ZipInfo, size: int) -> str | None:
    if info.flag_bits & 1:
        return "encrypted; unpack it first"
    if info.filename.lower().endswith(".zip"):
        return "an archive in an archive; unpack it first"
    if info.file_size > size:
        return "too large, or unpacked with what came before it: make the archive smaller"
    return None


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: str, size: int) -> str | None:
    try:
        with archive.open(info) as packed, open(target, "wb") as file:
            while piece := packed.read(1 << 16):
                size -= len(piece)  # what was said of its size need not be so
                if size < 0:
                    break
                file.write(piece)
    except Exception as error:  # zlib's, lzma's, bz2's own among them
        os.unlink(target)
        return f"cannot be unpacked ({type(error).__name__})"
    if size < 0:
        os.unlink(target)
        return "larger than the archive says"
    return None


def suffix_of(name: str) -> str:
    """The suffix of a name that formats are told by, lower case; "" where it is none of them."""
    return max((suffix for suffix in formats.SUFFIXES if name.lower().endswith(suffix)), key=len, default="")


def segmentation(
    sources: Sequence[str], frames: Sequence[int], masks: Sequence[str | None], organ: str, named: bool
) -> Answer:
    """A volume's masks, which lie in pictures, null for an empty one, as a file of its format; {"suffix"}."""
    found = [None if mask is None else (scan.read(mask).image[..., 0] > 0).astype(np.uint8) for mask in masks]
    empty = np.zeros_like(next(mask for mask in found if mask is not None))
    arrays = [empty if mask is None else mask for mask in found]
    if formats.format_of(sources[0]).name == "NIfTI":
        return {"suffix": ".nii.gz"}, nifti.encode(sources[0], dict(zip(frames, arrays, strict=True)))
    data = dicom_seg.encode(sources, arrays, frames=frames, organ=organ, named=named)
    return {"suffix": ".dcm"}, data


OPERATIONS: dict[str, Callable[..., Answer]] = {
    "read": read,
    "frames": frames,
    "unpack": unpack,
    "segmentation": segmentation,
}


def answer(question: dict[str, Any]) -> Answer:
    """The answer to a question; an error is one as well."""
    name = question.pop("operation")
    try:
        return OPERATIONS[name](**question)
    except MemoryError:
        of = f"{question['path']}: " if name == "read" else ""
        return {"error": f"{of}needs more memory to be read than is allowed"}, b""
    except (ScanError, OSError) as error:
        return {"error": str(error), "series": error.series if isinstance(error, ScanError) else None}, b""


def end_with_parent() -> None:
    """Have the system end this process when who asks is gone, in the middle of a decoder too; where it can (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


PR_SET_PDEATHSIG = 1


def limit_memory(size: int) -> None:
    """Let this process take `size` bytes more than it has now, where the system can limit that."""
    try:
        with open("/proc/self/status") as file:
            has = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (has + size, has + size))
    except (OSError, StopIteration, ValueError):
        return


def main() -> None:
    """Answer until standard input ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # told to all processes of a job; who asks ends this one
    end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints is no answer
    limit_memory(int(sys.argv[-1]))
    answers.write(READY)
    answers.flush()
    for line in sys.stdin.buffer:
        header, data = answer(json.loads(line))
        answers.write(json.dumps({**header, "bytes": len(data)}).encode() + b"\n")
        answers.write(data)
        answers.flush()


if __name__ == "__main__":
    main()
