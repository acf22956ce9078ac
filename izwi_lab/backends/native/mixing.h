// How positions of a sequence see each other: attention over the caches, or a short convolution. See step.h.
#pragma once
#include "step.h"

namespace {

// Work of one pass over a layer's attention: pieces of (key head, block of rows, part of the keys) for each segment.
struct Pass {
    const Layer &l;
    const int index, number;
    int heads_share, block_rows;
};

inline int rows_in(const Layer &l, const Segment &g, int pass) {
    return l.ring ? std::max(0, std::min(PASS, g.count - pass * PASS)) : pass ? 0 : g.count;
}
inline int blocks_in(const Pass &p, const Segment &g) {
    return (rows_in(p.l, g, p.number) + p.block_rows - 1) / p.block_rows;
}
inline int first_key(const Layer &l, int position) { return l.window ? std::max(0, position - l.window + 1) : 0; }

// Where reading begins for the first row of a piece: of several at a whole block of keys, so that the sums of a row are
// taken in the same order whatever rows it stands with.
inline int first_read(const Step &e, const Layer &l, int t) {
    const int first = first_key(l, e.row[t].position);
    return e.s.part[t] < 0 ? first / KEYS * KEYS : first;
}

// In how many parts the keys of row t are read, so that every thread has some: of a row that is alone in its sequence,
// and by nothing but its own keys, so that it gives the same bits whatever runs beside it; of others in one.
inline int splits_of(const Step &e, const Layer &l, int t) {
    if (e.s.part[t] < 0) return 1;
    const int keys = e.row[t].position + 1 - first_key(l, e.row[t].position), heads = e.m.kv_heads;
    const int most = std::min(e.team, keys / PART_KEYS);
    int splits = 1;
    while (splits < most && heads * splits % e.team && heads * splits < 4 * e.team) splits++;
    return splits;
}

inline Pass plan(const Step &e, const Layer &l, int index, int number) {
    Pass p{l, index, number, e.m.heads / e.m.kv_heads, 1};
    const auto pieces = [&] {
        int n = 0;
        for (const Segment &g : e.s.segments) n += blocks_in(p, g) * e.m.kv_heads;
        return n;
    };
    p.block_rows = std::max(1, PIECE_ROWS / p.heads_share);
    while (p.block_rows > 8 && pieces() < 4 * e.team) p.block_rows /= 2;
    return p;
}

inline void turn(const Step &e, const Layer &l, int t, const float *norm, float *x) {
    const int half = e.m.head_dim / 2;
    const size_t at = ((size_t)l.rope * e.rows + t) * half;
    if (norm) rms_norm(x, norm, e.m.head_dim, e.m.eps, x);
    rotate(x, half, &e.s.cos[at], &e.s.sin[at]);
}

inline Places places(const Sequence &s, const Layer &l) { return {s.blocks, s.block, s.block ? 0 : l.ring}; }

// Row t's key and value of head g into the caches.
template <class KV> void keep(const Step &e, const Layer &l, int index, int t, int g) {
    const int D = e.m.head_dim;
    const Sequence &s = e.sequence[e.row[t].sequence];
    const Cache &c = s.layer[index];
    float *key = &e.s.kv[((size_t)t * 2 * e.m.kv_heads + g) * D];
    turn(e, l, t, l.k_norm, key);
    const size_t at = (size_t)g * c.capacity + places(s, l).slot(e.row[t].position);
    store_row(key, D, (KV *)c.k + at * D, c.k_scale + at);
    store_row(key + (size_t)e.m.kv_heads * D, D, (KV *)c.v + at * D, c.v_scale + at);
}

// A piece: rows [from, from + n) of a segment, key head g, part `split` of the keys.
struct Piece { int from, n, g, split, splits, low, high; };

inline Piece piece_of(const Step &e, const Layer &l, int from, int n, int g, int split, int splits) {
    const int start = first_read(e, l, from), stop = e.row[from + n - 1].position + 1;
    const int low = start + (int)((int64_t)(stop - start) * split / splits);
    const int high = start + (int)((int64_t)(stop - start) * (split + 1) / splits);
    return {from, n, g, split, splits, low, high};
}

// The first keys of a piece.
inline void look_ahead(const Step &e, const Pass &p, const Piece &w, Ahead &ahead) {
    const Sequence &s = e.sequence[e.row[w.from].sequence];
    const Cache &c = s.layer[p.index];
    const size_t wide = s.kind == CACHE_INT8 ? 1 : s.kind == CACHE_BF16 ? 2 : 4;
    ahead.bytes = wide * e.m.head_dim;
    ahead.keys = (const char *)c.k + (size_t)w.g * c.capacity * ahead.bytes;
    ahead.count = std::min(KEYS, w.high - w.low);
    places(s, p.l).fill(w.low, ahead.count, ahead.slots);
}

template <class KV> void piece(const Step &e, const Pass &p, const Piece &w, const Ahead &ahead, Rows &rows) {
    const Model &m = e.m;
    const int D = m.head_dim, H = p.heads_share, from = w.from, n = w.n, g = w.g;
    if (e.lone && w.split == w.splits - 1) keep<KV>(e, p.l, p.index, from, g);
    rows.size(n * H, D);
    for (int i = 0; i < n; i++)
        for (int h = 0; h < H; h++) {
            const int r = i * H + h, t = from + i;
            float *q = &rows.q[(size_t)r * rows.width];
            memcpy(q, &e.s.q[((size_t)t * m.heads + g * H + h) * D], sizeof(float) * D);
            turn(e, p.l, t, p.l.q_norm, q);
            for (int d = 0; d < D; d++) q[d] *= m.attn_scale;
            rows.first[r] = first_key(p.l, e.row[t].position);
            rows.last[r] = e.row[t].position;
        }
    const Sequence &s = e.sequence[e.row[from].sequence];
    const Cache &c = s.layer[p.index];
    const size_t at = (size_t)g * c.capacity;
    const bool scaled = std::is_same<KV, int8_t>::value;
    const Cached<KV> cached{(const KV *)c.k + at * D, (const KV *)c.v + at * D, scaled ? c.k_scale + at : nullptr,
                            scaled ? c.v_scale + at : nullptr, D, places(s, p.l)};
    attend(cached, w.low, w.high, e.s.part[from] < 0, rows, ahead);
    for (int i = 0; i < n; i++)
        for (int h = 0; h < H; h++) {
            const int r = i * H + h, t = from + i, head = g * H + h;
            const float *acc = &rows.acc[(size_t)r * rows.width];
            if (w.splits == 1) {
                float *out = &e.s.mixed[((size_t)t * m.heads + head) * D];
                for (int d = 0; d < D; d++) out[d] = acc[d] / rows.sum[r];
                continue;
            }
            float *part = &e.s.parts[(((size_t)e.s.part[t] * m.heads + head) * e.team + w.split) * (D + 2)];
            part[0] = rows.top[r];
            part[1] = rows.sum[r];
            memcpy(part + 2, acc, sizeof(float) * D);
        }
}

inline void piece_of_kind(const Step &e, const Pass &p, const Piece &w, const Ahead &ahead, Rows &rows) {
    const int kind = e.sequence[e.row[w.from].sequence].kind;
    if (kind == CACHE_BF16) piece<uint16_t>(e, p, w, ahead, rows);
    else if (kind == CACHE_INT8) piece<int8_t>(e, p, w, ahead, rows);
    else piece<float>(e, p, w, ahead, rows);
}

inline void keep_rows(const Step &e, const Pass &p, int id) {
    int number = 0;
    for (const Segment &g : e.s.segments)
        for (int i = 0; i < rows_in(p.l, g, p.number); i++, number++) {
            if (number % e.team != id) continue;
            const int t = g.first + p.number * PASS + i, kind = e.sequence[e.row[t].sequence].kind;
            for (int h = 0; h < e.m.kv_heads; h++) {
                if (kind == CACHE_BF16) keep<uint16_t>(e, p.l, p.index, t, h);
                else if (kind == CACHE_INT8) keep<int8_t>(e, p.l, p.index, t, h);
                else keep<float>(e, p.l, p.index, t, h);
            }
        }
}

// The parts that pieces of row t left, together.
inline void combine(const Step &e, int splits, int t, float *out) {
    const int D = e.m.head_dim;
    for (int h = 0; h < e.m.heads; h++, out += D) {
        const float *part = &e.s.parts[((size_t)e.s.part[t] * e.m.heads + h) * e.team * (D + 2)];
        float top = LOWEST, sum = 0;
        for (int i = 0; i < splits; i++) top = std::max(top, part[i * (D + 2)]);
        std::fill(out, out + D, 0.0f);
        for (int i = 0; i < splits; i++, part += D + 2) {
            const float weight = std::exp(part[0] - top);
            sum += weight * part[1];
            for (int d = 0; d < D; d++) out[d] += weight * part[2 + d];
        }
        for (int d = 0; d < D; d++) out[d] /= sum;
    }
}

// A thread's share of the pieces of sequences with one row each: of about as many keys as that of any other thread, and
// pieces that stand together, so that each knows what follows it.
template <class Use> void share_pieces(const Step &e, const Layer &l, int id, Use use) {
    int64_t all = 0, before = 0;
    const auto keys_of = [&](const Segment &g) {
        return e.row[g.first].position + 1 - first_read(e, l, g.first) + PIECE_KEYS;
    };
    for (const Segment &g : e.s.segments) all += (int64_t)keys_of(g) * e.m.kv_heads;
    for (const Segment &g : e.s.segments) {
        const int splits = splits_of(e, l, g.first), parts = e.m.kv_heads * splits;
        const int64_t keys = (int64_t)keys_of(g) * e.m.kv_heads;
        for (int at = 0; at < parts; at++)  // the thread in whose share its middle lies
            if ((2 * before * parts + (2 * at + 1) * keys) * e.team / (2 * all * parts) == id)
                use(piece_of(e, l, g.first, 1, at / splits, at % splits, splits));
        before += keys;
    }
}

inline void attention_lone(const Step &e, const Pass &p, const Step::Me &me) {
    Piece held{};
    bool any = false;
    Ahead ahead;
    share_pieces(e, p.l, me.id, [&](const Piece &w) {
        if (any) {
            look_ahead(e, p, w, ahead);
            piece_of_kind(e, p, held, ahead, me.own.rows);
        }
        held = w, any = true;
    });
    ahead.count = 0;
    if (any) piece_of_kind(e, p, held, ahead, me.own.rows);
}

// Attention of all rows; ends before a barrier. Gives whether any row's result is in several parts.
inline bool attention(const Step &e, const Layer &l, int index, const Step::Me &me) {
    int longest = 0;
    bool parted = false;
    for (const Segment &g : e.s.segments) longest = std::max(longest, g.count);
    for (const Segment &g : e.s.segments) parted = parted || splits_of(e, l, g.first) > 1;
    if (e.lone) {
        attention_lone(e, {l, index, 0, e.m.heads / e.m.kv_heads, 1}, me);
        return parted;
    }
    const int passes = l.ring ? (longest + PASS - 1) / PASS : 1;
    const Ahead none;
    for (int number = 0; number < passes; number++) {
        const Pass p = plan(e, l, index, number);
        if (number) e.barrier->wait(e.team);  // the pass before has read what this one writes over
        keep_rows(e, p, me.id);
        e.barrier->wait(e.team);
        std::atomic<int> &taken = e.s.taken[(size_t)index * e.passes + number];
        int before = 0, next = taken.fetch_add(1, std::memory_order_relaxed);
        for (const Segment &g : e.s.segments) {
            const int splits = splits_of(e, l, g.first);
            const int blocks = blocks_in(p, g), work = blocks * e.m.kv_heads * splits;
            for (; next < before + work; next = taken.fetch_add(1, std::memory_order_relaxed)) {
                const int at = next - before, split = at % splits, head = at / splits % e.m.kv_heads;
                const int block = blocks - 1 - at / (splits * e.m.kv_heads);  // those with most keys first
                const int from = block * p.block_rows, n = std::min(p.block_rows, rows_in(l, g, number) - from);
                const int first = g.first + number * PASS + from;
                piece_of_kind(e, p, piece_of(e, l, first, n, head, split, splits), none, me.own.rows);
            }
            before += work;
        }
    }
    return parted;
}

// LFM2's short convolution over the gated inputs b * x of the last positions; each thread serves some channels.
template <class T> void convolve(const Step &e, const Layer &l, int index, const Segment &g, int from, int to) {
    const int D = e.m.hidden, start = e.row[g.first].position;
    T *held = (T *)e.sequence[e.row[g.first].sequence].layer[index].k;
    for (int i = 0; i < g.count; i++) {
        float *b = &e.s.wide[(size_t)(g.first + i) * 3 * D], *out = &e.s.mixed[(size_t)(g.first + i) * D];
        const float *c = b + D, *x = c + D, *last = l.conv + (size_t)(l.taps - 1) * D;
        for (int d = from; d < to; d++) b[d] *= x[d];
        for (int d = from; d < to; d++) out[d] = (l.conv_bias ? l.conv_bias[d] : 0.0f) + last[d] * b[d];
        for (int j = 1; j < l.taps && j <= start + i; j++) {
            const float *w = last - (size_t)j * D;
            if (j <= i) {
                const float *u = b - (size_t)j * 3 * D;
                for (int d = from; d < to; d++) out[d] += w[d] * u[d];
            } else {
                const T *u = held + (size_t)((start + i - j) % l.ring) * D;
                for (int d = from; d < to; d++) out[d] += w[d] * load1(u + d);
            }
        }
        for (int d = from; d < to; d++) out[d] *= c[d];
    }
    for (int i = std::max(0, g.count - l.ring); i < g.count; i++)  // the last ones
        store_row(&e.s.wide[(size_t)(g.first + i) * 3 * D + from], to - from,
                  held + (size_t)((start + i) % l.ring) * D + from, nullptr);
}

inline void convolution(const Step &e, const Layer &l, int index, int id) {
    const int vectors = (e.m.hidden + WIDE - 1) / WIDE;
    const int from = vectors * id / e.team * WIDE, to = std::min(e.m.hidden, vectors * (id + 1) / e.team * WIDE);
    for (const Segment &g : e.s.segments)
        if (e.m.bf16) convolve<uint16_t>(e, l, index, g, from, to); else convolve<float>(e, l, index, g, from, to);
}

}  // namespace
