// Attention of a few or many query rows over one head of a key and value cache, block by block of keys with a running
// softmax (arXiv:2205.14135), so that scores never exist at once.
//
// Few rows (a decode step) read the caches as they lie: a dot product per key, 16 of them summed together. Many rows
// (a prompt) first copy a block of keys, transposed, and of values to floats, and multiply tiles of rows with them.
#pragma once
#include <vector>

#include "vec.h"

namespace {

#ifdef __AVX512F__
const int ACROSS = 4;              // keys scored at once: as many sums as registers hold
#define HOLD(x) asm("" : "+v"(x))  // else GCC loads it again for each use
#else
const int ACROSS = 1;
#define HOLD(x)
#endif
const int KEYS = 64, TILE_ROWS = 6;  // keys of a block; query rows computed together
const float UNSEEN = -2e30f, LOWEST = -1e30f;

// Where positions lie: in blocks of a pool, in a ring, or one after the other (both 0).
struct Places {
    const int32_t *blocks;
    int block, ring;
    int slot(int p) const { return block ? blocks[p / block] * block + p % block : ring ? p % ring : p; }
    // The slots of KEYS positions from `start`, n of them real: past the last it is named again.
    void fill(int start, int n, int *slots) const {
        for (int j = 0; j < n;) {
            const int first = slot(start + j);
            const int run = std::min(n - j, block ? block - (start + j) % block : ring ? ring - first : n);
            for (int i = 0; i < run; i++) slots[j + i] = first + i;
            j += run;
        }
        for (int j = n; j < KEYS; j++) slots[j] = slots[n - 1];
    }
};

// One head's caches, [capacity, dim]. Scales: int8 caches only.
template <class KV> struct Cached {
    const KV *k, *v;
    const float *k_scale, *v_scale;
    int dim;
    Places places;
};

// The rows of one piece of work. Row r sees keys [first[r], last[r]]. sum and acc: of e^(score - top) and of that times
// the values. width: dim in whole vectors.
struct Rows {
    int count = 0, width = 0;
    std::vector<float> q, acc, top, sum, scores, keys, values;
    std::vector<int> first, last;
    void size(int rows, int dim) {
        count = rows;
        width = (dim + WIDE - 1) / WIDE * WIDE;
        if ((int)top.size() < rows) top.resize(rows), sum.resize(rows), first.resize(rows), last.resize(rows);
        if ((int)q.size() < rows * width) q.resize(rows * width), acc.resize(rows * width);
        if ((int)scores.size() < rows * KEYS) scores.resize(rows * KEYS);
        std::fill(q.begin(), q.begin() + rows * width, 0.0f);
        std::fill(acc.begin(), acc.begin() + rows * width, 0.0f);
        std::fill(top.begin(), top.begin() + rows, LOWEST);
        std::fill(sum.begin(), sum.begin() + rows, 0.0f);
    }
};

template <class T> inline void fetch(const T *p, int n) {
    for (int i = 0; i < n; i += 64 / (int)sizeof(T)) __builtin_prefetch(p + i);
}

// Keys that are read next, to be fetched meanwhile.
struct Ahead {
    Ahead() {}
    const char *keys = nullptr;
    size_t bytes = 0;  // of one
    int count = 0;
    int slots[KEYS];
    void fetch(int j) const {
        if (j >= count) return;
        for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(keys + slots[j] * bytes + i);
    }
};

// Scores of N rows with keys read as they lie; the values are fetched meanwhile.
template <int N, bool WHOLE, class KV>
void score_few(const KV *k, const KV *v, const int *slots, int n, int dim, const float *q, int width, float *scores) {
    for (int b = 0; b < n; b += WIDE) {
        Vec quads[N][4];
        for (int i = 0; i < 4; i++) {
            Vec acc[N][4];
#pragma GCC unroll 4
            for (int first = 0; first < 4; first += ACROSS) {
                const KV *row[ACROSS];
#pragma GCC unroll 4
                for (int j = 0; j < ACROSS; j++) {
                    const size_t at = (size_t)slots[b + 4 * i + first + j] * dim;
                    row[j] = k + at;
                    fetch(v + at, dim);
#pragma GCC unroll 6
                    for (int r = 0; r < N; r++) acc[r][first + j] = Vec{};
                }
                for (int d = 0; d < dim; d += WIDE) {
                    Vec key[ACROSS];
#pragma GCC unroll 4
                    for (int j = 0; j < ACROSS; j++)
                        key[j] = WHOLE ? load16(row[j] + d) : load_part(row[j] + d, dim - d);
#pragma GCC unroll 6
                    for (int r = 0; r < N; r++) {
                        Vec x = load16(q + r * width + d);
                        HOLD(x);
#pragma GCC unroll 4
                        for (int j = 0; j < ACROSS; j++) acc[r][first + j] += x * key[j];
                    }
                }
            }
#pragma GCC unroll 6
            for (int r = 0; r < N; r++) quads[r][i] = quad_of(acc[r]);
        }
#pragma GCC unroll 6
        for (int r = 0; r < N; r++) store16(scores + r * KEYS + b, totals(quads[r]));
    }
}

// Scores of N rows with a block of transposed keys [width, KEYS].
template <int N> void score_many(const float *keys, const float *q, int width, float *scores) {
    Vec acc[N][KEYS / WIDE] = {};
    for (int d = 0; d < width; d++) {
        Vec key[KEYS / WIDE];
        for (int b = 0; b < KEYS / WIDE; b++) key[b] = load16(keys + d * KEYS + b * WIDE);
        for (int r = 0; r < N; r++)
            for (int b = 0; b < KEYS / WIDE; b++) acc[r][b] += q[r * width + d] * key[b];
    }
    for (int r = 0; r < N; r++)
        for (int b = 0; b < KEYS / WIDE; b++) store16(scores + r * KEYS + b * WIDE, acc[r][b]);
}

// acc += weights times values, for N rows and M vectors of the head from `d` on; 4 are whole.
template <int N, int M, class KV>
void weigh_part(const KV *v, const int *slots, int n, int stride, int dim, int d, const float *weights, int width,
                const Ahead &ahead, float *acc) {
    Vec a[N][M];
    for (int r = 0; r < N; r++)
        for (int i = 0; i < M; i++) a[r][i] = load16(acc + r * width + d + i * WIDE);
    for (int j = 0; j < n; j++) {
        const KV *row = v + (size_t)slots[j] * stride + d;
        if (!d) ahead.fetch(j);
        Vec value[M];
        for (int i = 0; i < M; i++)
            value[i] = M == 4 ? load16(row + i * WIDE) : load_part(row + i * WIDE, dim - d - i * WIDE);
        for (int r = 0; r < N; r++)
            for (int i = 0; i < M; i++) a[r][i] += weights[r * KEYS + j] * value[i];
    }
    for (int r = 0; r < N; r++)
        for (int i = 0; i < M; i++) store16(acc + r * width + d + i * WIDE, a[r][i]);
}
template <int N, class KV>
void weigh(const KV *v, const int *slots, int n, int stride, int dim, const float *weights, int width,
           const Ahead &ahead, float *acc) {
    int d = 0;
    for (; d + 4 * WIDE <= dim; d += 4 * WIDE)
        weigh_part<N, 4>(v, slots, n, stride, dim, d, weights, width, ahead, acc);
    for (; d + 2 * WIDE <= width; d += 2 * WIDE)
        weigh_part<N, 2>(v, slots, n, stride, dim, d, weights, width, ahead, acc);
    if (d < width) weigh_part<N, 1>(v, slots, n, stride, dim, d, weights, width, ahead, acc);
}

// Calls use(constant N) for tiles of rows: use(N, first row).
template <int N> struct Count { static const int n = N; };
template <class Use> void tiles(int rows, Use use) {
    for (int r = 0; r < rows;) {
        switch (std::min(TILE_ROWS, rows - r)) {
            case 6: use(Count<6>(), r); r += 6; break;
            case 5: use(Count<5>(), r); r += 5; break;
            case 4: use(Count<4>(), r); r += 4; break;
            case 3: use(Count<3>(), r); r += 3; break;
            case 2: use(Count<2>(), r); r += 2; break;
            default: use(Count<1>(), r); r += 1;
        }
    }
}

// Scores [KEYS] of row r to weights, given that keys start at `start`; everything so far is rescaled to the new top.
inline void soften(Rows &rows, int r, int start, int n, const float *k_scales, const float *v_scales) {
    float *scores = &rows.scores[(size_t)r * KEYS];
    const VecInt lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int low = rows.first[r] - start, high = std::min(rows.last[r] - start, n - 1);
    Vec x[KEYS / WIDE], top = splat(LOWEST), sum = {};
    for (int b = 0; b < KEYS / WIDE; b++) {
        x[b] = load16(scores + b * WIDE);
        if (k_scales) x[b] *= load16(k_scales + b * WIDE);
        const VecInt at = lanes + b * WIDE;
        if (low > 0 || high < KEYS - 1) x[b] = ((at >= low) & (at <= high)) ? x[b] : splat(UNSEEN);
        top = larger(top, x[b]);
    }
    const float peak = largest(top);
    if (peak > rows.top[r]) {
        const Vec shrink = exp16(splat(rows.top[r] - peak));
        float *acc = &rows.acc[(size_t)r * rows.width];
        for (int d = 0; d < rows.width; d += WIDE) store16(acc + d, load16(acc + d) * shrink);
        rows.sum[r] *= shrink[0];
        rows.top[r] = peak;
    }
    for (int b = 0; b < KEYS / WIDE; b++) {
        x[b] = exp16(x[b] - rows.top[r]);
        sum += x[b];
        if (v_scales) x[b] *= load16(v_scales + b * WIDE);
        store16(scores + b * WIDE, x[b]);
    }
    rows.sum[r] += total(sum);
}

// All rows over keys [from, to). many: copy them first. after: the keys that are read after these, fetched on the way.
template <class KV> void attend(const Cached<KV> &c, int from, int to, bool many, Rows &rows, const Ahead &after) {
    const int width = rows.width;
    int slots[KEYS], packed[KEYS];
    float k_scales[KEYS], v_scales[KEYS];
    const Ahead none;
    Ahead next;
    next.keys = (const char *)c.k, next.bytes = c.dim * sizeof(KV);
    c.places.fill(from, std::min(KEYS, to - from), next.slots);
    if (many) {
        for (int j = 0; j < KEYS; j++) packed[j] = j;
        if ((int)rows.keys.size() < KEYS * width) rows.keys.resize(KEYS * width), rows.values.resize(KEYS * width);
    }
    for (int start = from; start < to; start += KEYS) {
        const int n = std::min(KEYS, to - start);
        memcpy(slots, next.slots, sizeof slots);
        next.count = std::max(0, std::min(KEYS, to - start - KEYS));
        if (next.count) c.places.fill(start + KEYS, next.count, next.slots);
        if (c.k_scale)
            for (int j = 0; j < KEYS; j++) k_scales[j] = c.k_scale[slots[j]], v_scales[j] = c.v_scale[slots[j]];
        if (many)
            for (int b = 0; b < KEYS; b += WIDE)
                for (int d = 0; d < width; d += WIDE) {
                    Vec block[WIDE];
                    for (int j = 0; j < WIDE; j++) {
                        const size_t row = (size_t)slots[b + j] * c.dim + d;
                        block[j] = load_part(c.k + row, c.dim - d);
                        store16(&rows.values[(size_t)(b + j) * width + d], load_part(c.v + row, c.dim - d));
                    }
                    transpose(block);
                    for (int i = 0; i < WIDE; i++) store16(&rows.keys[(size_t)(d + i) * KEYS + b], block[i]);
                }
        tiles(rows.count, [&](auto count, int r) {
            const float *q = &rows.q[(size_t)r * width];
            float *scores = &rows.scores[(size_t)r * KEYS];
            if (many) score_many<count.n>(rows.keys.data(), q, width, scores);
            else if (c.dim % WIDE == 0) score_few<count.n, true>(c.k, c.v, slots, n, c.dim, q, width, scores);
            else score_few<count.n, false>(c.k, c.v, slots, n, c.dim, q, width, scores);
            const float *k_scale = c.k_scale ? k_scales : nullptr, *v_scale = c.k_scale ? v_scales : nullptr;
            for (int i = r; i < r + count.n; i++) soften(rows, i, start, n, k_scale, v_scale);
            float *acc = &rows.acc[(size_t)r * width];
            if (many) weigh<count.n>(rows.values.data(), packed, n, width, width, scores, width, none, acc);
            else weigh<count.n>(c.v, slots, n, c.dim, c.dim, scores, width, r ? none : next.count ? next : after, acc);
        });
    }
}

}  // namespace
