// One segment of a structured (`group-sum`) int8 model for a batch of puzzles: docs/numerics.md in CUDA, bit for bit.
//
// One block works on one puzzle (a slot of the batch); its carry stays in the slot's part of the arena. A kernel is a sequence of phases
// `for (i = threadIdx.x; i < n; i += blockDim.x)` with a barrier between them, for any number of threads, so that the same text runs as C++ on
// a host whose threads stand in for those of a block. There is no other communication between threads than barriers and integer sums.
//
// The architecture comes as macros (`HRM_..`, written by `image.rs`), weights and tables as one array of 32-bit words, the image. Four int8
// values share a word, the first in the lowest byte; a row of them is padded with zeros to 16 bytes (`WORDS` words, `HIDDEN_WORDS` words).
// Weights are stored so that neighbouring output channels are neighbouring words: a warp reads them together, and the activations that it
// multiplies are the same for all its lanes.

typedef unsigned int u32;
typedef unsigned long long u64;

enum {
    TOKENS = HRM_TOKENS,
    FIELDS = HRM_FIELDS,
    ROWS = TOKENS * FIELDS,
    CHANNELS = HRM_CHANNELS,
    INNER = HRM_INNER,
    GROUPINGS = HRM_GROUPINGS,
    GROUP_ROWS = HRM_GROUP_ROWS,
    STATE = ROWS * CHANNELS,
    // z_H, z_L and the z_H of before, each padded with zeros to 16 bytes.
    STATE_BYTES = (2 * STATE + 15) / 16 * 16,
    WORDS = (CHANNELS + 15) / 16 * 4,
    HIDDEN_WORDS = (INNER + 15) / 16 * 4,
    // Inner units that are worked on together, as many as a warp has lanes.
    UNITS = 32,
    INNER_PADDED = (INNER + UNITS - 1) / UNITS * UNITS,
    // Rows whose accumulators a thread keeps in registers.
    TILE = 8,
    // 16-bit elements from one row to the next before the norm: an odd number of words, so that threads which read a row each meet no
    // bank conflicts.
    SUM_STRIDE = CHANNELS / 2 % 2 ? (CHANNELS + 1) / 2 * 2 : CHANNELS / 2 * 2 + 2,
    // Partial sums of a column in the Q head.
    PARTS = 16,
};

// Places of a block's parameters in the image, in words from its start.
enum {
    M_IN,
    UP_SHIFT,
    DOWN_SHIFT,
    RESIDUAL_SHIFT,
    GATE_SHIFT,
    M_GROUP,
    UP_WEIGHT = 16,
    UP_MULT = UP_WEIGHT + (1 + GROUPINGS) * WORDS * 2 * INNER_PADDED,
    UP_BIAS = UP_MULT + 2 * INNER_PADDED,
    DOWN_WEIGHT = UP_BIAS + 2 * INNER_PADDED,
    DOWN_MULT = DOWN_WEIGHT + HIDDEN_WORDS * CHANNELS,
    DOWN_BIAS = DOWN_MULT + CHANNELS,
    BLOCK = DOWN_BIAS + CHANNELS,
};

// Words of a slot's command, before its tokens.
enum { ACTION, START_STREAM, NOISE_STREAM = START_STREAM + 2, AMPLITUDE = NOISE_STREAM + 2, COMMAND_TOKENS };
enum { COMMAND = COMMAND_TOKENS + (TOKENS + 3) / 4 };
// Bits of an action: run a segment; before it start from the model's own start, or from a random one.
enum { RUN = 1, START = 2, START_RANDOMLY = 4 };
// Words of a slot's result, before its answer.
enum { HASH, Q = HASH + 2, CHANGE = Q + 2, SIZE = CHANGE + 2, ANSWER = SIZE + 2, RESULT = ANSWER + (TOKENS + 3) / 4 };

struct alignas(16) Four {
    int x, y, z, w;
};

extern __shared__ Four shared[];

__device__ inline int least(int a, int b) { return a < b ? a : b; }
__device__ inline int most(int a, int b) { return a > b ? a : b; }
__device__ inline int sat8(int x) { return most(-128, least(127, x)); }
__device__ inline int sat16(int x) { return most(-32768, least(32767, x)); }
__device__ inline int view8(int x, int m) { return sat8((x * m + (1 << 14)) >> 15); }
__device__ inline int requant(int acc, int shift, int mult) { return sat16(__mulhi((int)((u32)acc << shift), mult)); }

// `table` holds the base in the lower and the slope in the upper half of a word.
__device__ inline int silu(int g, int shift, const int *table) {
    int t = least(g < 0 ? -g : g, 8191 >> shift) << shift;
    int entry = table[t >> 7], f = t & 127;
    int d = ((int)(short)entry + (((entry >> 16) * f + 64) >> 7) + 8) >> 4;
    return sat16(most(g, 0) + ((d + ((1 << shift) >> 1)) >> shift));
}

__device__ inline u32 isqrt(u32 v) {
    u32 root = 0;
    for (u32 bit = 1u << 15; bit; bit >>= 1) {
        u32 next = root | bit;
        if (next * next <= v) root = next;
    }
    return root;
}

// Multiplier in the lower half, shift in the upper.
__device__ inline int norm_factor(u64 sum, u32 n) {
    u32 mean = sum >> 32 ? (u32)(sum / n) : (u32)sum / n;
    u32 v = mean + 10;
    int e = (31 - __clz((int)v)) / 2;
    u32 r = (1u << 30) / isqrt(v << (30 - 2 * e));
    return least((int)r, 32767) | (e + 5) << 16;
}

__device__ inline u64 mix(u64 z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

#define GOLDEN 0x9E3779B97F4A7C15ull

// Sample `i` of the tensor whose samples begin at word `first` of the stream that starts with `s0`.
__device__ inline int normal(u64 s0, u32 first, u32 i) {
    u64 word = mix(s0 + (u64)(first + i / 2 + 1) * GOLDEN);
    u32 half = i & 1 ? (u32)(word >> 32) : (u32)word;
    return ((int)((half & 255) + (half >> 8 & 255) + (half >> 16 & 255) + (half >> 24)) - 510) * 7;
}

__device__ inline u64 wide(const u32 *words) { return (u64)words[1] << 32 | words[0]; }

__device__ inline int byte_of(const u32 *words, int i) { return words[i / 4] >> 8 * (i % 4) & 255; }

// Sum of products of four words of activations and four words of weights, which are `stride` words apart.
__device__ inline int dot(const Four &a, const int *w, int stride, int acc) {
    acc = __dp4a(a.x, w[0], acc);
    acc = __dp4a(a.y, w[stride], acc);
    acc = __dp4a(a.z, w[2 * stride], acc);
    return __dp4a(a.w, w[3 * stride], acc);
}

// The memory of one slot. Regions that the device's shared memory has no room for are in the arena.
struct Slot {
    short *z_h, *z_l, *before;
    // int8 views of the rows, [ROWS][WORDS], and of the group sums, [GROUP_ROWS][WORDS].
    int *view, *sums;
    // Products of the group sums with the weights of UNITS gates and ups, [GROUP_ROWS][2 * UNITS]; later x + d, [ROWS][SUM_STRIDE].
    int *products;
    // [ROWS][HIDDEN_WORDS].
    int *hidden;
    // Factors of the norm, [ROWS].
    int *factors;
    // Few and small: the table of silu, the residual, column sums, sums of columns.
    int *table;
    u64 *residual;
};

#define REGION(name) ((int *)((HRM_##name##_SHARED ? (unsigned char *)shared : mine) + HRM_##name##_AT))

__device__ inline Slot slot_of(unsigned char *arena) {
    unsigned char *mine = arena + (unsigned long long)blockIdx.x * HRM_SLOT_BYTES;
    Slot s;
    s.z_h = (short *)mine;
    s.z_l = (short *)(mine + STATE_BYTES);
    s.before = (short *)(mine + 2 * STATE_BYTES);
    s.view = REGION(VIEW);
    s.sums = REGION(SUMS);
    s.products = REGION(PRODUCTS);
    s.hidden = REGION(HIDDEN);
    s.factors = REGION(FACTORS);
    s.table = REGION(TABLE);
    s.residual = (u64 *)(s.table + 64);
    return s;
}

// int8 views of all rows of `x`. The padding is written too: memory may hold anything.
__device__ inline void view_rows(const short *x, int m, int *view) {
    for (int i = threadIdx.x; i < ROWS * WORDS; i += blockDim.x) {
        int row = i / WORDS, first = i % WORDS * 4;
        u32 word = 0;
        for (int j = 0; j < 4; j++)
            if (first + j < CHANNELS) word |= (u32)(view8(x[row * CHANNELS + first + j], m) & 255) << 8 * j;
        view[i] = (int)word;
    }
    __syncthreads();
}

// int8 views of the sums of every group row.
__device__ inline void sum_groups(const Slot &s, const int *image, const int *block) {
    const int *begin = image + HRM_BEGIN_AT, *members = image + HRM_MEMBERS_AT, *grouping = image + HRM_GROUPING_AT;
    for (int i = threadIdx.x; i < GROUP_ROWS * WORDS; i += blockDim.x) {
        int group = i / WORDS, column = i % WORDS, sum[4] = {0, 0, 0, 0};
        for (int at = begin[group]; at < begin[group + 1]; at++) {
            u32 word = (u32)s.view[members[at] * WORDS + column];
            for (int j = 0; j < 4; j++) sum[j] += (signed char)(word >> 8 * j);
        }
        u32 word = 0;
        for (int j = 0; j < 4; j++) word |= (u32)(view8(sum[j], block[M_GROUP + grouping[group]]) & 255) << 8 * j;
        s.sums[i] = (int)word;
    }
    __syncthreads();
}

// Gate and up of inner unit `unit` for rows `row[..]` of `input`, from the columns whose weights begin at `w`.
__device__ inline void gate_and_up(const int *input, const int *row, const int *w, int unit, int (*acc)[2]) {
    for (int k = 0; k < WORDS; k += 4) {
        const int *gate = w + k * 2 * INNER_PADDED + unit, *up = gate + INNER_PADDED;
        for (int m = 0; m < TILE; m++) {
            Four a = *(const Four *)(input + row[m] * WORDS + k);
            acc[m][0] = dot(a, gate, 2 * INNER_PADDED, acc[m][0]);
            acc[m][1] = dot(a, up, 2 * INNER_PADDED, acc[m][1]);
        }
    }
}

// Products of all group sums with the weights of units `first..first + UNITS`.
__device__ inline void multiply_sums(const Slot &s, const int *image, const int *block, int first) {
    const int *tiles = image + HRM_TILES_AT;
    for (int i = threadIdx.x; i < HRM_GROUP_TILES * UNITS; i += blockDim.x) {
        const int *tile = tiles + i / UNITS * 3;
        int lane = i % UNITS, row[TILE], acc[TILE][2];
        for (int m = 0; m < TILE; m++) {
            row[m] = tile[0] + least(m, tile[1] - 1);
            acc[m][0] = acc[m][1] = 0;
        }
        const int *w = block + UP_WEIGHT + (1 + tile[2]) * WORDS * 2 * INNER_PADDED;
        gate_and_up(s.sums, row, w, first + lane, acc);
        for (int m = 0; m < TILE; m++)
            if (m < tile[1]) {
                s.products[row[m] * 2 * UNITS + lane] = acc[m][0];
                s.products[row[m] * 2 * UNITS + UNITS + lane] = acc[m][1];
            }
    }
    __syncthreads();
}

// Hidden values of units `first..first + UNITS` for all rows; those behind INNER are zero, as their weights, multipliers and biases are.
__device__ inline void hide(const Slot &s, const int *image, const int *block, int first) {
    const int *index = image + HRM_INDEX_AT;
    int up_shift = block[UP_SHIFT], gate_shift = block[GATE_SHIFT];
    for (int i = threadIdx.x; i < (ROWS + TILE - 1) / TILE * UNITS; i += blockDim.x) {
        int lane = i % UNITS, unit = first + lane, start = i / UNITS * TILE, row[TILE], acc[TILE][2];
        if (unit >= 4 * HIDDEN_WORDS) continue;
        const int *mult = block + UP_MULT + unit, *bias = block + UP_BIAS + unit;
        for (int m = 0; m < TILE; m++) {
            row[m] = least(start + m, ROWS - 1);
            acc[m][0] = bias[0];
            acc[m][1] = bias[INNER_PADDED];
        }
        gate_and_up(s.view, row, block + UP_WEIGHT, unit, acc);
        for (int m = 0; m < TILE; m++) {
            for (int g = 0; g < GROUPINGS; g++) {
                const int *product = s.products + index[row[m] * GROUPINGS + g] * 2 * UNITS + lane;
                acc[m][0] += product[0];
                acc[m][1] += product[UNITS];
            }
            int gate = silu(requant(acc[m][0], up_shift, mult[0]), gate_shift, s.table);
            int value = sat8((gate * requant(acc[m][1], up_shift, mult[INNER_PADDED]) + (1 << 14)) >> 15);
            if (start + m < ROWS) ((signed char *)s.hidden)[row[m] * 4 * HIDDEN_WORDS + unit] = (signed char)value;
        }
    }
    __syncthreads();
}

// x <- norm(sat16(down(x, t) + requant(W_down h + bias))), row by row.
__device__ inline void add_and_norm(const Slot &s, const int *block, short *x) {
    int down_shift = block[DOWN_SHIFT], residual_shift = block[RESIDUAL_SHIFT];
    short *sums = (short *)s.products;
    for (int i = threadIdx.x; i < (ROWS + TILE - 1) / TILE * CHANNELS; i += blockDim.x) {
        int channel = i % CHANNELS, start = i / CHANNELS * TILE, row[TILE], acc[TILE];
        for (int m = 0; m < TILE; m++) {
            row[m] = least(start + m, ROWS - 1);
            acc[m] = block[DOWN_BIAS + channel];
        }
        for (int k = 0; k < HIDDEN_WORDS; k += 4) {
            const int *w = block + DOWN_WEIGHT + k * CHANNELS + channel;
            for (int m = 0; m < TILE; m++) acc[m] = dot(*(const Four *)(s.hidden + row[m] * HIDDEN_WORDS + k), w, CHANNELS, acc[m]);
        }
        for (int m = 0; m < TILE; m++) {
            int d = requant(acc[m], down_shift, block[DOWN_MULT + channel]);
            int old = (x[row[m] * CHANNELS + channel] + ((1 << residual_shift) >> 1)) >> residual_shift;
            if (start + m < ROWS) sums[row[m] * SUM_STRIDE + channel] = (short)sat16(old + d);
        }
    }
    __syncthreads();
    for (int row = threadIdx.x; row < ROWS; row += blockDim.x) {
        u64 sum = 0;
        for (int c = 0; c < CHANNELS; c++) {
            int v = sums[row * SUM_STRIDE + c];
            sum += (u32)(v * v);
        }
        s.factors[row] = norm_factor(sum, CHANNELS);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < STATE; i += blockDim.x) {
        int row = i / CHANNELS, factor = s.factors[row], shift = factor >> 16;
        x[i] = (short)sat16((sums[row * SUM_STRIDE + i % CHANNELS] * (factor & 0xffff) + (1 << (shift - 1))) >> shift);
    }
    __syncthreads();
}

// Module 0 (L, or the shared one) or 1 (H) on `x`.
__device__ inline void run_module(const Slot &s, const int *image, int which, short *x) {
    int stored = which < HRM_MODULES ? which : 0, layers = stored ? HRM_H_LAYERS : HRM_L_LAYERS;
    for (int layer = 0; layer < layers; layer++) {
        const int *block = image + HRM_BLOCKS_AT + (stored * HRM_L_LAYERS + layer) * BLOCK;
        view_rows(x, block[M_IN], s.view);
        sum_groups(s, image, block);
        for (int first = 0; first < INNER_PADDED; first += UNITS) {
            multiply_sums(s, image, block, first);
            hide(s, image, block, first);
        }
        add_and_norm(s, block, x);
    }
}

// Sets the carry: random from the stream of the guess, or the model's start vectors.
__device__ inline void start(const Slot &s, const int *image, const u32 *command) {
    bool random = HRM_RANDOM_START || command[ACTION] & START_RANDOMLY;
    u64 s0 = wide(command + START_STREAM);
    for (int i = threadIdx.x; i < STATE; i += blockDim.x) {
        s.z_h[i] = (short)(random ? normal(s0, 0, i) : image[HRM_INIT_AT + i % CHANNELS]);
        s.z_l[i] = (short)(random ? normal(s0, (STATE + 1) / 2, i) : image[HRM_INIT_AT + CHANNELS + i % CHANNELS]);
    }
    __syncthreads();
}

__device__ inline void add_noise(const Slot &s, const u32 *command) {
    int amplitude = least((int)command[AMPLITUDE], 8191);
    u64 s0 = wide(command + NOISE_STREAM);
    for (int i = threadIdx.x; i < STATE; i += blockDim.x) {
        s.z_h[i] = (short)sat16(s.z_h[i] + ((normal(s0, 0, i) * amplitude + 512) >> 10));
        s.z_l[i] = (short)sat16(s.z_l[i] + ((normal(s0, (STATE + 1) / 2, i) * amplitude + 512) >> 10));
    }
    __syncthreads();
}

// Input class of a row: with fields 0 blank, 1 this symbol, 2 another; else the token.
__device__ inline int input_class(int token, int field) {
    if (FIELDS == 1) return token;
    return token < 2 ? 0 : token == field + 2 ? 1 : 2;
}

// z_L <- sat16(z_L + sat16(z_H + e)).
__device__ inline void inject(const Slot &s, const int *image, const u32 *tokens) {
    for (int i = threadIdx.x; i < STATE; i += blockDim.x) {
        int row = i / CHANNELS, which = input_class(byte_of(tokens, row / FIELDS), row % FIELDS);
        s.z_l[i] = (short)sat16(s.z_l[i] + sat16(s.z_h[i] + image[HRM_EMBED_AT + which * CHANNELS + i % CHANNELS]));
    }
    __syncthreads();
}

// The answer: the largest logit of a token, the first of equals.
__device__ inline void answer(const Slot &s, const int *image, unsigned char *tokens) {
    view_rows(s.z_h, image[HRM_GLOBAL_AT], s.view);
    for (int t = threadIdx.x; t < TOKENS; t += blockDim.x) {
        int best = -2147483647 - 1, token = 0;
        for (int f = 0; f < FIELDS; f++)
            for (int n = 0; n < HRM_HEAD_WIDTH; n++) {
                int logit = image[HRM_HEAD_BIAS_AT + n];
                for (int k = 0; k < WORDS; k++)
                    logit = __dp4a(s.view[(t * FIELDS + f) * WORDS + k], image[HRM_HEAD_AT + n * WORDS + k], logit);
                if (logit > best) {
                    best = logit;
                    token = FIELDS > 1 ? 2 + f : n;
                }
            }
        tokens[t] = (unsigned char)token;
    }
}

// Q outputs: the sums of the columns of z_H in parts, then whole, then times the weights in the order of the columns.
__device__ inline void q_head(const Slot &s, const int *image, u32 *result) {
    int *parts = s.products;
    for (int i = threadIdx.x; i < PARTS * CHANNELS; i += blockDim.x) {
        int sum = 0;
        for (int row = i / CHANNELS; row < ROWS; row += PARTS) sum += s.z_h[row * CHANNELS + i % CHANNELS];
        parts[i] = sum;
    }
    __syncthreads();
    long long *whole = (long long *)s.sums;
    for (int c = threadIdx.x; c < CHANNELS; c += blockDim.x) {
        long long sum = 0;
        for (int part = 0; part < PARTS; part++) sum += parts[part * CHANNELS + c];
        whole[c] = sum;
    }
    __syncthreads();
    for (int o = threadIdx.x; o < 2; o += blockDim.x) {
        long long acc = 0;
        if (o < HRM_Q_OUTPUTS) {
            acc = (long long)wide((const u32 *)image + HRM_Q_BIAS_AT + 2 * o);
            for (int c = 0; c < CHANNELS; c++) {
                long long add = image[HRM_Q_AT + o * CHANNELS + c] * whole[c], sum = (long long)((u64)acc + (u64)add);
                // The sum of two of one sign has another sign only if it has left the range.
                if (((acc ^ sum) & (add ^ sum)) < 0) sum = acc < 0 ? -9223372036854775807ll - 1 : 9223372036854775807ll;
                acc = sum;
            }
            acc >>= image[HRM_GLOBAL_AT + 1];
        }
        result[Q + o] = (u32)(int)(acc < -2147483648ll ? -2147483648ll : acc > 2147483647ll ? 2147483647ll : acc);
    }
}

// sum |z_H' - z_H| and sum |z_H'|.
__device__ inline void residual(const Slot &s, u32 *result) {
    for (int i = threadIdx.x; i < 2; i += blockDim.x) s.residual[i] = 0;
    __syncthreads();
    u64 change = 0, size = 0;
    for (int i = threadIdx.x; i < STATE; i += blockDim.x) {
        int now = s.z_h[i], moved = now - s.before[i];
        change += moved < 0 ? -moved : moved;
        size += now < 0 ? -now : now;
    }
    atomicAdd(&s.residual[0], change);
    atomicAdd(&s.residual[1], size);
    __syncthreads();
    for (int i = threadIdx.x; i < 4; i += blockDim.x) result[CHANGE + i] = (u32)(s.residual[i / 2] >> 32 * (i % 2));
}

// Block `b` runs a segment of slot `b` as `commands[b]` says, and writes all of `results[b]` but the hash.
extern "C" __global__ void __launch_bounds__(HRM_THREADS, 1)
    segment(const int *image, const u32 *commands, unsigned char *arena, u32 *results) {
    const u32 *command = commands + blockIdx.x * COMMAND;
    u32 *result = results + blockIdx.x * RESULT;
    if (!(command[ACTION] & RUN)) return;
    Slot s = slot_of(arena);
    for (int i = threadIdx.x; i < 64; i += blockDim.x) s.table[i] = image[HRM_SILU_AT + i];
    if (command[ACTION] & (START | START_RANDOMLY)) start(s, image, command);
    if (command[AMPLITUDE]) add_noise(s, command);
    for (int i = threadIdx.x; i < STATE; i += blockDim.x) s.before[i] = s.z_h[i];
    __syncthreads();
    for (int h = 0; h < HRM_H_CYCLES; h++) {
        for (int l = 0; l < HRM_L_CYCLES; l++) {
            inject(s, image, command + COMMAND_TOKENS);
            run_module(s, image, 0, s.z_l);
        }
        for (int i = threadIdx.x; i < STATE; i += blockDim.x) s.z_h[i] = (short)sat16(s.z_h[i] + s.z_l[i]);
        __syncthreads();
        run_module(s, image, 1, s.z_h);
    }
    answer(s, image, (unsigned char *)(result + ANSWER));
    q_head(s, image, result);
    residual(s, result);
}

// State hash of every slot that ran, for blocks of 64 threads: it is one chain of multiplications, so the first thread works while the second
// warp brings the next words.
extern "C" __global__ void hash(const u32 *commands, unsigned char *arena, u32 *results) {
    if (!(commands[blockIdx.x * COMMAND + ACTION] & RUN)) return;
    enum { LOADERS = 32, TENSOR = (STATE + 3) / 4, STEP = 256, STEPS = (2 * TENSOR + STEP - 1) / STEP };
    const unsigned char *mine = arena + (unsigned long long)blockIdx.x * HRM_SLOT_BYTES;
    u64 *stage = (u64 *)shared, h = 0;
    for (int step = 0; step <= STEPS; step++) {
        if (threadIdx.x >= LOADERS && step < STEPS)
            for (int i = threadIdx.x - LOADERS; i < STEP; i += blockDim.x - LOADERS) {
                int at = step * STEP + i;
                const u64 *tensor = (const u64 *)(mine + (at < TENSOR ? 0 : STATE_BYTES));
                if (at < 2 * TENSOR) stage[step % 2 * STEP + i] = tensor[at < TENSOR ? at : at - TENSOR];
            }
        if (threadIdx.x == 0 && step > 0)
            for (int i = 0; i < STEP && (step - 1) * STEP + i < 2 * TENSOR; i++)
                h = ((h << 23 | h >> 41) ^ stage[(step - 1) % 2 * STEP + i]) * GOLDEN;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        h = mix(h);
        results[blockIdx.x * RESULT + HASH] = (u32)h;
        results[blockIdx.x * RESULT + HASH + 1] = (u32)(h >> 32);
    }
}
