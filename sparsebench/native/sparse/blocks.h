// Many vectors in float32: rows are expanded in the second-level cache, and those of a block share the loads of inputs.

#pragma once

#include "columns.h"

namespace {

constexpr i64 BLOCK_ROWS = 12;
constexpr i64 BLOCK_STEP = LINE / 4;  // columns of a row that are next to each other
constexpr i64 BLOCKS_BYTES = 512 << 10;  // of expanded rows

// Values of the rows that are expanded next, fetched into the second-level cache while products are made.
struct Coming {
    const u8 *next, *end;
    i64 each;  // bytes at a time, whole lines

    ALWAYS void fetch() {
        for (const u8* stop = end - next > each ? next + each : end; next < stop; next += LINE) __builtin_prefetch(next, 0, 2);
    }
};

// Adds ROWS rows times HELD · FLOATS vectors to `sums`, for some columns; a row's weights are within a block of BLOCK_ROWS.
template <int FLOATS, int HELD, int ROWS>
ALWAYS void add_rows(const float* weights, i64 cols, const float* x, float* sums, Coming& coming) {
    using V = typename Wide<FLOATS>::Vector;
    constexpr i64 TOKENS = Wide<FLOATS>::TOKENS;
    V all[ROWS][HELD];
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int v = 0; v < HELD; ++v) all[row][v] = *reinterpret_cast<const V*>(sums + row * TOKENS + v * FLOATS);
    for (i64 begin = 0; begin < cols; begin += BLOCK_STEP, weights += BLOCK_ROWS * BLOCK_STEP) {
        const i64 some = std::min(BLOCK_STEP, cols - begin);
        coming.fetch();
        for (i64 col = 0; col < some; ++col, x += TOKENS) {
            V with[HELD];
#pragma GCC unroll 4
            for (int v = 0; v < HELD; ++v) with[v] = *reinterpret_cast<const V*>(x + v * FLOATS);
#pragma GCC unroll 12
            for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
                for (int v = 0; v < HELD; ++v) all[row][v] += with[v] * weights[row * BLOCK_STEP + col];
        }
    }
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int v = 0; v < HELD; ++v) *reinterpret_cast<V*>(sums + row * TOKENS + v * FLOATS) = all[row][v];
}

// Blocks, of `size` floats each, times HELD · FLOATS vectors: sums (rows, TOKENS).
template <int FLOATS, int HELD>
ALWAYS void add_blocks(const float* blocks, i64 count, i64 size, i64 cols, const float* x, float* sums, Coming& coming) {
    constexpr i64 TOKENS = Wide<FLOATS>::TOKENS, CHUNK = Wide<FLOATS>::CHUNK;
    constexpr int ROWS = FLOATS == 16 ? (HELD > 2 ? 6 : 12) : HELD > 1 ? 3 : 6;  // as many as registers hold
    for (i64 begin = 0; begin < cols; begin += CHUNK)
        for (i64 block = 0; block < count; ++block)
            for (i64 row = 0; row < BLOCK_ROWS; row += ROWS)
                add_rows<FLOATS, HELD, ROWS>(blocks + block * size + begin * BLOCK_ROWS + row * BLOCK_STEP,
                                             std::min(CHUNK, cols - begin), x + begin * TOKENS,
                                             sums + (block * BLOCK_ROWS + row) * TOKENS, coming);
}

// The bytes of values before a row.
i64 value_bytes(const Matrix& m, i64 row) { return m.masks ? bytes_of(int(m.type), m.starts[row]) : row * m.stride; }

template <class E, int FLOATS>
ALWAYS void rows_by_blocks(const ColumnsJob& job, i64 first, i64 last) {
    constexpr i64 TOKENS = Wide<FLOATS>::TOKENS, MOST_ROWS = 16 * BLOCK_ROWS;
    const Matrix& m = *job.matrix;
    const i64 size = (m.cols + BLOCK_STEP - 1) / BLOCK_STEP * BLOCK_STEP * BLOCK_ROWS;
    const i64 tile = std::clamp<i64>(BLOCKS_BYTES / (size * 4) * BLOCK_ROWS, BLOCK_ROWS, MOST_ROWS);
    const E* bias = static_cast<const E*>(job.bias);
    E* y = static_cast<E*>(job.y);
    alignas(LINE) float sums[MOST_ROWS * TOKENS];
    float* expanded = expanded_room<float>(tile / BLOCK_ROWS * size);
    Expander<float> expander(m);
    for (i64 begin = first; begin < last; begin += tile) {
        const i64 rows = std::min(tile, last - begin), blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
        for (i64 row = 0; row < rows; ++row) {
            float* to = expanded + row / BLOCK_ROWS * size + row % BLOCK_ROWS * BLOCK_STEP;
            expander.row(begin + row, to, BLOCK_ROWS * BLOCK_STEP);
        }
        const i64 coming_begin = value_bytes(m, std::min(last, begin + tile));
        const i64 coming_bytes = value_bytes(m, std::min(last, begin + 2 * tile)) - coming_begin;
        const i64 steps = (job.tokens + TOKENS - 1) / TOKENS * blocks * (m.cols + BLOCK_STEP - 1) / BLOCK_STEP;
        Coming coming{m.values + coming_begin, m.values + coming_begin + coming_bytes, lines(coming_bytes / steps)};
        for (i64 token = 0; token < job.tokens; token += TOKENS) {
            const i64 some = std::min(TOKENS, job.tokens - token);
            const float* x = job.x + token * m.cols;
            std::fill(sums, sums + blocks * BLOCK_ROWS * TOKENS, 0.f);
            switch ((some + FLOATS - 1) / FLOATS) {
                case 1: add_blocks<FLOATS, 1>(expanded, blocks, size, m.cols, x, sums, coming); break;
                case 2: add_blocks<FLOATS, 2>(expanded, blocks, size, m.cols, x, sums, coming); break;
                case 3: add_blocks<FLOATS, 3>(expanded, blocks, size, m.cols, x, sums, coming); break;
                default: add_blocks<FLOATS, 4>(expanded, blocks, size, m.cols, x, sums, coming);
            }
            E* to = y + token * m.rows + begin;
            turn<FLOATS>(sums, TOKENS, rows, some, to, m.rows, bias ? bias + begin : nullptr);
        }
    }
}

#if defined(__x86_64__)
template <class E>
AVX512 void blocks_avx512(const ColumnsJob& job, i64 first, i64 last) { rows_by_blocks<E, 16>(job, first, last); }
template <class E>
AVX2 void blocks_avx2(const ColumnsJob& job, i64 first, i64 last) { rows_by_blocks<E, 8>(job, first, last); }
#endif
template <class E>
void blocks_portable(const ColumnsJob& job, i64 first, i64 last) { rows_by_blocks<E, 4>(job, first, last); }

// What multiplies rows; y is of type E.
template <class E>
ColumnsRows by_blocks() {
#if defined(__x86_64__)
    if (level >= WITH_AVX512) return blocks_avx512<E>;
    if (level >= WITH_AVX2) return blocks_avx2<E>;
#endif
    return blocks_portable<E>;
}

}  // namespace
