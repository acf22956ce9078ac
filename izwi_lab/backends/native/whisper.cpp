// One Whisper decoder step for several rows at once, on a CPU. Reads the checkpoint's own weights (f32, f16 or bf16,
// mapped from disk) and computes in f32, so it gives what a float32 decoder gives while reading half the bytes.
//
// A row is one token at one position of one session. Rows may belong to different sessions (windows decoded together)
// or to one session (a prompt): all keys of the call are written before any row attends, and a row at position p sees
// keys 0..p. Every weight row is read once per call and used for all rows: the memory traffic is shared by the batch.
//
// Shapes: D width, H heads, E head size (a multiple of 16), L layers, V vocabulary, C self-attention capacity, F states.
//   self keys, values f32 [L, H, C, E]; cross keys, values f32 or f16 [L, H, F, E].
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>
#include "barrier.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

struct half_t { uint16_t bits; };
struct bf16_t { uint16_t bits; };

inline float as_float(uint32_t bits) { float f; std::memcpy(&f, &bits, 4); return f; }
inline float widen(float x) { return x; }
inline float widen(bf16_t x) { return as_float(uint32_t(x.bits) << 16); }
inline float widen(half_t x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return as_float(sign | 0x7f800000 | ((rest & 0x3ff) << 13));
    if (rest < 0x0400) return (sign ? -1.0f : 1.0f) * std::ldexp(float(rest), -24);
    return as_float(sign | ((rest << 13) + 0x38000000));
}

// A vector of 16 floats: one AVX-512 register, two AVX2 registers, or plain lanes the compiler may vectorise.
#if defined(__AVX512F__)
using vec = __m512;
inline vec zero() { return _mm512_setzero_ps(); }
inline vec splat(float x) { return _mm512_set1_ps(x); }
inline vec load(const float* p) { return _mm512_loadu_ps(p); }
inline vec load(const half_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline vec load(const bf16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline void store(float* p, vec v) { _mm512_storeu_ps(p, v); }
inline vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
inline vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
inline __m256 fold(vec v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); }
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
struct vec { __m256 a, b; };
inline vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline vec splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline vec load(const half_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))};
}
inline __m256 wide8(const bf16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline vec load(const bf16_t* p) { return {wide8(p), wide8(p + 8)}; }
inline void store(float* p, vec v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
inline vec fma(vec x, vec y, vec z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline vec add(vec x, vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline __m256 fold(vec v) { return _mm256_add_ps(v.a, v.b); }
#else
struct vec { float v[16]; };
inline vec zero() { return vec{}; }
inline vec splat(float x) { vec r; for (float& f : r.v) f = x; return r; }
template <class T> inline vec load(const T* p) { vec r; for (int i = 0; i < 16; i++) r.v[i] = widen(p[i]); return r; }
inline void store(float* p, vec v) { std::memcpy(p, v.v, sizeof v.v); }
inline vec fma(vec a, vec b, vec c) { for (int i = 0; i < 16; i++) c.v[i] += a.v[i] * b.v[i]; return c; }
inline vec add(vec a, vec b) { for (int i = 0; i < 16; i++) a.v[i] += b.v[i]; return a; }
inline float sum(vec v) { float s = 0; for (float f : v.v) s += f; return s; }
inline void sum4(const vec* v, float* out) { for (int i = 0; i < 4; i++) out[i] = sum(v[i]); }
#define IZWI_PLAIN 1
#endif
#ifndef IZWI_PLAIN
inline void sum4(const vec* v, float* out) {  // four sums for the price of one and a bit
    const __m256 ab = _mm256_hadd_ps(fold(v[0]), fold(v[1])), cd = _mm256_hadd_ps(fold(v[2]), fold(v[3]));
    const __m256 t = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
}
inline float sum(vec v) {
    __m256 t = fold(v);
    t = _mm256_hadd_ps(t, t);
    t = _mm256_hadd_ps(t, t);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
}
#endif

// exp and erf as straight-line code, so loops over them vectorise. exp: Cephes expf, relative error below 2e-7;
// erf: Abramowitz and Stegun 7.1.26, absolute error below 2e-7.
inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f; p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f; p = p * r * r + r + 1.0f;
    return p * as_float(uint32_t(int32_t(n) + 127) << 23);
}
inline float gelu(float x) {
    const float z = std::fabs(x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
    float p = 1.061405429f;
    p = p * t - 1.453152027f; p = p * t + 1.421413741f; p = p * t - 0.284496736f; p = p * t + 0.254829592f;
    const float e = 1.0f - p * t * fast_exp(-z * z);
    return 0.5f * x * (1.0f + (x < 0 ? -e : e));
}

// y[m] = x[m] . w for one matrix row and MB rows of x. Reads the matrix strictly in order: on the machine this was tuned on
// that streams at 48 GB/s, while walking four rows side by side gets 18.
template <class W, int MB>
inline void stream(const float* x, int K, const W* w, float bias, float* y, int64_t ldy, bool add_to) {
    vec acc[MB][2];
    for (auto& row : acc) row[0] = row[1] = zero();
    int k = 0;
    for (; k + 32 <= K; k += 32) {
        const vec w0 = load(w + k), w1 = load(w + k + 16);
        for (int m = 0; m < MB; m++) {
            acc[m][0] = fma(load(x + int64_t(m) * K + k), w0, acc[m][0]);
            acc[m][1] = fma(load(x + int64_t(m) * K + k + 16), w1, acc[m][1]);
        }
    }
    for (; k < K; k += 16)
        for (int m = 0; m < MB; m++) acc[m][0] = fma(load(x + int64_t(m) * K + k), load(w + k), acc[m][0]);
    float v[4];
    if (MB == 4) {
        const vec joined[4] = {add(acc[0][0], acc[0][1]), add(acc[1 % MB][0], acc[1 % MB][1]),
                               add(acc[2 % MB][0], acc[2 % MB][1]), add(acc[3 % MB][0], acc[3 % MB][1])};
        sum4(joined, v);
    } else {
        for (int m = 0; m < MB; m++) v[m] = sum(add(acc[m][0], acc[m][1]));
    }
    for (int m = 0; m < MB; m++) y[m * ldy] = (add_to ? y[m * ldy] : 0.0f) + v[m] + bias;
}

// The same for many rows of x (a prompt): 4 x 4 tiles, which reuse what they load.
template <class W, int MB>
inline void tile(const float* x, int K, const W* w, const float* bias, float* y, int64_t ldy, bool add_to) {
    vec acc[MB][4];
    for (auto& row : acc) for (vec& a : row) a = zero();
    for (int k = 0; k < K; k += 16) {
        vec wv[4];
        for (int n = 0; n < 4; n++) wv[n] = load(w + int64_t(n) * K + k);
        for (int m = 0; m < MB; m++) {
            const vec xv = load(x + int64_t(m) * K + k);
            for (int n = 0; n < 4; n++) acc[m][n] = fma(xv, wv[n], acc[m][n]);
        }
    }
    for (int m = 0; m < MB; m++) {
        float v[4];
        sum4(acc[m], v);
        for (int n = 0; n < 4; n++) y[m * ldy + n] = (add_to ? y[m * ldy + n] : 0.0f) + v[n] + (bias ? bias[n] : 0.0f);
    }
}

template <class W>
inline void one(int M, const float* x, int K, const W* w, float bias, float* y, int64_t ldy, bool add) {
    int m = 0;
    for (; m + 4 <= M; m += 4) stream<W, 4>(x + int64_t(m) * K, K, w, bias, y + m * ldy, ldy, add);
    x += int64_t(m) * K, y += m * ldy;
    if (M - m == 3) stream<W, 3>(x, K, w, bias, y, ldy, add);
    if (M - m == 2) stream<W, 2>(x, K, w, bias, y, ldy, add);
    if (M - m == 1) stream<W, 1>(x, K, w, bias, y, ldy, add);
}

template <class W>
inline void four(int M, const float* x, int K, const W* w, const float* bias, float* y, int64_t ldy, bool add) {
    int m = 0;
    for (; m + 4 <= M; m += 4) tile<W, 4>(x + int64_t(m) * K, K, w, bias, y + m * ldy, ldy, add);
    for (; m < M; m++) tile<W, 1>(x + int64_t(m) * K, K, w, bias, y + m * ldy, ldy, add);
}

// This thread's share of the N outputs: whole blocks of 4.
struct Range { int from, to; };
inline Range share(int N) {
    const int threads = omp_get_num_threads(), me = omp_get_thread_num(), blocks = (N + 3) / 4;
    const int each = (blocks + threads - 1) / threads;
    const int from = each * me * 4, to = from + each * 4;
    return {from < N ? from : N, to < N ? to : N};
}

// tiles: which of the two; they round differently, so the caller never decides by what else is in the batch.
template <class W>
inline Range product(bool tiles, int M, const float* x, int K, const W* w, const float* bias, int N, float* y, int64_t ldy,
                     bool add) {
    const Range r = share(N);
    int n = r.from;
    if (tiles)
        for (; n + 4 <= r.to; n += 4) four(M, x, K, w + int64_t(n) * K, bias ? bias + n : nullptr, y + n, ldy, add);
    for (; n < r.to; n++) one(M, x, K, w + int64_t(n) * K, bias ? bias[n] : 0.0f, y + n, ldy, add);
    return r;
}

// This thread's share of n equal pieces of work.
inline Range part(int n) {
    const int threads = omp_get_num_threads(), me = omp_get_thread_num();
    return {int(int64_t(n) * me / threads), int(int64_t(n) * (me + 1) / threads)};
}

inline void norm(int M, int D, const float* x, const float* g, const float* b, float* y) {
    const Range rows = part(M);
    for (int m = rows.from; m < rows.to; m++) {
        const float* in = x + int64_t(m) * D;
        float* out = y + int64_t(m) * D;
        double total = 0, square = 0;
        for (int i = 0; i < D; i++) total += in[i];
        const float mean = float(total / D);
        for (int i = 0; i < D; i++) { const float d = in[i] - mean; square += double(d) * d; }
        const float scale = 1.0f / std::sqrt(float(square / D) + 1e-5f);
        for (int i = 0; i < D; i++) out[i] = (in[i] - mean) * scale * g[i] + b[i];
    }
}

// Attention of one query over n keys; raw receives the scaled scores where asked for.
template <class T>
void attend(const float* q, const T* keys, const T* values, int n, int E, float* scores, float* out, float* raw) {
    const float scale = 1.0f / std::sqrt(float(E));
    float top = -INFINITY;
    int f = 0;
    for (; f + 4 <= n; f += 4) {
        vec a[4] = {zero(), zero(), zero(), zero()};
        for (int i = 0; i < 4; i++)
            for (int e = 0; e < E; e += 16) a[i] = fma(load(q + e), load(keys + int64_t(f + i) * E + e), a[i]);
        sum4(a, scores + f);
    }
    for (; f < n; f++) {
        vec a = zero();
        for (int e = 0; e < E; e += 16) a = fma(load(q + e), load(keys + int64_t(f) * E + e), a);
        scores[f] = sum(a);
    }
    for (int i = 0; i < n; i++) {
        scores[i] *= scale;
        top = scores[i] > top ? scores[i] : top;
    }
    if (raw) std::memcpy(raw, scores, sizeof(float) * n);
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int f = 0; f < n; f++) { scores[f] = fast_exp(scores[f] - top); total += scores[f]; }
    for (int e = 0; e < E; e += 64) {
        const int parts = (E - e < 64 ? E - e : 64) / 16;
        vec a[4] = {zero(), zero(), zero(), zero()};
        for (int f = 0; f < n; f++) {
            const vec p = splat(scores[f]);
            for (int i = 0; i < parts; i++) a[i] = fma(p, load(values + int64_t(f) * E + e + 16 * i), a[i]);
        }
        for (int i = 0; i < parts; i++) store(out + e + 16 * i, a[i]);
    }
    for (int e = 0; e < E; e++) out[e] /= total;
}

// Order of the weight table: one layer, then the tail. Matrices in W, everything else f32.
enum { LN1_G, LN1_B, Q_W, Q_B, K_W, V_W, V_B, O_W, O_B, LN2_G, LN2_B, CQ_W, CQ_B, CO_W, CO_B,
       LN3_G, LN3_B, F1_W, F1_B, F2_W, F2_B, PER_LAYER };
enum { EMBED, POSITIONS, LN_G, LN_B };

struct Call {
    const int64_t* table;
    int D, H, L, V, ffn, C, F;
    int M;
    const int32_t *tokens, *positions;
    const int64_t *self_k, *self_v, *cross_k, *cross_v;  // one address per row
    int outs;
    const int32_t* out_rows;
    float *logits, *hidden;  // [outs, V], [outs, D]
    int heads;
    const int32_t* head_pairs;  // (layer, head) per wanted score
    float* scores;  // [heads, M, F]
    bool tiles, tiled_outs;  // of the layers, of the logits: one session has many rows, and reuses what they load
};

template <class W, class KV>
void run(const Call& c) {
    const int D = c.D, H = c.H, E = D / H, M = c.M;
    const auto f32 = [&](int64_t i) { return (const float*)c.table[i]; };
    const auto mat = [&](int64_t i) { return (const W*)c.table[i]; };
    const int64_t tail = int64_t(c.L) * PER_LAYER;
    std::vector<float> memory(size_t(M) * (5 * D + c.ffn) + size_t(c.outs) * D);
    float *x = memory.data(), *y = x + size_t(M) * D, *q = y + size_t(M) * D, *k = q + size_t(M) * D, *v = k + size_t(M) * D;
    float *h = v + size_t(M) * D, *last = h + size_t(M) * c.ffn;
    Barrier barrier;
#pragma omp parallel
    {
        const int team = omp_get_num_threads();
        const auto meet = [&] { barrier.wait(team); };
        const Range rows = part(M), heads = part(M * H), outs = part(c.outs);
        std::vector<float> scratch(size_t(c.C > c.F ? c.C : c.F));
        for (int m = rows.from; m < rows.to; m++)
            for (int i = 0; i < D; i++)
                x[int64_t(m) * D + i] = widen(mat(tail + EMBED)[int64_t(c.tokens[m]) * D + i]) +
                                        f32(tail + POSITIONS)[int64_t(c.positions[m]) * D + i];
        meet();
        for (int layer = 0; layer < c.L; layer++) {
            const int64_t w = int64_t(layer) * PER_LAYER, self = int64_t(layer) * H * c.C * E, cross = int64_t(layer) * H * c.F * E;
            norm(M, D, x, f32(w + LN1_G), f32(w + LN1_B), y);
            meet();
            product(c.tiles, M, y, D, mat(w + Q_W), f32(w + Q_B), D, q, D, false);
            product(c.tiles, M, y, D, mat(w + K_W), nullptr, D, k, D, false);
            product(c.tiles, M, y, D, mat(w + V_W), f32(w + V_B), D, v, D, false);
            meet();
            for (int t = heads.from; t < heads.to; t++) {
                const int m = t / H, head = t % H;
                const int64_t at = self + (int64_t(head) * c.C + c.positions[m]) * E, from = int64_t(m) * D + head * E;
                std::memcpy((float*)c.self_k[m] + at, k + from, sizeof(float) * E);
                std::memcpy((float*)c.self_v[m] + at, v + from, sizeof(float) * E);
            }
            meet();
            for (int t = heads.from; t < heads.to; t++) {
                const int m = t / H, head = t % H;
                const int64_t at = self + int64_t(head) * c.C * E;
                attend((const float*)q + int64_t(m) * D + head * E, (const float*)c.self_k[m] + at,
                       (const float*)c.self_v[m] + at, c.positions[m] + 1, E, scratch.data(), y + int64_t(m) * D + head * E, nullptr);
            }
            meet();
            product(c.tiles, M, y, D, mat(w + O_W), f32(w + O_B), D, x, D, true);
            meet();
            norm(M, D, x, f32(w + LN2_G), f32(w + LN2_B), y);
            meet();
            product(c.tiles, M, y, D, mat(w + CQ_W), f32(w + CQ_B), D, q, D, false);
            meet();
            for (int t = heads.from; t < heads.to; t++) {
                const int m = t / H, head = t % H;
                const int64_t at = cross + int64_t(head) * c.F * E;
                float* raw = nullptr;
                for (int i = 0; i < c.heads; i++)
                    if (c.head_pairs[2 * i] == layer && c.head_pairs[2 * i + 1] == head)
                        raw = c.scores + (int64_t(i) * M + m) * c.F;
                attend(q + int64_t(m) * D + head * E, (const KV*)c.cross_k[m] + at, (const KV*)c.cross_v[m] + at, c.F, E,
                       scratch.data(), y + int64_t(m) * D + head * E, raw);
            }
            meet();
            product(c.tiles, M, y, D, mat(w + CO_W), f32(w + CO_B), D, x, D, true);
            meet();
            norm(M, D, x, f32(w + LN3_G), f32(w + LN3_B), y);
            meet();
            const Range r = product(c.tiles, M, y, D, mat(w + F1_W), f32(w + F1_B), c.ffn, h, c.ffn, false);
            for (int m = 0; m < M; m++) {
                float* row = h + int64_t(m) * c.ffn;
#pragma omp simd
                for (int n = r.from; n < r.to; n++) row[n] = gelu(row[n]);
            }
            meet();
            product(c.tiles, M, h, c.ffn, mat(w + F2_W), f32(w + F2_B), D, x, D, true);
            meet();
        }
        norm(M, D, x, f32(tail + LN_G), f32(tail + LN_B), y);
        meet();
        for (int o = outs.from; o < outs.to; o++) {
            std::memcpy(last + int64_t(o) * D, y + int64_t(c.out_rows[o]) * D, sizeof(float) * D);
            std::memcpy(c.hidden + int64_t(o) * D, y + int64_t(c.out_rows[o]) * D, sizeof(float) * D);
        }
        meet();
        product(c.tiled_outs, c.outs, last, D, mat(tail + EMBED), nullptr, c.V, c.logits, c.V, false);
    }
}

template <class W>
void pick(const Call& c, int half_cross) { half_cross ? run<W, half_t>(c) : run<W, float>(c); }

}  // namespace

// dims: D, H, L, V, ffn, C, F, weight type (0 f32, 1 f16, 2 bf16), cross type (0 f32, 1 f16),
// rows of one session, and of its logits where all are wanted, else 0.
extern "C" void whisper_step(const int64_t* table, const int32_t* dims, int32_t M, const int32_t* tokens,
                             const int32_t* positions, const int64_t* addresses, int32_t outs, const int32_t* out_rows,
                             float* logits, float* hidden, int32_t heads, const int32_t* head_pairs, float* scores) {
    const Call c{table, dims[0], dims[1], dims[2], dims[3], dims[4], dims[5], dims[6], M, tokens, positions,
                 addresses, addresses + M, addresses + 2 * M, addresses + 3 * M,
                 outs, out_rows, logits, hidden, heads, head_pairs, scores, dims[9] > 8, dims[10] > 8};
    if (dims[7] == 0) pick<float>(c, dims[8]);
    if (dims[7] == 1) pick<half_t>(c, dims[8]);
    if (dims[7] == 2) pick<bf16_t>(c, dims[8]);
}
