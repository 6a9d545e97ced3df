/* The selective scan, forward and backward, in one pass over the data.

       h[t,n] = exp(dt[t] A[n]) h[t-1,n] + dt[t] u[t] B[t,n]
       y[t]   = (sum_n C[t,n] h[t,n] + D u[t]) silu(z[t])          for every channel

   A vector holds the same state of VL channels (`vec.h`); the states themselves stay in
   registers while time runs. Time is cut into chunks of T steps, whose rows of u, delta
   and z are prepared in cache. The forward pass keeps the state at the start of each
   chunk; the backward pass starts from those, computes the chunk again, and walks it in
   reverse. Nothing of size length x channels x states is ever stored.

   The same file compiled with -DHEADS=1 is Mamba-2: one decay for a head of P channels,
   so one exponential for each (step, head) instead of one for each state.

   -DNS=16 (or 8, 4) is the number of states that the forward loop holds at once, -DT=16
   the steps of a chunk.
   Sources: 2312.00752 (the scan, recomputation), 2405.21060 (heads); own design. */
#include "vec.h"
#include "threads.h"

#ifndef NS
#define NS 16
#endif
#ifndef HEADS
#define HEADS 0
#endif
#if VL == 8 && NS > 8 /* AVX2 has 16 registers */
#undef NS
#define NS 8
#endif
#ifndef NB /* states that the backward loop holds at once; it divides NS. Heads keep
              fewer vectors for each, so that twice as many fit */
#define NB (HEADS && VL == 16 && NS >= 8 ? 8 : 4)
#endif
#ifndef T
#define T 16 /* steps of a chunk */
#endif
#ifndef SPLIT
#define SPLIT 4 /* items to aim for; longer rows are worth more than more items */
#endif
#ifndef LONG
#define LONG 32 /* blocks of an item at most: 64 are faster still, for fewer threads */
#endif
#define LN2 0.693147181f

/* ---- the job: what Python hands over (`cpu.py` has the same list) ---------------- */

typedef struct {
    long b, L, d, N, G, P; /* batch, length, channels, states, groups; head width */
    long softplus, half_u, half_delta, half_z, half_BC; /* half: bfloat16 */
    const void *u, *delta, *z, *B, *C; /* (b, L, d), B and C (b, L, G, N) */
    const float *A, *D, *bias, *h0;    /* (d, N), (d), (d), (b, d, N); A, bias (H) */
    const uint8_t *reset;              /* (b, L) */
    void *y;
    float *last, *check;
    const void *gy; /* backward: the gradients of y and of the last state, ... */
    const float *glast;
    void *du, *ddelta, *dz; /* ... and the results */
    float *dA, *dB, *dC, *dD, *dbias, *dh0;
    float *part_B, *part_C, *part_A, *part_D, *part_bias; /* still to be added up */
} job;

/* How the work is cut. It depends on the shape alone, never on the threads. */
typedef struct {
    long N;      /* states, padded to whole groups */
    long chunks; /* of time */
    long blocks; /* vectors of a group of channels */
    long unit;   /* blocks that must stay together: a head's */
    long each;   /* blocks of an item */
    long ranges; /* items of one sequence and one group */
} plan;

static plan make_plan(const job *J) {
    plan p;
    long width = HEADS ? J->P : J->d / J->G;
    p.N = (J->N + NS - 1) / NS * NS;
    p.chunks = (J->L + T - 1) / T;
    p.unit = HEADS ? (width + VL - 1) / VL : 1;
    long units = HEADS ? J->d / J->P / J->G : (width + VL - 1) / VL;
    p.blocks = units * p.unit;
    long ranges = MAX((p.blocks + LONG - 1) / LONG,
                      MIN(SPLIT / MAX(1, J->b * J->G), p.blocks / 4));
    ranges = MAX(1, MIN(ranges, units));
    long each = (units + ranges - 1) / ranges;
    p.each = each * p.unit;
    p.ranges = (units + each - 1) / each;
    return p;
}

typedef struct { /* where a block's channels are */
    long channel, width, head;
} spot;

/* An item: some blocks of one group of one sequence. */
typedef struct {
    const job *J;
    plan p;
    long batch, group, range, first, count; /* blocks first .. first + count - 1 */
    const uint8_t *reset;
    long heads;        /* columns of delta */
    const spot *spots; /* of these blocks: looked up, because finding one divides */
} place;

static spot locate(const job *J, const plan *p, long group, long j) {
    if (!HEADS) {
        long dg = J->d / J->G;
        return (spot){group * dg + j * VL, MIN(VL, dg - j * VL), 0};
    }
    long head = group * (J->d / J->P / J->G) + j / p->unit;
    long at = j % p->unit * VL;
    return (spot){head * J->P + at, MIN(VL, J->P - at), head};
}

static long spot_floats(plan p) { /* whole vectors, so that what follows is aligned */
    return (p.each * (long)sizeof(spot) + 63) / 64 * 16;
}

static place find(const job *J, long item, float *scratch) {
    place w = {.J = J, .p = make_plan(J), .spots = (spot *)scratch};
    w.heads = HEADS ? J->d / J->P : J->d;
    w.range = item % w.p.ranges;
    w.group = item / w.p.ranges % J->G;
    w.batch = item / w.p.ranges / J->G;
    w.first = w.range * w.p.each;
    w.count = MIN(w.p.each, w.p.blocks - w.first);
    w.reset = J->reset ? J->reset + w.batch * J->L : NULL;
    for (long j = 0; j < w.count; j++)
        ((spot *)scratch)[j] = locate(J, &w.p, w.group, w.first + j);
    return w;
}

INLINE spot where(const place *w, long j) { return w->spots[j]; }

/* ---- between the user's layout and vectors --------------------------------------- */

/* States (b, d, N) of one block to and from [N][VL]; absent lanes and states are 0. */
static void gather(float *to, const float *from, spot s, long N, long padded) {
    memset(to, 0, padded * VL * sizeof(float));
    if (!from) return;
    for (long l = 0; l < s.width; l++)
        for (long n = 0; n < N; n++) to[n * VL + l] = from[(s.channel + l) * N + n];
}

static void scatter(float *to, const float *from, spot s, long N) {
    for (long l = 0; l < s.width; l++)
        for (long n = 0; n < N; n++) to[(s.channel + l) * N + n] = from[n * VL + l];
}

/* Rows of B or C of one chunk as floats, [len][padded N]. */
static void rows(float *to, const void *from, const place *w, long t0, long len) {
    const job *J = w->J;
    for (long t = 0; t < len; t++, to += w->p.N) {
        long i = ((w->batch * J->L + t0 + t) * J->G + w->group) * J->N;
        for (long n = 0; n < J->N; n++)
            to[n] = J->half_BC ? half_to_float(((const uint16_t *)from)[i + n])
                               : ((const float *)from)[i + n];
        for (long n = J->N; n < w->p.N; n++) to[n] = 0;
    }
}

INLINE vf skip(const job *J, spot s) { /* D of a block's channels */
    return J->D ? load(J->D, s.channel, 0, s.width) : splat(0);
}

/* A log2(e), so that the loops need powers of 2 only: [count][N][VL], heads [count][VL]. */
static void decays(float *to, const place *w) {
    for (long j = 0; j < w->count; j++) {
        spot s = where(w, j);
        long vectors = HEADS ? 1 : w->p.N;
        float *at = to + j * vectors * VL;
        if (HEADS) *(vf *)at = splat(w->J->A[s.head]);
        else gather(at, w->J->A, s, w->J->N, w->p.N);
        for (long n = 0; n < vectors; n++)
            *(vf *)(at + n * VL) = tame(*(vf *)(at + n * VL) * LOG2E);
    }
}

INLINE vf raw_delta(const place *w, spot s, long t) { /* before softplus */
    const job *J = w->J;
    long row = (w->batch * J->L + t) * w->heads;
    if (!HEADS) {
        vf d = load(J->delta, row + s.channel, J->half_delta, s.width);
        if (J->bias) d += load(J->bias, s.channel, 0, s.width);
        return d;
    }
    row += s.head;
    float d = J->half_delta ? half_to_float(((const uint16_t *)J->delta)[row])
                            : ((const float *)J->delta)[row];
    return splat(J->bias ? d + J->bias[s.head] : d);
}

/* ---- forward --------------------------------------------------------------------- */

typedef struct { /* of one (step, block) */
    vf dt, x, y; /* dt: of heads, the decay itself */
} entry;

/* NS states of one block through one chunk. The heart of the forward pass: for every
   state one exponential (9 operations), one product and two multiply-adds. */
INLINE void forward_states(float *state, const float *A, entry *rows, const float *B,
                           const float *C, long stride, const uint8_t *reset, long len,
                           const char *next[3], long apart[3]) {
    vf h[NS];
    UNROLL for (int n = 0; n < NS; n++) h[n] = *(vf *)(state + n * VL);
    for (long t = 0; t < len; t++) {
        entry *r = rows + t;
        vf dt = r->dt, x = r->x, y0 = r->y, y1 = splat(0);
        __builtin_prefetch(next[0] + t * apart[0]); /* the next chunk, in the meantime */
        __builtin_prefetch(next[1] + t * apart[1]);
        __builtin_prefetch(next[2] + t * apart[2], 1); /* what this one will write */
        if (reset && reset[t]) UNROLL for (int n = 0; n < NS; n++) h[n] = splat(0);
        UNROLL for (int n = 0; n < NS; n++) {
            vf a = HEADS ? dt : exp2_of(dt, *(vf *)(A + n * VL));
            h[n] = a * h[n] + x * B[t * stride + n];
            if (n % 2) y1 += h[n] * C[t * stride + n];
            else y0 += h[n] * C[t * stride + n];
        }
        r->y = y0 + y1;
    }
    UNROLL for (int n = 0; n < NS; n++) *(vf *)(state + n * VL) = h[n];
}

static long forward_scratch(const job *J) {
    plan p = make_plan(J);
    return spot_floats(p) + p.each * VL * (2 * p.N + 3 * T) + 2 * T * p.N;
}

static void forward_item(const void *arg, long item, float *scratch) {
    const job *J = arg;
    const place at = find(J, item, scratch), *w = &at;
    const long N = w->p.N, block = N * VL, each = w->p.each;
    entry *all = (entry *)(scratch + spot_floats(w->p));
    float *A = (float *)(all + each * T), *h = A + each * block;
    float *B = h + each * block, *C = B + T * N;

    decays(A, w);
    for (long j = 0; j < w->count; j++)
        gather(h + j * block, J->h0 ? J->h0 + w->batch * J->d * J->N : NULL, where(w, j),
               J->N, N);

    for (long c = 0; c < w->p.chunks; c++) {
        long t0 = c * T, len = MIN(T, J->L - t0);
        rows(B, J->B, w, t0, len);
        rows(C, J->C, w, t0, len);
        if (J->check) { /* the state before this chunk, for the backward pass */
            long start = ((w->batch * w->p.chunks + c) * J->G + w->group) * w->p.blocks;
            memcpy(J->check + (start + w->first) * block, h,
                   w->count * block * sizeof(float));
        }
        for (long t = 0; t < len; t++) /* step sizes and inputs, row by row */
            for (long j = 0; j < w->count; j++) {
                spot s = where(w, j);
                long i = (w->batch * J->L + t0 + t) * J->d + s.channel;
                vf d = raw_delta(w, s, t0 + t), u = load(J->u, i, J->half_u, s.width);
                if (J->softplus) d = softplus(d);
                entry *r = all + j * T + t;
                r->x = d * u, r->y = u * skip(J, s), r->dt = tame(d);
                if (HEADS) r->dt = exp2_of(r->dt, *(vf *)(A + j * VL));
            }
        for (long j = 0; j < w->count; j++) {
            long i = (w->batch * J->L + t0) * J->d + where(w, j).channel;
            long su = J->half_u ? 2 : 4, sd = J->half_delta ? 2 : 4;
            long ahead = t0 + 2 * T <= J->L; /* never prefetch far beyond the end */
            long skip = ahead * T * J->d;
            const char *next[3] = {(const char *)J->u + (i + skip) * su,
                                   (const char *)J->delta + (i + skip) * sd,
                                   (const char *)J->y + i * su};
            long apart[3] = {ahead * J->d * su, ahead * J->d * sd, J->d * su};
            if (HEADS) next[1] = next[0], apart[1] = 0;
            for (long k = 0; k < N; k += NS)
                forward_states(h + j * block + k * VL, HEADS ? A : A + j * block + k * VL,
                               all + j * T, B + k, C + k, N,
                               w->reset ? w->reset + t0 : NULL, len, next, apart);
        }
        for (long t = 0; t < len; t++) /* gate and write */
            for (long j = 0; j < w->count; j++) {
                spot s = where(w, j);
                long i = (w->batch * J->L + t0 + t) * J->d + s.channel;
                vf v = all[j * T + t].y;
                if (J->z) {
                    vf z = load(J->z, i, J->half_z, s.width);
                    v *= z * sigmoid(z);
                }
                store(J->y, i, J->half_u, s.width, v);
            }
    }
    if (J->last)
        for (long j = 0; j < w->count; j++)
            scatter(J->last + w->batch * J->d * J->N, h + j * block, where(w, j), J->N);
}

/* ---- backward ----------------------------------------------------------------------

   With w = dL/dy (before the gate) and g = dL/dh, from the last step to the first:
       g[t] = C[t] w[t] + a[t+1] g[t+1]        q = g[t] a[t] h[t-1]
       dx = sum_n g B     dC = sum_d w h     dB = sum_d g x     (x = dt u)
       d(dt) = u dx + sum_n q A              dA = sum_t q dt
   dB and dC are sums over channels: they are kept lane by lane over all blocks of the
   item and folded once for each chunk. */

/* Scratch is laid out by what is used together: arrays a power of two apart would fight
   for the same lines of the cache (and did: it cost a factor of two). */
typedef struct { /* of one (step, block) */
    vf dt, x, w, dx, dd, y, a[HEADS]; /* a: of heads only */
} row;
typedef struct { /* of one step and NB states; the odd vector is for the same reason */
    vf a[HEADS ? 0 : NB], p[NB]; /* p = a h[t-1] */
    vf B[NB], C[NB], odd;        /* sums over blocks, lane by lane */
} cell;

/* NB states of one block: the chunk again from its checkpoint, then in reverse. */
INLINE void backward_states(const float *state, float *adjoint, float *dA, const float *A,
                            row *rows, cell *cells, const float *B, const float *C,
                            long stride, const uint8_t *reset, long len, int gated) {
    vf h[NB], g[NB], sum[NB];
    UNROLL for (int n = 0; n < NB; n++) h[n] = *(vf *)(state + n * VL);
    for (long t = 0; t < len; t++) {
        row *r = rows + t;
        cell *c = cells + t;
        if (reset && reset[t]) UNROLL for (int n = 0; n < NB; n++) h[n] = splat(0);
        UNROLL for (int n = 0; n < NB; n++) {
            vf a = HEADS ? r->a[0] : exp2_of(r->dt, *(vf *)(A + n * VL));
            vf p = a * h[n];
            h[n] = p + r->x * B[t * stride + n];
            if (!HEADS) c->a[n] = a;
            c->p[n] = p;
            c->C[n] += r->w * h[n];
        }
        if (!gated) continue;
        vf y = r->y; /* before the gate, for the gradient of z */
        UNROLL for (int n = 0; n < NB; n++) y += h[n] * C[t * stride + n];
        r->y = y;
    }
    UNROLL for (int n = 0; n < NB; n++) g[n] = *(vf *)(adjoint + n * VL);
    UNROLL for (int n = 0; n < NB; n++)
        sum[n] = HEADS ? splat(0) : *(vf *)(dA + n * VL);
    for (long t = len - 1; t >= 0; t--) {
        row *r = rows + t;
        cell *c = cells + t;
        vf dt = r->dt, x = r->x, w = r->w, dx = r->dx, dd = r->dd;
        UNROLL for (int n = 0; n < NB; n++) {
            vf p = c->p[n], now = g[n] + w * C[t * stride + n];
            c->B[n] += now * x;
            dx += now * B[t * stride + n];
            if (HEADS) dd += now * p;
            else {
                vf q = now * p;
                sum[n] += q * dt;
                dd += q * *(vf *)(A + n * VL);
            }
            g[n] = (HEADS ? r->a[0] : c->a[n]) * now;
        }
        if (reset && reset[t]) UNROLL for (int n = 0; n < NB; n++) g[n] = splat(0);
        r->dx = dx, r->dd = dd;
    }
    UNROLL for (int n = 0; n < NB; n++) *(vf *)(adjoint + n * VL) = g[n];
    if (!HEADS) UNROLL for (int n = 0; n < NB; n++) *(vf *)(dA + n * VL) = sum[n];
}

/* Lane sums of one chunk and NB states, written to their place in (b, L, G, N). */
static void fold_lanes(const cell *cells, const place *w, long t0, long len, long k) {
    const job *J = w->J;
    float *to_B = J->dB, *to_C = J->dC, B[T * NB], C[T * NB];
    for (long i = 0; i < len * NB; i += VL) {
        vf some_B[VL], some_C[VL];
        UNROLL for (int l = 0; l < VL; l++) {
            const cell *c = cells + (i + l) / NB;
            some_B[l] = c->B[(i + l) % NB], some_C[l] = c->C[(i + l) % NB];
        }
        *(vf *)(B + i) = lane_sums(some_B);
        *(vf *)(C + i) = lane_sums(some_C);
    }
    long at = (w->batch * J->L + t0) * J->G + w->group;
    if (w->range) { /* the first range writes to the result itself */
        to_B = J->part_B + (w->range - 1) * J->b * J->L * J->G * J->N;
        to_C = J->part_C + (w->range - 1) * J->b * J->L * J->G * J->N;
    }
    for (long t = 0; t < len; t++)
        for (long n = 0; n < NB && k + n < J->N; n++) {
            to_B[(at + t * J->G) * J->N + k + n] = B[t * NB + n];
            to_C[(at + t * J->G) * J->N + k + n] = C[t * NB + n];
        }
}

typedef struct { /* the workspace of one item */
    row *rows;                    /* [blocks][T] */
    cell *cells;                  /* [T] */
    float *A, *g, *dA;            /* [blocks][N][VL] */
    float *dD, *dbias;            /* [blocks][VL] */
    float *B, *C;                 /* [T][N] */
} work;

static long backward_scratch(const job *J) {
    plan p = make_plan(J);
    long rows = p.each * T * sizeof(row), cells = T * sizeof(cell);
    return spot_floats(p) + (rows + cells) / (long)sizeof(float) +
           p.each * VL * (3 * p.N + 2) + 2 * T * p.N;
}

static work lay_out(float *scratch, plan p) {
    work m;
    m.rows = (row *)scratch, m.cells = (cell *)(m.rows + p.each * T);
    m.A = (float *)(m.cells + T), m.g = m.A + p.each * p.N * VL;
    m.dA = m.g + p.each * p.N * VL, m.dD = m.dA + p.each * p.N * VL;
    m.dbias = m.dD + p.each * VL, m.B = m.dbias + p.each * VL, m.C = m.B + T * p.N;
    return m;
}

/* Step sizes, inputs and the incoming gradient of one chunk. */
static void backward_enter(const place *at, work m, long t0, long len) {
    const job *J = at->J;
    for (long t = 0; t < len; t++)
        for (long j = 0; j < at->count; j++) {
            spot s = where(at, j);
            long i = (at->batch * J->L + t0 + t) * J->d + s.channel;
            row *r = m.rows + j * T + t;
            vf d = raw_delta(at, s, t0 + t), u = load(J->u, i, J->half_u, s.width);
            vf gy = load(J->gy, i, J->half_u, s.width);
            if (J->softplus) d = softplus(d);
            if (J->z) {
                vf z = load(J->z, i, J->half_z, s.width);
                gy *= z * sigmoid(z);
                r->y = u * skip(J, s);
            }
            r->x = d * u, r->w = gy, r->dt = d = tame(d);
            if (HEADS) r->a[0] = exp2_of(d, *(vf *)(m.A + j * VL));
            r->dx = r->dd = splat(0);
        }
}

/* The gradients of u, delta, z, D and the bias, from the sums over states. */
static void backward_leave(const place *at, work m, long t0, long len) {
    const job *J = at->J;
    for (long t = len - 1; t >= 0; t--) {
        vf from_x = splat(0), from_a = splat(0);
        for (long j = 0; j < at->count; j++) {
            spot s = where(at, j);
            long i = (at->batch * J->L + t0 + t) * J->d + s.channel;
            const row r = m.rows[j * T + t];
            vf u = load(J->u, i, J->half_u, s.width);
            store(J->du, i, J->half_u, s.width, r.dt * r.dx + r.w * skip(J, s));
            *(vf *)(m.dD + j * VL) += r.w * u;
            if (J->z) { /* silu'(z) = sigma (1 + z (1 - sigma)) */
                vf z = load(J->z, i, J->half_z, s.width), sigma = sigmoid(z);
                vf gy = load(J->gy, i, J->half_u, s.width);
                gy *= r.y * sigma * (1.f + z * (1.f - sigma));
                store(J->dz, i, J->half_z, s.width, gy);
            }
            if (!HEADS) {
                vf out = u * r.dx + r.dd * LN2; /* A was multiplied by log2(e) */
                if (J->softplus) out *= sigmoid(raw_delta(at, s, t0 + t));
                store(J->ddelta, i, J->half_delta, s.width, out);
                *(vf *)(m.dbias + j * VL) += out;
                continue;
            }
            from_x += only(u * r.dx, s.width);
            from_a += only(r.dd, s.width);
            if ((j + 1) % at->p.unit) continue; /* the head has more blocks */
            float q = lane_sum(from_a);
            float step = lane_sum(from_x) + q * J->A[s.head];
            if (J->softplus) step *= sigmoid(raw_delta(at, s, t0 + t))[0];
            float *first = m.dA + (j + 1 - at->p.unit) * VL; /* of this head */
            first[0] += q * r.dt[0];
            m.dbias[(j + 1 - at->p.unit) * VL] += step;
            store(J->ddelta, (at->batch * J->L + t0 + t) * at->heads + s.head,
                  J->half_delta, 1, splat(step));
            from_x = from_a = splat(0);
        }
    }
}

/* What is summed over time, written for this sequence; `add_up` sums the sequences. */
static void backward_finish(const place *at, work m) {
    const job *J = at->J;
    long heads = HEADS ? J->d / J->P : J->d;
    float *dD = J->part_D + at->batch * J->d, *dbias = J->part_bias + at->batch * heads;
    for (long j = 0; j < at->count; j++) {
        spot s = where(at, j);
        if (J->dh0)
            scatter(J->dh0 + at->batch * J->d * J->N, m.g + j * at->p.N * VL, s, J->N);
        memcpy(dD + s.channel, m.dD + j * VL, s.width * sizeof(float));
        if (!HEADS) {
            scatter(J->part_A + at->batch * J->d * J->N, m.dA + j * at->p.N * VL, s, J->N);
            memcpy(dbias + s.channel, m.dbias + j * VL, s.width * sizeof(float));
        } else if (j % at->p.unit == 0) {
            J->part_A[at->batch * heads + s.head] = m.dA[j * VL];
            dbias[s.head] = m.dbias[j * VL];
        }
    }
}

/* Ask for a share of what the previous chunk will read and write, while we compute this
   one: the processor's own prefetcher does not look backwards over rows. */
static void backward_ahead(const place *at, long j, long t0, const float *state, long from,
                           long to) {
    const job *J = at->J;
    spot s = where(at, j);
    long su = J->half_u ? 2 : 4, sd = J->half_delta ? 2 : 4, sz = J->half_z ? 2 : 4;
    for (long t = from; t < to; t++) {
        long i = (at->batch * J->L + t0 - T + t) * J->d + s.channel;
        __builtin_prefetch((const char *)J->u + i * su);
        __builtin_prefetch((const char *)J->gy + i * su);
        __builtin_prefetch((char *)J->du + i * su, 1);
        if (!HEADS) __builtin_prefetch((const char *)J->delta + i * sd);
        if (!HEADS) __builtin_prefetch((char *)J->ddelta + i * sd, 1);
        if (J->z) __builtin_prefetch((const char *)J->z + i * sz);
        if (J->z) __builtin_prefetch((char *)J->dz + i * sz, 1);
    }
    for (long n = from * at->p.N / T; n < to * at->p.N / T; n++)
        __builtin_prefetch(state + n * VL);
}

static void backward_item(const void *arg, long item, float *scratch) {
    const job *J = arg;
    const place here = find(J, item, scratch), *at = &here;
    const long N = at->p.N, block = N * VL;
    const long before = J->G * at->p.blocks * block; /* from a checkpoint to the last */
    work m = lay_out(scratch + spot_floats(at->p), at->p);

    decays(m.A, at);
    memset(m.dA, 0, at->p.each * block * sizeof(float));
    memset(m.dD, 0, 2 * at->p.each * VL * sizeof(float));
    for (long j = 0; j < at->count; j++)
        gather(m.g + j * block, J->glast ? J->glast + at->batch * J->d * J->N : NULL,
               where(at, j), J->N, N);

    for (long c = at->p.chunks - 1; c >= 0; c--) {
        long t0 = c * T, len = MIN(T, J->L - t0);
        long start = ((at->batch * at->p.chunks + c) * J->G + at->group) * at->p.blocks;
        const float *state = J->check + (start + at->first) * block;
        rows(m.B, J->B, at, t0, len);
        rows(m.C, J->C, at, t0, len);
        backward_enter(at, m, t0, len);
        for (long k = 0; k < N; k += NB) {
            for (long i = 0; i < T * NB; i++)
                m.cells[i / NB].B[i % NB] = m.cells[i / NB].C[i % NB] = splat(0);
            for (long j = 0; j < at->count; j++) {
                long s = j * block + k * VL;
                if (c > 0)
                    backward_ahead(at, j, t0, state - before + j * block, k * T / N,
                                   (k + NB) * T / N);
                backward_states(state + s, m.g + s, m.dA + s, HEADS ? m.A : m.A + s,
                                m.rows + j * T, m.cells, m.B + k, m.C + k, N,
                                at->reset ? at->reset + t0 : NULL, len, J->z != NULL);
            }
            fold_lanes(m.cells, at, t0, len, k);
        }
        backward_leave(at, m, t0, len);
    }
    backward_finish(at, m);
}

/* ---- what Python calls ----------------------------------------------------------- */

long check_floats(const job *J) { /* the size of the checkpoints */
    plan p = make_plan(J);
    return J->b * p.chunks * J->G * p.blocks * p.N * VL;
}

int forward(const job *J, int threads) {
    plan p = make_plan(J);
    large_pages(J->y, J->b * J->L * J->d * (J->half_u ? 2 : 4));
    if (J->check) large_pages(J->check, check_floats(J) * sizeof(float));
    return spread(forward_item, J, J->b * J->G * p.ranges, forward_scratch(J), threads);
}

int backward(const job *asked, int threads) {
    job J = *asked;
    plan p = make_plan(&J);
    long heads = HEADS ? J.d / J.P : J.d, of_A = HEADS ? heads : J.d * J.N;
    long of_B = J.b * J.L * J.G * J.N, extra = (p.ranges - 1) * of_B;
    float *parts = workspace(J.b * (of_A + J.d + heads) + 2 * extra);
    if (!parts) return 1;
    J.part_A = parts, J.part_D = J.part_A + J.b * of_A, J.part_bias = J.part_D + J.b * J.d;
    J.part_B = J.part_bias + J.b * heads, J.part_C = J.part_B + extra;
    long wide = J.b * J.L * J.d;
    large_pages(J.du, wide * (J.half_u ? 2 : 4));
    if (!HEADS) large_pages(J.ddelta, wide * (J.half_delta ? 2 : 4));
    if (J.dz) large_pages(J.dz, wide * (J.half_z ? 2 : 4));
    int failed = spread(backward_item, &J, J.b * J.G * p.ranges, backward_scratch(&J),
                        threads);
    if (!failed) {
        add_sequences(J.dA, J.part_A, of_A, J.b);
        add_sequences(J.dD, J.part_D, J.d, J.b);
        add_sequences(J.dbias, J.part_bias, heads, J.b);
        add_up(J.dB, J.part_B, of_B, p.ranges - 1);
        add_up(J.dC, J.part_C, of_B, p.ranges - 1);
    }
    free(parts);
    return failed;
}

/* The machine's own floor: one product-and-power of 2 and three multiply-adds for each
   state, in registers, nothing else. Returns a number, so that nothing is optimised away;
   count: state updates, in whole vectors of 16 states. */
float floor_exp(long count) {
    vf h[NS], y = splat(0);
    UNROLL for (int n = 0; n < NS; n++) h[n] = splat(n);
    for (long t = 0; t < count / (NS * VL); t++) {
        vf d = splat(1e-7f) * (float)t;
        UNROLL for (int n = 0; n < NS; n++) {
            h[n] = exp2_of(d, splat(-1.f - n)) * h[n] + d * (float)n;
            y += h[n] * .5f;
        }
    }
    return lane_sum(y);
}
