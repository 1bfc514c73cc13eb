// Many vectors by AMX, which multiplies 16 rows with 16 vectors at a time, 32 columns of bfloat16 in one instruction.

#pragma once

#include "multiply.h"

#if defined(AMX)

namespace {

constexpr i64 BLOCK = 16;              // rows, or vectors, of one tile
constexpr i64 STEP = 32;               // its columns
constexpr i64 TILE_WORDS = BLOCK * STEP;
constexpr i64 BOTH = 2 * BLOCK;        // rows, and vectors, that are multiplied at the same time
constexpr i64 EXPANDED_BYTES = 1 << 20;  // of rows that stay in the second-level cache

// Eight tiles of 16 lines each.
struct alignas(LINE) TileConfig {
    u8 palette = 1, start_row = 0, reserved[14] = {};
    u16 bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    u8 rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct AmxJob {
    const Matrix* matrix;
    const u16* x;     // for each block of vectors its tiles: of every two columns the pairs of all vectors
    const u16* bias;  // of rows, or null
    u16* y;           // (tokens, rows)
    i64 tokens;
};

// Lays out x (tokens, cols) as AmxJob has it, with zeros behind the last column and the last vector.
VECTORS void pair_columns(const u16* x, i64 cols, i64 tokens, u16* to) {
    for (i64 token = 0; token < tokens; token += BLOCK)
        for (i64 col = 0; col < groups_of(cols) * GROUP; col += STEP, to += TILE_WORDS) {
            const __mmask32 within = _bzhi_u32(~0u, u32(std::clamp<i64>(cols - col, 0, STEP)));
            __m512i lines[BLOCK];
            for (i64 i = 0; i < BLOCK; ++i)
                lines[i] = _mm512_maskz_loadu_epi16(token + i < tokens ? within : 0, x + (token + i) * cols + col);
            transpose(lines);
            for (i64 i = 0; i < BLOCK; ++i) _mm512_store_si512(to + i * STEP, lines[i]);
        }
}

// Rounds a tile of sums, of 16 rows by 16 vectors, into y, whose vectors are `apart` words apart.
VECTORS ALWAYS void put_sums(const float* tile, __m512 bias, u16* y, i64 apart) {
    __m512i lines[BLOCK];
    for (i64 i = 0; i < BLOCK; ++i) lines[i] = _mm512_load_si512(tile + i * BLOCK);
    transpose(lines);
    for (i64 i = 0; i < BLOCK; ++i) {
        const __m512 sums = _mm512_add_ps(_mm512_castsi512_ps(lines[i]), bias);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i * apart), (__m256i)_mm512_cvtneps_pbh(sums));
    }
}

// ROWS times TOKENS tiles, one or two each. `size` words are a block's, of rows as of vectors; `left` are the rows that have a
// bias.
template <int ROWS, int TOKENS>
AMX void block_products(const u16* weights, const u16* x, i64 size, const u16* bias, i64 left, u16* y, i64 apart) {
    _tile_zero(0);
    if (TOKENS > 1) _tile_zero(1);
    if (ROWS > 1) _tile_zero(2);
    if (ROWS > 1 && TOKENS > 1) _tile_zero(3);
    for (i64 at = 0; at < size; at += TILE_WORDS) {
        _tile_loadd(4, weights + at, LINE);
        _tile_loadd(6, x + at, LINE);
        _tile_dpbf16ps(0, 4, 6);
        if (TOKENS > 1) {
            _tile_loadd(7, x + size + at, LINE);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (ROWS > 1) {
            _tile_loadd(5, weights + size + at, LINE);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (ROWS > 1 && TOKENS > 1) _tile_dpbf16ps(3, 5, 7);
    }
    alignas(LINE) float sums[4][BLOCK * BLOCK];
    _tile_stored(0, sums[0], LINE);
    if (TOKENS > 1) _tile_stored(1, sums[1], LINE);
    if (ROWS > 1) _tile_stored(2, sums[2], LINE);
    if (ROWS > 1 && TOKENS > 1) _tile_stored(3, sums[3], LINE);
    for (i64 i = 0; i < ROWS; ++i) {
        const __mmask16 within = __mmask16(_bzhi_u32(0xffff, u32(std::clamp<i64>(left - i * BLOCK, 0, BLOCK))));
        const __m512 more = bias ? sixteen_floats(bias + i * BLOCK, within) : _mm512_setzero_ps();
        for (i64 j = 0; j < TOKENS; ++j) put_sums(sums[2 * i + j], more, y + j * BLOCK * apart + i * BLOCK, apart);
    }
}

AMX void rows_by_amx(const AmxJob& job, i64 first, i64 last) {
    const Matrix& m = *job.matrix;
    const i64 size = groups_of(m.cols) * GROUP * BLOCK, many = std::max(BOTH, EXPANDED_BYTES / (size * 4) * BOTH);
    Expander<u16> rows(m);
    u16* expanded = expanded_room<u16>(many / BLOCK * size);
    if (m.cols % GROUP) std::fill(expanded, expanded + many / BLOCK * size, u16(0));
    thread_local std::vector<u16> outputs;  // of some vectors together, for each one's own are far apart
    if (i64(outputs.size()) < BOTH * many) outputs.resize(BOTH * many);
    const TileConfig config;
    _tile_loadconfig(&config);
    for (i64 begin = first; begin < last; begin += many) {
        const i64 count = std::min(many, last - begin);
        for (i64 row = 0; row < count; ++row)
            rows.row(begin + row, expanded + row / BLOCK * size + row % BLOCK * STEP, TILE_WORDS);
        for (i64 token = 0; token < job.tokens; token += BOTH) {
            const i64 some = std::min(BOTH, job.tokens - token);
            for (i64 row = 0; row < count; row += BOTH) {
                const auto act = count - row > BLOCK ? (some > BLOCK ? block_products<2, 2> : block_products<2, 1>)
                                                     : (some > BLOCK ? block_products<1, 2> : block_products<1, 1>);
                const u16* bias = job.bias ? job.bias + begin + row : nullptr;
                const u16 *weights = expanded + row / BLOCK * size, *x = job.x + token / BLOCK * size;
                act(weights, x, size, bias, count - row, outputs.data() + row, many);
            }
            for (i64 i = 0; i < some; ++i)
                std::memcpy(job.y + (token + i) * m.rows + begin, outputs.data() + i * many, count * 2);
        }
    }
    _tile_release();
}

void amx_part(void* data, i64 part, i64 parts) {
    const auto& job = *static_cast<AmxJob*>(data);
    rows_by_amx(job, cut(*job.matrix, part, parts), cut(*job.matrix, part + 1, parts));
}

// y (tokens, rows) = x (tokens, cols) · Wᵀ + b: rows are expanded to bfloat16, inputs are not rounded.
void multiply_by_amx(const Layer& layer, const u16* x, u16* y, i64 tokens, int threads) {
    const Matrix& m = *layer.matrix;
    const i64 blocks = (tokens + BLOCK - 1) / BLOCK;
    u16* pairs = reinterpret_cast<u16*>(scratch(blocks * groups_of(m.cols) * GROUP * BLOCK * 2));
    pair_columns(x, m.cols, tokens, pairs);
    AmxJob job{&m, pairs, static_cast<const u16*>(layer.bias), y, tokens};
    on_threads(amx_part, &job, m.rows * m.cols * tokens < 65536 ? 1 : threads);
}

}  // namespace

#endif
