#!/bin/sh
# Our kernels and network beside ONNX Runtime, tract and candle on this machine, as Markdown. What it needs goes below target/peers.
# Usage: [CMSIS_NN_DIR=CHECKOUT] tests/bench/run.sh [MODEL [MILLISECONDS]]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=$root/target/peers

[ -x "$target/venv/bin/pip" ] || python3 -m venv "$target/venv"
# The library alone: its Python packages are not used.
"$target/venv/bin/pip" install --quiet --no-deps onnxruntime==1.32.0
library=$(find "$target/venv" -name 'libonnxruntime.so*' | head -n 1)

model=$(realpath "${1:-$root/models/sudoku-9x9.hrm}")
cd "$root"
cargo run --quiet --release -p hrm-train -- export --onnx "$model" --out "$target/segment.onnx"

cd "$here"
# candle chooses its SIMD when it is compiled.
export RUSTFLAGS="-C target-cpu=native"
cargo build --quiet --release --locked --target-dir "$target"
rustc --version
cargo tree --quiet --locked --depth 1 --prefix none | grep -E '^(ort|tract-linalg|tract-onnx|candle-core) '
RAYON_NUM_THREADS=1 "$target/release/hrm-peers" "$library" "$model" "$target/segment.onnx" "${2:-400}"
# In instructions, on the emulated cores.
if [ -n "${CMSIS_NN_DIR:-}" ]; then
    cd "$root"
    unset RUSTFLAGS
    cargo xtask qemu bench
fi
