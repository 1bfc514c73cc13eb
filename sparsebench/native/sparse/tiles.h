// Many vectors: rows are expanded to a tile of bfloat16 or float32 that stays in the second-level cache.

#pragma once

#include "products.h"

namespace {

ALWAYS void put(float value, u16* out) { *out = rounded(value); }
ALWAYS void put(float value, float* out) { *out = value; }

// Writes `cols` weights of a row, scales included, each rounded once.
template <int TYPE, bool TABLES, class W>
ALWAYS void expand_any(const Matrix& m, const Row& row, i64 number, W* out) {
    for (i64 group = 0, next = 0; group < groups_of(m.cols); ++group, out += GROUP) {
        float weights[GROUP];
        weights_of<TYPE, TABLES>(m, row, group, next, weights);
        const i64 width = std::min(GROUP, m.cols - group * GROUP);
        if (TYPE >= INT8) {
            const float low = group_scale(m, number, group, 0);
            const float high = m.group == 32 && width > 32 ? group_scale(m, number, group, 1) : low;
            for (int i = 0; i < GROUP; ++i) weights[i] *= i < 32 ? low : high;
        }
        for (i64 i = 0; i < width; ++i) put(weights[i], out + i);
    }
}

template <class W>
void expand_portable(const Matrix& m, const Row& row, i64 number, W* out) {
    if (m.type == FLOAT) expand_any<FLOAT, false>(m, row, number, out);
    else if (m.type == BFLOAT) expand_any<BFLOAT, false>(m, row, number, out);
    else if (m.type == INT8) expand_any<INT8, false>(m, row, number, out);
    else expand_any<INT4, false>(m, row, number, out);
}

#if defined(__x86_64__)

template <class W>
AVX2 void expand_avx2(const Matrix& m, const Row& row, i64 number, W* out) {
    if (m.type == FLOAT) expand_any<FLOAT, true>(m, row, number, out);
    else if (m.type == BFLOAT) expand_any<BFLOAT, true>(m, row, number, out);
    else if (m.type == INT8) expand_any<INT8, true>(m, row, number, out);
    else expand_any<INT4, true>(m, row, number, out);
}

// To bfloat16, with zeros up to a whole group. Each 32 columns go `apart` words behind those before them.
template <int TYPE, bool MASKED>
VECTORS void expand_words(const Matrix& m, const Row& row, i64 number, const u8* next, u16* out, i64 apart) {
    const i64 groups = groups_of(m.cols);
    for (i64 group = 0; group < groups; ++group, out += 2 * apart) {
        const i64 width = std::min(GROUP, m.cols - group * GROUP);
        _mm_prefetch(next + AHEAD, _MM_HINT_T0);
        if constexpr (TYPE == BFLOAT) {
            _mm_prefetch(next + AHEAD + LINE, _MM_HINT_T0);
            const u64 bits = MASKED ? row.mask(group) : 0;
            _mm512_storeu_si512(out, some_weights<TYPE, MASKED>(u32(bits), next, width));
            _mm512_storeu_si512(out + apart, some_weights<TYPE, MASKED>(u32(bits >> 32), next, width - 32));
        } else {
            const __m512i bytes = unsigned_weights<TYPE, MASKED>(row, group, next, width);
            const float low = group_scale(m, number, group, 0);
            const float high = m.group == 32 && width > 32 ? group_scale(m, number, group, 1) : low;
            alignas(64) u8 each[GROUP];
            _mm512_store_si512(each, _mm512_maskz_mov_epi8(_bzhi_u64(~0ull, u32(width)), bytes));
            const __m512i offset = _mm512_set1_epi32(TYPE == INT8 ? 128 : 8);
            __m512 quarter[4];
            for (int i = 0; i < 4; ++i) {
                const __m512i wide = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(each + 16 * i)));
                quarter[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(wide, offset)), _mm512_set1_ps(i < 2 ? low : high));
            }
            _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(quarter[1], quarter[0]));
            _mm512_storeu_si512(out + apart, (__m512i)_mm512_cvtne2ps_pbh(quarter[3], quarter[2]));
        }
    }
}

// A tile of rows in bfloat16, expanded into the same memory again and again.
class Tile {
    using Expand = void (*)(const Matrix&, const Row&, i64 number, const u8* next, u16* out, i64 apart);

    const Matrix& m;
    Expand expand;
    std::vector<u8> copy, bytes;
    std::vector<u16> room;

    static Expand chosen(const Matrix& m) {
        if (m.type == BFLOAT) return m.masks ? expand_words<BFLOAT, true> : expand_words<BFLOAT, false>;
        if (m.type == INT8) return m.masks ? expand_words<INT8, true> : expand_words<INT8, false>;
        return m.masks ? expand_words<INT4, true> : expand_words<INT4, false>;
    }

public:
    u16* const words;

    Tile(const Matrix& m, i64 size)
        : m(m), expand(chosen(m)), bytes(m.cols + 2 * LINE), room(size + LINE),
          words(room.data() + (LINE - reinterpret_cast<std::uintptr_t>(room.data()) % LINE) / 2) {}

    void row(i64 number, u16* out, i64 apart) {
        const Row stored = row_of(m, number, copy);
        const u8* next = stored.values;
        if (m.type == INT4 && m.masks) {
            unpack(stored, bytes.data());
            next = bytes.data() + stored.odd;
        }
        expand(m, stored, number, next, out, apart);
    }
};

// Four rows times TOKENS vectors, in registers: sums (tokens, rows).
template <int TOKENS>
VECTORS void four_rows(const u16* weights, const u16* x, i64 width, i64 stride, float* sums, i64 apart, i64 rows) {
    __m512 all[TOKENS][4];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
        for (int row = 0; row < 4; ++row) all[t][row] = _mm512_setzero_ps();
    for (i64 col = 0; col < width; col += 32) {
        __m512bh four[4];
#pragma GCC unroll 8
        for (int row = 0; row < 4; ++row) four[row] = (__m512bh)_mm512_loadu_si512(weights + row * stride + col);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; ++t) {
            const __m512bh with = (__m512bh)_mm512_loadu_si512(x + t * stride + col);
#pragma GCC unroll 8
            for (int row = 0; row < 4; ++row) all[t][row] = _mm512_dpbf16_ps(all[t][row], four[row], with);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) {
        __m256 half[4];
#pragma GCC unroll 8
        for (int row = 0; row < 4; ++row)
            half[row] = _mm256_add_ps(_mm512_castps512_ps256(all[t][row]), _mm512_extractf32x8_ps(all[t][row], 1));
        const __m256 both = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
        _mm_mask_storeu_ps(sums + t * apart, __mmask8((1u << rows) - 1), four);
    }
}

constexpr i64 TILE_BYTES = 256 << 10;

// Words from one vector, or row of a tile, to the next: an odd number of lines, or all would share a few sets of the cache.
i64 tile_stride(i64 cols) { return groups_of(cols) * GROUP + 32; }

// For WORDS only.
VECTORS void rows_by_tiles(const Job& job, i64 first, i64 last) {
    const Matrix& m = *job.matrix;
    const i64 width = groups_of(m.cols) * GROUP, stride = job.in.stride, tile = std::max<i64>(4, TILE_BYTES / (stride * 2) / 4 * 4);
    Tile rows(m, tile * stride);
    const u16* x = static_cast<const u16*>(job.in.data);
    for (i64 begin = first; begin < last; begin += tile) {
        const i64 count = std::min(tile, last - begin);
        for (i64 row = 0; row < count; ++row) rows.row(begin + row, rows.words + row * stride, 32);
        for (i64 token = 0; token < job.in.tokens; token += 6) {
            const i64 some = std::min<i64>(6, job.in.tokens - token);
            for (i64 row = 0; row < count; row += 4) {
                float* sums = job.sums + token * m.rows + begin + row;
                const u16 *weights = rows.words + row * stride, *with = x + token * stride;
                const i64 wide = std::min<i64>(4, count - row);
                switch (some) {
                    case 6: four_rows<6>(weights, with, width, stride, sums, m.rows, wide); break;
                    case 5: four_rows<5>(weights, with, width, stride, sums, m.rows, wide); break;
                    case 4: four_rows<4>(weights, with, width, stride, sums, m.rows, wide); break;
                    case 3: four_rows<3>(weights, with, width, stride, sums, m.rows, wide); break;
                    case 2: four_rows<2>(weights, with, width, stride, sums, m.rows, wide); break;
                    default: four_rows<1>(weights, with, width, stride, sums, m.rows, wide);
                }
            }
        }
    }
}

#endif

// Writes a row into `out` as `cols` dense weights.
template <class W>
void expand_row(const Matrix& m, i64 number, W* out, std::vector<u8>& copy) {
    const Row row = row_of(m, number, copy);
#if defined(__x86_64__)
    if (level >= WITH_AVX2) return expand_avx2(m, row, number, out);
#endif
    expand_portable(m, row, number, out);
}

}  // namespace
