#!/usr/bin/env bash
# How the bundled recipe does at a hospital it was not trained on: for each source, networks and a router trained on the
# other sources, calibrated on these, and scored on all scans of the left-out source. Runs on CPU or GPU; after an
# interruption the same command resumes.
#
#   launch/leave_one_source_out.sh [RUNS]     folder, by default runs/unseen; the report is RUNS/report_seed0/report.html
#
#   SEEDS=1      trainings of each network, with seeds 0, 1, ...: a report each
#   JOBS=1       parallel training runs: one per core or per GPU; 1 if one run uses the whole machine
#   DATA=        folder of the prepared data; by default TFDS's
#   BRAIN= BREAST= ROUTE=    further options of the runs of one task, e.g. BREAST="--size=128 --epochs=6"
#   CASCADE=1    0 = without routers: each network alone, told the organ, by its most probable class
#
# br35h and notumor are left out together: most pictures of notumor are near-duplicates of br35h's.
set -euo pipefail

runs=${1:-runs/unseen}
seeds=${SEEDS:-1} jobs=${JOBS:-1} cascade=${CASCADE:-1}
data=(${DATA:+"--data_dir=$DATA"})
read -r -a brain <<<"${BRAIN:-}"
read -r -a breast <<<"${BREAST:-}"
read -r -a route <<<"${ROUTE:-}"
brains=(lgg br35h cheng healthy notumor) breasts=(busi busbra uclm brest)
left=(lgg cheng "br35h,notumor" healthy busi busbra uclm brest)
foreign=() prepared=$(mcis info "${data[@]}")
if [[ $prepared == *"/foreign/"* ]]; then foreign=(foreign); fi
for source in "${brains[@]}" "${breasts[@]}"; do # before hours of training
  [[ $prepared == *"/$source/"* ]] || { echo "Source '$source' is not prepared: mcis build $source" >&2; exit 1; }
done
mkdir -p "$runs"

others() { # LEFT SOURCES...: the sources but those left out, separated by commas
  local out=",$1," found=""
  shift
  for source in "$@"; do [[ $out == *",$source,"* ]] || found+=",$source"; done
  echo "${found#,}"
}

organ_of() { [[ " ${brains[*]} " == *" ${1%%,*} "* ]] && echo brain || echo breast; }

train() { # NAME OPTIONS...: one run, with its log in the runs folder
  local name=$1
  shift
  mcis train --runs_dir="$runs" --run="$name" --select=last "$@" "${data[@]}" </dev/null >>"$runs/$name.log" 2>&1 ||
    { echo "$name failed; see $runs/$name.log" >&2; return 1; }
  tail -n 4 "$runs/$name.log" | head -n 1
}

plan() { # one run a line
  for ((seed = 0; seed < seeds; seed++)); do
    for out in "${left[@]}"; do
      name=without_${out//,/_}_seed$seed
      if [[ $(organ_of "$out") == brain ]]; then
        echo "segment_brain_$name --task=segment_brain --seed=$seed --sources=$(others "$out" "${brains[@]}") ${brain[*]}"
      else
        echo "segment_breast_$name --task=segment_breast --seed=$seed --sources=$(others "$out" "${breasts[@]}") ${breast[*]}"
      fi
      ((cascade)) || continue
      echo "route_$name --task=route --seed=$seed --sources=$(others "$out" "${brains[@]}" "${breasts[@]}" "${foreign[@]}") ${route[*]}"
    done
  done
}

while read -r -a words; do
  while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
  train "${words[@]}" &
done < <(plan)
while (($(jobs -p | wc -l))); do wait -n; done

for ((seed = 0; seed < seeds; seed++)); do
  if ((cascade)); then
    weights=()
    for out in "${left[@]}"; do
      name=without_${out//,/_}_seed$seed
      trained=("$runs/route_$name" "$runs/segment_$(organ_of "$out")_$name")
      weights+=("$runs/$name")
      [[ -d $runs/$name ]] && continue
      mcis bundle "${trained[@]}" --out "$runs/$name.new"
      mcis calibrate "$runs/$name.new" "${trained[@]}" --out "$runs/$name.json" "${data[@]}" >/dev/null
      mv "$runs/$name.new" "$runs/$name"
    done
    mcis evaluate "${weights[@]}" --split=unseen --sources="$(others "" "${brains[@]}" "${breasts[@]}")" --heat=0 \
      --out="$runs/report_seed$seed" "${data[@]}"
  else
    for organ in brain breast; do
      sources=("${brains[@]}")
      [[ $organ == brain ]] || sources=("${breasts[@]}")
      mcis evaluate "$runs"/segment_"$organ"_without_*_seed"$seed" --split=unseen --heat=0 \
        --sources="$(others "" "${sources[@]}")" \
        --out="$runs/report_${organ}_seed$seed" "${data[@]}"
    done
  fi
done
