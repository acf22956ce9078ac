// Choosing a token from logits in host memory: the CPU twin of families/shared/nets/sampler/{torch_net,mlx_net}.py.
//
// Weights are whole numbers, floor(exp((v - max) / temperature) * 2^42), so sums are exact and every backend draws the
// same token from the same random number. Order of the rules: penalties, bias, allowed; temperature; top-k, top-p,
// min-p; among equal logits the lower id comes first. See rules.py for the meaning of the fields.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr int BLOCK = 1024;
constexpr int WEIGHT_BITS = 42;
constexpr int DRAW_BITS = 31;

struct Rules {
    const uint8_t* seen;       // [V] or null: said in prompt or output
    const int32_t* counts;     // [V] or null: how often it was put out
    const int32_t* bias_ids;   // [biases]
    const float* bias;         // [biases]
    const int32_t* allowed;    // [(V + 31) / 32] or null
    int32_t biases;
    float repetition, frequency, presence;
    float temperature;
    int32_t top_k;             // 0: all
    int32_t unused;
    int64_t top_p;             // of 2^31; 2^31: all
    int64_t min_weight;        // of 2^42; 0: all
};

struct Candidate {
    float value;
    int32_t id;
    int64_t weight;
};

bool before(const Candidate& a, const Candidate& b) { return a.value != b.value ? a.value > b.value : a.id < b.id; }

// e^x for x <= 0, one unit in the last place (Cephes expf), in a form that compilers vectorise.
inline float exp_negative(float x) {
    float bounded = x < -80.0f ? -80.0f : x;
    float n = std::nearbyintf(bounded * 1.44269504088896341f);
    float r = bounded - n * 0.693359375f;
    r -= n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

inline int64_t weight(float value, float top, float temperature) {
    return static_cast<int64_t>(exp_negative((value - top) / temperature) * static_cast<float>(1LL << WEIGHT_BITS));
}

// floor(total * share / 2^31) without overflow, for total < 2^62 and share <= 2^31.
inline int64_t share_of(int64_t total, int64_t share) {
    int64_t high = total >> DRAW_BITS, low = total & ((1LL << DRAW_BITS) - 1);
    return high * share + ((low * share) >> DRAW_BITS);
}

// The largest; NaN if any is NaN.
float peak(const float* values, int64_t size) {
    float top = -INF;
    int32_t nan = 0;
#pragma omp simd reduction(max : top) reduction(| : nan)
    for (int64_t i = 0; i < size; i++) {
        nan |= values[i] != values[i];
        top = values[i] > top ? values[i] : top;
    }
    return nan ? std::numeric_limits<float>::quiet_NaN() : top;
}

// The logits under the rules, in `out` if there are any, else where they are; `top` becomes the largest, NaN if any is.
const float* adjust(const float* logits, int64_t size, const Rules& r, float* out, float* top) {
    if (!r.seen && !r.counts && !r.biases && !r.allowed) {
        *top = peak(logits, size);
        return logits;
    }
    // Copies: `out` could else alias the fields, which would keep the loops from being vectorised.
    const float repetition = r.repetition, frequency = r.frequency, presence = r.presence;
    const uint8_t* seen = r.seen;
    const int32_t* counts = r.counts;
    if (seen && repetition != 1.0f)
        for (int64_t i = 0; i < size; i++) {
            float v = logits[i];
            float punished = v > 0 ? v / repetition : v * repetition;
            out[i] = seen[i] ? punished : v;
        }
    else
        std::memcpy(out, logits, size * sizeof(float));
    if (counts && (frequency != 0.0f || presence != 0.0f))
        for (int64_t i = 0; i < size; i++) {
            float n = static_cast<float>(counts[i]);
            out[i] -= n * frequency + (counts[i] > 0 ? presence : 0.0f);
        }
    for (int32_t i = 0; i < r.biases; i++) out[r.bias_ids[i]] += r.bias[i];
    if (r.allowed)
        for (int64_t i = 0; i < size; i++)
            out[i] = (static_cast<uint32_t>(r.allowed[i >> 5]) >> (i & 31)) & 1 ? out[i] : -INF;
    *top = peak(out, size);
    return out;
}

int64_t first_of(const float* values, int64_t size, float wanted) {
    for (int64_t start = 0; start < size; start += BLOCK) {
        int64_t stop = std::min(size, start + BLOCK);
        int32_t found = 0;
        for (int64_t i = start; i < stop; i++) found |= values[i] == wanted;
        if (found)
            for (int64_t i = start; i < stop; i++)
                if (values[i] == wanted) return i;
    }
    return 0;
}

// The k largest, in no order. Whole blocks below the smallest so far are skipped.
void largest(const float* values, int64_t size, int64_t k, std::vector<Candidate>& heap) {
    heap.clear();
    heap.reserve(k);
    for (int64_t start = 0; start < size; start += 64) {
        int64_t stop = std::min(size, start + 64);
        if (static_cast<int64_t>(heap.size()) == k) {
            float least = heap.front().value;
            int32_t any = 0;
            for (int64_t i = start; i < stop; i++) any |= values[i] > least;
            if (!any) continue;
        }
        for (int64_t i = start; i < stop; i++) {
            Candidate one{values[i], static_cast<int32_t>(i), 0};
            if (static_cast<int64_t>(heap.size()) < k) {
                heap.push_back(one);
                std::push_heap(heap.begin(), heap.end(), before);  // the worst is at the front
            } else if (before(one, heap.front())) {
                std::pop_heap(heap.begin(), heap.end(), before);
                heap.back() = one;
                std::push_heap(heap.begin(), heap.end(), before);
            }
        }
    }
}

int64_t total_of(const float* values, int64_t size, float top, float temperature) {
    int64_t total = 0;
    for (int64_t i = 0; i < size; i++) total += weight(values[i], top, temperature);
    return total;
}

// Keeps the smallest set, best first, whose weights reach top_p of `total`, in the order it has. Only the bucket of
// values where the set ends is sorted.
void nucleus(std::vector<Candidate>& held, float top, const Rules& r, int64_t total) {
    constexpr int BUCKETS = 2048;
    const float scale = BUCKETS / (30.0f * r.temperature);  // beyond 30 temperatures a weight is 0
    auto bucket = [&](const Candidate& c) {
        float place = (top - c.value) * scale;
        return place < BUCKETS - 1 ? static_cast<int>(place) : BUCKETS - 1;
    };
    int64_t sums[BUCKETS] = {};
    for (const Candidate& c : held) sums[bucket(c)] += c.weight;
    int64_t wanted = share_of(total, r.top_p);
    int last = 0;
    while (last < BUCKETS - 1 && sums[last] < wanted) wanted -= sums[last++];
    thread_local std::vector<Candidate> edge;
    edge.clear();
    for (const Candidate& c : held)
        if (bucket(c) == last) edge.push_back(c);
    std::sort(edge.begin(), edge.end(), before);
    size_t end = 0;
    while (end + 1 < edge.size() && (wanted -= edge[end].weight) > 0) end++;
    const Candidate worst = edge[end];
    held.erase(std::remove_if(held.begin(), held.end(), [&](const Candidate& c) { return before(worst, c); }), held.end());
}

// What may be drawn, by rising id; false: everything may.
bool candidates(const float* values, int64_t size, float top, const Rules& r, std::vector<Candidate>& held) {
    const bool ranked = r.top_k > 0 && r.top_k < size, part = r.top_p < (1LL << DRAW_BITS);
    if (!ranked && !part && !r.min_weight) return false;
    if (ranked) {
        largest(values, size, r.top_k, held);
        std::sort(held.begin(), held.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
        for (Candidate& c : held) c.weight = weight(c.value, top, r.temperature);
        if (part) {
            int64_t total = 0;
            for (const Candidate& c : held) total += c.weight;
            nucleus(held, top, r, total);
        }
    } else {
        // Those below (1 - top_p) / V of the whole sum to less than 1 - top_p, so the nucleus never needs them.
        int64_t total = part ? total_of(values, size, top, r.temperature) : 0;
        int64_t floor = part ? (total - share_of(total, r.top_p)) / size : r.min_weight;
        held.clear();
        float least = top + r.temperature * (std::log(std::max<double>(floor, 0.5)) - WEIGHT_BITS * std::log(2.0)) ;
        least -= std::fabs(least) * 1e-5f + r.temperature * 1e-4f;  // a rough sieve before the exact comparison
        for (int64_t start = 0; start < size; start += 64) {
            int64_t stop = std::min(size, start + 64);
            int32_t any = 0;
            for (int64_t i = start; i < stop; i++) any |= values[i] >= least;
            if (!any) continue;
            int64_t w[64];
            for (int64_t i = start; i < stop; i++) w[i - start] = weight(values[i], top, r.temperature);
            for (int64_t i = start; i < stop; i++)
                if (w[i - start] >= floor) held.push_back({values[i], static_cast<int32_t>(i), w[i - start]});
        }
        if (part) nucleus(held, top, r, total);
    }
    if (r.min_weight)
        held.erase(std::remove_if(held.begin(), held.end(),
                                  [&](const Candidate& c) { return c.weight < r.min_weight; }),
                   held.end());
    return true;
}

int64_t draw_all(const float* values, int64_t size, float top, float temperature, int64_t share, int64_t* sums) {
    const int64_t blocks = (size + BLOCK - 1) / BLOCK;
    int64_t total = 0;
    for (int64_t b = 0; b < blocks; b++) {
        int64_t start = b * BLOCK;
        total += sums[b] = total_of(values + start, std::min<int64_t>(BLOCK, size - start), top, temperature);
    }
    int64_t target = share_of(total, share), b = 0;
    while (b + 1 < blocks && target >= sums[b]) target -= sums[b++];
    int64_t best = b * BLOCK;
    for (int64_t i = best; i < std::min(size, (b + 1) * BLOCK); i++) {
        int64_t w = weight(values[i], top, temperature);
        if (w > 0) best = i;
        if (target < w) break;
        target -= w;
    }
    return best;
}

int64_t draw_held(const std::vector<Candidate>& held, int64_t share) {
    int64_t total = 0;
    for (const Candidate& c : held) total += c.weight;
    int64_t target = share_of(total, share);
    for (const Candidate& c : held) {
        if (target < c.weight) return c.id;
        target -= c.weight;
    }
    return held.back().id;
}

}  // namespace

extern "C" {

long izwi_sizeof_rules() { return sizeof(Rules); }

// The chosen id; `top` becomes the largest adjusted logit. Where that is no finite number the id means nothing.
// share: the random number, of 2^31. temperature 0 takes the best. scratch: floats [V].
int64_t izwi_sample(const float* logits, int64_t size, const Rules* rules, int64_t share, float* scratch, float* top) {
    const Rules& r = *rules;
    const float* values = adjust(logits, size, r, scratch, top);
    if (!std::isfinite(*top)) return 0;
    if (r.temperature == 0.0f || r.top_k == 1) return first_of(values, size, *top);
    thread_local std::vector<Candidate> held;
    if (candidates(values, size, *top, r, held)) return draw_held(held, share);
    thread_local std::vector<int64_t> sums;
    sums.resize((size + BLOCK - 1) / BLOCK);
    return draw_all(values, size, *top, r.temperature, share, sums.data());
}

// The weights of all ids: int64 [V], 0 where an id may not be drawn. At temperature 0 only the best weighs.
void izwi_weights(const float* logits, int64_t size, const Rules* rules, int64_t* out, float* scratch, float* top) {
    const Rules& r = *rules;
    const float* values = adjust(logits, size, r, scratch, top);
    if (!std::isfinite(*top)) return;
    thread_local std::vector<Candidate> held;
    if (r.temperature == 0.0f || r.top_k == 1) {
        std::memset(out, 0, size * sizeof(int64_t));
        out[first_of(values, size, *top)] = 1LL << WEIGHT_BITS;
    } else if (candidates(values, size, *top, r, held)) {
        std::memset(out, 0, size * sizeof(int64_t));
        for (const Candidate& c : held) out[c.id] = c.weight;
    } else {
        for (int64_t i = 0; i < size; i++) out[i] = weight(values[i], *top, r.temperature);
    }
}

// The k best, best first: ids [k] and their log-probabilities [k]. Returns log(sum(exp(logits))).
double izwi_best(const float* logits, int64_t size, int64_t k, int64_t* ids, double* logprobs) {
    const float top = peak(logits, size);
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < size; i++) total += exp_negative(logits[i] - top);
    const double whole = top + std::log(total);
    std::vector<Candidate> held;
    if (k > 0) largest(logits, size, k, held);
    std::sort(held.begin(), held.end(), before);
    for (int64_t i = 0; i < k; i++) {
        ids[i] = held[i].id;
        logprobs[i] = held[i].value - whole;
    }
    return whole;
}
}
