/* One vector of VL floats, on whatever the compiler was told to build for.

   Nothing here is specific to scans. GCC's and Clang's vector extensions give +, -, *, /
   and comparisons on whole vectors; a product followed by a sum becomes one fused
   multiply-add (-ffp-contract=fast). Only what the language cannot say (2^n of AVX-512)
   is an intrinsic, and there is a portable line for it. */
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define VL 16 /* floats in a vector: 512 bits */
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4 /* SSE, NEON */
#endif

/* Loads may be unaligned; workspace is aligned by `workspace()` below. */
typedef float vf __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * VL), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#define INTERLEAVED
#else
#define UNROLL _Pragma("GCC unroll 16")
/* GCC orders instructions after it has given out registers, so that what could run side by
   side waits in a row. This has it look once before, too (with -fschedule-insns for all,
   other loops get slower). */
#define INTERLEAVED , optimize("schedule-insns", "sched-pressure")
#endif

INLINE vf splat(float s) { return s - (vf){0}; } /* x - 0 is x, even for -0 and NaN */
INLINE vf pick(vi mask, vf yes, vf no) {         /* lane by lane */
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* ---- exponentials ------------------------------------------------------------------

   2^p with p = d*a. Split p = n + r with n whole and |r| <= 1/2 (Cody and Waite); then
   2^p = 2^n P(r). Adding 1.5 * 2^23 rounds to a whole number, because a float that large
   has no digits left for fractions; the fused multiply-add then gives r = d*a - n with
   one rounding only.

   P(r) = 1 + r Q(r): the constant is exactly 1, so a state that does not decay does not
   drift. Q is fitted to the smallest relative error of 2^r - 1 (not of 2^r): a state with
   a = 1 - eps remembers 1/eps steps, so it is 1 - a that must be right. Q(0) is the float
   nearest to log 2. Largest error of 2^r: 1.9e-7 at the ends of the interval, less than
   3e-9 |r| close to 0. */

#define MAGIC 12582912.f /* 1.5 * 2^23 */
#define LOG2E 1.44269504f

INLINE vf exp_poly(vf r) {
    vf q = 0.0013341533f * r + 0.0096656270f;
    q = q * r + 0.0555046387f;
    q = q * r + 0.2402236462f;
    q = q * r + 0.6931471825f;
    return q * r + 1.f;
}

#if defined(__clang__)
#define int_max(a, b) __builtin_elementwise_max(a, b)
#define int_min(a, b) __builtin_elementwise_min(a, b)
#elif defined(__AVX2__) /* GCC does not see a maximum in a selection of vectors */
typedef int32_t native_int __attribute__((vector_size(32)));
#define int_max(a, b) (vi) __builtin_ia32_pmaxsd256((native_int)(a), (native_int)(b))
#define int_min(a, b) (vi) __builtin_ia32_pminsd256((native_int)(a), (native_int)(b))
#else
#define int_max(a, b) (((a) & ((a) > (b))) | ((b) & ((a) <= (b))))
#define int_min(a, b) (((a) & ((a) < (b))) | ((b) & ((a) >= (b))))
#endif

#if defined(__AVX512F__)
typedef float native __attribute__((vector_size(64))); /* what intrinsics take */
#endif

INLINE vf times_power(vf p, vf n, vf t) { /* p * 2^floor(n); t = n + MAGIC */
#if defined(__AVX512F__)
    (void)t;
    /* vscalefps: 0 below, infinity above. (Its header would double the compile time.) */
    return (vf)__builtin_ia32_scalefps512_mask((native)p, (native)n, (native)p, -1, 4);
#else
    /* The low bits of t are n. Keep n in -127 .. 128 (as whole numbers, on the bits), move
       it to the exponent's place: -127 gives the float 0 and 128 gives infinity. */
    (void)n;
    vi e = (vi)t;
    const vi low = (vi){0} + (0x4B400000 - 127), high = (vi){0} + (0x4B400000 + 128);
    e = int_min(int_max(e, low), high);
    return p * (vf)((e + (127 - 0x4B400000)) << 23);
#endif
}

/* 2^(d a) with |d a| <= 1e14 (see `tame`). */
INLINE vf exp2_plain(vf d, vf a) {
    vf t = d * a + MAGIC;
    vf n = t - MAGIC;
    vf r = d * a - n;
    return times_power(exp_poly(r), n, t);
}

#if defined(__AVX512F__)
/* The same with a table. One instruction looks each lane up among 32 numbers (in two
   registers), so that 2^p = 2^floor(n) 2^(k/32) 2^r with n a multiple of 1/32, k its last
   five binary digits and |r| <= 1/64: Q needs two multiply-adds less, and its largest error
   is 3e-8 |r|. The product is rounded for itself, which moves d a by 6e-8 of itself; what
   follows are plain sums, and many processors have units for those alone. */
static const float ROOTS[32] __attribute__((aligned(64))) = {
    1.f,          1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,
    1.13878858f,  1.1637249f,  1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f,
    1.29683959f,  1.32523668f, 1.35425556f, 1.38390994f, 1.41421354f, 1.44518077f,
    1.47682619f,  1.50916445f, 1.54221082f, 1.5759809f,  1.61049032f, 1.64575553f,
    1.68179286f,  1.71861935f, 1.75625217f, 1.79470909f, 1.8340081f,  1.87416768f,
    1.91520655f,  1.95714414f,
};

INLINE vf root(vf t) { /* 2^(k/32), k the last five bits of t */
    typedef int32_t index __attribute__((vector_size(64)));
    const native low = *(const native *)ROOTS, high = *(const native *)(ROOTS + 16);
#if defined(__clang__)
    return (vf)__builtin_ia32_vpermi2varps512(low, (index)t, high);
#else
    return (vf)__builtin_shuffle(low, high, (index)t);
#endif
}

INLINE vf exp2_of(vf d, vf a) {
    vf p = d * a;
    __asm__("" : "+v"(p)); /* or the compiler joins the product to both sums */
    vf t = p + MAGIC / 32;
    vf n = t - MAGIC / 32;
    vf r = p - n;
    vf power = times_power(root(t), n, t);
    vf q = 0.0554887801f * r + 0.240227833f;
    q = q * r + 0.693147182f;
    return power * (q * r + 1.f); /* not power + power q r: infinity must stay */
}
#else
#define exp2_of exp2_plain
#endif

/* Beyond 1e7 a factor is cut: |d a| then stays where r above is finite, and the power is
   0 or infinity either way. NaN stays NaN. */
INLINE vf tame(vf x) {
    x = pick(x > 1e7f, splat(1e7f), x);
    return pick(x < -1e7f, splat(-1e7f), x);
}

/* e^x for a number that is not a product: log2(e) in two parts keeps 24 digits of it. */
INLINE vf exp_of(vf x) {
    x = tame(x);
    vf t = x * LOG2E + MAGIC;
    vf n = t - MAGIC;
    vf r = x * LOG2E - n;
    r = x * 1.9259629e-8f + r; /* log2(e) - LOG2E */
    return times_power(exp_poly(r), n, t);
}

/* log(1 + e^x) = max(x, 0) + log1p(s) with s = e^-|x| <= 1, and log1p(s) = 2 atanh z with
   z = s / (2 + s) <= 1/3, an odd polynomial of relative error 4e-9. Its derivative, the
   sigmoid, is 1/(1+s) or s/(1+s): no cancellation on either side. */
INLINE vf minus_exp(vf x) { return exp_of((vf)((vi)x | INT32_MIN)); } /* sign bit: -|x| */

INLINE vf sigmoid_from(vf x, vf s) { return pick(x > 0.f, splat(1.f), s) / (s + 1.f); }

INLINE vf softplus_from(vf x, vf s) {
    vf z = s / (s + 2.f), v = z * z;
    vf q = 0.14089166f * v + 0.13980302f;
    q = q * v + 0.20012455f;
    q = q * v + 0.33333157f;
    q = q * v + 1.f;
    return pick(x > 0.f, x, pick(x != x, x, (vf){0})) + 2.f * z * q;
}

INLINE vf sigmoid(vf x) { return sigmoid_from(x, minus_exp(x)); }
INLINE vf softplus(vf x) { return softplus_from(x, minus_exp(x)); }

INLINE vf softplus_and_slope(vf x, vf *slope) {
    vf s = minus_exp(x);
    *slope = sigmoid_from(x, s);
    return softplus_from(x, s);
}

/* ---- memory ---------------------------------------------------------------------- */

INLINE float half_to_float(uint16_t h) { /* bfloat16: the upper half of a float */
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* Element i.. of an array of floats or bfloat16s; only the first `width` lanes exist. */
static __attribute__((noinline)) vf load_rare(const void *p, long i, int half,
                                              long width) {
    float v[VL] = {0};
    if (!half) memcpy(v, (const float *)p + i, MIN(width, VL) * 4);
    else
        for (long l = 0; l < MIN(width, VL); l++)
            v[l] = half_to_float(((const uint16_t *)p)[i + l]);
    return *(vf *)v;
}

INLINE vf load(const void *p, long i, int half, long width) {
    if (width >= VL && !half) return *(const vf *)((const float *)p + i);
    if (width >= VL)
        return (vf)(__builtin_convertvector(*(const vh *)((const uint16_t *)p + i), vu)
                    << 16);
    return load_rare(p, i, half, width);
}

INLINE vh round_half(vf x) { /* to the nearest bfloat16, ties to even; NaN stays NaN */
    vu b = (vu)x;
    vu r = (b + 0x7FFF + ((b >> 16) & 1)) >> 16;
    vi nan = x != x;
    return __builtin_convertvector(((vu)nan & 0x7FC0) | (~(vu)nan & r), vh);
}

static __attribute__((noinline)) void store_rare(void *p, long i, int half, long width,
                                                 vf x) {
    vh h = round_half(x);
    if (half) memcpy((uint16_t *)p + i, &h, 2 * MIN(width, VL));
    else memcpy((float *)p + i, &x, 4 * MIN(width, VL));
}

INLINE void store(void *p, long i, int half, long width, vf x) {
    if (width >= VL && !half) *(vf *)((float *)p + i) = x;
    else store_rare(p, i, half, width, x);
}

/* Only the first `width` lanes of x, the others 0. */
INLINE vf only(vf x, long width) {
    if (width >= VL) return x;
    float v[VL];
    memcpy(v, &x, sizeof v);
    for (long l = width; l < VL; l++) v[l] = 0;
    return *(vf *)v;
}

/* ---- sums over lanes ---------------------------------------------------------------

   VL vectors become one that holds their VL sums: each step adds two halves of two
   vectors into one, VL - 1 additions for all, against VL - 1 for each. The order of the
   additions is fixed, so the result is the same on every run. */

#if defined(__clang__) || __GNUC__ >= 12
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIX(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

INLINE vf lane_sums(const vf *x) {
    vf s[VL];
#if VL == 16
    static const int order[16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
    UNROLL for (int i = 0; i < 16; i += 2) {
        vf a = x[order[i]], b = x[order[i + 1]];
        s[i / 2] = MIX(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                   MIX(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
    UNROLL for (int i = 0; i < 8; i += 2) {
        vf a = s[i], b = s[i + 1];
        s[i / 2] = MIX(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
                   MIX(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
    UNROLL for (int i = 0; i < 4; i += 2) {
        vf a = s[i], b = s[i + 1];
        s[i / 2] = MIX(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                   MIX(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
    return MIX(s[0], s[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           MIX(s[0], s[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
#elif VL == 8
    static const int order[8] = {0, 4, 2, 6, 1, 5, 3, 7};
    UNROLL for (int i = 0; i < 8; i += 2) {
        vf a = x[order[i]], b = x[order[i + 1]];
        s[i / 2] = MIX(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + MIX(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
    UNROLL for (int i = 0; i < 4; i += 2) {
        vf a = s[i], b = s[i + 1];
        s[i / 2] = MIX(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + MIX(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return MIX(s[0], s[1], 0, 8, 2, 10, 4, 12, 6, 14) +
           MIX(s[0], s[1], 1, 9, 3, 11, 5, 13, 7, 15);
#else
    s[0] = MIX(x[0], x[2], 0, 1, 4, 5) + MIX(x[0], x[2], 2, 3, 6, 7);
    s[1] = MIX(x[1], x[3], 0, 1, 4, 5) + MIX(x[1], x[3], 2, 3, 6, 7);
    return MIX(s[0], s[1], 0, 4, 2, 6) + MIX(s[0], s[1], 1, 5, 3, 7);
#endif
}

INLINE float lane_sum(vf x) { /* the upper half onto the lower, until one is left */
#if VL == 16
    x += MIX(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += MIX(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    x += MIX(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    x += MIX(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif VL == 8
    x += MIX(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
    x += MIX(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
    x += MIX(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#else
    x += MIX(x, x, 2, 3, 0, 1);
    x += MIX(x, x, 1, 0, 3, 2);
#endif
    return x[0];
}

/* ---- sums over items ------------------------------------------------------------- */

/* Add `parts` arrays of `count` numbers, in order: the same bits on every run. */
static inline void add_up(float *to, const float *from, long count, long parts) {
    for (long i = 0; i < parts; i++)
        for (long c = 0; c < count; c++) to[c] += from[i * count + c];
}

/* Sums over sequences start from the first; without any sequence they are 0. */
static inline void add_sequences(float *to, const float *from, long count, long sequences) {
    if (!to) return;
    if (sequences) memcpy(to, from, count * sizeof(float));
    else memset(to, 0, count * sizeof(float));
    add_up(to, from + count, count, sequences - 1);
}
