"""Decode a JPEG frame of 12 bits by GDCM, in a process of its own: GDCM aborts the process on damaged frames. No JAX.

python jpeg_12_bits.py ROWS COLUMNS < codestream > values, uint16, little-endian
"""

import pathlib
import resource
import subprocess
import sys

import numpy as np

SECONDS = 20
"""Time limit for a frame."""
EXTENDED = "1.2.840.10008.1.2.4.51"
"""Transfer syntax of such frames."""


def decode(data: bytes, rows: int, columns: int) -> np.ndarray | None:
    """The values of a grey frame, uint16 (H, W); None if it cannot be decoded.

    Raises:
      NotImplementedError: GDCM is not installed.
    """
    command = [sys.executable, "-P", str(pathlib.Path(__file__)), str(rows), str(columns)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == 3:
        raise NotImplementedError
    if done.returncode or len(done.stdout) != 2 * rows * columns:
        return None
    return np.frombuffer(done.stdout, "<u2").reshape(rows, columns)


def main() -> None:
    """Decode standard input; exit status 3 without GDCM."""
    try:
        import gdcm
    except ImportError:
        sys.exit(3)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    rows, columns = map(int, sys.argv[1:])
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(sys.stdin.buffer.read())
    fragments.AddFragment(fragment)
    element, image = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010)), gdcm.Image()
    element.SetValue(fragments.__ref__())
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(EXTENDED)))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    sys.stdout.buffer.write(image.GetBuffer().encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    main()
