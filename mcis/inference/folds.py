"""Fold runs: which scans each of them holds out, and can therefore be tested on. No JAX."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def held_out_scans(
    manifests: Mapping[str, Mapping[str, Any]], fingerprints: Sequence[str] | np.ndarray, complete: bool = False
) -> dict[str, np.ndarray]:
    """Run -> int index of the scans that it holds out.

    Args:
      manifests: of the runs' weights, by the run's name.
      fingerprints: of the scans, N.
      complete: whether all held-out scans of all runs must be among them.

    Raises:
      ValueError: `complete`, and some are not.
    """
    held_out = {run: set(manifest["fingerprints"]["validation"]) for run, manifest in manifests.items()}
    wanted = set().union(*held_out.values())
    if complete and (missing := wanted - set(fingerprints)):
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} held-out scans of the runs are not prepared here; build the sources "
            "that the runs were trained on, or name their folder with --data_dir"
        )
    return rows_of(held_out, fingerprints)


def rows_of(scans: Mapping[str, Iterable[str]], fingerprints: Sequence[str] | np.ndarray) -> dict[str, np.ndarray]:
    """Run -> int index of its scans: `scans` has their fingerprints by run, `fingerprints` those of all scans, N."""
    names = np.array(fingerprints, str)
    return {run: np.flatnonzero(np.isin(names, sorted(own))) for run, own in scans.items()}
