#!/usr/bin/env bash
# The whole path on phantoms, small: data set, five trainings, a set of weights, findings, a page. All below ./demo.
#
#   make demo                                        sets up .venv first
#   launch/demo.sh [FOLDER]                          where mcis is installed already
set -euo pipefail

demo=${1:-demo}
data=$demo/data
started=$SECONDS

heading() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

# A second demo trains anew: only the data set stays. --fresh of a training keeps the older run; here nobody wants it.
rm -rf "$demo/runs" "$demo/weights" "$demo/scans" "$demo/findings"

heading "phantoms, a data set of synthetic scans"
mcis build phantom --data_dir "$data" --per_class 40

train() {
  heading "training $1"
  python -m mcis.launch --task="$1" --sources=phantom --data_dir="$data" --runs_dir="$demo/runs" --size=128 --ema=0.9 \
    "${@:2}"
}
# A few hundred steps on some sixty scans: a U-Net leaves the empty mask behind sooner than `light` does, the more so
# with small batches, most of them lesions, and little augmentation.
mild=(--augmentation.noise=0.02 --augmentation.gamma=0.2 --augmentation.contrast=0.2 --augmentation.bias=0.2)
segment=(--model=unet --features=8 --batch_size=4 --epochs=14 --learning_rate=3e-3 --lesion_share=0.9 --label_loss=0
  --select=dice_lesion --augmentation.scale=0.1 --augmentation.stretch=0.05 --augmentation.rotate=5 "${mild[@]}")
train segment_brain "${segment[@]}"
train segment_breast "${segment[@]}"
train classify_brain --features=12 --epochs=24 --batch_size=8 --augmentation.grey=0 "${mild[@]}"
train classify_breast --features=12 --epochs=24 --batch_size=8
train route --features=8 --epochs=2 --batch_size=8

heading "a set of weights"
mcis bundle "$demo"/runs/* --out "$demo/weights"

heading "findings"
python -c 'import sys; from mcis import phantom; phantom.write_examples(sys.argv[1], per_class=4, seed=1)' "$demo/scans"
mcis predict "$demo/scans" --weights "$demo/weights" --out "$demo/findings"

heading "done"
python -c 'import mcis; print(mcis.NOTICE)'
echo "Trainings as small as these make mistakes: some of the findings are wrong."
echo "The page: $PWD/$demo/findings/index.html"
