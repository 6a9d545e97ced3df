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

   -DNS=8 (or 4) is the number of states that the forward loop holds at once, -DT=16 the
   steps of a chunk.
   Sources: 2312.00752 (the scan, recomputation), 2405.21060 (heads); own design. */
#include "vec.h"
#include "threads.h"

#ifndef NS
#define NS 8
#endif
#ifndef HEADS
#define HEADS 0
#endif
#ifndef NB /* states of MB blocks that the backward loop holds at once; NB divides NS. */
#define NB 4
#endif
#ifndef MB /* Heads keep fewer vectors for each, so that twice as many fit. */
#define MB (HEADS && VL == 16 ? 2 : 1)
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
_Static_assert(NS % NB == 0, "a group of states is a whole number of the backward's");
_Static_assert(T * NB % VL == 0, "fold_lanes takes whole vectors of a chunk's sums");

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

/* How a block's numbers lie in memory. */
typedef struct {
    long width;
    int half_u, half_delta, half_z;
} form;

/* An item: some blocks of one group of one sequence. */
typedef struct {
    const job *J;
    plan p;
    long batch, group, range, first, count; /* blocks first .. first + count - 1 */
    const uint8_t *reset;
    long heads;        /* columns of delta */
    int plain;         /* every block is a whole vector, and all numbers are floats */
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
    w.plain = !J->half_u && !J->half_delta && !J->half_z;
    for (long j = 0; j < w.count; j++) {
        ((spot *)scratch)[j] = locate(J, &w.p, w.group, w.first + j);
        w.plain &= w.spots[j].width == VL;
    }
    return w;
}

INLINE spot where(const place *w, long j) { return w->spots[j]; }

/* The usual form is worth a copy of a loop: with it as a constant the compiler leaves out
   all that is rare. CALL has an inlined function's last argument, plain, be one. */
#define CALL(function, at, ...) \
    ((at)->plain ? function(at, __VA_ARGS__, 1) : function(at, __VA_ARGS__, 0))

/* The job and the place once more, for a loop that stores vectors: for the compiler, such a
   store may change whatever a pointer leads to, so that it would read all of them again. */
#define OWN_COPY(at)                             \
    const job own_job = *(at)->J, *J = &own_job; \
    place own_place = *(at);                     \
    own_place.J = J, (at) = &own_place

INLINE form form_of(const job *J, spot s, const int plain) {
    if (plain) return (form){VL, 0, 0, 0};
    return (form){s.width, J->half_u, J->half_delta, J->half_z};
}

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
        long i = ((w->batch * J->L + t0 + t) * J->G + w->group) * J->N, n = 0;
        if (!J->half_BC) /* whole vectors first */
            for (; n + VL <= J->N; n += VL) *(vf *)(to + n) = load(from, i + n, 0, VL);
        for (; n < J->N; n++)
            to[n] = J->half_BC ? half_to_float(((const uint16_t *)from)[i + n])
                               : ((const float *)from)[i + n];
        for (; n < w->p.N; n++) to[n] = 0;
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

INLINE vf raw_delta(const place *w, spot s, form f, long t) { /* before softplus */
    const job *J = w->J;
    long row = (w->batch * J->L + t) * w->heads;
    if (!HEADS) {
        vf d = load(J->delta, row + s.channel, f.half_delta, f.width);
        if (J->bias) d += load(J->bias, s.channel, 0, f.width);
        return d;
    }
    row += s.head;
    float d = f.half_delta ? half_to_float(((const uint16_t *)J->delta)[row])
                           : ((const float *)J->delta)[row];
    return splat(J->bias ? d + J->bias[s.head] : d);
}

/* ---- asking ahead ------------------------------------------------------------------

   What the next chunk will read and write is far away: the processor's own prefetcher does
   not look over rows of d numbers, nor backwards. So the loops over states ask for it, two
   lines a step and no more: requests in bursts would fill the few places there are for
   missing lines, and the loops would wait for those. To the second level of cache: the
   first is full of what this chunk works on. */

typedef struct { /* a line for every step of a chunk */
    const char *at;
    long apart;
} stream;
#define ASK(s, t) __builtin_prefetch((s).at + (t) * (s).apart, 0, 2)

typedef struct { /* what a chunk needs of every block */
    const void *rows[7]; /* arrays (b, L, d) */
    int half[7];
    long count, all; /* streams of a block: of rows, and with those of its states */
} needs;

INLINE void need(needs *n, const void *rows, int half) {
    if (!rows) return;
    n->half[n->count] = half, n->rows[n->count++] = rows, n->all = n->count;
}

/* The i-th stream of block j for the chunk at t0; states: those before that chunk. */
INLINE stream ahead(const place *w, const needs *n, long j, long t0, const float *states,
                    long i) {
    const job *J = w->J;
    if (i >= n->count)
        return (stream){(const char *)(states + (i - n->count) * T * VL), 4 * VL};
    long size = n->half[i] ? 2 : 4;
    long first = (w->batch * J->L + t0) * J->d + where(w, j).channel;
    return (stream){(const char *)n->rows[i] + first * size, J->d * size};
}

/* Where there is nothing to ask for: what is close anyway. */
INLINE stream nothing(const place *w) { return (stream){(const char *)w, 0}; }

INLINE void ask_all(stream s) { /* few states: more streams than loops to ask for them */
    for (long t = 0; t < T; t++) ASK(s, t);
}

/* ---- forward --------------------------------------------------------------------- */

typedef struct { /* of one (step, block) */
    vf dt, x, y; /* dt: of heads, the decay itself */
} entry;

/* NS states of one block through one chunk. The heart of the forward pass: for every
   state one exponential (9 operations), one product and two multiply-adds. Not inlined:
   among what surrounds it the compiler runs out of registers. */
static __attribute__((noinline INTERLEAVED)) void forward_states(
    float *state, const float *A, entry *rows, const float *B, const float *C, long stride,
    const uint8_t *reset, long len, const stream asked[2]) {
    const stream next = asked[0], other = asked[1];
    vf h[NS];
    UNROLL for (int n = 0; n < NS; n++) h[n] = *(vf *)(state + n * VL);
    for (long t = 0; t < len; t++) {
        entry *r = rows + t;
        vf dt = r->dt, x = r->x, y = r->y, odd = splat(0); /* two sums: half the wait */
        ASK(next, t);
        ASK(other, t);
        if (reset && reset[t]) UNROLL for (int n = 0; n < NS; n++) h[n] = splat(0);
        UNROLL for (int n = 0; n < NS; n++) {
            vf a = HEADS ? dt : exp2_of(dt, *(vf *)(A + n * VL));
            h[n] = a * h[n] + x * B[t * stride + n];
            if (n % 2) odd += h[n] * C[t * stride + n];
            else y += h[n] * C[t * stride + n];
        }
        r->y = y + odd;
    }
    UNROLL for (int n = 0; n < NS; n++) *(vf *)(state + n * VL) = h[n];
}

static long forward_scratch(const job *J) {
    plan p = make_plan(J);
    return spot_floats(p) + p.each * VL * 2 * p.N + T * (3 * VL + 2 * p.N);
}

/* Step sizes and inputs of one block and chunk. */
INLINE void forward_enter(const place *w, spot s, const float *A, entry *r, long t0,
                          long len, const int plain) {
    OWN_COPY(w);
    const form f = form_of(J, s, plain);
    long i = (w->batch * J->L + t0) * J->d + s.channel;
    vf D = skip(J, s);
    for (long t = t0; t < t0 + len; t++, i += J->d, r++) {
        vf d = raw_delta(w, s, f, t), u = load(J->u, i, f.half_u, f.width);
        if (J->softplus) d = softplus(d);
        r->x = d * u, r->y = u * D, r->dt = tame(d);
        if (HEADS) r->dt = exp2_of(r->dt, *(const vf *)A);
    }
}

/* Gate and write. */
INLINE void forward_leave(const place *w, spot s, const entry *r, long t0, long len,
                          const int plain) {
    OWN_COPY(w);
    const form f = form_of(J, s, plain);
    long i = (w->batch * J->L + t0) * J->d + s.channel;
    for (long t = 0; t < len; t++, i += J->d) {
        vf y = r[t].y;
        if (J->z) {
            vf z = load(J->z, i, f.half_z, f.width);
            y *= z * sigmoid(z);
        }
        store(J->y, i, f.half_u, f.width, y);
    }
}

static void forward_item(const void *arg, long item, float *scratch) {
    const job *J = arg;
    const place at = find(J, item, scratch), *w = &at;
    const long N = w->p.N, block = N * VL, each = w->p.each;
    entry *of = (entry *)(scratch + spot_floats(w->p));
    float *A = (float *)(of + T), *h = A + each * block;
    float *B = h + each * block, *C = B + T * N;
    needs next = {0};
    need(&next, J->u, J->half_u);
    if (!HEADS) need(&next, J->delta, J->half_delta);
    need(&next, J->y, J->half_u);
    need(&next, J->z, J->half_z);

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
        const long streams = t0 + 2 * T <= J->L ? next.all : 0;
        for (long j = 0; j < w->count; j++) {
            spot s = where(w, j);
            const float *decay = A + j * (HEADS ? VL : block);
            CALL(forward_enter, w, s, decay, of, t0, len);
            for (long i = 2 * N / NS; i < streams; i++)
                ask_all(ahead(w, &next, j, t0 + T, NULL, i));
            for (long k = 0; k < N; k += NS) {
                stream ask[2] = {nothing(w), nothing(w)};
                for (long i = 2 * k / NS; i < MIN(2 * k / NS + 2, streams); i++)
                    ask[i % 2] = ahead(w, &next, j, t0 + T, NULL, i);
                forward_states(h + j * block + k * VL, HEADS ? decay : decay + k * VL, of,
                               B + k, C + k, N, w->reset ? w->reset + t0 : NULL, len, ask);
            }
            CALL(forward_leave, w, s, of, t0, len);
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
    vf dt, x, w, dx, dd, y, a[HEADS]; /* y before the gate; a: of heads only */
} row;
typedef struct { /* a block's rows of one chunk, and a vector for the same reason */
    row of[T];
    vf odd;
} panel;
typedef struct { /* of one (step, block): sigmoid(z), the softplus's derivative */
    vf gate, slope;
} sigmoids;
typedef struct { /* of one step and NB states of MB blocks; the odd vector as above */
    vf a[HEADS ? 0 : MB][NB], p[MB][NB]; /* p = a h[t-1] */
    vf B[NB], C[NB], odd;                /* sums over blocks, lane by lane */
} cell;

/* What the two walks through a chunk work on. Of several blocks: those of the first; the
   others' states, adjoints, dA and decays follow `block` floats apart. */
typedef struct {
    const float *state, *A, *B, *C;
    float *g, *dA;
    panel *rows;
    cell *cells;
    const uint8_t *reset;
    long block, stride, len; /* stride: of the rows of B and C */
    int gated, begun;        /* begun: dx and dd hold the sums over earlier states */
    stream next[2];
} walk;

#define BLOCKS UNROLL for (int m = 0; m < many; m++)
#define STATES UNROLL for (int n = 0; n < NB; n++)

/* NB states of `many` blocks, the chunk again from its checkpoint. Rows are read into
   registers first: for the compiler, any store might change them. */
INLINE void backward_again(walk w, const int many) {
    vf h[MB][NB], dt[MB], x[MB], gy[MB];
    BLOCKS STATES h[m][n] = *(vf *)(w.state + m * w.block + n * VL);
    for (long t = 0; t < w.len; t++) {
        cell *c = w.cells + t;
        const float *B = w.B + t * w.stride, *C = w.C + t * w.stride;
        ASK(w.next[0], t);
        BLOCKS {
            const row *r = w.rows[m].of + t;
            dt[m] = HEADS ? r->a[0] : r->dt, x[m] = r->x, gy[m] = r->w;
        }
        if (w.reset && w.reset[t]) BLOCKS STATES h[m][n] = splat(0);
        STATES {
            vf sum = c->C[n];
            BLOCKS {
                vf a = HEADS ? dt[m] : exp2_of(dt[m], *(vf *)(w.A + m * w.block + n * VL));
                vf p = a * h[m][n];
                h[m][n] = p + x[m] * B[n];
                if (!HEADS) c->a[m][n] = a;
                c->p[m][n] = p;
                sum += gy[m] * h[m][n];
            }
            c->C[n] = sum;
        }
        if (w.gated) BLOCKS { /* y before the gate, for the gradient of z */
            vf y = w.rows[m].of[t].y;
            STATES y += h[m][n] * C[n];
            w.rows[m].of[t].y = y;
        }
    }
}

/* The same states, from the last step to the first. */
INLINE void backward_reverse(walk w, const int many) {
    vf g[MB][NB], dA[MB][NB], dt[MB], x[MB], gy[MB], dx[MB], dd[MB];
    BLOCKS STATES g[m][n] = *(vf *)(w.g + m * w.block + n * VL);
    BLOCKS STATES dA[m][n] = HEADS ? splat(0) : *(vf *)(w.dA + m * w.block + n * VL);
    for (long t = w.len - 1; t >= 0; t--) {
        cell *c = w.cells + t;
        const float *B = w.B + t * w.stride, *C = w.C + t * w.stride;
        ASK(w.next[1], t);
        BLOCKS {
            const row *r = w.rows[m].of + t;
            dt[m] = HEADS ? r->a[0] : r->dt, x[m] = r->x, gy[m] = r->w;
            dx[m] = dd[m] = splat(0);
            if (w.begun) dx[m] = r->dx, dd[m] = r->dd;
        }
        STATES {
            vf sum = c->B[n];
            BLOCKS {
                vf now = g[m][n] + gy[m] * C[n], q = now * c->p[m][n];
                sum += now * x[m];
                dx[m] += now * B[n];
                if (HEADS) dd[m] += q;
                else {
                    dA[m][n] += q * dt[m];
                    dd[m] += q * *(vf *)(w.A + m * w.block + n * VL);
                }
                g[m][n] = (HEADS ? dt[m] : c->a[m][n]) * now;
            }
            c->B[n] = sum;
        }
        if (w.reset && w.reset[t]) BLOCKS STATES g[m][n] = splat(0);
        BLOCKS w.rows[m].of[t].dx = dx[m], w.rows[m].of[t].dd = dd[m];
    }
    BLOCKS STATES *(vf *)(w.g + m * w.block + n * VL) = g[m][n];
    if (!HEADS) BLOCKS STATES *(vf *)(w.dA + m * w.block + n * VL) = dA[m][n];
}

/* Not inlined: among what surrounds them the compiler runs out of registers. */
static __attribute__((noinline)) void backward_one(const walk *w) {
    backward_again(*w, 1);
    backward_reverse(*w, 1);
}

static __attribute__((noinline)) void backward_many(const walk *w) {
    backward_again(*w, MB);
    backward_reverse(*w, MB);
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
    panel *rows;                  /* [blocks] */
    sigmoids *known;              /* [blocks][T] */
    cell *cells;                  /* [T] */
    float *A, *g, *dA;            /* [blocks][N][VL] */
    float *dD, *dbias;            /* [blocks][VL] */
    float *B, *C;                 /* [T][N] */
} work;

static long backward_scratch(const job *J) {
    plan p = make_plan(J);
    long rows = p.each * (sizeof(panel) + T * sizeof(sigmoids)), cells = T * sizeof(cell);
    return spot_floats(p) + (rows + cells) / (long)sizeof(float) +
           p.each * VL * (3 * p.N + 2) + 2 * T * p.N;
}

static work lay_out(float *scratch, plan p) {
    work m;
    m.rows = (panel *)scratch, m.known = (sigmoids *)(m.rows + p.each);
    m.cells = (cell *)(m.known + p.each * T);
    m.A = (float *)(m.cells + T), m.g = m.A + p.each * p.N * VL;
    m.dA = m.g + p.each * p.N * VL, m.dD = m.dA + p.each * p.N * VL;
    m.dbias = m.dD + p.each * VL, m.B = m.dbias + p.each * VL, m.C = m.B + T * p.N;
    return m;
}

/* Step sizes, inputs and the incoming gradient of one chunk. */
INLINE void backward_enter(const place *at, work m, long t0, long len, const int plain) {
    OWN_COPY(at);
    for (long t = 0; t < len; t++)
        for (long j = 0; j < at->count; j++) {
            spot s = where(at, j);
            const form f = form_of(J, s, plain);
            long i = (at->batch * J->L + t0 + t) * J->d + s.channel;
            row *r = m.rows[j].of + t;
            sigmoids *known = m.known + j * T + t;
            vf d = raw_delta(at, s, f, t0 + t), u = load(J->u, i, f.half_u, f.width);
            vf gy = load(J->gy, i, f.half_u, f.width);
            if (J->softplus) d = softplus_and_slope(d, &known->slope);
            if (J->z) {
                vf z = load(J->z, i, f.half_z, f.width), sigma = sigmoid(z);
                gy *= z * sigma;
                r->y = u * skip(J, s), known->gate = sigma;
            }
            r->x = d * u, r->w = gy, r->dt = d = tame(d);
            if (HEADS) r->a[0] = exp2_of(d, *(vf *)(m.A + j * VL));
        }
}

/* The gradients of u, delta, z, D and the bias, from the sums over states, for a unit of
   blocks: one, or a head's. */
INLINE void backward_leave(const place *at, work m, long first, long t0, long len,
                           const int plain) {
    OWN_COPY(at);
    const long end = first + (HEADS ? at->p.unit : 1);
    vf dbias = *(vf *)(m.dbias + first * VL), dD = *(vf *)(m.dD + first * VL);
    for (long t = len - 1; t >= 0; t--) {
        vf from_x = splat(0), from_a = splat(0);
        for (long j = first; j < end; j++) {
            spot s = where(at, j);
            const form f = form_of(J, s, plain);
            long i = (at->batch * J->L + t0 + t) * J->d + s.channel;
            const row *r = m.rows[j].of + t;
            const sigmoids *known = m.known + j * T + t;
            const vf dx = r->dx, w = r->w;
            vf u = load(J->u, i, f.half_u, f.width);
            store(J->du, i, f.half_u, f.width, r->dt * dx + w * skip(J, s));
            if (HEADS) *(vf *)(m.dD + j * VL) += w * u;
            else dD += w * u;
            if (J->z) { /* silu'(z) = sigma (1 + z (1 - sigma)) */
                vf z = load(J->z, i, f.half_z, f.width), sigma = known->gate;
                vf gy = load(J->gy, i, f.half_u, f.width);
                gy *= r->y * sigma * (1.f + z * (1.f - sigma));
                store(J->dz, i, f.half_z, f.width, gy);
            }
            if (HEADS) {
                from_x += only(u * dx, f.width);
                from_a += only(r->dd, f.width);
                continue;
            }
            vf out = u * dx + r->dd * LN2; /* A was multiplied by log2(e) */
            if (J->softplus) out *= known->slope;
            store(J->ddelta, i, f.half_delta, f.width, out);
            dbias += out;
        }
        if (!HEADS) continue;
        spot s = where(at, first);
        const form f = form_of(J, s, plain);
        float q = lane_sum(from_a);
        float step = lane_sum(from_x) + q * J->A[s.head];
        if (J->softplus) step *= m.known[first * T + t].slope[0];
        m.dA[first * VL] += q * m.rows[first].of[t].dt[0];
        m.dbias[first * VL] += step;
        store(J->ddelta, (at->batch * J->L + t0 + t) * at->heads + s.head, f.half_delta, 1,
              splat(step));
    }
    if (!HEADS) *(vf *)(m.dbias + first * VL) = dbias, *(vf *)(m.dD + first * VL) = dD;
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

/* The i-th stream of blocks j to end - 1 for the chunk before t0 (states: as above). */
INLINE stream backward_ahead(const place *at, const needs *n, long j, long end, long t0,
                             const float *states, long i) {
    for (; i >= n->all && j < end; j++) i -= n->all;
    if (!t0 || j >= end) return nothing(at);
    return ahead(at, n, j, t0 - T, states + j * at->p.N * VL, i);
}

static void backward_item(const void *arg, long item, float *scratch) {
    const job *J = arg;
    const place here = find(J, item, scratch), *at = &here;
    const long N = at->p.N, block = N * VL;
    work m = lay_out(scratch + spot_floats(at->p), at->p);

    decays(m.A, at);
    memset(m.dA, 0, at->p.each * block * sizeof(float));
    memset(m.dD, 0, 2 * at->p.each * VL * sizeof(float));
    for (long j = 0; j < at->count; j++)
        gather(m.g + j * block, J->glast ? J->glast + at->batch * J->d * J->N : NULL,
               where(at, j), J->N, N);

    needs n = {0};
    need(&n, J->u, J->half_u), need(&n, J->gy, J->half_u), need(&n, J->du, J->half_u);
    if (!HEADS) need(&n, J->delta, J->half_delta), need(&n, J->ddelta, J->half_delta);
    need(&n, J->z, J->half_z), need(&n, J->dz, J->half_z);
    n.all = n.count + (N + T - 1) / T;

    for (long c = at->p.chunks - 1; c >= 0; c--) {
        long t0 = c * T, len = MIN(T, J->L - t0);
        long start = ((at->batch * at->p.chunks + c) * J->G + at->group) * at->p.blocks;
        const float *state = J->check + (start + at->first) * block;
        const uint8_t *reset = at->reset ? at->reset + t0 : NULL;
        const float *earlier = state - J->G * at->p.blocks * block;
        rows(m.B, J->B, at, t0, len);
        rows(m.C, J->C, at, t0, len);
        CALL(backward_enter, at, m, t0, len);
        for (long k = 0; k < N; k += NB) {
            long left = 0; /* blocks whose sums over states were written */
            for (long i = 0; i < T * NB; i++)
                m.cells[i / NB].B[i % NB] = m.cells[i / NB].C[i % NB] = splat(0);
            for (long j = 0; j < at->count;) {
                long s = j * block + k * VL, end = j + MB <= at->count ? j + MB : j + 1;
                walk w = {state + s,  m.A + s,      m.B + k, m.C + k, m.g + s,
                          m.dA + s,   m.rows + j,   m.cells, reset,   block,
                          N,          len,          J->z != NULL, k > 0};
                for (long i = 0; i < 2; i++)
                    w.next[i] = backward_ahead(at, &n, j, end, t0, earlier, 2 * k / NB + i);
                if (MB > 1 && end > j + 1) backward_many(&w);
                else backward_one(&w);
                if (k + NB == N)
                    for (long i = 2 * N / NB; i < (end - j) * n.all; i++)
                        ask_all(backward_ahead(at, &n, j, end, t0, earlier, i));
                j = end;
                if (k + NB < N) continue;
                for (long unit = HEADS ? at->p.unit : 1; left + unit <= j; left += unit)
                    CALL(backward_leave, at, m, left, t0, len);
            }
            fold_lanes(m.cells, at, t0, len, k);
        }
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
    if (J->check) { /* a step of a training */
        keep_freed_memory();
        large_pages(J->check, check_floats(J) * sizeof(float));
    }
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

/* The machine's own floor: one power of 2 by the polynomial alone and three multiply-adds
   for each state (13 operations), in registers, nothing else. count: state updates, in
   whole vectors of FLOOR states; steps: VL step sizes, which the compiler does not know.
   Returns a number, so that nothing is optimised away. */
#define FLOOR (VL == 16 ? 16 : 8)
float floor_exp(long count, const float *steps) {
    vf h[FLOOR], y0 = splat(0), y1 = splat(0), d = *(const vf *)steps;
    UNROLL for (int n = 0; n < FLOOR; n++) h[n] = splat(n);
    for (long t = 0; t < count / (FLOOR * VL); t++) {
        UNROLL for (int n = 0; n < FLOOR; n++) {
            h[n] = exp2_plain(d, splat(-1.f - n)) * h[n] + d * (float)n;
            if (n % 2) y1 += h[n] * .5f;
            else y0 += h[n] * .5f;
        }
        d *= .999f;
    }
    return lane_sum(y0 + y1);
}
