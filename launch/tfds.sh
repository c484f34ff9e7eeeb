#!/usr/bin/env bash
# TensorFlow's own `tfds build` on every source of the builder, from its dummy data, read back through TensorFlow and
# by mcis, which must see the same scans. Needs the extra `tf`: `make tfds` sets it up.
set -euo pipefail
cd "$(dirname "$0")/../datasets/mcis_scans"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TF_CPP_MIN_LOG_LEVEL=2

sources=$(python -c 'from mcis_datasets.mcis_scans.sources import SOURCES; print(*SOURCES)')
for source in $sources; do
  printf '\n== tfds build --config %s\n' "$source"
  mkdir -p "$work/$source"
  [ ! -d "dummy_data/$source" ] || cp -r "dummy_data/$source/." "$work/$source"
  tfds build --config "$source" --manual_dir "$work/$source" --data_dir "$work/data"
done

printf '\n== read back\n'
python - "$work/data" $sources <<'END'
import sys

import tensorflow_datasets as tfds

from mcis import data

for source in sys.argv[2:]:
    builder = tfds.builder_from_directory(data.prepared(source, sys.argv[1]))
    counts = {}
    for split in builder.info.splits:
        through_tensorflow = {scan["scan_id"].decode() for scan in tfds.as_numpy(builder.as_dataset(split))}
        through_mcis = {data.text(scan["scan_id"]) for scan in data.records(source, split, sys.argv[1])}
        assert through_tensorflow == through_mcis, (source, split)
        counts[split] = len(through_mcis)
    assert sum(counts.values()), source
    print(f"{source:8s}", ", ".join(f"{split} {count}" for split, count in counts.items()))
END
