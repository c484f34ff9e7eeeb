"""`make field`: DICOM files of others, frame by frame, as mcis, pydicom, GDCM and SimpleITK read them.

    PYTHONPATH=. python tests/lanes/field/field.py [FOLDER...]

The files are the test files of pydicom and nibabel, and those in FOLDERs, to which `make field` adds those of the
packages pydicom-data and deid-data. Every frame that two of the other three read must be read by mcis, equal in grey
values under the same window to one of them: within 1 of 255, within 3 after lossy compression. Exit status 1 if a frame
is not. Each file is read in a process of its own: decoders may crash.
"""

import argparse
import collections
import importlib.util
import io
import math
import multiprocessing
import pathlib
import sys

import numpy as np
import pydicom
from pydicom.data import get_testdata_files
from rich.console import Console
from rich.table import Table

from mcis.imaging.dicom import file as dicom_file
from mcis.imaging.dicom import reader as dicom_reader
from mcis.imaging.dicom.header import TAGS

MAX_FRAMES = 40
LOSSY = ("JPEG Baseline", "JPEG Extended", "JPEG 2000 Image Compression", "JPEG-LS Lossy", "unknown")
SECONDS = 120


def by_mcis(path):
    """Displayed images, uint8 (H, W, 3), of the frames."""
    return [dicom_reader.read(path, frame).image for frame in range(min(dicom_reader.count_frames(path), MAX_FRAMES))]


def by_pydicom(path):
    """Rescaled values, (H, W) or (H, W, 3), of the frames; so the next two."""
    header = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        header.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian
            if implicit
            else pydicom.uid.ExplicitVRLittleEndian
            if little
            else pydicom.uid.ExplicitVRBigEndian
        )
    array = pydicom.pixels.pixel_array(header)
    colours = header.SamplesPerPixel
    frames = array if array.ndim == (4 if colours > 1 else 3) else array[None]
    if header.PhotometricInterpretation == "PALETTE COLOR":
        frames = [pydicom.pixels.apply_color_lut(frame, header) for frame in frames]
        return [frame >> 8 if frame.dtype == np.uint16 else frame for frame in frames]
    if colours > 1:
        return list(frames)
    slope, intercept = (header.get(f"Rescale{name}") for name in ("Slope", "Intercept"))
    if "ModalityLUTSequence" in header:
        return [pydicom.pixels.apply_modality_lut(frame, header) for frame in frames]
    return [frame * float(1 if slope is None else slope) + float(intercept or 0) for frame in frames]


def by_gdcm(path):
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise ValueError("GDCM cannot read it")
    image = reader.GetImage()
    kind = image.GetPhotometricInterpretation()
    if kind.GetType() == gdcm.PhotometricInterpretation.PALETTE_COLOR:
        table = gdcm.ImageApplyLookupTable()
        table.SetInput(image)
        if not table.Apply():
            raise ValueError("GDCM cannot apply the palette")
        image = table.GetOutputAsImage() if hasattr(table, "GetOutputAsImage") else table.GetOutput()
    pixels = image.GetPixelFormat()
    names = {
        "SINGLEBIT": "u1",
        "UINT8": "u1",
        "INT8": "i1",
        "UINT16": "u2",
        "INT16": "i2",
        "UINT32": "u4",
        "INT32": "i4",
    }
    names |= {"FLOAT32": "f4", "FLOAT64": "f8", "UINT12": "u2", "INT12": "i2"}
    data = image.GetBuffer().encode("utf-8", "surrogateescape")
    samples = pixels.GetSamplesPerPixel()
    rows, columns = image.GetDimension(1), image.GetDimension(0)
    values = np.frombuffer(data, names[pixels.GetScalarTypeAsString()])
    if samples > 1:
        if image.GetPlanarConfiguration():
            values = np.moveaxis(values.reshape(-1, samples, rows, columns), 1, -1)
        frames = values.reshape(-1, rows, columns, samples)
        stated = str(image.GetPhotometricInterpretation())
        if stated.startswith("YBR_FULL"):
            frames = np.stack([pydicom.pixels.convert_color_space(one, "YBR_FULL", "RGB") for one in frames])
        return list(frames)
    values = values.reshape(-1, rows, columns)
    return list(values * image.GetSlope() + image.GetIntercept())


def by_simpleitk(path):
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    image = reader.Execute()
    array = SimpleITK.GetArrayFromImage(image)
    colours = image.GetNumberOfComponentsPerPixel() > 1
    return list(array if array.ndim == (4 if colours else 3) else array[None])


READERS = {"pydicom": by_pydicom, "GDCM": by_gdcm, "SimpleITK": by_simpleitk}


def apart(read, path):
    """What a reader returns for a file, or its error as text, from a process of its own."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run():
        try:
            sys.stdout = sys.stderr = io.StringIO()
            send.send(read(path)[:MAX_FRAMES])
        except BaseException as error:
            send.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=run)
    process.start()
    send.close()
    try:
        return receive.recv() if receive.poll(SECONDS) else f"took longer than {SECONDS} s"
    except EOFError:
        return "crashed"
    finally:
        process.kill()
        process.join()


def attribute(header, frame, name):
    """An attribute from the functional groups of a frame, or from the header; None if there is none."""
    groups = (header.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    for group in [*groups, *(header.get("SharedFunctionalGroupsSequence") or [])]:
        if group.get("FrameVOILUTSequence") and name in group.FrameVOILUTSequence[0]:
            return group.FrameVOILUTSequence[0][name].value
    return header.get(name)


def displayed(values, header, index):
    """Rescaled values as displayed, uint8 (H, W, 3): PS3.3, C.11.2.1.2, linear, written a second time."""
    if values.ndim == 3:
        scale = 255 / (2.0 ** int(header.get("BitsStored") or 8) - 1) if values.dtype.itemsize > 1 else 1
        return np.rint(values[..., :3] * scale).astype(np.uint8)
    try:
        window = [attribute(header, index, f"Window{name}") for name in ("Center", "Width")]
        centre, width = (float(value[0] if hasattr(value, "__len__") else value) for value in window)
    except Exception:
        centre, width = math.nan, math.nan
    if width >= 1:
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    elif (table := header.get("VOILUTSequence")) is not None:
        values = pydicom.pixels.apply_voi(np.rint(values).astype(np.int32), header)
        low, high = 0, 2.0 ** int(table[0].LUTDescriptor[2]) - 1
    else:
        low, high = float(values.min()), float(values.max())
    grey = np.clip(np.rint((values - low) * (255 / max(high - low, 1e-12))), 0, 255).astype(np.uint8)
    grey = 255 - grey if header.get("PhotometricInterpretation") == "MONOCHROME1" else grey
    return np.repeat(grey[..., None], 3, axis=2)


def compare(path):
    """One row: transfer syntax, frames by reader, frames that two others read, of them equal, and what is wrong."""
    try:
        file = dicom_file.read(path, TAGS)
        header, syntax = file.header, str(pydicom.uid.UID(file.syntax).name)
    except ValueError:
        header, syntax = pydicom.Dataset(), "unknown"
    if dicom_reader.survey(path).other is not None:
        return "no scans", {}, 0, 0, [], None
    found = {name: apart(read, path) for name, read in READERS.items()}
    ours = apart(by_mcis, path)
    read = {name: frames for name, frames in found.items() if not isinstance(frames, str)}
    counts = {name: len(frames) for name, frames in read.items()}
    expected = sorted(counts.values())[-2] if len(counts) > 1 else 0
    tolerance = 3 if syntax.startswith(LOSSY) and "Lossless" not in syntax else 1
    equal, wrong = 0, []
    if isinstance(ours, str):
        return syntax, counts, expected, 0, [ours] if expected else [], ours
    for index in range(expected):
        if index >= len(ours):
            wrong.append(f"frame {index} is not counted")
            continue
        differences = {}
        for name, frames in read.items():
            if index < len(frames):
                other = displayed(frames[index], header, index)
                same = other.shape == ours[index].shape
                differences[name] = int(np.abs(other.astype(int) - ours[index]).max()) if same else 255
        if min(differences.values()) <= tolerance:
            equal += 1
        elif not wrong:
            wrong.append(f"frame {index} differs: {differences}")
    return syntax, counts | {"mcis": len(ours)}, expected, equal, wrong, None


def main():
    """Compare, print a table by transfer syntax and every frame that is not read or not equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="folders of further DICOM files, searched in depth")
    options = parser.parse_args()
    lacking = [name for name in ("gdcm", "SimpleITK") if importlib.util.find_spec(name) is None]
    nibabel = pathlib.Path(importlib.util.find_spec("nibabel").origin).parent / "nicom" / "tests" / "data"
    folders = [nibabel, *map(pathlib.Path, options.folders)]
    lacking += [str(folder) for folder in folders if not any(folder.rglob("*.dcm"))]
    paths = sorted({pathlib.Path(path) for path in get_testdata_files() if pathlib.Path(path).is_file()})
    paths += sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    paths = [path for path in paths if dicom_reader.matches(path.name, path.read_bytes()[:512])]
    rows, problems, unread = collections.defaultdict(collections.Counter), [], []
    for path in paths:
        syntax, counts, expected, equal, wrong, message = compare(path)
        rows[syntax].update(counts | {"files": 1, "expected": expected, "equal": equal})
        problems += [(path, one) for one in wrong]
        unread += [(path, message)] if message else []
    table = Table("transfer syntax", "files", *READERS, "mcis", "read by two", "of them equal in mcis")
    total = collections.Counter()
    for syntax, row in sorted(rows.items()):
        total.update(row)
        table.add_row(syntax, *(str(row[name]) for name in ("files", *READERS, "mcis", "expected", "equal")))
    table.add_row("all", *(str(total[name]) for name in ("files", *READERS, "mcis", "expected", "equal")))
    Console(width=160).print(table)
    for title, lines in (("Not read by mcis:", unread), ("Wrong:", problems)):
        print(title if lines else f"{title} none")
        for path, text in lines:
            print(f"  {path.name}: {text.replace(f'{path}: ', '')}")
    print(f"lacking: {', '.join(lacking) or 'nothing'}; {len(paths)} files")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
