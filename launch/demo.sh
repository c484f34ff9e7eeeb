#!/usr/bin/env bash
# Findings of the bundled weights on real scans (launch/examples). Then the whole pipeline on synthetic scans (phantoms):
# data set, three training runs, a bundle of weights, findings and a report page. Everything is written below ./demo.
#
#   make demo                                        creates .venv first
#   launch/demo.sh [FOLDER]                          where mcis is already installed
set -euo pipefail

demo=${1:-demo}
data=$demo/data
started=$SECONDS

heading() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

# A second demo keeps the data set and trains again. `mcis train --fresh` would keep the older runs.
rm -rf "$demo/runs" "$demo/weights" "$demo/scans" "$demo/findings" "$demo/examples"

heading "findings of the bundled weights on nine real scans"
mcis predict "$(dirname "$0")"/examples/*.png --out "$demo/examples"

heading "building a data set of synthetic scans"
mcis build phantom --data_dir "$data" --per_class 80

train() { # TASK OPTIONS...: one run, whose output is shown when it ends
  python -m mcis.launch --task="$1" --sources=phantom --data_dir="$data" --runs_dir="$demo/runs" --batch_size=8 \
    --ema=0.9 --learning_rate=3e-3 --encoder_rate=0 "${@:2}" >"$demo/$1.log" 2>&1 ||
    { cat "$demo/$1.log" >&2; return 1; }
  heading "trained $1"
  cat "$demo/$1.log"
}
# The ImageNet encoder stays as it is, and phantoms vary less than scans do: two minutes of training are enough.
segment=(--size=96 --epochs=18 --augmentation.scale=0.1 --augmentation.stretch=0.05 --augmentation.rotate=5
  --augmentation.noise=0.02 --augmentation.gamma=0.2 --augmentation.contrast=0.2 --augmentation.bias=0.2
  --augmentation.grey=0 --augmentation.missing=0 --augmentation.coarse=0 --augmentation.curve=0 --augmentation.sector=0
  --augmentation.tint=0)
heading "training three networks at once; their output follows"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # if one of them fails
train segment_brain "${segment[@]}" &
train segment_breast "${segment[@]}" &
train route &
for _ in 1 2 3; do wait -n; done

heading "bundling the weights"
mcis bundle "$demo"/runs/* --out "$demo/weights"

heading "predicting findings"
python - "$demo/scans" <<'END'
import sys

from mcis.imaging.phantom import write_examples

write_examples(sys.argv[1], per_class=4, seed=1)
END
mcis predict "$demo/scans" --weights "$demo/weights" --out "$demo/findings"

heading "done"
python -c 'import mcis; print(mcis.NOTICE)'
echo "Networks trained this briefly make mistakes: some of the findings are wrong."
echo "Report pages: $(realpath "$demo")/examples/index.html and $(realpath "$demo")/findings/index.html"
