"""NIfTI and Analyze: scans read and masks written by `reader`, masks read by `masks`. No JAX.

`header` finds and reads headers, `grid` says how a volume is cut into slices. nibabel comes with the extra `dicom`.
"""
