"""Scans: reading image, DICOM and NIfTI files, the model input of the networks, writing masks. No JAX."""

from mcis.imaging.formats import read
from mcis.imaging.scan import Scan, ScanError

__all__ = ["Scan", "ScanError", "read"]
