// Starts, heads, loss, and the kernels.

// The start of a new puzzle, and the noise on the carry.
__device__ inline void begin(const Slot &s) {
    u64 start = wide(s.command + START_STREAM), noise = wide(s.command + NOISE_STREAM);
    float deviation = real(s.command[NOISE]);
    for (int half = 0; half < 2; half++) {
        float *z = s.f(half ? W_L : W_H);
        EACH(i, STATE) {
            int row = i / CP, c = i % CP;
            u64 index = (u64)half * ROWS * C + row * C + c;
            if (c >= C) {
                z[i] = 0;
                continue;
            }
            if (s.command[ACTION] & START) z[i] = HRM_RANDOM_START ? truncated(start, index) : s.floats[INIT + half * CP + c];
            if (deviation > 0) z[i] += deviation * normal(noise, index);
        }
    }
    __syncthreads();
}

// Input class of a row: with fields 0 blank, 1 this symbol, 2 another; else the token.
__device__ inline int class_of(const Slot &s, int row) {
    int token = byte_of(s.command + INPUT, row / FIELDS);
    if (FIELDS == 1) return token;
    return token < 2 ? 0 : token == row % FIELDS + 2 ? 1 : 2;
}

// to[k][c] += sum over the rows r of `value(r, k, c)`, k < COUNT.
template <int COUNT, class V> __device__ inline void column_sums(const Slot &s, float *to, V value) {
    float *parts = s.f(W_PARTS);
    EACH(i, PARTS * COUNT * CP) {
        int part = i / (COUNT * CP), k = i / CP % COUNT, c = i % CP;
        float sum = 0;
        for (int row = part; row < ROWS; row += PARTS) sum += value(row, k, c);
        parts[i] = sum;
    }
    __syncthreads();
    EACH(i, COUNT * CP) {
        float sum = 0;
        for (int part = 0; part < PARTS; part++) sum += parts[part * COUNT * CP + i];
        to[i] += sum;
    }
    __syncthreads();
}

// Column sums of z_H, logits, and the halt logit.
__device__ inline void heads(const Slot &s, u32 *result) {
    const float *z = s.f(W_H), *w = s.floats;
    float *columns = s.f(W_SMALL), *logits = s.f(W_LOGITS);
    EACH(c, CP) columns[c] = 0;
    __syncthreads();
    column_sums<1>(s, columns, [&](int row, int, int c) { return z[row * CP + c]; });
    EACH(i, ROWS * HEAD) {
        float sum = 0;
        for (int c = 0; c < CP; c++) sum += w[HEAD_AT + i % HEAD * CP + c] * z[i / HEAD * CP + c];
        logits[i] = sum;
    }
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int c = 0; c < CP; c++) sum += columns[c] * w[Q_AT + c];
        columns[CP] = sum / ROWS + w[Q_AT + CP];
        result[Q_HALT] = __float_as_uint(columns[CP]);
    }
    __syncthreads();
    unsigned char *answer = (unsigned char *)(result + ANSWER);
    EACH(token, TOKENS) {
        const float *own = logits + token * SYMBOLS;
        int best = 0;
        for (int i = 1; i < SYMBOLS; i++)
            if (own[i] > own[best]) best = i;
        answer[token] = (unsigned char)(FIELDS > 1 ? best + 2 : best);
    }
    __syncthreads();
}

// Cross entropy of a cell; the logits become its gradient times `scale`.
__device__ inline float cell(float *logits, int label, bool stablemax, double scale) {
    double total = 0;
    if (stablemax) {
        for (int i = 0; i < SYMBOLS; i++) total += logits[i] >= 0 ? logits[i] + 1.0 : 1.0 / (1.0 - logits[i]);
        double x = logits[label], chosen = x >= 0 ? x + 1 : 1 / (1 - x);
        for (int i = 0; i < SYMBOLS; i++) {
            double v = logits[i], value = v >= 0 ? v + 1 : 1 / (1 - v), slope = v >= 0 ? 1 : value * value;
            logits[i] = (float)(scale * (1 / total - (i == label) / value) * slope);
        }
        return (float)(log(total) - log(chosen));
    }
    float most = logits[0];
    for (int i = 1; i < SYMBOLS; i++) most = fmaxf(most, logits[i]);
    for (int i = 0; i < SYMBOLS; i++) total += exp((double)logits[i] - most);
    double value = log(total) - ((double)logits[label] - most);
    for (int i = 0; i < SYMBOLS; i++) logits[i] = (float)(scale * (exp((double)logits[i] - most) / total - (i == label)));
    return (float)value;
}

// Loss and outcome; writes the gradient of z_H, adds that of the heads.
__device__ inline void loss(const Slot &s, u32 *result) {
    const float *z = s.f(W_H), *w = s.floats;
    float *columns = s.f(W_SMALL), *scalar = columns + CP, *logits = s.f(W_LOGITS), *cells = s.f(W_CELLS), *d = s.f(W_D_H);
    const u32 *labels = s.command + LABEL;
    int labelled = 0;
    for (int token = 0; token < TOKENS; token++) labelled += byte_of(labels, token) != 0;
    double scale = (double)real(s.command[WEIGHT]) / (labelled ? labelled : 1);
    EACH(token, TOKENS) {
        int label = byte_of(labels, token);
        float *own = logits + token * SYMBOLS;
        cells[2 * token] = cells[2 * token + 1] = 0;
        if (!label) {
            for (int i = 0; i < SYMBOLS; i++) own[i] = 0;
            continue;
        }
        cells[2 * token + 1] = byte_of(result + ANSWER, token) == label;
        cells[2 * token] = cell(own, label - (FIELDS > 1 ? 2 : 0), s.command[ACTION] & STABLEMAX, scale);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        int right = 0;
        for (int token = 0; token < TOKENS; token++) {
            total += cells[2 * token];
            right += (int)cells[2 * token + 1];
        }
        bool exact = right == labelled;
        result[LOSS] = __float_as_uint((float)(total / (labelled ? labelled : 1)));
        result[RIGHT] = right;
        result[EXACT] = exact;
        double sigmoid = 1.0 / (1.0 + exp(-(double)scalar[0]));
        scalar[1] = (float)((double)real(s.command[Q_WEIGHT]) * (sigmoid - exact));
    }
    __syncthreads();
    float share = scalar[1] / ROWS;
    EACH(i, STATE) {
        int row = i / CP, c = i % CP;
        float sum = share * w[Q_AT + c];
        for (int h = 0; h < HEAD; h++) sum += logits[row * HEAD + h] * w[HEAD_AT + h * CP + c];
        d[i] = sum;
    }
    EACH(c, CP + 1) s.gradient[GRAD_Q + c] += c < CP ? share * columns[c] : scalar[1];
    column_sums<HEAD>(s, s.gradient + GRAD_HEAD, [&](int row, int h, int c) { return logits[row * HEAD + h] * z[row * CP + c]; });
}

__device__ inline void add(float *to, const float *from) {
    EACH(i, STATE) to[i] += from[i];
    __syncthreads();
}

// Block `b` of the grid works on slot `first + b`: a segment (or several, as cycles of one) as its command says; with LEARN also the loss and the
// gradient of what is on the tapes, `kept` calls of which the slot has room for.
extern "C" __global__ void __launch_bounds__(HRM_THREADS, 1) step(Memory m, u32 first, u32, u32) {
    u64 slot = first + blockIdx.x;
    const float *floats = m.floats;
    u32 *result = m.results + slot * RESULT;
    Slot s = {m.weights, floats, m.tables, m.commands + slot * COMMAND, m.work + slot * WORK, m.gradients + slot * GRADIENT};
    if (!(s.command[ACTION] & RUN)) return;
    unsigned char *tape = m.tapes + slot * m.tape_bytes;
    bool learn = s.command[ACTION] & LEARN;
    int cycle = s.command[L_CYCLES] + 1, calls = s.command[H_CYCLES] * cycle, first_kept = learn ? calls - (int)s.command[KEPT] : calls;
    float *h = s.f(W_H), *l = s.f(W_L);
    begin(s);
    for (int call = 0; call < calls; call++) {
        bool updates_h = call % cycle == cycle - 1;
        int module = updates_h ? MODULES - 1 : 0, layers = module ? H_LAYERS : L_LAYERS;
        unsigned char *mine = call < first_kept ? s.work + W_TAPE : tape + (call - first_kept) * CALL_TAPE;
        float *states = (float *)mine;
        EACH(i, STATE) states[i] = updates_h ? h[i] + l[i] : l[i] + (h[i] + floats[EMBED + class_of(s, i / CP) * CP + i % CP]);
        __syncthreads();
        for (int layer = 0; layer < layers; layer++)
            forward(s, module * L_LAYERS + layer, states + layer * STATE, states + (layer + 1) * STATE,
                    mine + 4ull * (LAYERS + 1) * STATE + layer * BLOCK_TAPE);
        float *z = updates_h ? h : l;
        EACH(i, STATE) z[i] = states[layers * STATE + i];
        __syncthreads();
    }
    heads(s, result);
    if (!learn) return;
    float *d_h = s.f(W_D_H), *d_l = s.f(W_D_L);
    EACH(i, GRADIENT) s.gradient[i] = 0;
    EACH(i, STATE) d_l[i] = 0;
    __syncthreads();
    loss(s, result);
    // A call's input is the sum of both states: the gradient of its input goes to both, and to the tokens of an L call.
    for (int call = calls - 1; call >= first_kept; call--) {
        bool updates_h = call % cycle == cycle - 1;
        int module = updates_h ? MODULES - 1 : 0, layers = module ? H_LAYERS : L_LAYERS;
        unsigned char *mine = tape + (call - first_kept) * CALL_TAPE;
        float *states = (float *)mine, *d = updates_h ? d_h : d_l;
        for (int layer = layers - 1; layer >= 0; layer--)
            backward(s, module * L_LAYERS + layer, states + layer * STATE, states + (layer + 1) * STATE,
                     mine + 4ull * (LAYERS + 1) * STATE + layer * BLOCK_TAPE, d);
        add(updates_h ? d_l : d_h, d);
        if (!updates_h)
            column_sums<CLASSES>(s, s.gradient + GRAD_EMBED, [&](int row, int k, int c) { return class_of(s, row) == k ? d[row * CP + c] : 0.0f; });
    }
}
