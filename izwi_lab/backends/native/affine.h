// Affine-quantised matrices in panels of 16 rows, and their products with float vectors.
//
// w[n, k] = code[n, k] * scale[n, k / group] + bias[n, k / group]. A panel interleaves 16 rows: the 32-bit words
// (8 codes of 4 bits, or 4 of 8) that stand at one place of 16 rows lie together, so a SIMD lane is a row and no
// product needs a horizontal sum. Activations are rounded to 16 bits per block of 32 (relative error 2^-16 of the
// block's largest), products and their sums over a block are exact integers, everything else is float32. All
// instruction sets therefore add the same integers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define IZWI_AVX512 1
#endif

enum ScaleType { F16 = 0, BF16 = 1, F32 = 2 };

extern "C" struct Matrix {
    const void *q;       // bits 4, 8: uint32 [panels, cols * bits / 32, 16]; 16: bfloat16 [rows, cols]; 32: float
    const void *scales;  // [panels, cols / group, 16] of scale_type
    const void *biases;
    const float *add;    // [rows] added to the product, or null
    int32_t rows, cols, bits, group, scale_type, unused;
};

static const int LANES = 16, BLOCK = 32, TILE = 64;

static inline float bf16(uint16_t x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
static inline float f16(uint16_t x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
static inline float scale_at(const void *p, int type, size_t i) {
    if (type == F32) return ((const float *)p)[i];
    uint16_t x = ((const uint16_t *)p)[i];
    return type == F16 ? f16(x) : bf16(x);
}

// The rounded activations of T tokens: q [blocks, T, 32] in the order the codes come out of a word,
// scale and sum [blocks, T].
struct Rounded {
    std::vector<int16_t> q;
    std::vector<float> scale, sum;
    int tokens = 0;
    void size(int T, int cols) {
        tokens = T;
        size_t n = (size_t)T * (cols / BLOCK);
        if (q.size() < n * BLOCK) { q.resize(n * BLOCK); scale.resize(n); sum.resize(n); }
    }
};

static inline void round_block(const float *x, int bits, int16_t *q, float *scale, float *sum) {
    static const int16_t order4[8] = {0, 4, 1, 5, 2, 6, 3, 7}, order8[8] = {0, 2, 1, 3, 4, 6, 5, 7};
#ifdef IZWI_AVX512
    __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    *sum = _mm512_reduce_add_ps(_mm512_add_ps(a, b));
    *scale = top / 32767.0f;
    __m512 inverse = _mm512_set1_ps(top > 0 ? 32767.0f / top : 0.0f);
    __m256i lo = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)));
    __m256i hi = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)));
    __m128i small = _mm_loadu_si128((const __m128i *)(bits == 4 ? order4 : order8));
    __m512i order = _mm512_broadcast_i32x4(small);
    const __m512i base = _mm512_set_epi64(0x0018001800180018, 0x0018001800180018, 0x0010001000100010,
                                          0x0010001000100010, 0x0008000800080008, 0x0008000800080008, 0, 0);
    __m512i all = _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
    _mm512_storeu_si512(q, _mm512_permutexvar_epi16(_mm512_add_epi16(order, base), all));
#else
    const int16_t *order = bits == 4 ? order4 : order8;
    float top = 0, total = 0;
    for (int i = 0; i < BLOCK; i++) { float v = std::fabs(x[i]); top = v > top ? v : top; total += x[i]; }
    float inverse = top > 0 ? 32767.0f / top : 0.0f;
    for (int i = 0; i < BLOCK; i++) q[i] = (int16_t)lrintf(x[(i & ~7) + order[i & 7]] * inverse);
    *scale = top / 32767.0f;
    *sum = total;
#endif
}

// Rounds tokens [from, to) of x [T, cols].
static inline void round_tokens(const float *x, int cols, int bits, Rounded &r, int from, int to) {
    for (int t = from; t < to; t++)
        for (int g = 0; g < cols / BLOCK; g++) {
            size_t at = (size_t)g * r.tokens + t;
            round_block(x + (size_t)t * cols + g * BLOCK, bits, &r.q[at * BLOCK], &r.scale[at], &r.sum[at]);
        }
}

#ifdef IZWI_AVX512
static inline __m512 scales16(const void *p, int type, size_t i) {
    if (type == F32) return _mm512_loadu_ps((const float *)p + i);
    __m256i raw = _mm256_loadu_si256((const __m256i *)((const uint16_t *)p + i));
    if (type == F16) return _mm512_cvtph_ps(raw);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
static inline __m512i dot2(__m512i acc, __m512i w, __m512i x) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(acc, w, x);
#else
    return _mm512_add_epi32(acc, _mm512_madd_epi16(w, x));
#endif
}
// The 32 codes of 16 rows as 16 registers of int16 pairs, in the order of the rounded activations.
template <int BITS> static inline void unpack(const uint32_t *q, __m512i *w) {
    const __m512i m4 = _mm512_set1_epi32(0x000F000F), m8 = _mm512_set1_epi32(0x00FF00FF);
#pragma GCC unroll 8
    for (int i = 0; i < BITS; i++) {
        __m512i v = _mm512_loadu_si512(q + i * LANES);
        if (BITS == 4) {
            w[4 * i] = _mm512_and_si512(v, m4);
            w[4 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), m4);
            w[4 * i + 2] = _mm512_and_si512(_mm512_srli_epi16(v, 8), m4);
            w[4 * i + 3] = _mm512_srli_epi16(v, 12);
        } else {
            w[2 * i] = _mm512_and_si512(v, m8);
            w[2 * i + 1] = _mm512_srli_epi16(v, 8);
        }
    }
}
template <int N> static inline void tile_tokens(const __m512i *w, const Rounded &r, size_t at, __m512 s, __m512 b, float *y) {
    __m512i acc[N];
#pragma GCC unroll 4
    for (int k = 0; k < N; k++) acc[k] = _mm512_setzero_si512();
    const int32_t *x = (const int32_t *)&r.q[at * BLOCK];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
#pragma GCC unroll 4
        for (int k = 0; k < N; k++) acc[k] = dot2(acc[k], w[i], _mm512_set1_epi32(x[k * 16 + i]));
#pragma GCC unroll 4
    for (int k = 0; k < N; k++) {
        __m512 sum = _mm512_fmadd_ps(b, _mm512_set1_ps(r.sum[at + k]), _mm512_loadu_ps(y + k * LANES));
        __m512 step = _mm512_mul_ps(s, _mm512_set1_ps(r.scale[at + k]));
        _mm512_storeu_ps(y + k * LANES, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[k]), step, sum));
    }
}
#endif

// One panel times tokens [from, from + n): y [n, 16].
template <int BITS> static inline void panel_product(const Matrix &m, int panel, const Rounded &r, int from, int n, float *y) {
    const int words = BITS, blocks = m.cols / BLOCK, per_group = m.group / BLOCK;  // words of 32 codes
    const uint32_t *q = (const uint32_t *)m.q + (size_t)panel * blocks * words * LANES;
    const size_t scales = (size_t)panel * (m.cols / m.group) * LANES;
    memset(y, 0, sizeof(float) * n * LANES);
#ifdef IZWI_AVX512
    if (n == 1) {
        const __m512i m4 = _mm512_set1_epi32(0x000F000F), m8 = _mm512_set1_epi32(0x00FF00FF);
        __m512 acc = _mm512_setzero_ps();
        for (int g = 0; g < blocks; g++, q += words * LANES) {
            const size_t at = (size_t)g * r.tokens + from;
            const int32_t *x = (const int32_t *)&r.q[at * BLOCK];
            __m512i a0 = _mm512_setzero_si512(), a1 = a0, a2 = a0, a3 = a0;
#pragma GCC unroll 8
            for (int i = 0; i < BITS; i++) {
                __m512i v = _mm512_loadu_si512(q + i * LANES);
                if (BITS == 4) {
                    a0 = dot2(a0, _mm512_and_si512(v, m4), _mm512_set1_epi32(x[4 * i]));
                    a1 = dot2(a1, _mm512_and_si512(_mm512_srli_epi16(v, 4), m4), _mm512_set1_epi32(x[4 * i + 1]));
                    a2 = dot2(a2, _mm512_and_si512(_mm512_srli_epi16(v, 8), m4), _mm512_set1_epi32(x[4 * i + 2]));
                    a3 = dot2(a3, _mm512_srli_epi16(v, 12), _mm512_set1_epi32(x[4 * i + 3]));
                } else {
                    a0 = dot2(a0, _mm512_and_si512(v, m8), _mm512_set1_epi32(x[2 * i]));
                    a1 = dot2(a1, _mm512_srli_epi16(v, 8), _mm512_set1_epi32(x[2 * i + 1]));
                }
            }
            const size_t sg = scales + (size_t)(g / per_group) * LANES;
            __m512 step = _mm512_mul_ps(scales16(m.scales, m.scale_type, sg), _mm512_set1_ps(r.scale[at]));
            __m512i dot = _mm512_add_epi32(_mm512_add_epi32(a0, a1), _mm512_add_epi32(a2, a3));
            acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), step, acc);
            acc = _mm512_fmadd_ps(scales16(m.biases, m.scale_type, sg), _mm512_set1_ps(r.sum[at]), acc);
        }
        _mm512_storeu_ps(y, acc);
        return;
    }
    for (int g = 0; g < blocks; g++, q += words * LANES) {
        __m512i w[16];
        unpack<BITS>(q, w);
        const size_t sg = scales + (size_t)(g / per_group) * LANES;
        const __m512 s = scales16(m.scales, m.scale_type, sg), b = scales16(m.biases, m.scale_type, sg);
        const size_t at = (size_t)g * r.tokens + from;
        int t = 0;
        for (; t + 4 <= n; t += 4) tile_tokens<4>(w, r, at + t, s, b, y + t * LANES);
        for (; t < n; t++) tile_tokens<1>(w, r, at + t, s, b, y + t * LANES);
    }
#else
    for (int g = 0; g < blocks; g++, q += words * LANES) {
        float s[LANES], b[LANES];
        for (int l = 0; l < LANES; l++) {
            s[l] = scale_at(m.scales, m.scale_type, scales + (size_t)(g / per_group) * LANES + l);
            b[l] = scale_at(m.biases, m.scale_type, scales + (size_t)(g / per_group) * LANES + l);
        }
        for (int t = 0; t < n; t++) {
            const size_t at = (size_t)g * r.tokens + from + t;
            const int16_t *x = &r.q[at * BLOCK];
            int32_t acc[LANES] = {0};
            for (int i = 0; i < BITS; i++)
                for (int j = 0; j < (BITS == 4 ? 4 : 2); j++) {
                    const int32_t x0 = x[(i * (16 / BITS) + j) * 2], x1 = x[(i * (16 / BITS) + j) * 2 + 1];
                    for (int l = 0; l < LANES; l++) {
                        const uint32_t v = q[i * LANES + l] >> (j * BITS);
                        const uint32_t mask = BITS == 4 ? 15u : 255u;
                        acc[l] += (int32_t)(v & mask) * x0 + (int32_t)((v >> 16) & mask) * x1;
                    }
                }
            float *out = y + t * LANES;
            for (int l = 0; l < LANES; l++) out[l] += b[l] * r.sum[at] + (float)acc[l] * (s[l] * r.scale[at]);
        }
    }
#endif
}

// Sixteen rows [16 * panel, ...) times one token: affine rows read `r`, dense rows read `x`.
static inline void panel_vector(const Matrix &m, int panel, const Rounded &r, const float *x, float *y) {
    if (m.bits == 4) panel_product<4>(m, panel, r, 0, 1, y);
    else if (m.bits == 8) panel_product<8>(m, panel, r, 0, 1, y);
    else
        for (int l = 0; l < LANES && panel * LANES + l < m.rows; l++) {
            const size_t row = (size_t)(panel * LANES + l) * m.cols;
            float sum = 0;
            if (m.bits == 32) {
                const float *w = (const float *)m.q + row;
#pragma omp simd reduction(+ : sum)
                for (int k = 0; k < m.cols; k++) sum += w[k] * x[k];
            } else {
                const uint16_t *w = (const uint16_t *)m.q + row;
#pragma omp simd reduction(+ : sum)
                for (int k = 0; k < m.cols; k++) sum += bf16(w[k]) * x[k];
            }
            y[l] = sum;
        }
    if (m.add)
        for (int l = 0; l < LANES && panel * LANES + l < m.rows; l++) y[l] += m.add[panel * LANES + l];
}

// Row n as floats.
static inline void row_values(const Matrix &m, int n, float *out) {
    for (int k = 0; k < m.cols; k++) {
        if (m.bits == 32) out[k] = ((const float *)m.q)[(size_t)n * m.cols + k];
        else if (m.bits == 16) out[k] = bf16(((const uint16_t *)m.q)[(size_t)n * m.cols + k]);
        else {
            const int per_word = 32 / m.bits, panel = n / LANES, lane = n % LANES;
            const size_t word = ((size_t)panel * (m.cols / per_word) + k / per_word) * LANES + lane;
            const uint32_t code = (((const uint32_t *)m.q)[word] >> (k % per_word * m.bits)) & (m.bits == 4 ? 15u : 255u);
            const size_t sg = ((size_t)panel * (m.cols / m.group) + k / m.group) * LANES + lane;
            out[k] = (float)code * scale_at(m.scales, m.scale_type, sg) + scale_at(m.biases, m.scale_type, sg);
        }
    }
}
