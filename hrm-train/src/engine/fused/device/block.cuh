// A block of the network, forward and backward.

// The operands of a block's products with its input: the input itself, in int8 units if the model rounds.
__device__ inline void view(const Slot &s, const float *floats, const float *x) {
    elem *out = s.e(W_VIEW);
    EACH(i, STATE) out[i] = narrow(HRM_ROUND ? int8(x[i] / floats[IN_STEP]) : x[i]);
    __syncthreads();
}

// y = block(x); keeps on the tape what the backward pass needs.
__device__ inline void forward(const Slot &s, int block, const float *x, float *y, unsigned char *tape) {
    const elem *weights = s.weights + (u64)block * BLOCK_WEIGHTS;
    const float *floats = s.floats + block * BLOCK_FLOATS;
    float *pre = (float *)(tape + T_PRE), *scale = (float *)(tape + T_SCALE), *products = s.f(W_PRODUCTS);
    elem *sums = (elem *)(tape + T_SUMS), *seen = s.e(W_VIEW), *hidden = s.e(W_HIDDEN);
    int g = lane_row(), t = lane_pair();
    view(s, floats, x);
    EACH(i, GROUP_ROWS * CP) {
        int group = i / CP, c = i % CP;
        float sum = 0;
        for (u32 m = s.tables[BEGIN + group]; m < s.tables[BEGIN + group + 1]; m++) {
            int at = s.tables[MEMBERS + m] * CP + c;
            sum += HRM_ROUND ? widen(seen[at]) : x[at];
        }
        sums[i] = narrow(HRM_ROUND ? int8(sum * floats[IN_STEP] / floats[IN_STEP + 1 + s.tables[GROUPING + group]]) : sum);
    }
    __syncthreads();
    JOBS(job, HRM_GROUP_TILES * (N / 32)) {
        const u32 *tile = s.tables + TILES + job / (N / 32) * 2;
        int first = tile[0], part = tile[1], end = s.tables[BASE + part + 1], column = job % (N / 32) * 32;
        const elem *w = weights + UP + ((u64)(1 + part) * N + column) * CP;
        float acc[4][4];
        clear<4>(acc);
        product<4>(
            acc, CP, [&](int row, int k) { return along(sums + least(first + row, end - 1) * CP + k); },
            [&](int n, int k) { return along(w + n * CP + k); });
        for (int n = 0; n < 4; n++)
            for (int i = 0; i < 4; i++) {
                int row = first + g + i / 2 * 8;
                if (row < end) products[row * N + column + 8 * n + t + i % 2] = acc[n][i];
            }
    }
    __syncthreads();
    // Two tiles of gates and the two of the same units' ups.
    JOBS(job, ROW_TILES * (IP / 16)) {
        int first = job / (IP / 16) * 16, unit = job % (IP / 16) * 16;
        const elem *w = weights + UP + (u64)unit * CP;
        float acc[4][4];
        clear<4>(acc);
        product<4>(
            acc, CP, [&](int row, int k) { return along(seen + least(first + row, ROWS - 1) * CP + k); },
            [&](int n, int k) { return along(w + (n < 16 ? n : IP + n - 16) * CP + k); });
        for (int i = 0; i < 4; i += 2) {
            int row = first + g + i / 2 * 8;
            if (row >= ROWS) continue;
            for (int n = 0; n < 2; n++) {
                float h[2];
                for (int j = 0; j < 2; j++) {
                    int gate = unit + 8 * n + t + j, up = IP + gate;
                    float a = acc[n][i + j], b = acc[n + 2][i + j];
                    for (int k = 0; k < G; k++) {
                        const float *p = products + s.tables[IDS + row * G + k] * N;
                        a += p[gate];
                        b += p[up];
                    }
                    a = a * floats[UP_SCALE + gate] + floats[BIAS + gate];
                    b = b * floats[UP_SCALE + up] + floats[BIAS + up];
                    pre[row * N + gate] = a;
                    pre[row * N + up] = b;
                    h[j] = a * silu_gate(a) * b;
                    if (HRM_ROUND) h[j] = int8(h[j] / floats[HIDDEN_STEP + gate]);
                }
                *(pair *)(hidden + row * IP + unit + 8 * n + t) = join(narrow(h[0]), narrow(h[1]));
            }
        }
    }
    __syncthreads();
    JOBS(job, ROW_TILES) {
        int first = job * 16;
        float acc[CP / 8][4];
        clear<CP / 8>(acc);
        product<CP / 8>(
            acc, IP, [&](int row, int k) { return along(hidden + least(first + row, ROWS - 1) * IP + k); },
            [&](int n, int k) { return along(weights + DOWN + n * IP + k); });
        for (int i = 0; i < 4; i += 2) {
            int row = first + g + i / 2 * 8, from = least(row, ROWS - 1) * CP;
            float square = 0;
            for (int n = 0; n < CP / 8; n++)
                for (int j = 0; j < 2; j++) {
                    int c = 8 * n + t + j;
                    float v = x[from + c] + acc[n][i + j] * floats[DOWN_SCALE + c];
                    acc[n][i + j] = v;
                    square += v * v;
                }
            float factor = 1.0f / sqrtf(quad_sum(square) / C + 1e-5f);
            if (row >= ROWS) continue;
            for (int n = 0; n < CP / 8; n++)
                for (int j = 0; j < 2; j++) y[from + 8 * n + t + j] = acc[n][i + j] * factor;
            if (t == 0) scale[row] = factor;
        }
    }
    __syncthreads();
}

// gradient[row][column] += factor * sum over k of left[k][row] right[k][column] for a tile of 16 rows and 8 * TILES columns.
template <int TILES, class F>
__device__ inline void outer(float *gradient, int width, int rows, const elem *left, int left_stride, const elem *right, int right_stride,
                             int length, F factor) {
    int g = lane_row(), t = lane_pair();
    float acc[TILES][4];
    clear<TILES>(acc);
    product<TILES>(
        acc, length, [&](int row, int k) { return across(left + row, left_stride, k, length); },
        [&](int n, int k) { return across(right + n, right_stride, k, length); });
    for (int n = 0; n < TILES; n++)
        for (int i = 0; i < 4; i++) {
            int row = g + i / 2 * 8, column = 8 * n + t + i % 2;
            if (row < rows) gradient[row * width + column] += factor(column) * acc[n][i];
        }
}

// Turns d, the gradient of y = block(x), into that of x, and adds the weights' to the gradient.
__device__ inline void backward(const Slot &s, int block, const float *x, const float *y, unsigned char *tape, float *d) {
    const elem *weights = s.weights + (u64)block * BLOCK_WEIGHTS;
    const float *floats = s.floats + block * BLOCK_FLOATS;
    const float *pre = (const float *)(tape + T_PRE), *scale = (const float *)(tape + T_SCALE);
    const elem *sums = (const elem *)(tape + T_SUMS);
    float *gradient = s.gradient + (u64)block * GRAD_BLOCK, *products = s.f(W_PRODUCTS), *d_sums = s.f(W_D_SUMS);
    elem *dv = s.e(W_DV), *hidden = s.e(W_HIDDEN), *d_pre = s.e(W_D_PRE), *d_products = s.e(W_D_PRODUCTS), *seen = s.e(W_VIEW);
    int g = lane_row(), t = lane_pair();
    // The norm: four lanes a row, all lanes of a warp at once.
    EACH(i, (4 * ROWS + 31) / 32 * 32) {
        int row = least(i / 4, ROWS - 1);
        float dot = 0;
        for (int c = i % 4; c < CP; c += 4) dot += d[row * CP + c] * y[row * CP + c];
        dot = quad_sum(dot) / C;
        if (i / 4 < ROWS)
            for (int c = i % 4; c < CP; c += 4) {
                float v = scale[row] * (d[row * CP + c] - y[row * CP + c] * dot);
                d[row * CP + c] = v;
                dv[row * CP + c] = narrow(v);
            }
    }
    view(s, floats, x);
    JOBS(job, ROW_TILES * (IP / 16)) {
        int first = job / (IP / 16) * 16, unit = job % (IP / 16) * 16;
        float acc[2][4];
        clear<2>(acc);
        product<2>(
            acc, CP, [&](int row, int k) { return along(dv + least(first + row, ROWS - 1) * CP + k); },
            [&](int n, int k) { return along(weights + DOWN_BACK + (unit + n) * CP + k); });
        for (int i = 0; i < 4; i += 2) {
            int row = first + g + i / 2 * 8;
            if (row >= ROWS) continue;
            for (int n = 0; n < 2; n++) {
                float h[2], da[2], db[2];
                for (int j = 0; j < 2; j++) {
                    int gate = unit + 8 * n + t + j;
                    float a = pre[row * N + gate], b = pre[row * N + IP + gate], dh = acc[n][i + j], sigmoid = silu_gate(a), silu = a * sigmoid;
                    h[j] = silu * b;
                    if (HRM_ROUND) {
                        float units = h[j] / floats[HIDDEN_STEP + gate];
                        // What is clipped passes no gradient; rounding passes it on.
                        if (units < -128.5f || units > 127.5f) dh = 0;
                        h[j] = int8(units);
                    }
                    da[j] = dh * b * (sigmoid + silu - silu * sigmoid);
                    db[j] = dh * silu;
                }
                int at = unit + 8 * n + t;
                *(pair *)(hidden + row * IP + at) = join(narrow(h[0]), narrow(h[1]));
                *(pair *)(d_pre + row * N + at) = join(narrow(da[0]), narrow(da[1]));
                *(pair *)(d_pre + row * N + IP + at) = join(narrow(db[0]), narrow(db[1]));
            }
        }
    }
    __syncthreads();
    EACH(i, GROUP_ROWS * N) {
        int group = i / N, n = i % N;
        float sum = 0;
        for (u32 m = s.tables[BEGIN + group]; m < s.tables[BEGIN + group + 1]; m++) sum += widen(d_pre[s.tables[MEMBERS + m] * N + n]);
        products[i] = sum;
        d_products[i] = narrow(sum);
    }
    __syncthreads();
    // The group rows of the first grouping add up to all rows.
    EACH(n, N) {
        float sum = 0;
        for (u32 group = 0; group < s.tables[BASE + 1]; group++) sum += products[group * N + n];
        gradient[GRAD_BIAS + n] += sum;
    }
    JOBS(job, HRM_GROUP_TILES * (CP / 16)) {
        const u32 *tile = s.tables + TILES + job / (CP / 16) * 2;
        int first = tile[0], part = tile[1], end = s.tables[BASE + part + 1], column = job % (CP / 16) * 16;
        const elem *w = weights + UP_BACK + ((u64)(1 + part) * CP + column) * N;
        float acc[2][4];
        clear<2>(acc);
        product<2>(
            acc, N, [&](int row, int k) { return along(d_products + least(first + row, end - 1) * N + k); },
            [&](int n, int k) { return along(w + n * N + k); });
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 4; i++) {
                int row = first + g + i / 2 * 8;
                if (row < end) d_sums[row * CP + column + 8 * n + t + i % 2] = acc[n][i];
            }
    }
    // W_down, and W_up part by part: the rows, then each grouping.
    JOBS(job, CP / 16 * (IP / 16)) {
        int row = job / (IP / 16) * 16, column = job % (IP / 16) * 16;
        outer<2>(gradient + GRAD_DOWN + row * IP + column, IP, C - row, dv + row, CP, hidden + column, IP, ROWS,
                 [&](int n) { return floats[HIDDEN_STEP + column + n]; });
    }
    JOBS(job, (1 + G) * (CP / 16) * (N / 32)) {
        int part = job / (CP / 16 * (N / 32)), row = job / (N / 32) % (CP / 16) * 16, column = job % (N / 32) * 32;
        int from = part ? s.tables[BASE + part - 1] : 0, length = part ? (int)s.tables[BASE + part] - from : (int)ROWS;
        const elem *left = part ? sums + from * CP : seen, *right = part ? d_products + from * N : d_pre;
        outer<4>(gradient + GRAD_UP + (part * C + row) * N + column, N, C - row, left + row, CP, right + column, N, length,
                 [&](int) { return floats[IN_STEP + part]; });
    }
    __syncthreads();
    JOBS(job, ROW_TILES * (CP / 16)) {
        int first = job / (CP / 16) * 16, column = job % (CP / 16) * 16;
        const elem *w = weights + UP_BACK + (u64)column * N;
        float acc[2][4];
        clear<2>(acc);
        product<2>(
            acc, N, [&](int row, int k) { return along(d_pre + least(first + row, ROWS - 1) * N + k); },
            [&](int n, int k) { return along(w + n * N + k); });
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 4; i++) {
                int row = first + g + i / 2 * 8, c = column + 8 * n + t + i % 2;
                if (row >= ROWS) continue;
                float sum = d[row * CP + c] + acc[n][i];
                for (int k = 0; k < G; k++) sum += d_sums[s.tables[IDS + row * G + k] * CP + c];
                d[row * CP + c] = sum;
            }
    }
    __syncthreads();
}
