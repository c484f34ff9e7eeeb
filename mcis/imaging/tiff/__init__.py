"""TIFF: pages found by `header` and decoded by `reader`. No JAX.

`layout` says how a page is stored, `codecs` unpack its strips and tiles.
"""
