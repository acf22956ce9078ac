// A step of a decoder language model on the CPU: rows (tokens at positions of sequences) through all layers in one
// parallel region, then the logits of those that want them.
//
// The threads share the panels of every matrix and meet at spin barriers, five a layer. With a few rows, what is cheap
// (norms, rounding of activations, the residual stream) every thread computes for itself, which saves barriers; of many
// rows each thread takes its share. Caches are the caller's, so plain steps and these can be mixed.
#include <omp.h>

#include "mixing.h"

namespace {

void gated(const Step &e, const Layer &l, const Step::Me &me) {
    alignas(64) float gate[TILE * LANES], up[TILE * LANES];
    e.share(panels_of(l.gate), l.gate.cols, me, e.rows, [&](int p, int t, int n) {
        panel_tokens(l.gate, p, *me.r, me.y, t, n, gate, LANES);
        panel_tokens(l.up, p, *me.r, me.y, t, n, up, LANES);
        const int count = std::min(LANES, l.gate.rows - p * LANES);
        for (int i = 0; i < n; i++) {
            const Vec g = load16(gate + i * LANES), y = (e.m.gelu ? gelu_tanh(g) : silu(g)) * load16(up + i * LANES);
            memcpy(&e.s.wide[(size_t)(t + i) * l.gate.rows + p * LANES], &y, sizeof(float) * count);
        }
    });
}

// Queries, keys and values of all rows (or what a conv layer splits in three), then what each row mixes of them.
// Gives the rows that o multiplies.
const float *mixed(const Step &e, const Layer &l, int index, Step::Me &me) {
    if (l.taps) {
        e.prepare({&l.q}, me.y, me);
        e.product(l.q, me.y, me, e.s.wide.data());
        e.barrier->wait(e.team);
        convolution(e, l, index, me.id);
        e.barrier->wait(e.team);
        return e.s.mixed.data();
    }
    const size_t queries = l.q.rows, keys = l.k.rows;
    e.prepare({&l.q, &l.k, &l.v}, me.y, me);
    float *kv = e.s.kv.data();
    e.product({{l.q, e.s.q.data(), queries}, {l.k, kv, 2 * keys}, {l.v, kv + keys, 2 * keys}}, me.y, *me.r, e.rows, me);
    e.barrier->wait(e.team);
    const bool parted = attention(e, l, index, me);
    e.barrier->wait(e.team);
    if (!parted) return e.s.mixed.data();
    for (int t = me.from; t < me.to; t++) {
        const int splits = splits_of(e, l, t);
        if (splits > 1) combine(e, splits, t, me.y + t * queries);
        else memcpy(me.y + t * queries, &e.s.mixed[t * queries], sizeof(float) * queries);
    }
    return me.y;
}

void layer(const Step &e, int index, Step::Me &me) {
    const Layer &l = e.m.layer[index];
    e.norm(l.pre_attn, me);
    const float *x = mixed(e, l, index, me);
    e.prepare({&l.o}, x, me);
    e.product(l.o, x, me, e.s.out.data());
    e.barrier->wait(e.team);
    e.add_branch(l.post_attn, me);
    e.norm(l.pre_mlp, me);
    e.prepare({&l.gate, &l.up}, me.y, me);
    gated(e, l, me);
    e.barrier->wait(e.team);
    e.prepare({&l.down}, e.s.wide.data(), me);
    e.product(l.down, e.s.wide.data(), me, e.s.out.data());
    e.barrier->wait(e.team);
    e.add_branch(l.post_mlp, me);
}

// The logits of the rows that want them.
void finish(const Step &e, Step::Me &me) {
    const int D = e.m.hidden;
    Rounded &r = e.split ? e.s.head_r : *me.r;
    float *y = e.split ? e.s.head.data() : me.y;
    if (!e.split) r.size(e.outs, D);
    for (int t = me.from; t < me.to; t++) {
        const int out = e.row[t].out;
        if (out < 0) continue;
        float *row = y + (size_t)out * D;
        rms_norm(me.x + (size_t)t * D, e.m.norm, D, e.m.eps, row);
        if (e.split || me.id == 0) memcpy(e.hidden + (size_t)out * D, row, sizeof(float) * D);
        if (e.head.bits <= 8) round_tokens(y, D, e.head.bits, r, out, out + 1);
    }
    if (e.split) e.barrier->wait(e.team);
    e.product({{e.head, e.logits, (size_t)e.head.rows}}, y, r, e.outs, me);
}

int width_of(const Model &m, const Input &in) { return in.project ? in.project->cols : m.hidden; }

// The rows' embeddings, given or looked up, into x.
void embeddings(const Step &e, Step::Me &me) {
    const int D = e.m.hidden, width = width_of(e.m, e.in);
    float *to = e.in.project ? me.y : me.x;
    for (int t = me.from; t < me.to; t++) {
        float *x = to + (size_t)t * width;
        if (e.row[t].token < 0) {
            memcpy(x, e.in.rows + (size_t)(-1 - e.row[t].token) * width, sizeof(float) * width);
            continue;
        }
        row_values(e.table, e.row[t].token, x);
        for (int i = 0; i < width; i++) x[i] *= e.m.embed_scale;
    }
    if (!e.in.project) return;
    e.prepare({e.in.project}, me.y, me);
    e.product(*e.in.project, me.y, me, e.s.out.data());
    e.barrier->wait(e.team);
    memcpy(me.x + (size_t)me.from * D, e.s.out.data() + (size_t)me.from * D, sizeof(float) * D * (me.to - me.from));
}

void run(const Step &e, int id, Own &own) {
    const Model &m = e.m;
    const int widest = std::max({m.hidden, m.inter, m.heads * m.head_dim, 3 * m.hidden, width_of(m, e.in)});
    const int from = e.split ? e.rows * id / e.team : 0, to = e.split ? e.rows * (id + 1) / e.team : e.rows;
    if (!e.split) {
        own.x.resize(std::max(own.x.size(), (size_t)e.rows * m.hidden));
        own.y.resize(std::max(own.y.size(), (size_t)e.rows * widest));
        own.r.size(e.rows, widest);
    }
    Step::Me me{id, from, to, own, own.x.data(), own.y.data(), &own.r};
    if (e.split) me.x = e.s.x.data(), me.y = e.s.y.data(), me.r = &e.s.r;
    const int half = m.head_dim / 2;
    for (int t = id; t < e.rows; t += e.team)  // the barrier after the first products comes before their use
        for (int k = 0; k < m.ropes; k++)
            for (int i = 0; i < half; i++) {
                const float angle = (float)e.row[t].position * m.rope[k].inv_freq[i];
                const size_t at = ((size_t)k * e.rows + t) * half + i;
                e.s.cos[at] = std::cos(angle) * m.rope[k].gain;
                e.s.sin[at] = std::sin(angle) * m.rope[k].gain;
            }
    embeddings(e, me);
    for (int i = 0; i < m.layers; i++) layer(e, i, me);
    if (e.outs) finish(e, me);
}

template <class V> void room(V &v, size_t n) {
    if (v.size() < n) v.resize(n);
}

// Sizes the shared scratch; gives the number of passes over a ring.
int arrange(Scratch &s, const Model &m, const Input &in, const Row *row, int rows, int outs, int threads, bool split) {
    s.segments.clear();
    int longest = 0, lone = 0;
    for (int t = 0; t < rows; t++) {
        if (!t || row[t].sequence != row[t - 1].sequence) s.segments.push_back({t, 0});
        longest = std::max(longest, ++s.segments.back().count);
    }
    s.part.assign(rows, -1);
    for (const Segment &g : s.segments)
        if (g.count == 1) s.part[g.first] = lone++;
    const int passes = (longest + PASS - 1) / PASS;
    const size_t T = rows, mix = std::max(m.heads * m.head_dim, m.hidden);
    const size_t wide = std::max({m.inter, 3 * m.hidden, width_of(m, in)});
    room(s.q, T * m.heads * m.head_dim);
    room(s.kv, T * 2 * m.kv_heads * m.head_dim);
    room(s.mixed, T * mix);
    room(s.out, T * m.hidden);
    room(s.wide, T * wide);
    room(s.cos, T * m.ropes * m.head_dim / 2);
    room(s.sin, T * m.ropes * m.head_dim / 2);
    room(s.parts, (size_t)lone * m.heads * threads * (m.head_dim + 2));
    if (split) {
        room(s.x, T * m.hidden);
        room(s.y, T * std::max(mix, wide));
        s.r.size(rows, std::max(mix, wide));
        room(s.head, (size_t)outs * m.hidden);
        s.head_r.size(outs, m.hidden);
    }
    const size_t counters = (size_t)m.layers * passes;
    if (s.counters < counters) s.taken.reset(new std::atomic<int>[counters]), s.counters = counters;
    for (size_t i = 0; i < counters; i++) s.taken[i].store(0, std::memory_order_relaxed);
    room(s.own, threads);
    return passes;
}

// Whether rows of one paged sequence come as sequences of their own: each is computed as if it were decoded, and sees the
// keys of those before it.
bool follows_itself(const Row *row, int rows, const Sequence *sequences) {
    for (int t = 1; t < rows; t++) {
        const Sequence &a = sequences[row[t - 1].sequence], &b = sequences[row[t].sequence];
        if (row[t].sequence != row[t - 1].sequence && b.blocks && a.blocks == b.blocks) return true;
    }
    return false;
}

}  // namespace

extern "C" {

long izwi_sizeof_matrix() { return sizeof(Matrix); }
long izwi_sizeof_layer() { return sizeof(Layer); }
long izwi_sizeof_model() { return sizeof(Model); }
long izwi_sizeof_sequence() { return sizeof(Sequence); }
long izwi_sizeof_input() { return sizeof(Input); }

// Runs `rows` rows; those of a sequence stand together, in the order of their positions. The caches have room for them.
// logits [outs, head.rows] and hidden [outs, hidden] (after the last norm) of the rows that name a place there.
void izwi_step(const Model *m, const Input *in, const Row *row, int rows, const Sequence *sequences, int outs,
               float *logits, float *hidden, int threads) {
    thread_local Scratch scratch;
    Scratch &s = scratch;
    const bool split = rows > FEW;
    const int passes = arrange(s, *m, *in, row, rows, outs, threads, split);
    const bool lone = (int)s.segments.size() == rows && !follows_itself(row, rows, sequences);
    const Matrix &table = in->table ? *in->table : m->embed, &head = in->head ? *in->head : m->head;
    Barrier barrier;
#pragma omp parallel num_threads(threads)
    {
        const int team = omp_get_num_threads();
        const Step step{*m,    *in,   table, head, row,      sequences, rows,  outs,
                        team, passes, split, lone, s, &barrier, logits, hidden};
        run(step, omp_get_thread_num(), s.own[omp_get_thread_num()]);
    }
    if (s.wide.size() > (1u << 22)) s = Scratch();  // a long prompt's scratch is not kept
}
}
