// Sixteen floats at a time, in the compiler's vector types: one code for every instruction set.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

const int WIDE = 16;
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t VecInt __attribute__((vector_size(64)));

inline Vec load16(const float *p) {
    Vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
inline Vec load16(const uint16_t *p) {  // bfloat16
#ifdef __AVX512F__  // GCC 12 takes this conversion apart
    __m256i h;
    memcpy(&h, p, sizeof h);
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#else
    typedef uint16_t Half __attribute__((vector_size(32)));
    typedef uint32_t Bits __attribute__((vector_size(64)));
    Half h;
    memcpy(&h, p, sizeof h);
    return (Vec)(__builtin_convertvector(h, Bits) << 16);
#endif
}
inline Vec load16(const int8_t *p) {
    typedef int8_t Small __attribute__((vector_size(16)));
    Small s;
    memcpy(&s, p, sizeof s);
#ifdef __AVX512F__  // GCC 12 takes this conversion apart
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)s));
#else
    return __builtin_convertvector(__builtin_convertvector(s, VecInt), Vec);
#endif
}
inline void store16(float *p, Vec v) { memcpy(p, &v, sizeof v); }

inline float load1(const float *p) { return *p; }
inline float load1(const uint16_t *p) {
    const uint32_t u = (uint32_t)*p << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
inline float load1(const int8_t *p) { return (float)*p; }
inline void store1(float *p, float x) { *p = x; }
inline void store1(uint16_t *p, float x) {  // round to the nearest, ties to even
    uint32_t u;
    memcpy(&u, &x, 4);
    *p = x != x ? 0x7FC0 : (uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}

// Up to 16 values from p, the rest zero.
template <class T> inline Vec load_part(const T *p, int n) {
    if (n >= WIDE) return load16(p);
    float part[WIDE] = {0};
    for (int i = 0; i < n; i++) part[i] = load1(p + i);
    return load16(part);
}

inline Vec splat(float x) { return x - Vec{}; }
inline Vec larger(Vec a, Vec b) { return a < b ? b : a; }
inline float largest(Vec v) {
    float x[WIDE], top;
    store16(x, v);
    for (int n = WIDE / 2; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] = std::max(x[i], x[i + n]);
    top = x[0];
    return top;
}
inline float total(Vec v) {
    float x[WIDE];
    store16(x, v);
    for (int n = WIDE / 2; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] += x[i + n];
    return x[0];
}

// e^x to 2 ulp (Cephes polynomial); x is held within [-87, 88], NaN stays NaN.
inline Vec exp16(Vec x) {
    x = x < -87.0f ? splat(-87.0f) : x;
    x = x > 88.0f ? splat(88.0f) : x;
    const Vec shifted = x * 1.44269504f + 12582912.0f;  // the integer nearest to x / ln 2, in the low bits
    const Vec n = shifted - 12582912.0f;
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Vec)(((VecInt)shifted + 127) << 23);
}

inline Vec silu(Vec x) { return x / (1.0f + exp16(-x)); }
inline Vec gelu_tanh(Vec x) {  // x * (1 + tanh u) / 2
    const Vec u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x * (1.0f - 1.0f / (exp16(2.0f * u) + 1.0f));
}

#ifdef __clang__
#define IZWI_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC before 12 has no __builtin_shufflevector
#define IZWI_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, VecInt{__VA_ARGS__})
#endif
inline Vec low_pairs(Vec a, Vec b) {  // in every quarter a0 b0 a1 b1
    return IZWI_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
inline Vec high_pairs(Vec a, Vec b) {  // in every quarter a2 b2 a3 b3
    return IZWI_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
inline Vec low_halves(Vec a, Vec b) {  // in every quarter a0 a1 b0 b1
    return IZWI_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
inline Vec high_halves(Vec a, Vec b) {  // in every quarter a2 a3 b2 b3
    return IZWI_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
inline Vec first_quarters(Vec a, Vec b) {
    return IZWI_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
}
inline Vec last_quarters(Vec a, Vec b) {
    return IZWI_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
inline Vec even_quarters(Vec a, Vec b) {
    return IZWI_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
}
inline Vec odd_quarters(Vec a, Vec b) {
    return IZWI_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}

// The sums of 4 vectors in parts: each quarter holds a part of the four.
inline Vec quad_of(const Vec *p) {
    const Vec even = low_pairs(p[0], p[2]) + high_pairs(p[0], p[2]);  // a02 b02 a13 b13
    const Vec odd = low_pairs(p[1], p[3]) + high_pairs(p[1], p[3]);
    return low_pairs(even, odd) + high_pairs(even, odd);
}
// The sums of 16 vectors, in order, from 4 quads.
inline Vec totals(const Vec *quad) {
    const Vec a = first_quarters(quad[0], quad[1]) + last_quarters(quad[0], quad[1]);
    const Vec b = first_quarters(quad[2], quad[3]) + last_quarters(quad[2], quad[3]);
    return even_quarters(a, b) + odd_quarters(a, b);
}

// Transposes 16 vectors in place.
inline void transpose(Vec *v) {
    Vec t[WIDE];
    for (int i = 0; i < WIDE; i += 4) {
        const Vec a = low_pairs(v[i], v[i + 1]), b = high_pairs(v[i], v[i + 1]);
        const Vec c = low_pairs(v[i + 2], v[i + 3]), d = high_pairs(v[i + 2], v[i + 3]);
        t[i] = low_halves(a, c), t[i + 1] = high_halves(a, c);
        t[i + 2] = low_halves(b, d), t[i + 3] = high_halves(b, d);
    }
    for (int i = 0; i < 4; i++) {  // t[4 j + i], quarter q: rows 4 j .. 4 j + 3 of column 4 q + i
        const Vec a = even_quarters(t[i], t[4 + i]), b = odd_quarters(t[i], t[4 + i]);
        const Vec c = even_quarters(t[8 + i], t[12 + i]), d = odd_quarters(t[8 + i], t[12 + i]);
        v[i] = even_quarters(a, c), v[8 + i] = odd_quarters(a, c);
        v[4 + i] = even_quarters(b, d), v[12 + i] = odd_quarters(b, d);
    }
}

}  // namespace
