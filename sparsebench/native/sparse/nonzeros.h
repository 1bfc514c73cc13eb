// Many vectors times a bitmask, in float32: each weight that is not zero times all vectors. Inputs are in the first-level cache,
// so most of the time is products, and a zero takes none.

#pragma once

#include "columns.h"

namespace {

constexpr i64 LISTED_ROWS = 64;

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
ALWAYS void rows_by_nonzeros(const ColumnsJob& job, i64 first, i64 last) {
    const Matrix& m = *job.matrix;
    const i64 chunks = (m.cols + Wide<FLOATS>::CHUNK - 1) / Wide<FLOATS>::CHUNK;
    const E* bias = static_cast<const E*>(job.bias);
    E* y = static_cast<E*>(job.y);
    alignas(LINE) float sums[LISTED_ROWS * Wide<FLOATS>::TOKENS];
    std::vector<u8> copy;
    thread_local Lists lists;  // kept: new pages cost as much as what fills them
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

#if defined(__x86_64__)
template <int TYPE, class E>
AVX512 void nonzeros_avx512(const ColumnsJob& job, i64 first, i64 last) { rows_by_nonzeros<TYPE, E, 16>(job, first, last); }
template <int TYPE, class E>
AVX2 void nonzeros_avx2(const ColumnsJob& job, i64 first, i64 last) { rows_by_nonzeros<TYPE, E, 8>(job, first, last); }
#endif
template <int TYPE, class E>
void nonzeros_portable(const ColumnsJob& job, i64 first, i64 last) { rows_by_nonzeros<TYPE, E, 4>(job, first, last); }

template <int TYPE, class E>
ColumnsRows nonzeros_here() {
#if defined(__x86_64__)
    if (level >= WITH_AVX512) return nonzeros_avx512<TYPE, E>;
    if (level >= WITH_AVX2) return nonzeros_avx2<TYPE, E>;
#endif
    return nonzeros_portable<TYPE, E>;
}

// What multiplies rows of this bitmask; y is of type E.
template <class E>
ColumnsRows by_nonzeros(const Matrix& m) {
    const ColumnsRows types[] = {nonzeros_here<FLOAT, E>(), nonzeros_here<BFLOAT, E>(), nonzeros_here<INT8, E>(),
                                 nonzeros_here<INT4, E>()};
    return types[m.type];
}

}  // namespace
