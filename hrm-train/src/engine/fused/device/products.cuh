// What the phases are made of: products of tiles by warps, numbers from counters, the slot of a block of threads.

#define EACH(i, n) for (int i = threadIdx.x; i < (n); i += blockDim.x)
#define JOBS(job, n) for (int job = threadIdx.x / 32; job < (n); job += blockDim.x / 32)

__device__ inline int least(int a, int b) { return a < b ? a : b; }
__device__ inline int lane_row() { return threadIdx.x % 32 / 4; }
__device__ inline int lane_pair() { return threadIdx.x % 4 * 2; }
// Round to nearest even, -128 to 127.
__device__ inline float int8(float x) { return rintf(fminf(fmaxf(x, -128.0f), 127.0f)); }
__device__ inline float silu_gate(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline int byte_of(const u32 *words, int i) { return words[i / 4] >> 8 * (i % 4) & 255; }
__device__ inline u64 wide(const u32 *words) { return (u64)words[1] << 32 | words[0]; }
__device__ inline float real(u32 bits) { return __uint_as_float(bits); }

// acc += a b^T for 16 rows of a and 8 * TILES rows of b, over k < length. `a(row, k)` and `b(row, k)` give the pairs at k and k + 1.
template <int TILES, class A, class B> __device__ inline void product(float (*acc)[4], int length, A a, B b) {
    int g = lane_row(), t = lane_pair();
    // More at once would need more registers than a thread has.
#pragma unroll 2
    for (int k = 0; k < length; k += 16) {
        pair left[4] = {a(g, k + t), a(g + 8, k + t), a(g, k + t + 8), a(g + 8, k + t + 8)};
        for (int n = 0; n < TILES; n++) mma(acc[n], left, b(8 * n + g, k + t), b(8 * n + g, k + t + 8));
    }
}

template <int TILES> __device__ inline void clear(float (*acc)[4]) {
    for (int n = 0; n < TILES; n++)
        for (int i = 0; i < 4; i++) acc[n][i] = 0;
}

// A pair of neighbours in a row.
__device__ inline pair along(const elem *p) { return *(const pair *)p; }
// Elements k and k + 1 of a column, zero from `length` on.
__device__ inline pair across(const elem *column, int stride, int k, int length) {
    return join(k < length ? column[k * stride] : narrow(0), k + 1 < length ? column[(k + 1) * stride] : narrow(0));
}

// What a block of threads works with.
struct Slot {
    const elem *weights;
    const float *floats;
    const u32 *tables;
    const u32 *command;
    unsigned char *work;
    float *gradient;

    __device__ float *f(u64 at) const { return (float *)(work + at); }
    __device__ elem *e(u64 at) const { return (elem *)(work + at); }
};

// Normal numbers from counters, as `random.rs` has them.
__device__ inline u64 mix(u64 z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

__device__ inline float uniform(u64 stream, u64 index) {
    u64 bits = mix(stream + index * 0x9E3779B97F4A7C15ull);
    return (float)((int)(bits >> 41) * 2 + 1 - (1 << 23)) * (1.0f / 8388608.0f);
}

__device__ inline float inverse_erf(float x) {
    float w = -logf((1.0f - x) * (1.0f + x)), a = w - 2.5f, b = sqrtf(fmaxf(w, 0.0f)) - 3.0f;
    const float near[9] = {2.8102264e-8f, 3.4327394e-7f, -3.5233877e-6f, -4.3915065e-6f, 2.1858087e-4f,
                           -1.253725e-3f, -4.1776816e-3f, 0.24664073f, 1.5014094f};
    const float far[9] = {-2.0021426e-4f, 1.0095056e-4f, 1.3493432e-3f, -3.6734284e-3f, 5.7395077e-3f,
                          -7.6224613e-3f, 9.4388705e-3f, 1.001674f, 2.8329768f};
    float p = near[0], q = far[0];
    for (int i = 1; i < 9; i++) {
        p = p * a + near[i];
        q = q * b + far[i];
    }
    return (w < 5.0f ? p : q) * x;
}

__device__ inline float truncated(u64 stream, u64 index) { return inverse_erf(uniform(stream, index) * 0.9544997f) * 1.6077447f; }
__device__ inline float normal(u64 stream, u64 index) { return inverse_erf(uniform(stream, index)) * 1.41421356f; }
