// CPU kernels of vocoders (Kokoro's, and the causal ones of codecs): a channels-last convolution with its norm,
// activation and residual fused in, and an LSTM.
//
// One call reads the input once and writes the output once: AdaIN and Snake (or leaky ReLU) are applied while a tile
// of rows is copied into the L2 cache, and the sums that the next instance norm needs are taken as the output is
// stored. Weights are float32, or bfloat16 where the CPU multiplies it (AVX512-BF16); sums are always float32.
// Results do not depend on timing: every tile keeps its own sums and they are added in order.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define HAS_BF16 1
#else
#define HAS_BF16 0
#endif

namespace {

typedef float V __attribute__((vector_size(64), aligned(4)));
constexpr int LANES = 16;
#if defined(__AVX512F__)
constexpr int ROWS = 12, BLOCKS = 2;  // 24 of 32 registers hold sums
#else
constexpr int ROWS = 4, BLOCKS = 1;
#endif
constexpr int OUTS = BLOCKS * LANES;
constexpr long TILE_BYTES = 288 * 1024;  // of activations, beside a block of weights in a 1 MB L2

inline V splat(float x) { return x - V{}; }
inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
inline int round_up(int n, int m) { return (n + m - 1) / m * m; }

inline V nearest(V x) {
    const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves no bits after the point
    return (x + magic) - magic;
}

// sin(x)^2 has period pi, so x is reduced to [-pi/2, pi/2] and an odd polynomial does the rest (error < 1e-7).
inline V sin_squared(V x) {
    const V n = nearest(x * 0.318309886183790671538f);
    V r = x - n * 3.140625f;
    r = r - n * 9.67653589793e-4f;
    const V q = r * r;
    V p = q * -2.50521083854e-8f + 2.75573192240e-6f;
    p = p * q - 1.98412698413e-4f;
    p = p * q + 8.33333333333e-3f;
    p = p * q - 1.66666666667e-1f;
    const V s = r + r * q * p;
    return s * s;
}

// exp(x) for |x| < 87 (Cephes' polynomial).
inline V exponential(V x) {
    typedef int I __attribute__((vector_size(64)));
    x = x > splat(87.0f) ? splat(87.0f) : x;
    x = x < splat(-87.0f) ? splat(-87.0f) : x;
    const V n = nearest(x * 1.44269504088896341f);
    V r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const I bits = (__builtin_convertvector(n, I) + 127) << 23;
    V scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

inline V sigmoid(V x) { return 1.0f / (1.0f + exponential(-x)); }
inline V hyperbolic(V x) { return 1.0f - 2.0f / (1.0f + exponential(x + x)); }

inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Sums of ROWS x OUTS products: `a` is the tile's row of the first output at tap 0, `w` the packed block of outputs.
// LD is the tile's row length when it is known at compile time (so that addresses need no registers), else 0.
template <int LD>
inline void multiply_f32(const float* a, long ld, int taps, long tap_step, int inputs, const float* w, V (&sum)[ROWS][BLOCKS]) {
    if (LD) ld = LD;
    for (int k = 0; k < taps; ++k, a += tap_step) {
        for (int c = 0; c < inputs; ++c, w += OUTS) {
            V weight[BLOCKS];
            for (int j = 0; j < BLOCKS; ++j) weight[j] = load(w + j * LANES);
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; ++r) {
                const V x = splat(a[r * ld + c]);
                for (int j = 0; j < BLOCKS; ++j) sum[r][j] += weight[j] * x;
            }
        }
    }
}

#if HAS_BF16
template <int LD>
inline void multiply_bf16(const uint16_t* a, long ld, int taps, long tap_step, int inputs, const uint16_t* w, V (&sum)[ROWS][BLOCKS]) {
    if (LD) ld = LD;
    __m512 acc[ROWS][BLOCKS];
    for (int r = 0; r < ROWS; ++r)
        for (int j = 0; j < BLOCKS; ++j) acc[r][j] = _mm512_setzero_ps();
    for (int k = 0; k < taps; ++k, a += tap_step) {
        for (int c = 0; c < inputs; c += 2, w += 2 * OUTS) {
            __m512bh weight[BLOCKS];
            for (int j = 0; j < BLOCKS; ++j) weight[j] = (__m512bh)_mm512_loadu_si512(w + j * 2 * LANES);
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; ++r) {
                int pair;
                std::memcpy(&pair, a + r * ld + c, 4);
                const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
                for (int j = 0; j < BLOCKS; ++j) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], weight[j], x);
            }
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int j = 0; j < BLOCKS; ++j) sum[r][j] = (V)acc[r][j];
}
#endif

template <class T>
void pack_block(const T* w, int c_out, int c_in, int taps, int first, int step, T* to) {
    for (int k = 0; k < taps; ++k)
        for (int c = 0; c < c_in; c += step)
            for (int o = first; o < first + OUTS; ++o)
                for (int i = c; i < c + step; ++i) *to++ = o < c_out && i < c_in ? w[(int64_t(o) * c_in + i) * taps + k] : T(0);
}

}  // namespace

extern "C" {

struct Conv {
    const float* x;         // [t_in, c_in]
    const float* past;      // [pad, c_in], the rows before x; null for zeros
    const void* weight;     // from kokoro_pack
    const float* bias;      // [c_out] or null
    const double* sums;     // of x, [2, c_in]: sum and sum of squares over time; null for no norm
    const float* modulation;  // gamma and beta, [2, c_in]
    const float* alpha;     // Snake, [c_in]; null for a leaky ReLU
    const float* inverse;   // what Snake's sine is multiplied by, [c_in]; null for 1 / alpha
    const float* residual;  // [t_out, c_out] or null
    float* out;             // [t_out, c_out]
    double* out_sums;       // [2, c_out] or null
    int64_t t_in, t_out;
    int32_t c_in, c_out, taps, dilation, pad, bf16, accumulate, threads;
    float slope, gain;      // slope 1 is no activation; out = gain * (conv + bias + residual) (+ out)
};

int kokoro_has_bf16() { return HAS_BF16; }

int64_t kokoro_packed_bytes(int c_out, int c_in, int taps, int bf16) {
    const int64_t outs = round_up(c_out, OUTS);
    return outs * taps * (bf16 ? 2 * round_up(c_in, 2) : 4 * c_in);
}

// w: [c_out, c_in, taps], bfloat16 bits or float32 -> blocks of OUTS outputs: [block][tap][input (pairs)][output].
void kokoro_pack(const void* w, int c_out, int c_in, int taps, int bf16, void* packed, int threads) {
    const int blocks = round_up(c_out, OUTS) / OUTS;
    const int64_t block = kokoro_packed_bytes(OUTS, c_in, taps, bf16);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int b = 0; b < blocks; ++b) {
        void* to = static_cast<char*>(packed) + b * block;
        if (bf16)
            pack_block(static_cast<const uint16_t*>(w), c_out, c_in, taps, b * OUTS, 2, static_cast<uint16_t*>(to));
        else
            pack_block(static_cast<const float*>(w), c_out, c_in, taps, b * OUTS, 1, static_cast<float*>(to));
    }
}

// Sums and sums of squares over time of x [t, c] -> [2, c].
void kokoro_sums(const float* x, int64_t t, int c, double* sums, int threads) {
    constexpr int64_t STEP = 512;
    const int64_t parts = (t + STEP - 1) / STEP;
    std::vector<double> partial(parts * 2 * c, 0.0);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < parts; ++p) {
        double *a = &partial[p * 2 * c], *b = a + c;
        for (int64_t i = p * STEP; i < std::min(t, (p + 1) * STEP); ++i)
            for (int j = 0; j < c; ++j) {
                const double v = x[i * c + j];
                a[j] += v;
                b[j] += v * v;
            }
    }
    std::fill(sums, sums + 2 * c, 0.0);
    for (int64_t p = 0; p < parts; ++p)
        for (int j = 0; j < 2 * c; ++j) sums[j] += partial[p * 2 * c + j];
}

}  // extern "C"

namespace {

struct Prologue {
    std::vector<float> scale, shift, alpha, inverse;  // padded to whole vectors
    bool norm, snake;
    float slope;

    explicit Prologue(const Conv& a) : norm(a.sums != nullptr), snake(a.alpha != nullptr), slope(a.slope) {
        const int wide = round_up(a.c_in, LANES);
        scale.assign(wide, norm ? 0.0f : 1.0f);
        shift.assign(wide, 0.0f);
        alpha.assign(wide, 1.0f);
        inverse.assign(wide, 1.0f);
        for (int c = 0; c < a.c_in; ++c) {
            if (norm) {
                const double mean = a.sums[c] / a.t_in;
                const double variance = std::max(0.0, a.sums[a.c_in + c] / a.t_in - mean * mean);
                const double s = (1.0 + a.modulation[c]) / std::sqrt(variance + 1e-5);
                scale[c] = float(s);
                shift[c] = float(a.modulation[a.c_in + c] - mean * s);
            }
            if (snake) {
                alpha[c] = a.alpha[c];
                inverse[c] = a.inverse ? a.inverse[c] : 1.0f / a.alpha[c];
            }
        }
    }

    inline V apply(V v, int c) const {
        if (norm) v = v * load(&scale[c]) + load(&shift[c]);
        if (snake) return v + sin_squared(v * load(&alpha[c])) * load(&inverse[c]);
        if (slope != 1.0f) v = v < 0.0f ? v * slope : v;
        return v;
    }

    // One input row, activated, into the tile; the row's tail up to whole vectors is zero.
    template <class T>
    void row(const float* x, int c_in, T* to) const {
        for (int c = 0; c < c_in; c += LANES) {
            V v = {};
            if (c + LANES <= c_in)
                v = load(x + c);
            else
                std::memcpy(&v, x + c, (c_in - c) * sizeof(float));
            put(to + c, apply(v, c));
        }
    }

    static void put(float* to, V v) { store(to, v); }
    static void put(uint16_t* to, V v) {
#if HAS_BF16
        const __m256bh narrow = _mm512_cvtneps_pbh((__m512)v);
        std::memcpy(to, &narrow, sizeof narrow);
#else
        for (int i = 0; i < LANES; ++i) to[i] = to_bf16(v[i]);
#endif
    }
};

// Store a block of sums: bias, residual, gain, and the statistics of what was stored.
inline void finish(const Conv& a, V (&sum)[ROWS][BLOCKS], int64_t row, int rows, int first, double* sums) {
    for (int j = 0; j < BLOCKS; ++j) {
        const int c = first + j * LANES, width = std::min(LANES, a.c_out - c);
        if (width <= 0) return;
        V bias = {}, total = {}, squares = {};
        if (a.bias) std::memcpy(&bias, a.bias + c, width * sizeof(float));
        for (int r = 0; r < rows; ++r) {
            const int64_t at = (row + r) * a.c_out + c;
            V v = sum[r][j] + bias;
            if (width == LANES) {
                if (a.residual) v += load(a.residual + at);
                v *= a.gain;
                if (a.accumulate) v += load(a.out + at);
                store(a.out + at, v);
            } else {
                V more = {};
                if (a.residual) std::memcpy(&more, a.residual + at, width * sizeof(float));
                v = (v + more) * a.gain;
                if (a.accumulate) {
                    std::memcpy(&more, a.out + at, width * sizeof(float));
                    v += more;
                }
                std::memcpy(a.out + at, &v, width * sizeof(float));
            }
            total += v;
            squares += v * v;
        }
        if (sums)
            for (int i = 0; i < width; ++i) {
                sums[c + i] += total[i];
                sums[a.c_out + c + i] += squares[i];
            }
    }
}

template <class T, int LD>
void run_tile(const Conv& a, const Prologue& prologue, int64_t first, int count, T* tile, double* sums) {
    const int ld = LD ? LD : round_up(a.c_in, LANES);
    const int inputs = sizeof(T) == 2 ? round_up(a.c_in, 2) : a.c_in;
    const int padded = round_up(count, ROWS), span = (a.taps - 1) * a.dilation;
    for (int i = 0; i < padded + span; ++i) {
        const int64_t t = first + i - a.pad;
        if (i < count + span && t >= 0 && t < a.t_in)
            prologue.row(a.x + t * a.c_in, a.c_in, tile + int64_t(i) * ld);
        else if (i < count + span && t < 0 && a.past)
            prologue.row(a.past + (t + a.pad) * a.c_in, a.c_in, tile + int64_t(i) * ld);
        else
            std::memset(static_cast<void*>(tile + int64_t(i) * ld), 0, ld * sizeof(T));
    }
    const int blocks = round_up(a.c_out, OUTS) / OUTS;
    const int64_t block = int64_t(a.taps) * inputs * OUTS;
    for (int b = 0; b < blocks; ++b) {
        const T* w = static_cast<const T*>(a.weight) + b * block;
        for (int i = 0; i < count; i += ROWS) {
            V sum[ROWS][BLOCKS] = {};
            const T* from = tile + int64_t(i) * ld;
            if constexpr (sizeof(T) == 4)
                multiply_f32<LD>(from, ld, a.taps, int64_t(a.dilation) * ld, inputs, w, sum);
#if HAS_BF16
            else
                multiply_bf16<LD>(from, ld, a.taps, int64_t(a.dilation) * ld, inputs, w, sum);
#endif
            finish(a, sum, first + i, std::min(ROWS, count - i), b * OUTS, sums);
        }
    }
}

template <class T>
void run(const Conv& a) {
    const Prologue prologue(a);
    const int ld = round_up(a.c_in, LANES), span = (a.taps - 1) * a.dilation;
    const int most = std::clamp<int>(TILE_BYTES / (ld * sizeof(T)) - span, 4 * ROWS, 512);
    const int64_t waves = (a.t_out + int64_t(most) * a.threads - 1) / (int64_t(most) * a.threads);
    const int rows = round_up(int((a.t_out + waves * a.threads - 1) / (waves * a.threads)), ROWS);
    const int64_t tiles = (a.t_out + rows - 1) / rows;
    std::vector<double> partial(a.out_sums ? tiles * 2 * a.c_out : 0, 0.0);
#pragma omp parallel num_threads(a.threads)
    {
        std::vector<T> memory(int64_t(rows + span + ROWS) * ld + 32);
        T* tile = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t(63));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tiles; ++i) {
            double* sums = a.out_sums ? &partial[i * 2 * a.c_out] : nullptr;
            const int count = int(std::min<int64_t>(rows, a.t_out - i * rows));
            if (ld == 128)
                run_tile<T, 128>(a, prologue, i * rows, count, tile, sums);
            else if (ld == 256)
                run_tile<T, 256>(a, prologue, i * rows, count, tile, sums);
            else
                run_tile<T, 0>(a, prologue, i * rows, count, tile, sums);
        }
    }
    if (a.out_sums) {
        std::fill(a.out_sums, a.out_sums + 2 * a.c_out, 0.0);
        for (int64_t i = 0; i < tiles; ++i)
            for (int j = 0; j < 2 * a.c_out; ++j) a.out_sums[j] += partial[i * 2 * a.c_out + j];
    }
}

}  // namespace

extern "C" {

// Returns 0, or 1 where this CPU has no kernel for the weights' type.
int kokoro_conv(const Conv* a) {
    if (!a->bf16) {
        run<float>(*a);
        return 0;
    }
#if HAS_BF16
    run<uint16_t>(*a);
    return 0;
#else
    return 1;
#endif
}

// Recurrent weights float32 [2, 4H, H] -> [2][H][4H], so that a step reads them in order.
void kokoro_lstm_pack(const float* w, int hidden, float* packed) {
    const int gates = 4 * hidden;
    for (int d = 0; d < 2; ++d)
        for (int j = 0; j < hidden; ++j)
            for (int g = 0; g < gates; ++g)
                packed[(int64_t(d) * hidden + j) * gates + g] = w[(int64_t(d) * gates + g) * hidden + j];
}

// Both directions of an LSTM. gates: float32 [t, 2, 4H], the inputs' part with both biases; out: [t, 2, H].
// hidden is a multiple of 16.
void kokoro_lstm(const float* gates, const float* packed, int64_t t, int hidden, float* out, int threads) {
    const int wide = 4 * hidden;
#pragma omp parallel for num_threads(std::min(2, threads)) schedule(static, 1)
    for (int d = 0; d < 2; ++d) {
        const float* w = packed + int64_t(d) * hidden * wide;
        std::vector<float> h(hidden, 0.0f), c(hidden, 0.0f), sum(wide);
        for (int64_t step = 0; step < t; ++step) {
            const int64_t at = d ? t - 1 - step : step;
            std::memcpy(sum.data(), gates + (at * 2 + d) * wide, wide * sizeof(float));
            for (int j = 0; step && j < hidden; j += 8) {  // eight inputs a pass: the sums stay in the L1 cache
                const float* rows = w + int64_t(j) * wide;
                for (int g = 0; g < wide; g += LANES) {
                    V s = load(&sum[g]);
#pragma GCC unroll 8
                    for (int i = 0; i < 8; ++i) s += load(rows + int64_t(i) * wide + g) * h[j + i];
                    store(&sum[g], s);
                }
            }
            for (int j = 0; j < hidden; j += LANES) {
                const V i = sigmoid(load(&sum[j])), f = sigmoid(load(&sum[hidden + j]));
                const V g = hyperbolic(load(&sum[2 * hidden + j])), o = sigmoid(load(&sum[3 * hidden + j]));
                const V cell = f * load(&c[j]) + i * g;
                store(&c[j], cell);
                const V value = o * hyperbolic(cell);
                store(&h[j], value);
                store(out + (at * 2 + d) * hidden + j, value);
            }
        }
    }
}

}  // extern "C"
