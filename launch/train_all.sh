#!/usr/bin/env bash
# Train the bundled weights again from prepared data: fold runs of each organ's network, a router on the training split
# and one for every fold, which takes minutes; a bundle of the first, calibrated on the scans that fold runs hold out.
# Runs on CPU or GPU; after an interruption the same command resumes.
#
#   launch/train_all.sh [RUNS [WEIGHTS]]      folders, by default runs/all and runs/all/weights
#
#   FOLDS=5      parts of the scans; a fold run holds out one, and keeps the scans of a patient together
#   MEMBERS=1    fold runs of each organ's network, an ensemble; inference time grows in proportion
#   JOBS=1       parallel training runs: one per core or per GPU; 1 if one run uses the whole machine
#   DATA=        folder of the prepared data; by default TFDS's
#   OPTIONS=     further options of every run; for phantoms: --sources=phantom --size=32 --features=4 --epochs=1
#
# Prepare the data first, one after another: `mcis build` for busi, busbra, uclm, brest, lgg, br35h, cheng, healthy and
# notumor, and for foreign to train the router on out-of-distribution images too.
set -euo pipefail

runs=${1:-runs/all}
weights=${2:-$runs/weights}
folds=${FOLDS:-5} members=${MEMBERS:-1} jobs=${JOBS:-1}
read -r -a options <<<"${OPTIONS:-}"
data=(${DATA:+"--data_dir=$DATA"})

tasks=(segment_brain segment_breast)
route=(--task=route)
if ! mcis info "${data[@]}" | grep '/foreign/' >/dev/null; then # not grep -q, whose early exit would fail mcis
  route+=("--sources=lgg,br35h,cheng,healthy,notumor,busi,busbra,uclm,brest")
  echo "Source 'foreign' is not prepared: the router is trained without out-of-distribution images." >&2
fi

mkdir -p "$runs"
train() { # NAME OPTIONS...: one run, with its log in the runs folder
  local name=$1
  shift
  mcis train --runs_dir="$runs" --run="$name" --select=last "$@" "${data[@]}" "${options[@]}" \
    </dev/null >>"$runs/$name.log" 2>&1 ||
    { echo "$name failed; see $runs/$name.log" >&2; return 1; }
  tail -n 4 "$runs/$name.log" | head -n 1
}

plan() { # one run a line
  for ((k = 0; k < members; k++)); do
    for task in "${tasks[@]}"; do
      echo "${task}_fold$k --task=$task --fold=$k/$folds"
    done
  done
  echo "route ${route[*]}"
  for ((k = 0; k < folds; k++)); do echo "route_fold$k ${route[*]} --fold=$k/$folds"; done
}

while read -r -a words; do
  while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
  train "${words[@]}" &
done < <(plan)
while (($(jobs -p | wc -l))); do wait -n; done

experts=()
for ((k = 0; k < members; k++)); do
  for task in "${tasks[@]}"; do experts+=("$runs/${task}_fold$k"); done
done
routers=()
for ((k = 0; k < folds; k++)); do routers+=("$runs/route_fold$k"); done
mcis bundle "$runs/route" "${experts[@]}" --out "$weights"
mcis calibrate "$weights" "${routers[@]}" "${experts[@]}" --out "$runs/calibration.json" "${data[@]}"
echo "Wrote $weights. Evaluate it once: mcis evaluate $weights --split=test --out=$runs/test"
