#!/usr/bin/env bash
# What only a GPU can tell, in one command, within nine minutes, without network and without weights:
#     bench/device.sh [--small]
# One Markdown table, printed, and written to $OUT/device.md when OUT is set, where each part's log is kept too. A part
# that fails or runs out of time is a row that says so; the others go on. Exit code 1 when any part failed.
# --small: everything tiny, on whatever device there is, to see that the parts work; its times mean nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1
PYTHON=${PYTHON:-python}
SMALL=${1:-}
WORK=${OUT:-$(mktemp -d)}
TABLE=$WORK/device.md
DEADLINE=$((SECONDS + ${LIMIT:-530}))
FAILED=0
mkdir -p "$WORK"
printf '| figure | measured | note |\n|---|---|---|\n' | tee "$TABLE"

part() { # name, seconds at most, command
    local name=$1 limit=$2 left=$((DEADLINE - SECONDS)) begun=$SECONDS code
    shift 2
    if ((left < 10)); then
        echo "| $name | not measured | no time was left |" | tee -a "$TABLE"
        FAILED=1
        return
    fi
    timeout -k 5 $((limit < left ? limit : left)) "$@" >"$WORK/${name//[^a-z0-9]/_}.log" 2>&1
    code=$?
    grep '^| ' "$WORK/${name//[^a-z0-9]/_}.log" | tee -a "$TABLE"
    if ((code)); then
        FAILED=1
        local last
        last=$(grep -v '^| ' "$WORK/${name//[^a-z0-9]/_}.log" | grep -v '^ *$' | tail -1 | tr '|' '/' | cut -c1-200)
        echo "| $name | failed: exit code $code after $((SECONDS - begun)) s | $last |" | tee -a "$TABLE"
    elif ! grep -q '^| ' "$WORK/${name//[^a-z0-9]/_}.log"; then
        echo "| $name | passed in $((SECONDS - begun)) s | $(tail -1 "$WORK/${name//[^a-z0-9]/_}.log" | tr '|' '/' | cut -c1-120) |" |
            tee -a "$TABLE"
    fi
}
measure() { # name, seconds at most, arguments of bench/device.py
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$PYTHON" bench/device.py "$@" $SMALL
}

measure versions 60 versions
part "tests on the device" 150 "$PYTHON" -m pytest -q -n 4 -m gpu tests/scenes tests/core
measure "hash grid" 60 grid
measure marching 60 march
measure "lift" 90 lift
if [ -z "$SMALL" ]; then
    part "make demo's run" 120 "$PYTHON" launch.py device=cuda preset=quick_tiny prompt="a red mushroom" exp_root_dir="$WORK/demo"
fi
for preset in default low_vram; do
    measure "rfds sd3 512 $preset" 150 rfds --model sd3 --size 512 --preset $preset
    measure "rfds sd15 512 $preset" 90 rfds --model sd15 --size 512 --preset $preset
done
measure "rfds sd3 256 default" 90 rfds --model sd3 --size 256
for preset in default low_vram; do
    measure "rfds sd15 256 $preset" 90 rfds --model sd15 --size 256 --preset $preset
done
LEFT=$((DEADLINE - SECONDS - 20))
if [ -z "$SMALL" ] && ((LEFT > 60)); then
    part "training of the embedded priors, begun" "$LEFT" env OUT= bash bench/train_on_gpu.sh "$WORK/weights" "$LEFT"
fi
echo "the table: $TABLE"
exit $FAILED
