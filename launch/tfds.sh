#!/usr/bin/env bash
# TensorFlow's own `tfds build` on every source of the builder, from its dummy data, and `mcis build` under Apache Beam.
# What they make must be what `mcis build` makes without either, scan by scan. Needs the extra `tf`: `make tfds` sets it
# up.
set -euo pipefail
cd "$(dirname "$0")/../datasets/mcis_scans"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

read -r -a sources < <(python -c 'from mcis_datasets.mcis_scans.sources import SOURCES; print(*SOURCES)')
for source in "${sources[@]}"; do
  printf '\n== tfds build --config %s\n' "$source"
  mkdir "$work/$source"
  [ ! -d "dummy_data/$source" ] || cp -r "dummy_data/$source/." "$work/$source"
  tfds build --config "$source" --manual_dir "$work/$source" --data_dir "$work/tfds"
done

printf '\n== the same under Beam: of each source by several processes, of phantoms by tfds build too\n'
for source in "${sources[@]}"; do
  from=(--from "$work/$source")
  [ "$source" != phantom ] || from=()
  python -m mcis build "$source" "${from[@]}" --data_dir "$work/beam" \
    --beam runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers=2
done
tfds build --config phantom --data_dir "$work/tfds_beam" --beam_pipeline_options runner=DirectRunner

printf '\n== the same by mcis build\n'
python - "$work" "${sources[@]}" <<'END'
import pathlib
import sys

from mcis import data
from mcis.cli.build import build
from mcis_datasets.mcis_scans.sources import SOURCES

work = pathlib.Path(sys.argv[1])
counts = {}
for source in sys.argv[2:]:
    build(source, from_=work / source if SOURCES[source].requires else None, data_dir=work / "mcis")
    for split in data.SPLITS:
        ours = list(data.records(source, split, work / "mcis"))
        for maker in ("tfds", "beam", "tfds_beam") if source == "phantom" else ("tfds", "beam"):
            theirs = list(data.records(source, split, work / maker))
            assert ours == theirs, f"{source}, {split}: {maker} made other scans than `mcis build`"
        counts[source] = counts.get(source, 0) + len(ours)
assert all(counts.values()), counts
told = ", ".join(f"{n} of {source}" for source, n in counts.items())
print("\n`tfds build`, `mcis build` and `mcis build --beam` made the same scans, in the same order:", told)
END
