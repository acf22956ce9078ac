// A whole decode step of a decoder language model on the CPU: all layers in one parallel region, then the logits.
//
// The threads share the rows of every matrix and meet at spin barriers (six per layer); what is cheap (norms,
// rounding of activations, the residual stream) every thread computes for itself, which saves more barriers.
// The key and value caches are the caller's, [kv_heads, capacity, head_dim], so plain steps and these can be mixed.
#include <algorithm>
#include <omp.h>

#include "affine.h"
#include "barrier.h"

extern "C" {
struct Layer {
    Matrix q, k, v, o, gate, up, down;
    const float *pre_attn, *post_attn, *pre_mlp, *post_mlp, *q_norm, *k_norm;  // norm scales, null where absent
    const float *inv_freq;                                                     // [head_dim / 2]
    float rope_gain;   // cos and sin are multiplied by it
    int32_t window;    // keys seen, counting the current one; 0: all
};
struct Model {
    int32_t layers, hidden, inter, heads, kv_heads, head_dim, gelu, cache_bf16;
    float eps, attn_scale, embed_scale, unused;
    Matrix embed, head;
    const Layer *layer;
    const float *norm;
};
}

namespace {

// e^x to 2 ulp (Cephes polynomial), in a form the compiler vectorises.
inline float fast_exp(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::floor(x * 1.44269504f + 0.5f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float two;
    memcpy(&two, &bits, 4);
    return p * two;
}

void rms_norm(const float *x, const float *scale, int n, float eps, float *y) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    const float r = 1.0f / std::sqrt(sum / (float)n + eps);
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = x[i] * r * scale[i];
}

void rotate(float *x, int half, const float *cos, const float *sin) {
#pragma omp simd
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

inline float load(const float *p, size_t i) { return p[i]; }
inline float load(const uint16_t *p, size_t i) { return bf16(p[i]); }
inline void store(float *p, size_t i, float x) { p[i] = x; }
inline void store(uint16_t *p, size_t i, float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    p[i] = (uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}

// One query head over cache rows [from, position]; `scores` holds position + 1 floats.
template <class KV>
void attend(const float *q, const KV *k, const KV *v, int from, int position, int dim, float scale, float *scores, float *out) {
    float top = -INFINITY;
    for (int p = from; p <= position; p++) {
        const KV *row = k + (size_t)p * dim;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int d = 0; d < dim; d++) sum += q[d] * load(row, d);
        scores[p] = sum * scale;
        top = std::max(top, scores[p]);
    }
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int p = from; p <= position; p++) { scores[p] = fast_exp(scores[p] - top); total += scores[p]; }
    std::fill(out, out + dim, 0.0f);
    for (int p = from; p <= position; p++) {
        const KV *row = v + (size_t)p * dim;
        const float weight = scores[p] / total;
#pragma omp simd
        for (int d = 0; d < dim; d++) out[d] += weight * load(row, d);
    }
}

// What one thread owns: its copy of the residual stream and scratch.
struct Own {
    std::vector<float> x, y, cos, sin, scores;
    Rounded r;
};

struct Step {
    const Model &m;
    const int token, position, capacity, team;
    void *const *k, *const *v;
    float *logits, *hidden, *q, *kv, *mixed, *out, *wide;  // shared between the threads
    Barrier *barrier;

    // Rows of `a` for thread `id` of the team, 16 at a time, into y.
    template <class Use> void rows(const Matrix &a, int id, const Own &own, const float *x, Use use) const {
        const int panels = (a.rows + LANES - 1) / LANES;
        float y[LANES];
        for (int p = panels * id / team; p < panels * (id + 1) / team; p++) {
            panel_vector(a, p, own.r, x, y);
            use(p * LANES, std::min(LANES, a.rows - p * LANES), y);
        }
    }
    void prepare(const Matrix &a, const float *x, Own &own) const {
        if (a.bits > 8) return;
        own.r.size(1, a.cols);
        round_tokens(x, a.cols, a.bits, own.r, 0, 1);
    }
    void product(const Matrix &a, int id, const Own &own, const float *x, float *y) const {
        rows(a, id, own, x, [&](int at, int n, const float *part) { memcpy(y + at, part, sizeof(float) * n); });
    }
    void add_branch(const float *branch, const float *norm, Own &own) const {
        if (norm) rms_norm(branch, norm, m.hidden, m.eps, own.y.data());
        const float *from = norm ? own.y.data() : branch;
        for (int i = 0; i < m.hidden; i++) own.x[i] += from[i];
    }

    template <class KV> void attention(const Layer &l, int index, int id, Own &own) const {
        const int D = m.head_dim, half = D / 2, share = m.heads / m.kv_heads;
        const int from = l.window ? std::max(0, position - l.window + 1) : 0;
        for (int i = 0; i < half; i++) {
            const float angle = (float)position * l.inv_freq[i];
            own.cos[i] = std::cos(angle) * l.rope_gain;
            own.sin[i] = std::sin(angle) * l.rope_gain;
        }
        // A thread serves query heads [first, last); the one that serves the first query of a key head stores its
        // new key and value. After the barrier all keys are in the caches.
        const int first = m.heads * id / team, last = m.heads * (id + 1) / team;
        std::vector<float> &scores = own.scores;
        for (int h = first; h < last; h++) {
            const int g = h / share;
            const size_t base = (size_t)g * capacity * D, here = base + (size_t)position * D;
            KV *keys = (KV *)k[index], *values = (KV *)v[index];
            float *query = q + (size_t)h * D;
            if (h % share == 0) {
                float *key = kv + (size_t)g * D;
                for (int d = 0; d < D; d++) store(values, here + d, kv[(size_t)(m.kv_heads + g) * D + d]);
                if (l.k_norm) rms_norm(key, l.k_norm, D, m.eps, key);
                rotate(key, half, own.cos.data(), own.sin.data());
                for (int d = 0; d < D; d++) store(keys, here + d, key[d]);
            }
            if (l.q_norm) rms_norm(query, l.q_norm, D, m.eps, query);
            rotate(query, half, own.cos.data(), own.sin.data());
        }
        barrier->wait(team);
        for (int h = first; h < last; h++) {
            const size_t base = (size_t)(h / share) * capacity * D;
            attend((const float *)q + (size_t)h * D, (const KV *)k[index] + base, (const KV *)v[index] + base, from,
                   position, D, m.attn_scale, scores.data(), mixed + (size_t)h * D);
        }
    }

    void layer(int index, int id, Own &own) const {
        const Layer &l = m.layer[index];
        float *y = own.y.data();
        rms_norm(own.x.data(), l.pre_attn, m.hidden, m.eps, y);
        int bits = 0;
        for (const Matrix *a : {&l.q, &l.k, &l.v}) {
            if (a->bits != bits) prepare(*a, y, own);
            bits = a->bits;
            product(*a, id, own, y, a == &l.q ? q : a == &l.k ? kv : kv + (size_t)m.kv_heads * m.head_dim);
        }
        barrier->wait(team);
        if (m.cache_bf16) attention<uint16_t>(l, index, id, own); else attention<float>(l, index, id, own);
        barrier->wait(team);
        prepare(l.o, mixed, own);
        product(l.o, id, own, mixed, out);
        barrier->wait(team);
        add_branch(out, l.post_attn, own);
        rms_norm(own.x.data(), l.pre_mlp, m.hidden, m.eps, y);
        prepare(l.gate, y, own);
        rows(l.gate, id, own, y, [&](int at, int n, const float *part) { memcpy(wide + at, part, sizeof(float) * n); });
        if (l.up.bits != l.gate.bits) prepare(l.up, y, own);
        rows(l.up, id, own, y, [&](int at, int n, const float *part) {
            float *g = wide + at;
            if (m.gelu)
                for (int i = 0; i < n; i++) {
                    const float x = g[i], u = 0.7978845608f * (x + 0.044715f * x * x * x);
                    g[i] = x * (1.0f - 1.0f / (fast_exp(2 * u) + 1.0f)) * part[i];  // x * (1 + tanh u) / 2
                }
            else
#pragma omp simd
                for (int i = 0; i < n; i++) g[i] = g[i] / (1.0f + fast_exp(-g[i])) * part[i];
        });
        barrier->wait(team);
        prepare(l.down, wide, own);
        product(l.down, id, own, wide, out);
        barrier->wait(team);
        add_branch(out, l.post_mlp, own);
    }

    void run(int id, Own &own) const {
        const int widest = std::max({m.hidden, m.inter, m.heads * m.head_dim});
        own.x.resize(m.hidden);
        own.y.resize(widest);
        own.cos.resize(m.head_dim);
        own.sin.resize(m.head_dim);
        if ((int)own.scores.size() <= position) own.scores.resize(position + 256);
        row_values(m.embed, token, own.x.data());
        for (int i = 0; i < m.hidden; i++) own.x[i] *= m.embed_scale;
        for (int i = 0; i < m.layers; i++) layer(i, id, own);
        rms_norm(own.x.data(), m.norm, m.hidden, m.eps, own.y.data());
        if (id == 0) memcpy(hidden, own.y.data(), sizeof(float) * m.hidden);
        prepare(m.head, own.y.data(), own);
        product(m.head, id, own, own.y.data(), logits);
    }
};

// Scratch lives with the calling thread, so steps of different sessions may run at once.
thread_local std::vector<Own> owned;
thread_local std::vector<float> shared;

}  // namespace

extern "C" {

long izwi_sizeof_matrix() { return sizeof(Matrix); }
long izwi_sizeof_layer() { return sizeof(Layer); }
long izwi_sizeof_model() { return sizeof(Model); }

// Runs `token` at `position`. k, v: one cache per layer; logits [head.rows]; hidden [hidden] (after the last norm).
void izwi_decode(const Model *m, int token, int position, int capacity, void *const *k, void *const *v, float *logits,
                 float *hidden, int threads) {
    const size_t heads = (size_t)m->heads * m->head_dim, kv = 2 * (size_t)m->kv_heads * m->head_dim;
    shared.resize(2 * heads + kv + m->hidden + m->inter);
    float *q = shared.data();
    if ((int)owned.size() < threads) owned.resize(threads);
    std::vector<Own> &own = owned;
    Barrier barrier;
#pragma omp parallel num_threads(threads)
    {
        const Step step{*m, token, position, capacity, omp_get_num_threads(), k, v, logits, hidden, q, q + heads,
                        q + heads + kv, q + 2 * heads + kv, q + 2 * heads + kv + m->hidden, &barrier};
        step.run(omp_get_thread_num(), own[omp_get_thread_num()]);
    }
}

// y [T, rows] = x [T, cols] times the affine matrix, transposed, plus `add`.
void izwi_affine_matmul(const Matrix *m, const float *x, int tokens, float *y, int threads) {
    thread_local Rounded scratch;
    Rounded &r = scratch;
    r.size(tokens, m->cols);
    const int panels = (m->rows + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads)
    {
        const int id = omp_get_thread_num(), team = omp_get_num_threads();
        round_tokens(x, m->cols, m->bits, r, tokens * id / team, tokens * (id + 1) / team);
#pragma omp barrier
        alignas(64) float tile[TILE * LANES];
        for (int p = panels * id / team; p < panels * (id + 1) / team; p++)
            for (int t = 0; t < tokens; t += TILE) {
                const int n = std::min(TILE, tokens - t), width = std::min(LANES, m->rows - p * LANES);
                if (m->bits == 4) panel_product<4>(*m, p, r, t, n, tile); else panel_product<8>(*m, p, r, t, n, tile);
                for (int i = 0; i < n; i++)
                    for (int l = 0; l < width; l++)
                        y[(size_t)(t + i) * m->rows + p * LANES + l] =
                            tile[i * LANES + l] + (m->add ? m->add[p * LANES + l] : 0.0f);
            }
    }
    if (r.q.size() > (1u << 22)) r = Rounded();  // a long prompt's scratch is not kept
}
}
