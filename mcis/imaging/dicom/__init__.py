"""DICOM: scans read by `reader`, masks written by `seg` and read by `seg_reader`. No JAX.

`file` finds the elements of a file, `header` reads them, `pixels` and `compressed` decode a frame, and `display` maps
its values to the picture. pydicom and its decoders come with the extra `dicom`.
"""
