#!/usr/bin/env bash
# Everything that ships, trained on a GPU from the stated seeds, within about nine minutes of an H100-class card:
#     bench/train_on_gpu.sh FOLDER [SECONDS]
# FOLDER gets the trained parts, curves and figures; `train_tiny.ship=true` at the end copies them into the package.
# A part that was interrupted goes on where it stopped when the command is given again. SECONDS (default 540) is shared
# out among the parts by their worth: each is stopped when its share is over and then saves what it has reached.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?a folder for the results}
LIMIT=${2:-540}
PYTHON=${PYTHON:-python}
export OMP_WAIT_POLICY=PASSIVE
part() { # share of the time in percent, part, further settings
    local share=$1 name=$2
    shift 2
    echo "== $name, at most $((LIMIT * share / 100)) s"
    "$PYTHON" launch.py task=train_tiny train_tiny.part="$name" train_tiny.folder="$OUT" device=cuda \
        train_tiny.seconds=$((LIMIT * share / 100)) "$@"
}
part 40 instaflow train_tiny.batch=256 train_tiny.steps=20000 train_tiny.lr=1.5e-3
part 25 sd3 train_tiny.batch=256 train_tiny.steps=12000 train_tiny.lr=1.2e-3
part 10 sd train_tiny.batch=256 train_tiny.steps=4000
part 10 sd_v train_tiny.batch=256 train_tiny.steps=4000
part 10 judge train_tiny.batch=256
"$PYTHON" bench/prior.py --prior tiny_instaflow --folder "$OUT/tiny-instaflow-1" || true
ls -l "$OUT"/*/unet/*.safetensors "$OUT"/*/transformer/*.safetensors
