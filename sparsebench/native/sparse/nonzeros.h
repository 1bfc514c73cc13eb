// Many vectors times a bitmask, in float32: each weight that is not zero times all vectors. Inputs are in the first-level cache,
// so most of the time is products, and a zero takes none.

#pragma once

#include "multiply.h"

namespace {

constexpr i64 CHUNK_BYTES = 32 << 10;  // of inputs
constexpr i64 LISTED_ROWS = 64;

// For vectors of FLOATS floats, four of which hold the sums of a row.
template <int FLOATS>
struct Wide {
    typedef float Vector __attribute__((vector_size(FLOATS * 4), aligned(4), may_alias));
    static constexpr i64 TOKENS = 4 * FLOATS;  // that are multiplied at the same time
    static constexpr i64 CHUNK = CHUNK_BYTES / (TOKENS * 4) / GROUP * GROUP;  // columns
};

struct NonzerosJob {
    const Matrix* matrix;
    const float* x;    // for each Wide::TOKENS vectors (cols, TOKENS), behind the last one anything
    const void* bias;  // of rows, of the type of y, or null
    void* y;           // (tokens, rows)
    i64 tokens;
};

// The weights of some rows that are not zero, scales included, and where their inputs are from the first one's of the row.
struct Lists {
    std::vector<u32> offsets;
    std::vector<float> values;
    std::vector<i64> begins;  // (rows, chunks), and the end
};

template <int TYPE>
ALWAYS float stored_value(const Row& row, i64 at) {
    if (TYPE == INT8) return float(i8(row.values[at]));
    at += row.odd;
    return float(((row.values[at / 2] >> at % 2 * 4 & 15) ^ 8) - 8);
}

template <int TYPE>
ALWAYS void list_values(const Matrix& m, const Row& row, i64 number, float* out) {
    if constexpr (TYPE == FLOAT) {
        std::memcpy(out, row.values, row.count * 4);
    } else if constexpr (TYPE == BFLOAT) {
        for (i64 i = 0; i < row.count; ++i) {
            u16 word;  // may begin at any byte
            std::memcpy(&word, row.values + 2 * i, 2);
            out[i] = widen(word);
        }
    } else if (m.group >= m.cols) {
        const float scale = scale_at(m, number);
        for (i64 i = 0; i < row.count; ++i) out[i] = stored_value<TYPE>(row, i) * scale;
    } else {
        for (i64 col = 0, at = 0; col < m.cols; col += 32) {
            const float scale = group_scale(m, number, col / GROUP, int(col % GROUP / 32));
            const i64 end = at + __builtin_popcount(u32(row.mask(col / GROUP) >> col % GROUP));
            for (; at < end; ++at) out[at] = stored_value<TYPE>(row, at) * scale;
        }
    }
}

#if defined(__x86_64__)
// Writes up to 16 numbers behind the last.
AVX512 inline void list_offsets_avx512(const Row& row, i64 groups, u32 apart, u32* to) {
    const __m512i counts = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i offsets = _mm512_mullo_epi32(counts, _mm512_set1_epi32(int(apart)));
    for (i64 group = 0; group < groups; ++group) {
        const u64 bits = row.mask(group);
        for (int part = 0; part < 4; ++part) {
            const __mmask16 some = __mmask16(bits >> 16 * part);
            _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(some, offsets));
            to += __builtin_popcount(some);
            offsets = _mm512_add_epi32(offsets, _mm512_set1_epi32(int(16 * apart)));
        }
    }
}
#endif

template <int FLOATS>
ALWAYS void list_offsets(const Row& row, i64 groups, u32* to) {
    constexpr u32 APART = u32(Wide<FLOATS>::TOKENS);
#if defined(__x86_64__)
    if constexpr (FLOATS == 16) return list_offsets_avx512(row, groups, APART, to);
#endif
    for (i64 group = 0; group < groups; ++group)
        for (u64 bits = row.mask(group); bits; bits &= bits - 1)
            *to++ = (u32(group * GROUP) + u32(__builtin_ctzll(bits))) * APART;
}

template <int TYPE, int FLOATS>
ALWAYS void list_rows(const Matrix& m, i64 first, i64 count, std::vector<u8>& copy, Lists& lists) {
    const i64 most = m.starts[first + count] - m.starts[first], groups = groups_of(m.cols);
    if (i64(lists.values.size()) < most + LINE) lists.offsets.resize(most + LINE), lists.values.resize(most + LINE);
    lists.begins.clear();
    i64 at = 0;
    for (i64 number = first; number < first + count; ++number) {
        const Row row = row_of(m, number, copy);
        list_values<TYPE>(m, row, number, lists.values.data() + at);
        list_offsets<FLOATS>(row, groups, lists.offsets.data() + at);
        for (i64 group = 0; group < groups; ++group) {
            if (group * GROUP % Wide<FLOATS>::CHUNK == 0) lists.begins.push_back(at);
            at += __builtin_popcountll(row.mask(group));
        }
    }
    lists.begins.push_back(at);
}

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

// ---- products ----------------------------------------------------------------------------------------------------------

// Adds `count` weights times HELD · FLOATS vectors to `sums`; two weights at a time, for each sum waits for the one before.
template <int FLOATS, int HELD>
ALWAYS void add_products(const u32* offsets, const float* values, i64 count, const float* x, float* sums) {
    using V = typename Wide<FLOATS>::Vector;
    V even[HELD], odd[HELD];
#pragma GCC unroll 4
    for (int v = 0; v < HELD; ++v) even[v] = reinterpret_cast<const V*>(sums)[v], odd[v] = V{};
    i64 i = 0;
    for (; i + 2 <= count; i += 2) {
        const V *one = reinterpret_cast<const V*>(x + offsets[i]), *other = reinterpret_cast<const V*>(x + offsets[i + 1]);
#pragma GCC unroll 4
        for (int v = 0; v < HELD; ++v) even[v] += one[v] * values[i];
#pragma GCC unroll 4
        for (int v = 0; v < HELD; ++v) odd[v] += other[v] * values[i + 1];
    }
    if (i < count)
#pragma GCC unroll 4
        for (int v = 0; v < HELD; ++v) even[v] += reinterpret_cast<const V*>(x + offsets[i])[v] * values[i];
#pragma GCC unroll 4
    for (int v = 0; v < HELD; ++v) reinterpret_cast<V*>(sums)[v] = even[v] + odd[v];
}

template <int FLOATS, int HELD>
ALWAYS void listed_rows(const Lists& lists, i64 rows, i64 chunks, const float* x, float* sums) {
    for (i64 chunk = 0; chunk < chunks; ++chunk)
        for (i64 row = 0; row < rows; ++row) {
            const i64 begin = lists.begins[row * chunks + chunk], end = lists.begins[row * chunks + chunk + 1];
            float* to = sums + row * Wide<FLOATS>::TOKENS;
            add_products<FLOATS, HELD>(&lists.offsets[begin], &lists.values[begin], end - begin, x, to);
        }
}

template <int TYPE, class E, int FLOATS>
ALWAYS void rows_by_nonzeros(const NonzerosJob& job, i64 first, i64 last) {
    const Matrix& m = *job.matrix;
    const i64 chunks = (m.cols + Wide<FLOATS>::CHUNK - 1) / Wide<FLOATS>::CHUNK;
    const E* bias = static_cast<const E*>(job.bias);
    E* y = static_cast<E*>(job.y);
    alignas(LINE) float sums[LISTED_ROWS * Wide<FLOATS>::TOKENS];
    std::vector<u8> copy;
    Lists lists;
    for (i64 begin = first; begin < last; begin += LISTED_ROWS) {
        const i64 rows = std::min(LISTED_ROWS, last - begin);
        list_rows<TYPE, FLOATS>(m, begin, rows, copy, lists);
        for (i64 token = 0; token < job.tokens; token += Wide<FLOATS>::TOKENS) {
            const i64 some = std::min(Wide<FLOATS>::TOKENS, job.tokens - token);
            const float* x = job.x + token * m.cols;
            std::fill(sums, sums + rows * Wide<FLOATS>::TOKENS, 0.f);
            switch ((some + FLOATS - 1) / FLOATS) {
                case 1: listed_rows<FLOATS, 1>(lists, rows, chunks, x, sums); break;
                case 2: listed_rows<FLOATS, 2>(lists, rows, chunks, x, sums); break;
                case 3: listed_rows<FLOATS, 3>(lists, rows, chunks, x, sums); break;
                default: listed_rows<FLOATS, 4>(lists, rows, chunks, x, sums);
            }
            E* to = y + token * m.rows + begin;
            turn<FLOATS>(sums, Wide<FLOATS>::TOKENS, rows, some, to, m.rows, bias ? bias + begin : nullptr);
        }
    }
}

// Lays out x (tokens, cols) as NonzerosJob has it.
template <class E, int FLOATS>
ALWAYS void by_columns(const E* x, i64 cols, i64 tokens, float* to) {
    constexpr i64 TOKENS = Wide<FLOATS>::TOKENS;
    const float* nothing = nullptr;
    for (i64 token = 0; token < tokens; token += TOKENS)
        turn<FLOATS>(x + token * cols, cols, std::min(TOKENS, tokens - token), cols, to + token * cols, TOKENS, nothing);
}

using NonzerosRows = void (*)(const NonzerosJob&, i64 first, i64 last);

#if defined(__x86_64__)
template <int TYPE, class E>
AVX512 void nonzeros_avx512(const NonzerosJob& job, i64 first, i64 last) {
    rows_by_nonzeros<TYPE, E, 16>(job, first, last);
}
template <int TYPE, class E>
AVX2 void nonzeros_avx2(const NonzerosJob& job, i64 first, i64 last) {
    rows_by_nonzeros<TYPE, E, 8>(job, first, last);
}
template <class E>
AVX512 void by_columns_avx512(const E* x, i64 cols, i64 tokens, float* to) { by_columns<E, 16>(x, cols, tokens, to); }
template <class E>
AVX2 void by_columns_avx2(const E* x, i64 cols, i64 tokens, float* to) { by_columns<E, 8>(x, cols, tokens, to); }
#endif
template <int TYPE, class E>
void nonzeros_portable(const NonzerosJob& job, i64 first, i64 last) {
    rows_by_nonzeros<TYPE, E, 4>(job, first, last);
}

template <int TYPE, class E>
NonzerosRows nonzeros_here() {
#if defined(__x86_64__)
    if (level >= WITH_AVX512) return nonzeros_avx512<TYPE, E>;
    if (level >= WITH_AVX2) return nonzeros_avx2<TYPE, E>;
#endif
    return nonzeros_portable<TYPE, E>;
}

template <class E>
void by_columns_here(const E* x, i64 cols, i64 tokens, float* to) {
#if defined(__x86_64__)
    if (level >= WITH_AVX512) return by_columns_avx512(x, cols, tokens, to);
    if (level >= WITH_AVX2) return by_columns_avx2(x, cols, tokens, to);
#endif
    by_columns<E, 4>(x, cols, tokens, to);
}

struct NonzerosWork {
    NonzerosJob job;
    NonzerosRows act;
};

void nonzeros_part(void* data, i64 part, i64 parts) {
    const auto& work = *static_cast<NonzerosWork*>(data);
    work.act(work.job, cut(*work.job.matrix, part, parts), cut(*work.job.matrix, part + 1, parts));
}

// y (tokens, rows) = x (tokens, cols) · Wᵀ + b for a bitmask; inputs are not rounded.
template <class E>
void multiply_by_nonzeros(const Layer& layer, const E* x, E* y, i64 tokens, int threads) {
    const Matrix& m = *layer.matrix;
    const i64 together = level >= WITH_AVX512 ? Wide<16>::TOKENS : level >= WITH_AVX2 ? Wide<8>::TOKENS : Wide<4>::TOKENS;
    float* columns = reinterpret_cast<float*>(scratch((tokens + together - 1) / together * together * m.cols * 4));
    by_columns_here(x, m.cols, tokens, columns);
    const NonzerosRows floats[] = {nonzeros_here<FLOAT, E>(), nonzeros_here<BFLOAT, E>()};
    const NonzerosRows integers[] = {nonzeros_here<INT8, E>(), nonzeros_here<INT4, E>()};
    NonzerosWork work{{&m, columns, layer.bias, y, tokens}, m.type < INT8 ? floats[m.type] : integers[m.type - INT8]};
    on_threads(nonzeros_part, &work, m.count * tokens < 65536 ? 1 : threads);
}

}  // namespace
