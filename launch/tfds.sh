#!/usr/bin/env bash
# Build every source from its dummy data with TensorFlow's `tfds build` and with `mcis build` under Apache Beam, and check
# that both give the scans of plain `mcis build`; validate the Croissant metadata. Needs the extra `tf`, which `make tfds`
# installs.
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

printf '\n== croissant.json\n'
for source in "${sources[@]}"; do
  mlcroissant validate --jsonld "$work"/tfds/mcis_scans/"$source"/*/croissant.json
done

printf '\n== under Beam, with several processes; phantoms also by tfds build\n'
for source in "${sources[@]}"; do
  from=(--from "$work/$source")
  [ "$source" != phantom ] || from=()
  python -m mcis build "$source" "${from[@]}" --data_dir "$work/beam" \
    --beam runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers=2
done
tfds build --config phantom --data_dir "$work/tfds_beam" --beam_pipeline_options runner=DirectRunner

printf '\n== mcis build\n'
python - "$work" "${sources[@]}" <<'END'
import pathlib
import sys

from mcis.cli.build import build
from mcis.data import dataset
from mcis_datasets.mcis_scans.sources import SOURCES

work = pathlib.Path(sys.argv[1])
counts = {}
for source in sys.argv[2:]:
    build(source, from_=work / source if SOURCES[source].requires else None, data_dir=work / "mcis")
    for split in dataset.SPLITS:
        scans = list(dataset.records(source, split, work / "mcis"))
        for maker in ("tfds", "beam", "tfds_beam") if source == "phantom" else ("tfds", "beam"):
            others = list(dataset.records(source, split, work / maker))
            assert others == scans, f"{source}, {split}: {maker} gave other scans than `mcis build`"
        counts[source] = counts.get(source, 0) + len(scans)
assert all(counts.values()), counts
summary = ", ".join(f"{n} of {source}" for source, n in counts.items())
print("\n`tfds build`, `mcis build` and `mcis build --beam` gave the same scans in the same order:", summary)
END
