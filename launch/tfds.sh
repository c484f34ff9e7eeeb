#!/usr/bin/env bash
# TensorFlow's own `tfds build` on every source of the builder, from its dummy data. What it makes must be what
# `mcis build` makes without TensorFlow, scan by scan. Needs the extra `tf`: `make tfds` sets it up.
set -euo pipefail
cd "$(dirname "$0")/../datasets/mcis_scans"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sources=$(python -c 'from mcis_datasets.mcis_scans.sources import SOURCES; print(*SOURCES)')
for source in $sources; do
  printf '\n== tfds build --config %s\n' "$source"
  mkdir "$work/$source"
  [ ! -d "dummy_data/$source" ] || cp -r "dummy_data/$source/." "$work/$source"
  tfds build --config "$source" --manual_dir "$work/$source" --data_dir "$work/tfds"
done

printf '\n== the same by mcis build\n'
python - "$work" $sources <<'END'
import pathlib
import sys

from mcis import data
from mcis.build import build
from mcis_datasets.mcis_scans.sources import SOURCES

work = pathlib.Path(sys.argv[1])
counts = {}
for source in sys.argv[2:]:
    build(source, from_=work / source if SOURCES[source].requires else None, data_dir=work / "mcis")
    for split in data.SPLITS:
        one, other = (list(data.records(source, split, work / maker)) for maker in ("tfds", "mcis"))
        assert one == other, f"{source}, {split}: `tfds build` made other scans than `mcis build`"
        counts[source] = counts.get(source, 0) + len(one)
assert all(counts.values()), counts
print("\n`tfds build` and `mcis build` made the same scans:", ", ".join(f"{n} of {source}" for source, n in counts.items()))
END
