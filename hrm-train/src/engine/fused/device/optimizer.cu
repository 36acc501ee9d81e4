// What comes after the gradient: its sum over the batch, the step of the optimizer, and the weights as the products read them.

// Vectors of `state`, LEN values each, in the order of the flat parameters.
enum { WEIGHTS, MEAN, FIRST_MOMENT, SECOND_MOMENT, FLAT_GRADIENT, UPDATE };

// Values of `rates`.
enum { SHRINK, BETA1, BETA2, INVERSE_ROOT2, RATE, LR, KEEP, MEAN_DECAY };

enum { ADAM_ATAN2, ADAM_W, MUON };

// `packing`, in words. An element of an operand: flat index + 1 (0: padding), channel, unit, and what its channel's factor is multiplied with in the
// backward operand (0: it is a forward one). A float: kind, value. A channel: flat index of its first weight, length, first of its units. A
// parameter: place in the padded gradient, factor, 1 if it decays | 2 if Muon's rule is for it. A matrix: flat index, rows, columns, place in `scratch`.
enum {
    ELEMENTS = 0,
    FLOATS = ELEMENTS + 4 * HRM_WEIGHT_LEN,
    CHANNELS = FLOATS + 2 * HRM_FLOAT_LEN,
    UNITS = CHANNELS + 3 * HRM_CHANNEL_COUNT,
    PARAMETERS = UNITS + HRM_UNIT_COUNT,
    MATRICES = PARAMETERS + 3 * HRM_LEN,
};
static_assert(MATRICES + 4 * HRM_MATRIX_COUNT == HRM_PACKING_LEN, "sizes");
enum { CONSTANT, PARAMETER, FACTOR };
enum { DECAYS = 1, MATRIX = 2 };

#define LEN HRM_LEN
#define GRID(i, n) for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < (u32)(n); i += HRM_GRID * blockDim.x)

// The sum of `x` over the threads of a block, a power of two of them up to 1024, in an order of its own.
__device__ inline double block_sum(double x, double *parts) {
    parts[threadIdx.x] = x;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    return parts[0];
}

// The gradient of the batch: that of the first `slots` slots, in their order.
extern "C" __global__ void reduce(Memory m, u32 slots, u32, u32) {
    GRID(i, LEN) {
        const u32 *p = m.packing + PARAMETERS + 3 * i;
        double total = 0;
        for (u32 slot = 0; slot < slots; slot++) total += m.gradients[(u64)slot * GRADIENT + p[0]];
        m.state[(u64)FLAT_GRADIENT * LEN + i] = (float)(real(p[1]) * total);
    }
}

// The norm of the gradient, by one block; not finite if the gradient is not.
extern "C" __global__ void measure(Memory m, u32, u32, u32) {
    __shared__ double parts[1024];
    double sum = 0;
    EACH(i, LEN) {
        double g = m.state[(u64)FLAT_GRADIENT * LEN + i];
        sum += g * g;
    }
    sum = block_sum(sum, parts);
    if (threadIdx.x == 0) m.measured[0] = (float)sqrt(sum);
}

__device__ inline void move(const Memory &m, u32 i, float step) {
    float keep = m.packing[PARAMETERS + 3 * i + 2] & DECAYS ? m.rates[KEEP] : 1.0f, decay = m.rates[MEAN_DECAY];
    float w = m.state[i] * keep - step;
    m.state[i] = w;
    if (decay > 0) m.state[(u64)MEAN * LEN + i] = decay * m.state[(u64)MEAN * LEN + i] + (1.0f - decay) * w;
}

// Moments of all parameters, and the step of all but Muon's.
extern "C" __global__ void moments(Memory m, u32 kind, u32, u32) {
    const float *r = m.rates;
    GRID(i, LEN) {
        float g = m.state[(u64)FLAT_GRADIENT * LEN + i] * r[SHRINK];
        float *first = m.state + (u64)FIRST_MOMENT * LEN + i, *second = m.state + (u64)SECOND_MOMENT * LEN + i;
        float a = r[BETA1] * *first + (1.0f - r[BETA1]) * g, b = r[BETA2] * *second + (1.0f - r[BETA2]) * g * g;
        *first = a;
        *second = b;
        if (kind == MUON && m.packing[PARAMETERS + 3 * i + 2] & MATRIX) {
            // Nesterov's momentum: the gradient counts once more than in the mean.
            m.state[(u64)UPDATE * LEN + i] = r[BETA1] * a + (1.0f - r[BETA1]) * g;
            continue;
        }
        float denominator = sqrtf(b) * r[INVERSE_ROOT2];
        move(m, i, r[RATE] * (kind == ADAM_ATAN2 ? atan2f(a, denominator) : a / (denominator + 1e-8f)));
    }
}

// A matrix of Muon with its short side first, and its places in `scratch`: X and the next X [rows][columns], then two squares [rows][rows], the extents
// padded with zeros to multiples of 32.
struct Matrix {
    u32 flat, rows, columns, height, width;
    float *x, *next, *square, *factor;

    // Where the value at `i` of the parameters lies in X.
    __device__ u32 place(u32 i) const { return rows <= columns ? i / columns * width + i % columns : i % columns * width + i / columns; }
};

__device__ inline Matrix matrix_of(const Memory &m, u32 number, u32 turn) {
    const u32 *p = m.packing + MATRICES + 4 * number;
    u32 low = p[1] < p[2] ? p[1] : p[2], high = p[1] < p[2] ? p[2] : p[1];
    Matrix out = {p[0], p[1], p[2], (low + 31) / 32 * 32, (high + 31) / 32 * 32, 0, 0, 0, 0};
    float *base = m.scratch + p[3];
    u64 size = (u64)out.height * out.width;
    out.x = base + turn % 2 * size;
    out.next = base + (turn + 1) % 2 * size;
    out.square = base + 2 * size;
    out.factor = out.square + out.height * out.height;
    return out;
}

// X = the update, divided by its norm; a block for each matrix.
extern "C" __global__ void normalise(Memory m, u32, u32, u32) {
    __shared__ double parts[1024];
    Matrix own = matrix_of(m, blockIdx.x, 0);
    const float *update = m.state + (u64)UPDATE * LEN + own.flat;
    int count = own.rows * own.columns;
    double sum = 0;
    EACH(i, count) sum += (double)update[i] * update[i];
    float inverse = (float)(1.0 / (sqrt(block_sum(sum, parts)) + HRM_MUON_TINY));
    EACH(i, count) own.x[own.place(i)] = update[i] * inverse;
}

__device__ inline pair beside(const float *p) { return join(narrow(p[0]), narrow(p[1])); }

// One product of an iteration of Newton and Schulz, tiles of 16 x 32: square = X X^T; factor = b square + c square^2; next = a X + factor X.
// `blocks` of the grid for each matrix. `turn`: number of the iteration.
extern "C" __global__ void multiply(Memory m, u32 product_number, u32 turn, u32 blocks) {
    Matrix own = matrix_of(m, blockIdx.x / blocks, turn);
    int width = product_number == 2 ? own.width : own.height, jobs = own.height / 16 * (width / 32), g = lane_row(), t = lane_pair();
    for (int job = blockIdx.x % blocks * (blockDim.x / 32) + threadIdx.x / 32; job < jobs; job += blocks * (blockDim.x / 32)) {
        int row = job / (width / 32) * 16, column = job % (width / 32) * 32;
        float acc[4][4];
        clear<4>(acc);
        if (product_number == 0) {
            const float *x = own.x;
            int stride = own.width;
            product<4>(
                acc, own.width, [&](int r, int k) { return beside(x + (row + r) * stride + k); },
                [&](int n, int k) { return beside(x + (column + n) * stride + k); });
        } else {
            // The square is symmetric: its rows are its columns.
            const float *left = product_number == 1 ? own.square : own.factor, *right = product_number == 1 ? own.square : own.x;
            int stride = own.height;
            product<4>(
                acc, own.height, [&](int r, int k) { return beside(left + (row + r) * stride + k); },
                [&](int n, int k) {
                    const float *p = right + k * width + column + n;
                    return join(narrow(p[0]), narrow(p[width]));
                });
        }
        for (int n = 0; n < 4; n++)
            for (int i = 0; i < 4; i++) {
                int at = (row + g + i / 2 * 8) * width + column + 8 * n + t + i % 2;
                if (product_number == 0) own.square[at] = acc[n][i];
                else if (product_number == 1) own.factor[at] = HRM_MUON_B * own.square[at] + HRM_MUON_C * acc[n][i];
                else own.next[at] = HRM_MUON_A * own.x[at] + acc[n][i];
            }
    }
}

// Muon's step after `turns` iterations; `blocks` of the grid for each matrix.
extern "C" __global__ void apply(Memory m, u32 turns, u32 blocks, u32) {
    Matrix own = matrix_of(m, blockIdx.x / blocks, turns);
    u32 longer = own.rows < own.columns ? own.columns : own.rows;
    float step = m.rates[LR] * (HRM_MUON_RMS * sqrtf((float)longer));
    for (u32 i = blockIdx.x % blocks * blockDim.x + threadIdx.x; i < own.rows * own.columns; i += blocks * blockDim.x)
        move(m, own.flat + i, step * own.x[own.place(i)]);
}

// Factors of the int8 channels: the largest weight, in units of what it multiplies, is 127. A block of 32 threads for each channel.
extern "C" __global__ void measure_channels(Memory m, u32 which, u32, u32) {
    __shared__ float parts[32];
    const u32 *p = m.packing + CHANNELS + 3 * blockIdx.x;
    const float *w = m.state + (u64)which * LEN + p[0];
    float largest = 0;
    EACH(i, (int)p[1]) largest = fmaxf(largest, fabsf(w[i] * real(m.packing[UNITS + p[2] + i])));
    parts[threadIdx.x] = largest;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 32; i++) largest = fmaxf(largest, parts[i]);
        m.factors[blockIdx.x] = largest > 0 ? largest / 127.0f : 1.0f;
    }
}

// Operands, factors and biases of vector `which` of the state.
extern "C" __global__ void pack(Memory m, u32 which, u32, u32) {
    const float *w = m.state + (u64)which * LEN;
    GRID(i, HRM_WEIGHT_LEN) {
        const u32 *p = m.packing + ELEMENTS + 4 * i;
        float value = 0;
        if (p[0]) {
            value = w[p[0] - 1] * real(p[2]);
            if (HRM_ROUND) {
                float factor = m.factors[p[1]], back = real(p[3]);
                value = rintf(value / factor);
                if (back > 0) value *= factor * back;
            }
        }
        m.weights[i] = narrow(value);
    }
    GRID(i, HRM_FLOAT_LEN) {
        const u32 *p = m.packing + FLOATS + 2 * i;
        m.floats[i] = p[0] == CONSTANT ? real(p[1]) : p[0] == PARAMETER ? w[p[1]] : m.factors[p[1]];
    }
}
