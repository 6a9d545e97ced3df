/* Two loops without a hidden state dimension: the linear recurrence
       h[t] = a[t] h[t-1] + b[t]
   and the causal depthwise convolution of width K <= 4 with its SiLU,
       s[t] = bias + sum_k w[k] x[t - 3 + k],   y[t] = s[t] / (1 + e^-s[t]).
   Both read each number once and are bound by memory; lanes run over channels, rows are
   read in the order in which they lie. Sources: 1709.04057 (the reversed scan is the
   backward pass), 2312.00752 (the convolution); own design. */
#include "vec.h"
#include "threads.h"

enum {
    WIDE = 16, /* vectors of an item */
    K = 4,     /* taps (shorter filters are padded) */
    ROWS = 32, /* of the convolution, of one chunk */
};

typedef struct {
    long b, L, d, half, silu;
    const void *a, *x; /* (b, L, d): factors and inputs; x may be bfloat16 */
    const float *h0;   /* linear: (b, d); convolution: (b, K-1, d), the rows before */
    const uint8_t *reset;
    const float *w, *bias; /* (d, K), (d) */
    void *y;               /* (b, L, d): states or outputs */
    const void *gy;
    void *da, *dx;
    float *dh0, *dw, *dbias;
    float *part_w, *part_bias; /* (b, d, K), (b, d) */
} job;

typedef struct {
    long batch, first, count; /* vectors first .. first + count - 1 of a row */
} place;

static long items(const job *J) {
    return J->b * ((J->d + WIDE * VL - 1) / (WIDE * VL));
}

static place find(const job *J, long item) {
    long vectors = (J->d + VL - 1) / VL, ranges = (vectors + WIDE - 1) / WIDE;
    place w = {item / ranges, item % ranges * WIDE, 0};
    w.count = MIN(WIDE, vectors - w.first);
    return w;
}

/* ---- linear recurrence ----------------------------------------------------------- */

static void linear_item(const void *arg, long item, float *scratch) {
    const job *J = arg;
    place w = find(J, item);
    vf *h = (vf *)scratch;
    for (long j = 0; j < w.count; j++) {
        long c = (w.first + j) * VL;
        h[j] = J->h0 ? load(J->h0, w.batch * J->d + c, 0, J->d - c) : splat(0);
    }
    for (long t = 0; t < J->L; t++)
        for (long j = 0; j < w.count; j++) {
            long c = (w.first + j) * VL, i = (w.batch * J->L + t) * J->d + c;
            if (J->reset && J->reset[w.batch * J->L + t]) h[j] = splat(0);
            h[j] = load(J->a, i, 0, J->d - c) * h[j] + load(J->x, i, 0, J->d - c);
            store(J->y, i, 0, J->d - c, h[j]);
        }
}

/* The same recurrence from the end: g[t] = gy[t] + a[t+1] g[t+1]. */
static void linear_back(const void *arg, long item, float *scratch) {
    const job *J = arg;
    place w = find(J, item);
    vf *g = (vf *)scratch; /* a[t+1] g[t+1] */
    for (long j = 0; j < w.count; j++) g[j] = splat(0);
    for (long t = J->L - 1; t >= 0; t--) {
        int cut = J->reset && J->reset[w.batch * J->L + t];
        for (long j = 0; j < w.count; j++) {
            long c = (w.first + j) * VL, i = (w.batch * J->L + t) * J->d + c;
            long width = J->d - c;
            vf now = load(J->gy, i, 0, width) + g[j], before = splat(0);
            if (t && !cut) before = load(J->y, i - J->d, 0, width);
            else if (J->h0 && !cut) before = load(J->h0, w.batch * J->d + c, 0, width);
            store(J->dx, i, 0, width, now);
            store(J->da, i, 0, width, now * before);
            g[j] = load(J->a, i, 0, width) * now;
            if (cut) g[j] = splat(0);
        }
    }
    for (long j = 0; j < w.count && J->dh0; j++) {
        long c = (w.first + j) * VL;
        store(J->dh0, w.batch * J->d + c, 0, J->d - c, g[j]);
    }
}

/* ---- causal convolution ---------------------------------------------------------- */

/* Row t of a vector of channels, also before the start. */
INLINE vf input(const job *J, long batch, long t, long c) {
    if (t >= 0) return load(J->x, (batch * J->L + t) * J->d + c, J->half, J->d - c);
    if (!J->h0) return splat(0);
    return load(J->h0, (batch * (K - 1) + t + K - 1) * J->d + c, 0, J->d - c);
}

static void taps(const job *J, long c, vf *to) { /* [K] from (d, K) */
    for (long k = 0; k < K; k++) {
        float v[VL] = {0};
        for (long l = 0; l < VL && c + l < J->d; l++) v[l] = J->w[(c + l) * K + k];
        to[k] = *(vf *)v;
    }
}

INLINE vf filtered(const vf *tap, const vf *x, vf bias) {
    vf s = bias;
    UNROLL for (int k = 0; k < K; k++) s += tap[k] * x[k];
    return s;
}

/* Rows come in chunks, and a chunk vector by vector: its last inputs stay in registers. */
static void conv_item(const void *arg, long item, float *scratch) {
    const job *J = arg;
    place w = find(J, item);
    vf *tap = (vf *)scratch;
    for (long j = 0; j < w.count; j++) taps(J, (w.first + j) * VL, tap + j * K);
    for (long t0 = 0; t0 < J->L; t0 += ROWS)
        for (long j = 0; j < w.count; j++) {
            long c = (w.first + j) * VL, width = J->d - c;
            vf bias = J->bias ? load(J->bias, c, 0, width) : splat(0), x[K], of[K];
            UNROLL for (int k = 0; k < K; k++) of[k] = tap[j * K + k];
            UNROLL for (int k = 1; k < K; k++) x[k] = input(J, w.batch, t0 - K + k, c);
            for (long t = t0; t < MIN(t0 + ROWS, J->L); t++) {
                long i = (w.batch * J->L + t) * J->d + c;
                UNROLL for (int k = 1; k < K; k++) x[k - 1] = x[k];
                x[K - 1] = load(J->x, i, J->half, width);
                vf s = filtered(of, x, bias);
                if (J->silu) s *= sigmoid(s);
                store(J->y, i, J->half, width, s);
            }
        }
}

/* With ds = dL/ds: dx[t] = sum_k w[k] ds[t + 3 - k], dw[k] = sum_t ds[t] x[t - 3 + k].
   The three rows before the start get their gradient too. */
static void conv_back(const void *arg, long item, float *scratch) {
    const job *J = arg;
    place w = find(J, item);
    vf *tap = (vf *)scratch, *dw = tap + WIDE * K, *kept = dw + WIDE * K;
    vf *dbias = kept + WIDE * K; /* kept: ds of the K - 1 rows after the chunk */
    for (long j = 0; j < w.count; j++) taps(J, (w.first + j) * VL, tap + j * K);
    for (long i = 0; i < WIDE * (2 * K + 1); i++) dw[i] = splat(0);
    for (long end = J->L; end > 0; end -= ROWS)
        for (long j = 0; j < w.count; j++) {
            long c = (w.first + j) * VL, width = J->d - c;
            vf bias = J->bias ? load(J->bias, c, 0, width) : splat(0);
            vf x[K], of[K], sum[K], ds[K], all = dbias[j];
            UNROLL for (int k = 0; k < K; k++) {
                of[k] = tap[j * K + k], sum[k] = dw[j * K + k];
                ds[k] = kept[j * K + k], x[k] = input(J, w.batch, end - K + k, c);
            }
            for (long t = end - 1; t >= MAX(end - ROWS, 0); t--) {
                long i = (w.batch * J->L + t) * J->d + c;
                vf g = load(J->gy, i, J->half, width), dx = splat(0);
                if (J->silu) {
                    vf s = filtered(of, x, bias), sigma = sigmoid(s);
                    g *= sigma * (1.f + s * (1.f - sigma));
                }
                all += g;
                UNROLL for (int k = K - 1; k > 0; k--) ds[k] = ds[k - 1];
                ds[0] = g; /* ds[k]: of row t + k */
                UNROLL for (int k = 0; k < K; k++) sum[k] += g * x[k];
                UNROLL for (int k = 0; k < K; k++) dx += of[K - 1 - k] * ds[k];
                store(J->dx, i, J->half, width, dx);
                UNROLL for (int k = K - 1; k > 0; k--) x[k] = x[k - 1];
                x[0] = input(J, w.batch, t - K, c);
            }
            dbias[j] = all;
            UNROLL for (int k = 0; k < K; k++)
                dw[j * K + k] = sum[k], kept[j * K + k] = ds[k];
        }
    for (long j = 0; j < w.count; j++) {
        long c = (w.first + j) * VL, width = J->d - c;
        for (long t = -1; J->dh0 && t > -K; t--) { /* the rows before */
            vf dx = splat(0);
            for (long k = -t; k < K; k++) dx += tap[j * K + K - 1 - k] * kept[j * K + k + t];
            store(J->dh0, (w.batch * (K - 1) + t + K - 1) * J->d + c, 0, width, dx);
        }
        for (long l = 0; l < VL && l < width; l++) {
            J->part_bias[w.batch * J->d + c + l] = dbias[j][l];
            for (long k = 0; k < K; k++)
                J->part_w[(w.batch * J->d + c + l) * K + k] = dw[j * K + k][l];
        }
    }
}

/* ---- what Python calls ----------------------------------------------------------- */

int linear(const job *J, int threads) {
    return spread(linear_item, J, items(J), WIDE * VL, threads);
}

int linear_backward(const job *J, int threads) {
    return spread(linear_back, J, items(J), WIDE * VL, threads);
}

int conv(const job *J, int threads) {
    return spread(conv_item, J, items(J), WIDE * K * VL, threads);
}

int conv_backward(const job *asked, int threads) {
    job J = *asked;
    float *parts = workspace(J.b * J.d * (K + 1));
    if (!parts) return 1;
    J.part_w = parts, J.part_bias = parts + J.b * J.d * K;
    int failed = spread(conv_back, &J, items(&J), WIDE * (3 * K + 1) * VL, threads);
    if (!failed) {
        add_sequences(J.dw, J.part_w, J.d * K, J.b);
        add_sequences(J.dbias, J.part_bias, J.d, J.b);
    }
    free(parts);
    return failed;
}
