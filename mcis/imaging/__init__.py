"""Scans from files: pictures, DICOM and NIfTI to arrays, the letterbox that networks take, masks to files. No JAX."""

from mcis.imaging.formats import read
from mcis.imaging.scan import Scan, ScanError

__all__ = ["Scan", "ScanError", "read"]
