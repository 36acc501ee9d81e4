#!/bin/sh
# Training of the 9x9 model: our fused engine beside eager PyTorch on this CPU, as Markdown. What it needs goes below target/peers.
# Usage: tests/bench/train.sh [THREADS [STEPS [TURNS]]]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
target=$root/target/peers

if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
else
    python=$target/venv-train/bin/python
    [ -x "$python" ] || python3 -m venv "$target/venv-train"
    "$python" -m pip install --quiet torch==2.11.0 numpy safetensors
fi
cd "$root"
mkdir -p "$target"
cargo build --quiet --release -p hrm-train --example train_bench
binary=${CARGO_TARGET_DIR:-target}/release/examples/train_bench
"$binary" export "$target/train.safetensors"
OMP_NUM_THREADS=${1:-2} "$python" tests/bench/train.py "$target/train.safetensors" "$binary" "$@"
