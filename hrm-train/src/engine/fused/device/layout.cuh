// A training step of a structured (`group-sum`) model for a batch of puzzles, forward and backward: what `segment.rs`, `block.rs` and `loss.rs`
// compute, with matrix operands in bf16 and all sums in f32. This file says where everything lies; `products.cuh`, `block.cuh`, `step.cu` and
// `optimizer.cu` follow it, one text for the compiler.
//
// One block works on one puzzle (a slot); its carry stays in the slot's part of `work`. A kernel is a sequence of phases with a barrier
// between them: `for (i = threadIdx.x; i < n; i += blockDim.x)`, or for matrix products `for (job = warp; job < jobs; job += warps)`, a tile of
// 16 rows each. There are no atomics, so a run is the same, bit for bit, however the blocks are scheduled.
//
// The architecture comes as macros (`HRM_..`, written by `program.rs`). The same text runs as C++ on a host, whose threads stand in for those of a
// block; then `HRM_HOST` is defined and the few instructions of the device are the host's (tests/cuda/train_host.cpp). Rows of channels and of
// inner units are padded with zeros to multiples of 16, and so are the weights.

typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef HRM_HOST
// Operands of products: bf16, of which two neighbours share a word.
typedef unsigned short elem;
typedef u32 pair;
__device__ inline pair join(elem low, elem high) { return low | (u32)high << 16; }
__device__ inline float widen(elem x) { return __uint_as_float((u32)x << 16); }
__device__ inline elem narrow(float x) {
    elem out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
}
// d += a b for a 16 x 16 tile a and a 16 x 8 tile b. Lane 4 g + t holds of a the pairs at (g, 2 t), (g + 8, 2 t), (g, 2 t + 8), (g + 8, 2 t + 8),
// of b those at (2 t, g), (2 t + 8, g), of d the values at (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1). PTX ISA, mma.m16n8k16.
__device__ inline void mma(float *d, const pair *a, pair b0, pair b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The sum of the values of the four lanes 4 g to 4 g + 3.
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}
#endif

enum {
    TOKENS = HRM_TOKENS,
    FIELDS = HRM_FIELDS,
    ROWS = TOKENS * FIELDS,
    C = HRM_CHANNELS,
    CP = (C + 15) / 16 * 16,
    I = HRM_INNER,
    IP = (I + 15) / 16 * 16,
    // Width of the rows before the gate: gates from 0, ups from IP.
    N = 2 * IP,
    G = HRM_GROUPINGS,
    GROUP_ROWS = HRM_GROUP_ROWS,
    HEAD = HRM_HEAD,
    SYMBOLS = FIELDS > 1 ? FIELDS : HEAD,
    CLASSES = HRM_CLASSES,
    MODULES = HRM_MODULES,
    L_LAYERS = HRM_L_LAYERS,
    H_LAYERS = HRM_H_LAYERS,
    BLOCKS = MODULES > 1 ? L_LAYERS + H_LAYERS : L_LAYERS,
    LAYERS = H_LAYERS > L_LAYERS ? H_LAYERS : L_LAYERS,
    ROW_TILES = (ROWS + 15) / 16,
    // Partial sums of a column.
    PARTS = 16,
    STATE = ROWS * CP,
};

// Elements of `weights` of a block: both orientations of both matrices, the index that is summed over innermost.
enum {
    UP = 0,                            // [1 + G][N][CP]
    UP_BACK = UP + (1 + G) * N * CP,   // [1 + G][CP][N]
    DOWN = UP_BACK + (1 + G) * N * CP, // [CP][IP]
    DOWN_BACK = DOWN + CP * IP,        // [IP][CP]
    BLOCK_WEIGHTS = DOWN_BACK + CP * IP,
};

// `floats`: for each block the factors of products, biases, and the int8 units of what enters the products (1 without rounding), then the rest.
enum {
    UP_SCALE = 0,               // [N]
    BIAS = UP_SCALE + N,        // [N]
    DOWN_SCALE = BIAS + N,      // [CP]
    HIDDEN_STEP = DOWN_SCALE + CP, // [IP]
    IN_STEP = HIDDEN_STEP + IP, // [1 + G]: of the input, of the sums of each grouping
    BLOCK_FLOATS = IN_STEP + 1 + G,
    EMBED = BLOCKS * BLOCK_FLOATS, // [CLASSES][CP]
    HEAD_AT = EMBED + CLASSES * CP, // [HEAD][CP]
    Q_AT = HEAD_AT + HEAD * CP, // [CP], then the bias
    INIT = Q_AT + CP + 1,       // [2][CP]
};

// `tables`: group rows of every row, first member of each group row and the end, members, tiles of group rows.
enum {
    IDS = 0,                           // [ROWS][G]
    BEGIN = IDS + ROWS * G,            // [GROUP_ROWS + 1]
    MEMBERS = BEGIN + GROUP_ROWS + 1,  // [ROWS * G]
    GROUPING = MEMBERS + ROWS * G,     // [GROUP_ROWS]
    BASE = GROUPING + GROUP_ROWS,      // [G + 1], first group row of each grouping
    TILES = BASE + G + 1,              // [HRM_GROUP_TILES][2], first group row and grouping
};

// Words of a slot's command. Floats as their bits.
enum {
    ACTION,
    H_CYCLES,
    L_CYCLES,
    KEPT, // calls at the end that carry gradient
    START_STREAM,
    NOISE_STREAM = START_STREAM + 2,
    NOISE = NOISE_STREAM + 2, // standard deviation
    WEIGHT,                   // factor of the loss over symbols
    Q_WEIGHT,                 // factor of the halting loss
    INPUT,
    LABEL = INPUT + (TOKENS + 3) / 4,
    COMMAND = LABEL + (TOKENS + 3) / 4,
};
enum { RUN = 1, START = 2, LEARN = 4, STABLEMAX = 8 };

// Words of a slot's result.
enum { LOSS, Q_HALT, RIGHT, EXACT, ANSWER, RESULT = ANSWER + (TOKENS + 3) / 4 };

// Places in the padded gradient, as `Dims` has them.
enum {
    GRAD_UP = 0,                        // [1 + G][C][N]
    GRAD_BIAS = (1 + G) * C * N,        // [N]
    GRAD_DOWN = GRAD_BIAS + N,          // [C][IP]
    GRAD_BLOCK = GRAD_DOWN + C * IP,
    GRAD_EMBED = BLOCKS * GRAD_BLOCK,
    GRAD_HEAD = GRAD_EMBED + CLASSES * CP,
    GRAD_Q = GRAD_HEAD + HEAD * CP,
    GRADIENT = GRAD_Q + CP + 16,
};

// The memory of the device, the same for all kernels.
struct Memory {
    elem *weights;
    float *floats;
    const u32 *tables, *commands;
    unsigned char *work, *tapes;
    u64 tape_bytes; // of a slot
    u32 *results;
    float *gradients; // [slots][GRADIENT]
    float *state;
    const u32 *packing;
    float *factors, *scratch, *measured;
    const float *rates;
};

// Bytes: what the backward pass of a block needs, and of a module call.
enum : u64 {
    ELEM = sizeof(elem),
    T_PRE = 0,                                // f32 [ROWS][N]
    T_SUMS = T_PRE + 4ull * ROWS * N,         // elem [GROUP_ROWS][CP]
    T_SCALE = T_SUMS + ELEM * GROUP_ROWS * CP, // f32 [ROWS]
    BLOCK_TAPE = (T_SCALE + 4ull * ROWS + 15) / 16 * 16,
    // Input of the first block, then the output of each, f32 [ROWS][CP]; then the tapes of the blocks.
    CALL_TAPE = 4ull * (LAYERS + 1) * STATE + LAYERS * BLOCK_TAPE,
};

// Bytes of a slot of `work`.
enum : u64 {
    W_H = 0,
    W_L = W_H + 4ull * STATE,
    W_D_H = W_L + 4ull * STATE,
    W_D_L = W_D_H + 4ull * STATE,
    W_VIEW = W_D_L + 4ull * STATE,                // elem [ROWS][CP]
    W_DV = W_VIEW + ELEM * STATE,                 // elem [ROWS][CP]
    W_HIDDEN = W_DV + ELEM * STATE,               // elem [ROWS][IP]
    W_D_PRE = W_HIDDEN + ELEM * ROWS * IP,        // elem [ROWS][N]
    W_PRODUCTS = W_D_PRE + ELEM * ROWS * N,       // f32 [GROUP_ROWS][N]
    W_D_PRODUCTS = W_PRODUCTS + 4ull * GROUP_ROWS * N, // elem [GROUP_ROWS][N]
    W_D_SUMS = W_D_PRODUCTS + ELEM * GROUP_ROWS * N, // f32 [GROUP_ROWS][CP]
    W_LOGITS = W_D_SUMS + 4ull * GROUP_ROWS * CP, // f32 [ROWS][HEAD]
    W_CELLS = W_LOGITS + 4ull * ROWS * HEAD,      // f32 [TOKENS][2], loss and whether it is right
    W_PARTS = W_CELLS + 8ull * TOKENS,            // f32 [PARTS][max(HEAD, CLASSES)][CP]
    W_SMALL = W_PARTS + 4ull * PARTS * (HEAD > CLASSES ? HEAD : CLASSES) * CP, // f32 [CP] column sums, then 2 scalars
    W_TAPE = (W_SMALL + 4ull * (CP + 2) + 15) / 16 * 16, // of a call that is not kept
    WORK = W_TAPE + CALL_TAPE,
};

// `program.rs` counts as this file does.
static_assert(WORK == HRM_WORK_BYTES && CALL_TAPE == HRM_CALL_BYTES && COMMAND == HRM_COMMAND_WORDS && RESULT == HRM_RESULT_WORDS, "sizes");
static_assert(GRADIENT == HRM_GRADIENT_LEN && (u64)BLOCKS * BLOCK_WEIGHTS == HRM_WEIGHT_LEN, "sizes");
static_assert(INIT + 2 * CP == HRM_FLOAT_LEN && TILES + 2 * HRM_GROUP_TILES == HRM_TABLE_LEN, "sizes");
