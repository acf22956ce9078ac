// What Python asks of affine matrices by itself: packing rows into panels, products with many tokens, rows by number.
#include <algorithm>
#include <omp.h>

#include "affine.h"

static const int TOKENS = 128;  // of one pass over the panels: their rounded activations stay in the second cache

// The words of a row's 32 codes, from a plain bit stream (first code lowest) to a panel's order, LANES apart.
template <int BITS> static inline void pack_block(const uint32_t *from, uint32_t *to) {
    uint32_t words[8] = {0};
    if (BITS == 8) memcpy(words, from, 32);
    else if (BITS == 4)
        for (int i = 0; i < 4; i++) {
            uint64_t v = from[i];
            v = (v & 0xFFFFu) | (v & 0xFFFF0000u) << 16;  // codes 0 .. 3 to the lower half, 4 .. 7 to the upper
            v = (v | v << 8) & 0x00FF00FF00FF00FFull;
            v = (v | v << 4) & 0x0F0F0F0F0F0F0F0Full;
            words[i] = (uint32_t)v | (uint32_t)(v >> 32) << 4;
        }
    else
        for (int k = 0; k < BLOCK; k++) {
            const int bit = k * BITS, word = bit / 32, at = bit % 32, r = k / 4, b = k % 4 * 8;
            uint64_t v = from[word];
            if (at + BITS > 32) v |= (uint64_t)from[word + 1] << 32;
            const uint32_t code = (uint32_t)(v >> at) & ((1u << BITS) - 1), high = code >> 4;
            words[r / 2] |= (code & 15u) << (b + r % 2 * 4);
            if (BITS == 5) words[4] |= high << (b + r);
            if (BITS == 6) words[4 + r / 4] |= high << (b + r % 4 * 2);
        }
    for (int i = 0; i < BITS; i++) to[i * LANES] = words[i];
}

template <int BITS> static void pack_rows(const uint32_t *q, int rows, int cols, uint32_t *panels) {
    const int blocks = cols / BLOCK;
#pragma omp parallel for schedule(static)
    for (int panel = 0; panel < (rows + LANES - 1) / LANES; panel++)
        for (int g = 0; g < blocks; g++) {
            uint32_t *to = panels + ((size_t)panel * blocks + g) * BITS * LANES;
            for (int l = 0; l < LANES; l++) {
                const int row = panel * LANES + l;
                if (row < rows) pack_block<BITS>(q + ((size_t)row * blocks + g) * BITS, to + l);
                else for (int i = 0; i < BITS; i++) to[i * LANES + l] = 0;
            }
        }
}

extern "C" {

// q [rows, cols * bits / 32], a bit stream along the row, to panels [ceil(rows / 16), cols * bits / 32, 16].
void izwi_affine_pack(const uint32_t *q, int rows, int cols, int bits, uint32_t *panels) {
    if (bits == 4) pack_rows<4>(q, rows, cols, panels);
    else if (bits == 5) pack_rows<5>(q, rows, cols, panels);
    else if (bits == 6) pack_rows<6>(q, rows, cols, panels);
    else pack_rows<8>(q, rows, cols, panels);
}

// out [n, cols] = rows `ids` of the matrix.
void izwi_affine_rows(const Matrix *m, const int64_t *ids, int n, float *out) {
    for (int i = 0; i < n; i++) row_values(*m, (int)ids[i], out + (size_t)i * m->cols);
}

// y [T, rows] = x [T, cols] times the affine matrix, transposed, plus `add`.
void izwi_affine_matmul(const Matrix *m, const float *x, int tokens, float *y, int threads) {
    thread_local Rounded scratch;
    Rounded &r = scratch;
    const int panels = (m->rows + LANES - 1) / LANES;
    r.size(std::min(tokens, TOKENS), m->cols);
#pragma omp parallel num_threads(threads)
    {
        const int id = omp_get_thread_num(), team = omp_get_num_threads();
        alignas(64) float tile[TILE * LANES];
        for (int start = 0; start < tokens; start += TOKENS) {
            const int count = std::min(TOKENS, tokens - start);
#pragma omp barrier
#pragma omp single
            r.tokens = count;
            round_tokens(x + (size_t)start * m->cols, m->cols, m->bits, r, count * id / team, count * (id + 1) / team);
#pragma omp barrier
            for (int p = panels * id / team; p < panels * (id + 1) / team; p++)
                for (int t = 0; t < count; t += TILE) {
                    const int n = std::min(TILE, count - t), width = std::min(LANES, m->rows - p * LANES);
                    float *out = y + (size_t)(start + t) * m->rows + p * LANES;
                    if (width == LANES && !m->add) {
                        affine_product(*m, p, r, t, n, out, m->rows);
                        continue;
                    }
                    affine_product(*m, p, r, t, n, tile);
                    for (int i = 0; i < n; i++)
                        for (int l = 0; l < width; l++)
                            out[(size_t)i * m->rows + l] = tile[i * LANES + l] + (m->add ? m->add[p * LANES + l] : 0.0f);
                }
        }
    }
}
}
