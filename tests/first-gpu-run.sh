#!/bin/sh
# The first run of the CUDA kernels on a GPU: are they the core, do they train as the CPU does, and how fast are they?
#
#     tests/first-gpu-run.sh                      in the root of the repository, on a machine with an NVIDIA GPU
#     PUZZLES=FILE.csv N=10000 tests/first-gpu-run.sh    with other puzzles, or more of them
#     DEVICE=cpu N=20 tests/first-gpu-run.sh      tries the script itself where there is none
#
# Wanted: the tests pass and none says "skipped"; both comparisons print "equal". Anything else is a fault of the kernels or of the compiler: the
# first line that differs names the puzzle (`index`, from 0); `cargo test .. a_gpu_agrees` then names the segment and the first value that differs.
# The times are a first figure, to be written into docs/performance.md with the name of the GPU, the driver and n.
set -eu
DEVICE=${DEVICE:-cuda:0} N=${N:-1000} OUT=${OUT:-target/gpu-run}
mkdir -p "$OUT"

if [ "$DEVICE" != cpu ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
    # NVRTC from the wheel if the toolkit is not installed.
    HRM_NEED_GPU=1 cargo xtask test cuda
    export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$PWD/target/cuda/lib"
fi
# After the tests, whose hrm-train has libtorch.
cargo build --release -p hrm-train --features cuda
train=${CARGO_TARGET_DIR:-target}/release/hrm-train
if [ -z "${PUZZLES:-}" ]; then
    PUZZLES=$OUT/puzzles.csv
    "$train" data generate --size 9 --n "$N" --seed 77 --side test --hard --out "$PUZZLES"
fi

# compare NAME ARGUMENTS: the same evaluation on the CPU and on the device; what both write must not differ.
compare() {
    name=$1
    shift
    for device in cpu "$DEVICE"; do
        echo "== $name, $device"
        start=$(date +%s.%N)
        "$train" eval --model models/sudoku-9x9.hrm --data "$PUZZLES" --n "$N" --seed 1 --device "$device" "$@" >"$OUT/$name-$device.txt"
        echo "$(date +%s.%N) $start" | awk '{ printf "%.1f s\n", $1 - $2 }'
        if [ -f "$OUT/states.jsonl" ]; then mv "$OUT/states.jsonl" "$OUT/$name-$device.jsonl"; fi
    done
    for kind in txt jsonl; do
        if [ -f "$OUT/$name-cpu.$kind" ]; then cmp "$OUT/$name-cpu.$kind" "$OUT/$name-$DEVICE.$kind"; fi
    done
    cat "$OUT/$name-$DEVICE.txt"
    echo "$name: equal"
}

# Exact match, valid grids and positive halt outputs after 1, 2, 4, .. 16 segments.
compare passes --segments 16
# The default guesses: answers, segments, guesses and the state hash after the last segment of every puzzle.
compare guesses --guesses 64 --segments 32 --puzzles "$OUT/states.jsonl"

# Training: how many sample-segments a second, and which part of the device's arithmetic (its last line), beside this machine's CPU.
for device in cpu "$DEVICE"; do
    dtype=bf16 steps=${STEPS:-200}
    if [ "$device" = cpu ]; then dtype=f32 steps=$((steps / 20 + 1)); fi
    echo "== training, $device"
    rm -rf "$OUT/train"
    "$train" train configs/sudoku-9x9.toml --out "$OUT/train" --set train.device="$device" --set train.dtype=$dtype --set train.steps=$steps \
        --set train.warmup=5 --set train.batch=128 --set train.log_every=$steps --set model.intersections=true --set eval.every=0 --set data.holdout=100 \
        --set 'data.train=[]' --set 'data.meta=[]' --set 'data.exclude_meta=[]' --set 'data.generate={n=2000,seed=1}' 2>&1 | tail -4
    cat "$OUT/train/metrics.jsonl"
done
