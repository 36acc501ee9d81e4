#!/bin/sh
# Training of the 9x9 model: our fused engine beside PyTorch on this CPU or one GPU, as Markdown. What it needs goes below target/peers.
# Usage: [DEVICE=cuda:0] [BATCH=128] tests/bench/train.sh [THREADS [STEPS [TURNS]]]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
target=$root/target/peers
DEVICE=${DEVICE:-cpu}
features=
if [ "$DEVICE" != cpu ]; then features="--features cuda"; fi

if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
else
    python=$target/venv-train/bin/python
    [ -x "$python" ] || python3 -m venv "$target/venv-train"
    "$python" -m pip install --quiet torch==2.11.0 numpy safetensors
fi
cd "$root"
mkdir -p "$target"
cargo build --quiet --release -p hrm-train $features --example train_bench
binary=${CARGO_TARGET_DIR:-target}/release/examples/train_bench
"$binary" export "$target/train.safetensors" "${BATCH:-16}"
OMP_NUM_THREADS=${1:-2} "$python" tests/bench/train.py "$DEVICE" "$target/train.safetensors" "$binary" "$@"
