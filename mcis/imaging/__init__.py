"""Scans from files: pictures, DICOM and NIfTI to arrays, the letterbox that networks take, masks to files. No JAX."""
