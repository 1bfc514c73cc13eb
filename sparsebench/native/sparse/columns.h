// Many vectors times a matrix in float32: vectors are laid out by columns, so that one weight multiplies those of many tokens.

#pragma once

#include "multiply.h"

namespace {

constexpr i64 CHUNK_BYTES = 32 << 10;  // of inputs

// For vectors of FLOATS floats, four of which hold the sums of a row.
template <int FLOATS>
struct Wide {
    typedef float Vector __attribute__((vector_size(FLOATS * 4), aligned(4), may_alias));
    static constexpr i64 TOKENS = 4 * FLOATS;  // that are multiplied at the same time
    static constexpr i64 CHUNK = CHUNK_BYTES / (TOKENS * 4) / GROUP * GROUP;  // columns
};

struct ColumnsJob {
    const Matrix* matrix;
    const float* x;    // for each Wide::TOKENS vectors (cols, TOKENS), behind the last one anything
    const void* bias;  // of rows, of the type of y, or null
    void* y;           // (tokens, rows)
    i64 tokens;
};

// ---- columns to rows and back ------------------------------------------------------------------------------------------

#if defined(__x86_64__)
AVX512 inline void put_sixteen(__m512 values, __mmask16 within, float* out) { _mm512_mask_storeu_ps(out, within, values); }
AVX512 inline void put_sixteen(__m512 values, __mmask16 within, u16* out) {  // as `rounded` does
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i even = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    const __mmask16 none = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(even, none, bits, _mm512_set1_epi32(0x400000));
    _mm256_mask_storeu_epi16(out, within, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

// Rows of `from` become columns of `to`, with `more` added, if it is not null, along the rows of `to`.
template <class From, class To>
AVX512 void turn_avx512(const From* from, i64 apart, i64 rows, i64 cols, To* to, i64 to_apart, const To* more) {
    for (i64 row = 0; row < rows; row += 16)
        for (i64 col = 0; col < cols; col += 16) {
            const __mmask16 here = __mmask16((1u << std::min<i64>(16, cols - col)) - 1);
            const __mmask16 there = __mmask16((1u << std::min<i64>(16, rows - row)) - 1);
            __m512i lines[16];
            for (i64 i = 0; i < 16; ++i)
                lines[i] = _mm512_castps_si512(sixteen_floats(from + (row + i) * apart + col, row + i < rows ? here : 0));
            transpose(lines);
            const __m512 added = more ? sixteen_floats(more + row, there) : _mm512_setzero_ps();
            for (i64 i = 0; i < std::min<i64>(16, cols - col); ++i)
                put_sixteen(_mm512_add_ps(_mm512_castsi512_ps(lines[i]), added), there, to + (col + i) * to_apart + row);
        }
}
#endif

template <int FLOATS, class From, class To>
ALWAYS void turn(const From* from, i64 apart, i64 rows, i64 cols, To* to, i64 to_apart, const To* more) {
#if defined(__x86_64__)
    if constexpr (FLOATS == 16) return turn_avx512(from, apart, rows, cols, to, to_apart, more);
#endif
    for (i64 col = 0; col < cols; ++col)
        for (i64 row = 0; row < rows; ++row) {
            const float value = widen(from[row * apart + col]);
            put(more ? value + widen(more[row]) : value, to + col * to_apart + row);
        }
}

// Lays out x (tokens, cols) as ColumnsJob has it.
template <class E, int FLOATS>
ALWAYS void by_columns(const E* x, i64 cols, i64 tokens, float* to) {
    constexpr i64 TOKENS = Wide<FLOATS>::TOKENS;
    const float* nothing = nullptr;
    for (i64 token = 0; token < tokens; token += TOKENS)
        turn<FLOATS>(x + token * cols, cols, std::min(TOKENS, tokens - token), cols, to + token * cols, TOKENS, nothing);
}

using ColumnsRows = void (*)(const ColumnsJob&, i64 first, i64 last);

#if defined(__x86_64__)
template <class E>
AVX512 void by_columns_avx512(const E* x, i64 cols, i64 tokens, float* to) { by_columns<E, 16>(x, cols, tokens, to); }
template <class E>
AVX2 void by_columns_avx2(const E* x, i64 cols, i64 tokens, float* to) { by_columns<E, 8>(x, cols, tokens, to); }
#endif

template <class E>
void by_columns_here(const E* x, i64 cols, i64 tokens, float* to) {
#if defined(__x86_64__)
    if (level >= WITH_AVX512) return by_columns_avx512(x, cols, tokens, to);
    if (level >= WITH_AVX2) return by_columns_avx2(x, cols, tokens, to);
#endif
    by_columns<E, 4>(x, cols, tokens, to);
}

struct ColumnsWork {
    ColumnsJob job;
    ColumnsRows act;
};

void columns_part(void* data, i64 part, i64 parts) {
    const auto& work = *static_cast<ColumnsWork*>(data);
    work.act(work.job, cut(*work.job.matrix, part, parts), cut(*work.job.matrix, part + 1, parts));
}

// y (tokens, rows) = x (tokens, cols) · Wᵀ + b by `act`; inputs are not rounded.
template <class E>
void multiply_by_columns(const Layer& layer, const E* x, E* y, i64 tokens, int threads, ColumnsRows act) {
    const Matrix& m = *layer.matrix;
    const i64 together = level >= WITH_AVX512 ? Wide<16>::TOKENS : level >= WITH_AVX2 ? Wide<8>::TOKENS : Wide<4>::TOKENS;
    float* columns = reinterpret_cast<float*>(scratch((tokens + together - 1) / together * together * m.cols * 4));
    by_columns_here(x, m.cols, tokens, columns);
    ColumnsWork work{{&m, columns, layer.bias, y, tokens}, act};
    on_threads(columns_part, &work, m.count * tokens < 65536 ? 1 : threads);
}

}  // namespace
