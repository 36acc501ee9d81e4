// The CUDA source as a program of this host: threads stand in for those of a block, blocks run one after the other.
//
// Compiled with the macros of a model before it (`-include`), so it holds that model's kernels. Standard input: the header below, the image,
// then for each launch the number of the batch and its commands; standard output: the results of each launch. Memory that the kernels
// must write before they read it is filled with rubbish, and again before every block.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <thread>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(from, bytes)
#define __asan_unpoison_memory_region(from, bytes)
#endif

struct Dimension {
    unsigned x;
};
static thread_local Dimension threadIdx, blockIdx;
static Dimension blockDim;
static pthread_barrier_t barrier;

#define __device__ static
#define __global__
#define __shared__
#define __launch_bounds__(threads, blocks)

static void __syncthreads() { pthread_barrier_wait(&barrier); }

static int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 32; i += 8) sum += (int8_t)(a >> i) * (int8_t)(b >> i);
    return sum;
}

static int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }

static int __clz(int a) { return a ? __builtin_clz((unsigned)a) : 32; }

static void atomicAdd(unsigned long long *to, unsigned long long add) { __atomic_fetch_add(to, add, __ATOMIC_RELAXED); }

#include "segment.cu"

// More than any multiprocessor offers; the kernels declare it without a size.
enum { SHARED_BYTES = 256 * 1024 };
Four shared[SHARED_BYTES / sizeof(Four)];

struct Header {
    uint32_t slots, batches, threads, hash_threads, image_words, command_words, result_words, shared_bytes, hash_shared_bytes, zero;
    uint64_t slot_bytes;
};

static bool read_all(void *to, size_t bytes) { return fread(to, 1, bytes, stdin) == bytes; }

template <typename Kernel> static void launch(unsigned blocks, unsigned threads, size_t shared_bytes, Kernel kernel) {
    blockDim.x = threads;
    __asan_unpoison_memory_region(shared, sizeof shared);
    __asan_poison_memory_region((unsigned char *)shared + shared_bytes, sizeof shared - shared_bytes);
    pthread_barrier_init(&barrier, nullptr, threads);
    std::vector<std::thread> pool;
    for (unsigned t = 0; t < threads; t++)
        pool.emplace_back([=] {
            threadIdx.x = t;
            for (unsigned block = 0; block < blocks; block++) {
                blockIdx.x = block;
                if (t == 0) memset((void *)shared, 0xA5, shared_bytes);
                __syncthreads();
                kernel();
                __syncthreads();
            }
        });
    for (auto &thread : pool) thread.join();
    pthread_barrier_destroy(&barrier);
}

int main() {
    Header h;
    if (!read_all(&h, sizeof h) || h.slot_bytes % 16 || h.shared_bytes > SHARED_BYTES) return 2;
    std::vector<int> image(h.image_words);
    if (!read_all(image.data(), 4 * image.size())) return 2;
    std::vector<unsigned char *> arenas;
    for (unsigned b = 0; b < h.batches; b++) {
        arenas.push_back((unsigned char *)aligned_alloc(16, h.slots * h.slot_bytes));
        memset(arenas[b], 0xA5, h.slots * h.slot_bytes);
        // The carry of a slot: zeros behind the ends of its tensors are part of the state hash.
        for (unsigned s = 0; s < h.slots; s++) memset(arenas[b] + s * h.slot_bytes, 0, 3 * STATE_BYTES);
    }
    std::vector<unsigned> commands((size_t)h.slots * h.command_words), results((size_t)h.slots * h.result_words);
    uint32_t batch;
    while (read_all(&batch, 4)) {
        if (batch >= h.batches || !read_all(commands.data(), 4 * commands.size())) return 2;
        unsigned char *arena = arenas[batch];
        launch(h.slots, h.threads, h.shared_bytes, [&] { segment(image.data(), commands.data(), arena, results.data()); });
        launch(h.slots, h.hash_threads, h.hash_shared_bytes, [&] { hash(commands.data(), arena, results.data()); });
        if (fwrite(results.data(), 1, 4 * results.size(), stdout) != 4 * results.size() || fflush(stdout)) return 2;
    }
    for (auto arena : arenas) free(arena);
    return 0;
}
