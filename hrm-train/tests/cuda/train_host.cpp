// The kernels of training steps as a program of this host: threads stand in for those of a block, in warps of 32, blocks run one after the other.
//
// Compiled with the macros of a model before it (`-include`), so it holds that model's kernels; operands of products are f32 if `HRM_F32` is
// defined, else bf16. Standard input: the header below and the tables, then commands (`Order`) with what they carry; standard output: what is
// read. Memory that the kernels must write before they read it is filled with rubbish.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <pthread.h>
#include <thread>
#include <vector>

struct Dimension {
    unsigned x;
};
static thread_local Dimension threadIdx, blockIdx;
static Dimension blockDim;
static pthread_barrier_t barrier;

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(threads, blocks)
#define HRM_HOST

static void __syncthreads() { pthread_barrier_wait(&barrier); }

static float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

#ifdef HRM_F32
typedef float elem;
struct pair {
    float half[2];
};
static pair join(elem low, elem high) { return {{low, high}}; }
static float widen(elem x) { return x; }
static elem narrow(float x) { return x; }
static float half_of(pair p, int i) { return p.half[i]; }
#else
typedef unsigned short elem;
typedef unsigned pair;
static pair join(elem low, elem high) { return low | (unsigned)high << 16; }
static float widen(elem x) { return __uint_as_float((unsigned)x << 16); }
static elem narrow(float x) {
    unsigned bits = __float_as_uint(x);
    return (elem)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static float half_of(pair p, int i) { return widen((elem)(p >> 16 * i)); }
#endif

// What the lanes of a warp give each other, in turns: who writes the one must have passed the barrier after which the other was read.
struct Warp {
    pthread_barrier_t barrier;
    pair a[2][32][4], b[2][32][2];
    float x[2][32];
};
static std::vector<Warp> warps;
static thread_local unsigned turn;

static Warp &own() { return warps[threadIdx.x / 32]; }

// PTX ISA, mma.m16n8k16 for bf16: where each lane's registers belong in the tiles.
static void mma(float *d, const pair *a, pair b0, pair b1) {
    Warp &w = own();
    unsigned lane = threadIdx.x % 32, now = turn++ % 2;
    memcpy(w.a[now][lane], a, 4 * sizeof(pair));
    w.b[now][lane][0] = b0;
    w.b[now][lane][1] = b1;
    pthread_barrier_wait(&w.barrier);
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = d[i];
        for (int k = 0; k < 16; k++) {
            float left = half_of(w.a[now][row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
            sum += left * half_of(w.b[now][column * 4 + k % 8 / 2][k / 8], k % 2);
        }
        d[i] = sum;
    }
}

static float quad_sum(float x) {
    Warp &w = own();
    unsigned lane = threadIdx.x % 32, now = turn++ % 2, first = lane / 4 * 4;
    w.x[now][lane] = x;
    pthread_barrier_wait(&w.barrier);
    const float *all = w.x[now] + first;
    // In the order of the device's two exchanges.
    return lane % 4 < 2 ? (all[0] + all[1]) + (all[2] + all[3]) : (all[2] + all[3]) + (all[0] + all[1]);
}

#include "layout.cuh"
#include "products.cuh"
#include "block.cuh"
#include "step.cu"
#include "optimizer.cu"

struct Header {
    uint32_t slots, step_threads, tables, packing;
};

enum Order : uint32_t { WRITE, READ, LAUNCH, RESERVE };

static bool read_all(void *to, size_t bytes) { return fread(to, 1, bytes, stdin) == bytes; }

static void launch(unsigned blocks, unsigned threads, void (*kernel)(Memory, u32, u32, u32), Memory m, const u64 *parameters) {
    blockDim.x = threads;
    pthread_barrier_init(&barrier, nullptr, threads);
    warps = std::vector<Warp>(threads / 32);
    for (Warp &w : warps) {
        pthread_barrier_init(&w.barrier, nullptr, 32);
        memset(w.a, 0xA5, sizeof w.a);
    }
    std::vector<std::thread> pool;
    for (unsigned t = 0; t < threads; t++)
        pool.emplace_back([=] {
            threadIdx.x = t;
            for (unsigned block = 0; block < blocks; block++) {
                blockIdx.x = block;
                kernel(m, (u32)parameters[0], (u32)parameters[1], (u32)parameters[2]);
                __syncthreads();
            }
        });
    for (auto &thread : pool) thread.join();
    for (Warp &w : warps) pthread_barrier_destroy(&w.barrier);
    pthread_barrier_destroy(&barrier);
}

int main() {
    void (*kernels[])(Memory, u32, u32, u32) = {step, reduce, measure, moments, normalise, multiply, apply, measure_channels, pack};
    Header h;
    if (!read_all(&h, sizeof h) || h.step_threads % 32) return 2;
    std::vector<u32> tables(h.tables), packing(h.packing);
    if (!read_all(tables.data(), 4 * tables.size()) || !read_all(packing.data(), 4 * packing.size())) return 2;
    // What the host reads or writes, in the order of `Buffer`.
    size_t sizes[6] = {4ull * h.slots * COMMAND, (size_t)h.slots * WORK, 4ull * h.slots * RESULT, 24ull * LEN, 4 * 8, 4};
    std::vector<unsigned char> tapes, buffers[6];
    for (int i = 0; i < 6; i++) buffers[i].assign(sizes[i], 0xA5);
    std::vector<elem> weights(HRM_WEIGHT_LEN);
    std::vector<float> floats(HRM_FLOAT_LEN), gradients((size_t)h.slots * GRADIENT), factors(HRM_CHANNEL_COUNT), scratch(HRM_SCRATCH_LEN + 1);
    auto f = [&](int i) { return (float *)buffers[i].data(); };
    Memory m = {weights.data(),   floats.data(), tables.data(),  (u32 *)buffers[0].data(), buffers[1].data(), nullptr, 0, (u32 *)buffers[2].data(),
                gradients.data(), f(3),          packing.data(), factors.data(),           scratch.data(),    f(5),    f(4)};
    u64 order[6];
    while (read_all(order, sizeof order)) {
        if (order[0] == WRITE || order[0] == READ) {
            auto &buffer = buffers[order[1]];
            if (order[2] + order[3] > buffer.size()) return 2;
            unsigned char *at = buffer.data() + order[2];
            if (order[0] == WRITE ? !read_all(at, order[3]) : fwrite(at, 1, order[3], stdout) != order[3] || fflush(stdout)) return 2;
        } else if (order[0] == LAUNCH) {
            // Few threads do the work of many: those of a kernel that needs a certain number have it.
            launch((unsigned)order[2], order[1] == 7 ? 32 : h.step_threads, kernels[order[1]], m, order + 3);
        } else {
            m.tape_bytes = order[2] * CALL_TAPE;
            tapes.assign(order[1] * m.tape_bytes, 0xA5);
            m.tapes = tapes.data();
        }
    }
    return 0;
}
