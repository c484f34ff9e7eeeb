#!/usr/bin/env bash
# Everything that ships, made again from prepared data: fold runs of each task, a router on all of it, a set of weights
# with ensembles of fold runs, calibrated on what the folds have left out. On a CPU or a GPU; typed again after a stop,
# it goes on where it was.
#
#   launch/train_all.sh [RUNS [WEIGHTS]]      folders, by default runs/all and runs/all/weights
#
#   FOLDS=5      folds of the scans, by group
#   MEMBERS=3    fold runs in each organ's ensemble: each costs its share of every scan's time
#   JOBS=1       trainings at once: one a core or one a GPU is best; 1 where one training fills the machine
#   DATA=        folder of the prepared data, by default TFDS's
#   OPTIONS=     further options of every training; on phantoms: --sources=phantom --size=32 --features=4 --epochs=1
#
# Prepare the data first: mcis build busi, busbra, lgg and br35h, and foreign if the router is to learn what to refuse.
set -euo pipefail

runs=${1:-runs/all}
weights=${2:-$runs/weights}
folds=${FOLDS:-5} members=${MEMBERS:-3} jobs=${JOBS:-1}
read -r -a options <<<"${OPTIONS:-}"
data=(${DATA:+"--data_dir=$DATA"})

route=(--task=route)
if ! mcis info "${data[@]}" | grep '/foreign/' >/dev/null; then # all of it: a reader gone early is an error
  route+=("--sources=lgg,br35h,busi,busbra")
  echo "no source 'foreign' is prepared: the router will learn from known scans alone" >&2
fi

mkdir -p "$runs"
train() { # NAME OPTIONS...: one run, its log beside it
  local name=$1
  shift
  mcis train --runs_dir="$runs" --run="$name" --select=last "$@" "${data[@]}" "${options[@]}" \
    </dev/null >>"$runs/$name.log" 2>&1 ||
    { echo "$name failed; see $runs/$name.log" >&2; return 1; }
  tail -n 4 "$runs/$name.log" | head -n 1
}

plan() { # a run a line
  echo "route ${route[*]}"
  for ((k = 0; k < folds; k++)); do
    echo "route_fold$k ${route[*]} --fold=$k/$folds"
    for task in segment_breast segment_brain; do
      echo "${task}_fold$k --task=$task --fold=$k/$folds"
    done
  done
}

while read -r -a words; do
  while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
  train "${words[@]}" &
done < <(plan)
while (($(jobs -p | wc -l))); do wait -n; done

set_of=("$runs/route")
every=()
for ((k = 0; k < folds; k++)); do
  every+=("$runs/route_fold$k")
  for task in segment_breast segment_brain; do
    every+=("$runs/${task}_fold$k")
    ((k >= members)) || set_of+=("$runs/${task}_fold$k")
  done
done
mcis bundle "${set_of[@]}" --out "$weights"
mcis calibrate "$weights" "${every[@]}" --out "$runs/calibration.json" "${data[@]}"
echo "$weights is made; score it once: mcis evaluate $weights --split=test --out=$runs/test"
