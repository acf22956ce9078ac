// What a step of a decoder language model works on, and how its threads share norms and products.
#pragma once
#include <atomic>
#include <cmath>
#include <memory>

#include "affine.h"
#include "attention.h"
#include "barrier.h"

extern "C" {
struct Rope {
    const float *inv_freq;  // [head_dim / 2]
    float gain;             // cos and sin are multiplied by it
    int32_t unused;
};
struct Layer {
    Matrix q, k, v, o, gate, up, down;  // of a conv layer q is in_proj and o is out_proj; it has no k and v
    const float *pre_attn, *post_attn, *pre_mlp, *post_mlp, *q_norm, *k_norm;  // norm scales, null where absent
    const float *conv, *conv_bias;                                             // [taps, hidden]; [hidden] or null
    int32_t taps;          // inputs of a conv layer, counting the current one; 0: attention
    int32_t rope;          // index of its rope
    int32_t window, ring;  // keys seen, counting the current one, and slots of the cache; 0: all
};
struct Model {
    int32_t layers, hidden, inter, heads, kv_heads, head_dim, gelu, bf16, ropes, unused;
    float eps, attn_scale, embed_scale, unused_too;
    Matrix embed, head;
    const Layer *layer;
    const Rope *rope;
    const float *norm;
};
struct Input {  // what a step reads in the place of the model's own embedding and head; all may be null
    const float *rows;     // embeddings [given rows, width] of the rows whose token is below 0
    const Matrix *table;   // the embedding of the others
    const Matrix *project;  // embeddings go through it: width is its columns, else `hidden`
    const Matrix *head;
};
struct Cache {  // of one layer of one sequence
    void *k, *v;                // [kv_heads, capacity, head_dim]; k of a conv layer: [ring, hidden]
    float *k_scale, *v_scale;   // [kv_heads, capacity], for int8
    int64_t capacity;
};
enum CacheKind { CACHE_F32 = 0, CACHE_BF16 = 1, CACHE_INT8 = 2 };
struct Sequence {
    const Cache *layer;
    const int32_t *blocks;  // of a paged sequence: the block that holds positions [i * block, (i + 1) * block)
    int32_t kind, block;    // block: positions of one; 0 where caches are the sequence's own
};
struct Row {
    int32_t token, position, sequence;  // token below 0: the embedding is given row -1 - token of Input
    int32_t out;  // its place among the logits, or -1
};
}

namespace {

const int FEW = 3;         // rows that every thread handles for itself
const int PASS = 128;      // rows that a ring has room for, beside its window (BUCKET of the caches)
const int PIECE_ROWS = 128, PART_KEYS = 32;  // query rows of a piece of attention at most, keys of a part at least
const int PIECE_KEYS = 16;                   // what a piece costs beside its keys, in keys
const size_t NEAR = 1 << 19;                  // bytes of activations that stay in the second-level cache

struct Segment { int first, count; };  // consecutive rows of one sequence

struct Own {  // what one thread owns
    std::vector<float> x, y;
    Rounded r;
    Rows rows;
};

struct Scratch {  // kept between steps, by the calling thread: steps of different sessions may run at once
    std::vector<Own> own;
    std::vector<float> x, y, q, kv, mixed, out, wide, cos, sin, parts, head;
    Rounded r, head_r;
    std::vector<Segment> segments;
    std::vector<int> part;  // of each row: its place in parts if it is alone in its sequence, else -1
    std::unique_ptr<std::atomic<int>[]> taken;
    size_t counters = 0;
};

inline void rms_norm(const float *x, const float *scale, int n, float eps, float *y) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    const float r = 1.0f / std::sqrt(sum / (float)n + eps);
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = x[i] * r * scale[i];
}

inline void rotate(float *x, int half, const float *cos, const float *sin) {
#pragma omp simd
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

inline void store_row(const float *x, int n, float *p, float *) { memcpy(p, x, sizeof(float) * n); }
inline void store_row(const float *x, int n, uint16_t *p, float *) {
    for (int i = 0; i < n; i++) store1(p + i, x[i]);
}
inline void store_row(const float *x, int n, int8_t *p, float *scale) {
    float top = 0;
    for (int i = 0; i < n; i++) top = std::max(top, std::fabs(x[i]));
    *scale = top / 127.0f;
    for (int i = 0; i < n; i++) p[i] = (int8_t)(top > 0 ? std::nearbyint(x[i] / *scale) : 0.0f);
}

// Panel `p` of `a` times tokens [from, from + n), into y [n, 16], `stride` floats apart. Affine rows read `r`, dense
// rows read x [tokens, cols].
inline void panel_tokens(const Matrix &a, int p, const Rounded &r, const float *x, int from, int n, float *y,
                         size_t stride) {
    const int at = p * LANES, count = std::min(LANES, a.rows - at);
    if (a.bits <= 8 && count == LANES) {
        affine_product(a, p, r, from, n, y, stride);
        if (a.add)
            for (int t = 0; t < n; t++) store16(y + t * stride, load16(y + t * stride) + load16(a.add + at));
        return;
    }
    float part[LANES];
    for (int t = 0; t < n; t++) {
        if (a.bits <= 8) {
            affine_product(a, p, r, from + t, 1, part);
            if (a.add)
                for (int l = 0; l < count; l++) part[l] += a.add[at + l];
        } else panel_vector(a, p, r, x + (size_t)(from + t) * a.cols, part);
        memcpy(y + t * stride, part, sizeof(float) * count);
    }
}

inline int panels_of(const Matrix &a) { return (a.rows + LANES - 1) / LANES; }

struct Target {  // where a product goes: rows of y, `stride` floats apart
    const Matrix &a;
    float *y;
    size_t stride;
};

struct Step {
    const Model &m;
    const Input &in;
    const Matrix &table, &head;
    const Row *row;
    const Sequence *sequence;
    const int rows, outs, team, passes;
    const bool split, lone;  // rows are split between the threads; every sequence has one row
    Scratch &s;
    Barrier *barrier;
    float *logits, *hidden;

    struct Me {  // a thread, and the rows it prepares
        int id, from, to;
        Own &own;
        float *x, *y;
        Rounded *r;
    };

    // Rounds this thread's rows of x [rows, cols] if one of the matrices needs it.
    void prepare(std::initializer_list<const Matrix *> list, const float *x, Me &me) const {
        for (const Matrix *a : list)
            if (a->bits <= 8) {
                round_tokens(x, a->cols, a->bits, *me.r, me.from, me.to);
                break;
            }
        if (split) barrier->wait(team);
    }

    // Calls use(panel, first token, tokens) for this thread's share of the panels, some tokens at a time.
    template <class Use> void share(int panels, int cols, const Me &me, int tokens, Use use) const {
        const int near = std::max(TILE, (int)(NEAR / (2 * (size_t)cols)) / TILE * TILE);
        for (int block = 0; block < tokens; block += near)
            for (int p = panels * me.id / team; p < panels * (me.id + 1) / team; p++)
                for (int t = block; t < std::min(tokens, block + near); t += TILE)
                    use(p, t, std::min(TILE, std::min(tokens, block + near) - t));
    }

    // x [tokens, cols] times matrices side by side, each into its own y.
    void product(std::initializer_list<Target> list, const float *x, const Rounded &r, int tokens, const Me &me) const {
        int panels = 0;
        for (const Target &target : list) panels += panels_of(target.a);
        share(panels, list.begin()->a.cols, me, tokens, [&](int p, int t, int n) {
            const Target *target = list.begin();
            for (; p >= panels_of(target->a); target++) p -= panels_of(target->a);
            panel_tokens(target->a, p, r, x, t, n, target->y + t * target->stride + p * LANES, target->stride);
        });
    }
    void product(const Matrix &a, const float *x, const Me &me, float *y) const {
        product({{a, y, (size_t)a.rows}}, x, *me.r, rows, me);
    }

    void norm(const float *scale, Me &me) const {
        for (int t = me.from; t < me.to; t++)
            rms_norm(me.x + (size_t)t * m.hidden, scale, m.hidden, m.eps, me.y + (size_t)t * m.hidden);
    }
    void add_branch(const float *scale, Me &me) const {
        for (int t = me.from; t < me.to; t++) {
            const float *from = s.out.data() + (size_t)t * m.hidden;
            float *x = me.x + (size_t)t * m.hidden, *y = me.y + (size_t)t * m.hidden;
            if (scale) rms_norm(from, scale, m.hidden, m.eps, y), from = y;
            for (int i = 0; i < m.hidden; i++) x[i] += from[i];
        }
    }
};

}  // namespace
