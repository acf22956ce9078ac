// Affine-quantised matrices in panels of 16 rows, and their products with float vectors.
//
// w[n, k] = code[n, k] * scale[n, k / group] + bias[n, k / group], codes of 4, 5, 6 or 8 bits. A panel interleaves 16
// rows, so a SIMD lane is a row and no product needs a horizontal sum. 32 columns of a panel are `bits` words a row:
//   8 bits      word i holds codes 4i .. 4i + 3, a byte each;
//   4, 5, 6     words 0 .. 3: byte b of word i holds code 8i + b in its low half and code 8i + 4 + b in its high half;
//               the bits above the fourth follow: of the code in byte b of register r (codes 4r .. 4r + 3) they lie in
//               byte b of a further word, at bit r (5 bits, one word) or at bits 2(r mod 4) (6 bits, word 4 + r / 4).
// Activations are rounded to 16 bits per block of 32 (relative error 2^-16 of the block's largest) and kept as a high
// and a low byte; products and their sums over a block are exact integers, everything else is float32. All instruction
// sets therefore add the same integers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define IZWI_AVX512 1
#endif

// F16_INT8: float16 steps times int8, a step for 256 columns: [panels] of {steps [cols / 256, 16], ints [groups, 16]}.
enum ScaleType { F16 = 0, BF16 = 1, F32 = 2, F16_INT8 = 3 };

extern "C" struct Matrix {
    const void *q;       // bits 4, 5, 6, 8: uint32 [panels, cols * bits / 32, 16]; 16: bfloat16 [rows, cols]; 32: float
    const void *scales;  // [panels, cols / group, 16] of scale_type
    const void *biases;  // the same; null: -2^(bits - 1) * scale, codes around zero
    const float *add;    // [rows] added to the product, or null
    int32_t rows, cols, bits, group, scale_type, unused;  // group: 32, 64 or 128; 16 with 6 bits
};

#define IZWI_ONCE __attribute__((noinline))  // these are large, and called from many places

static const int LANES = 16, BLOCK = 32, TILE = 64, STEP_COLUMNS = 256, TOP = 127 * 256;
static const int FETCH_WORDS = 1024;  // how far ahead of its use a tile fetches codes

static inline float bf16(uint16_t x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
static inline float f16(uint16_t x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }

// Where the 16 scales of a panel's group lie.
struct Scales {
    const uint8_t *base;
    int type, steps_bytes, step_shift;
    Scales(const Matrix &m, const void *p, int panel) : type(m.scale_type) {
        const size_t groups = m.cols / m.group;
        steps_bytes = m.cols / STEP_COLUMNS * LANES * 2;
        step_shift = __builtin_ctz(STEP_COLUMNS / m.group);
        const size_t bytes = type == F16_INT8 ? steps_bytes + groups * LANES : groups * LANES * (type == F32 ? 4 : 2);
        base = p ? (const uint8_t *)p + panel * bytes : nullptr;
    }
    float at(int g, int lane) const {
        const size_t i = (size_t)g * LANES + lane;
        if (type == F32) return ((const float *)base)[i];
        if (type == F16) return f16(((const uint16_t *)base)[i]);
        if (type == BF16) return bf16(((const uint16_t *)base)[i]);
        const float step = f16(((const uint16_t *)base)[(size_t)(g >> step_shift) * LANES + lane]);
        return step * (float)((const int8_t *)base)[steps_bytes + i];
    }
#ifdef IZWI_AVX512
    __m512 of(int g) const {
        if (type == F32) return _mm512_loadu_ps((const float *)base + (size_t)g * LANES);
        if (type == F16) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)base + g));
        if (type == BF16)
            return _mm512_castsi512_ps(
                _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)base + g)), 16));
        const int step = g >> step_shift;
        const __m128i ints = _mm_loadu_si128((const __m128i *)(base + steps_bytes) + g);
        return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)base + step)),
                             _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(ints)));
    }
#endif
};

// The rounded activations of T tokens: q [blocks, T, 32] (with AVX-512 as 32 high bytes, then 32 low bytes); scale and
// sum [blocks, T], and half, the sums of 16 values each, [blocks, T, 2].
struct Rounded {
    std::vector<int16_t> q;
    std::vector<float> scale, sum, half;
    int tokens = 0;
    void size(int T, int cols) {
        tokens = T;
        size_t n = (size_t)T * (cols / BLOCK);
        if (scale.size() < n) { q.resize(n * BLOCK); scale.resize(n); sum.resize(n); half.resize(2 * n); }
    }
};

static inline void round_block(const float *x, int16_t *q, float *scale, float *sum, float *half) {
#ifdef IZWI_AVX512
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    half[0] = _mm512_reduce_add_ps(a);
    half[1] = _mm512_reduce_add_ps(b);
    const __m512 inverse = _mm512_set1_ps(top > 0 ? TOP / top : 0.0f);
    const __m512i nearest = _mm512_set1_epi32(128);
    for (int i = 0; i < 2; i++) {
        const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(i ? b : a, inverse));
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(v, nearest), 8);
        _mm_storeu_si128((__m128i *)q + i, _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128((__m128i *)q + 2 + i, _mm512_cvtepi32_epi8(v));  // its low byte is v - 256 * high
    }
#else
    float top = 0;
    half[0] = half[1] = 0;
    for (int i = 0; i < BLOCK; i++) { float v = std::fabs(x[i]); top = v > top ? v : top; half[i / 16] += x[i]; }
    const float inverse = top > 0 ? TOP / top : 0.0f;
    for (int i = 0; i < BLOCK; i++) q[i] = (int16_t)lrintf(x[i] * inverse);
#endif
    *scale = top / TOP;
    *sum = half[0] + half[1];
}

// Rounds tokens [from, to) of x [T, cols]; the result serves matrices of any bits.
static IZWI_ONCE void round_tokens(const float *x, int cols, int, Rounded &r, int from, int to) {
    for (int t = from; t < to; t++)
        for (int g = 0; g < cols / BLOCK; g++) {
            const size_t at = (size_t)g * r.tokens + t;
            round_block(x + (size_t)t * cols + g * BLOCK, &r.q[at * BLOCK], &r.scale[at], &r.sum[at], &r.half[2 * at]);
        }
}

// Four codes of one row as bytes: register r of the 8 that make a block; q: the block's words of this row, LANES apart.
template <int BITS> static inline uint32_t four_codes(const uint32_t *q, int r) {
    if (BITS == 8) return q[r * LANES];
    uint32_t codes = (q[r / 2 * LANES] >> (r % 2 * 4)) & 0x0F0F0F0Fu;
    if (BITS == 5) codes |= ((q[4 * LANES] >> r) & 0x01010101u) << 4;
    if (BITS == 6) codes |= ((q[(4 + r / 4) * LANES] >> (r % 4 * 2)) & 0x03030303u) << 4;
    return codes;
}

#ifdef IZWI_AVX512
// The 32 codes of 16 rows as 8 registers of bytes.
template <int BITS> static inline void unpack(const uint32_t *q, __m512i *w) {
    if (BITS == 8) {
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) w[r] = _mm512_loadu_si512(q + r * LANES);
        return;
    }
    const __m512i low = _mm512_set1_epi32(0x0F0F0F0F);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512i v = _mm512_loadu_si512(q + i * LANES);
        w[2 * i] = _mm512_and_si512(v, low);
        w[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi32(v, 4), low);
    }
    const __m512i mask = _mm512_set1_epi32(BITS == 5 ? 0x10101010 : 0x30303030);
    if (BITS == 5 || BITS == 6) {
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            const __m512i v = _mm512_loadu_si512(q + (BITS == 5 ? 4 : 4 + r / 4) * LANES);
            const int at = BITS == 5 ? r : r % 4 * 2;  // to bit 4
            const __m512i bits = at < 4 ? _mm512_slli_epi32(v, 4 - at) : _mm512_srli_epi32(v, at - 4);
            w[r] = _mm512_ternarylogic_epi32(w[r], bits, mask, 0xF8);  // w | (bits & mask)
        }
    }
}

// acc + s * (dot * scale) + b * sum.
static inline __m512 add_group(__m512 acc, __m512i dot, float scale, float sum, __m512 s, __m512 b) {
    const __m512 step = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(scale));
    return _mm512_fmadd_ps(step, s, _mm512_fmadd_ps(b, _mm512_set1_ps(sum), acc));
}
// The biases of a group whose scales are s.
template <int BITS> static inline __m512 biases_of(const Scales &biases, int g, __m512 s) {
    return biases.base ? biases.of(g) : _mm512_mul_ps(s, _mm512_set1_ps(-(float)(1 << (BITS - 1))));
}

// N tokens from `from` with their sums in registers: y [N, stride]. HALVES: groups of 16.
template <int BITS, bool HALVES, int N>
static IZWI_ONCE void tile_product(const Matrix &m, int panel, const Rounded &r, int from, float *y, size_t stride) {
    const int blocks = m.cols / BLOCK, shift = HALVES ? 0 : __builtin_ctz(m.group / BLOCK);
    const uint32_t *q = (const uint32_t *)m.q + (size_t)panel * blocks * BITS * LANES;
    const Scales scales(m, m.scales, panel), biases(m, m.biases, panel);
    __m512 acc[N];
#pragma GCC unroll 8
    for (int k = 0; k < N; k++) acc[k] = _mm512_setzero_ps();
    for (int g = 0; g < blocks; g++, q += BITS * LANES) {
        __m512i w[8];
        for (int i = 0; i < BITS; i++) __builtin_prefetch(q + FETCH_WORDS + i * LANES);  // past a page's end too
        unpack<BITS>(q, w);
        const size_t at = (size_t)g * r.tokens + from;
        const int32_t *x = (const int32_t *)&r.q[at * BLOCK];
#pragma GCC unroll 2
        for (int part = 0; part < (HALVES ? 2 : 1); part++) {
            const int first = HALVES ? 4 * part : 0, last = HALVES ? first + 4 : 8;
            const int group = HALVES ? 2 * g + part : g >> shift;
            const __m512 s = scales.of(group), b = biases_of<BITS>(biases, group, s);
            __m512i dot[N];
#pragma GCC unroll 8
            for (int k = 0; k < N; k++) dot[k] = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int i = first; i < last; i++)
#pragma GCC unroll 8
                for (int k = 0; k < N; k++) dot[k] = _mm512_dpbusd_epi32(dot[k], w[i], _mm512_set1_epi32(x[k * 16 + i]));
#pragma GCC unroll 8
            for (int k = 0; k < N; k++) dot[k] = _mm512_slli_epi32(dot[k], 8);
#pragma GCC unroll 8
            for (int i = first; i < last; i++)
#pragma GCC unroll 8
                for (int k = 0; k < N; k++)
                    dot[k] = _mm512_dpbusd_epi32(dot[k], w[i], _mm512_set1_epi32(x[k * 16 + 8 + i]));
#pragma GCC unroll 8
            for (int k = 0; k < N; k++) {
                const float sum = HALVES ? r.half[2 * (at + k) + part] : r.sum[at + k];
                acc[k] = add_group(acc[k], dot[k], r.scale[at + k], sum, s, b);
            }
        }
    }
#pragma GCC unroll 8
    for (int k = 0; k < N; k++) _mm512_storeu_ps(y + k * stride, acc[k]);
}

// One token: four sums at once, so that none waits for another.
template <int BITS, bool HALVES>
static IZWI_ONCE void token_product(const Matrix &m, int panel, const Rounded &r, int from, float *y) {
    const int blocks = m.cols / BLOCK, shift = HALVES ? 0 : __builtin_ctz(m.group / BLOCK);
    const uint32_t *q = (const uint32_t *)m.q + (size_t)panel * blocks * BITS * LANES;
    const Scales scales(m, m.scales, panel), biases(m, m.biases, panel);
    __m512 acc = _mm512_setzero_ps();
    for (int g = 0; g < blocks; g++, q += BITS * LANES) {
        const size_t at = (size_t)g * r.tokens + from;
        const int32_t *x = (const int32_t *)&r.q[at * BLOCK];
        __m512i w[8], high[2], low[2];
        unpack<BITS>(q, w);
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) {
            high[p] = low[p] = _mm512_setzero_si512();
#pragma GCC unroll 4
            for (int i = 4 * p; i < 4 * p + 4; i++) {
                high[p] = _mm512_dpbusd_epi32(high[p], w[i], _mm512_set1_epi32(x[i]));
                low[p] = _mm512_dpbusd_epi32(low[p], w[i], _mm512_set1_epi32(x[8 + i]));
            }
        }
        if (HALVES) {
#pragma GCC unroll 2
            for (int p = 0; p < 2; p++) {
                const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(high[p], 8), low[p]);
                const __m512 s = scales.of(2 * g + p), b = biases_of<BITS>(biases, 2 * g + p, s);
                acc = add_group(acc, dot, r.scale[at], r.half[2 * at + p], s, b);
            }
        } else {
            const __m512i both = _mm512_slli_epi32(_mm512_add_epi32(high[0], high[1]), 8);
            const __m512i dot = _mm512_add_epi32(both, _mm512_add_epi32(low[0], low[1]));
            const __m512 s = scales.of(g >> shift), b = biases_of<BITS>(biases, g >> shift, s);
            acc = add_group(acc, dot, r.scale[at], r.sum[at], s, b);
        }
    }
    _mm512_storeu_ps(y, acc);
}

template <int BITS, bool HALVES>
static IZWI_ONCE void panel_tiles(const Matrix &m, int panel, const Rounded &r, int from, int n, float *y, size_t stride) {
    int t = 0;
    for (; t + 8 <= n; t += 8) tile_product<BITS, HALVES, 8>(m, panel, r, from + t, y + t * stride, stride);
    for (; t + 4 <= n; t += 4) tile_product<BITS, HALVES, 4>(m, panel, r, from + t, y + t * stride, stride);
    for (; t + 2 <= n; t += 2) tile_product<BITS, HALVES, 2>(m, panel, r, from + t, y + t * stride, stride);
    for (; t < n; t++) token_product<BITS, HALVES>(m, panel, r, from + t, y + t * stride);
}
#else
template <int BITS, bool HALVES>
static IZWI_ONCE void panel_tiles(const Matrix &m, int panel, const Rounded &r, int from, int n, float *y, size_t stride) {
    const int blocks = m.cols / BLOCK;
    const uint32_t *q = (const uint32_t *)m.q + (size_t)panel * blocks * BITS * LANES;
    const Scales scales(m, m.scales, panel), biases(m, m.biases, panel);
    for (int t = 0; t < n; t++) memset(y + t * stride, 0, sizeof(float) * LANES);
    for (int g = 0; g < blocks; g++, q += BITS * LANES) {
        int16_t codes[BLOCK][LANES];
        for (int i = 0; i < 8; i++)
            for (int l = 0; l < LANES; l++) {
                const uint32_t four = four_codes<BITS>(q + l, i);
                for (int b = 0; b < 4; b++) codes[4 * i + b][l] = (int16_t)((four >> (8 * b)) & 255u);
            }
        for (int part = 0; part < (HALVES ? 2 : 1); part++) {
            const int first = HALVES ? 16 * part : 0, last = HALVES ? first + 16 : BLOCK;
            const int group = HALVES ? 2 * g + part : g / (m.group / BLOCK);
            float s[LANES], b[LANES];
            for (int l = 0; l < LANES; l++) {
                s[l] = scales.at(group, l);
                b[l] = m.biases ? biases.at(group, l) : -(float)(1 << (BITS - 1)) * s[l];
            }
            for (int t = 0; t < n; t++) {
                const size_t at = (size_t)g * r.tokens + from + t;
                const int16_t *x = &r.q[at * BLOCK];
                const float sum = HALVES ? r.half[2 * at + part] : r.sum[at];
                int32_t acc[LANES] = {0};
                for (int k = first; k < last; k++)
                    for (int l = 0; l < LANES; l++) acc[l] += (int32_t)codes[k][l] * (int32_t)x[k];
                float *out = y + t * stride;
                for (int l = 0; l < LANES; l++) out[l] += b[l] * sum + (float)acc[l] * (s[l] * r.scale[at]);
            }
        }
    }
}
#endif

// One panel times tokens [from, from + n): y [n, 16], rows of y `stride` floats apart.
template <int BITS>
static inline void panel_product(const Matrix &m, int panel, const Rounded &r, int from, int n, float *y, size_t stride = LANES) {
    if (BITS == 6 && m.group == 16) panel_tiles<6, true>(m, panel, r, from, n, y, stride);  // only these have them
    else panel_tiles<BITS, false>(m, panel, r, from, n, y, stride);
}
// The same for a matrix of any quantised kind.
static inline void affine_product(const Matrix &m, int panel, const Rounded &r, int from, int n, float *y, size_t stride = LANES) {
    if (m.bits == 4) panel_product<4>(m, panel, r, from, n, y, stride);
    else if (m.bits == 5) panel_product<5>(m, panel, r, from, n, y, stride);
    else if (m.bits == 6) panel_product<6>(m, panel, r, from, n, y, stride);
    else panel_product<8>(m, panel, r, from, n, y, stride);
}

static inline float widened(const float *w, size_t k) { return w[k]; }
static inline float widened(const uint16_t *w, size_t k) { return bf16(w[k]); }
#ifdef IZWI_AVX512
static inline __m512 widened16(const float *w) { return _mm512_loadu_ps(w); }
static inline __m512 widened16(const uint16_t *w) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)w)), 16));
}
#endif

// A dense row times x.
template <class W> static inline float dense_row(const W *w, const float *x, int cols) {
    int k = 0;
    float sum = 0;
#ifdef IZWI_AVX512
    __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (; k + 64 <= cols; k += 64)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            acc[i] = _mm512_fmadd_ps(widened16(w + k + 16 * i), _mm512_loadu_ps(x + k + 16 * i), acc[i]);
    sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])));
#else
    float part[32] = {0};  // as many sums as hide the latency of an addition
    for (; k + 32 <= cols; k += 32)
        for (int i = 0; i < 32; i++) part[i] += widened(w, k + i) * x[k + i];
    for (int i = 0; i < 32; i++) sum += part[i];
#endif
    for (; k < cols; k++) sum += widened(w, k) * x[k];
    return sum;
}

// Sixteen rows [16 * panel, ...) times one token: affine rows read `r`, dense rows read `x`.
static IZWI_ONCE void panel_vector(const Matrix &m, int panel, const Rounded &r, const float *x, float *y) {
    if (m.bits <= 8) affine_product(m, panel, r, 0, 1, y);
    else
        for (int l = 0; l < LANES && panel * LANES + l < m.rows; l++) {
            const size_t row = (size_t)(panel * LANES + l) * m.cols;
            y[l] = m.bits == 32 ? dense_row((const float *)m.q + row, x, m.cols)
                                : dense_row((const uint16_t *)m.q + row, x, m.cols);
        }
    if (m.add)
        for (int l = 0; l < LANES && panel * LANES + l < m.rows; l++) y[l] += m.add[panel * LANES + l];
}

template <int BITS> static inline void affine_row(const Matrix &m, int n, float *out) {
    const int panel = n / LANES, lane = n % LANES, blocks = m.cols / BLOCK;
    const uint32_t *q = (const uint32_t *)m.q + (size_t)panel * blocks * BITS * LANES + lane;
    const Scales scales(m, m.scales, panel), biases(m, m.biases, panel);
    for (int g = 0; g < blocks; g++, q += BITS * LANES)
        for (int r = 0; r < 8; r++) {
            const int k = g * BLOCK + 4 * r, group = k / m.group;
            const float s = scales.at(group, lane);
            const float b = m.biases ? biases.at(group, lane) : -(float)(1 << (BITS - 1)) * s;
            const uint32_t codes = four_codes<BITS>(q, r);
            for (int i = 0; i < 4; i++) out[k + i] = (float)((codes >> (8 * i)) & 255u) * s + b;
        }
}

// Row n as floats.
static IZWI_ONCE void row_values(const Matrix &m, int n, float *out) {
    if (m.bits == 32) memcpy(out, (const float *)m.q + (size_t)n * m.cols, sizeof(float) * m.cols);
    else if (m.bits == 16)
        for (int k = 0; k < m.cols; k++) out[k] = bf16(((const uint16_t *)m.q)[(size_t)n * m.cols + k]);
    else if (m.bits == 4) affine_row<4>(m, n, out);
    else if (m.bits == 5) affine_row<5>(m, n, out);
    else if (m.bits == 6) affine_row<6>(m, n, out);
    else affine_row<8>(m, n, out);
}
