// Many vectors: rows are expanded to a tile of bfloat16 that stays in the second-level cache. Other files expand rows too.

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

template <bool TABLES, class W>
ALWAYS void expand_stored(const Matrix& m, const Row& row, i64 number, W* out) {
    if (m.type == FLOAT) expand_any<FLOAT, TABLES>(m, row, number, out);
    else if (m.type == BFLOAT) expand_any<BFLOAT, TABLES>(m, row, number, out);
    else if (m.type == INT8) expand_any<INT8, TABLES>(m, row, number, out);
    else expand_any<INT4, TABLES>(m, row, number, out);
}

template <class W>
void expand_portable(const Matrix& m, const Row& row, i64 number, W* out) { expand_stored<false>(m, row, number, out); }

#if defined(__x86_64__)

template <class W>
AVX2 void expand_avx2(const Matrix& m, const Row& row, i64 number, W* out) { expand_stored<true>(m, row, number, out); }

// The weights of a group in float32, scales included, as four vectors; `width` of them are columns.
template <int TYPE, bool MASKED>
VECTORS ALWAYS void widened(const Matrix& m, const Row& row, i64 number, i64 group, const u8*& next, i64 width,
                            __m512 (&quarters)[4]) {
    if constexpr (TYPE == FLOAT) {
        const u64 bits = MASKED ? row.mask(group) : 0;
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            quarters[i] = _mm512_castsi512_ps(some_weights<TYPE, MASKED>(u32(bits >> 16 * i), next, width - 16 * i));
    } else if constexpr (TYPE == BFLOAT) {
        const u64 bits = MASKED ? row.mask(group) : 0;
        for (int i = 0; i < 2; ++i) {
            const __m512i words = some_weights<TYPE, MASKED>(u32(bits >> 32 * i), next, width - 32 * i);
            const __m256i both[] = {_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64(words, 1)};
            for (int j = 0; j < 2; ++j)
                quarters[2 * i + j] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(both[j]), 16));
        }
    } else {
        const __m512i bytes = unsigned_weights<TYPE, MASKED>(row, group, next, width);
        const float low = group_scale(m, number, group, 0);
        const float high = m.group == 32 && width > 32 ? group_scale(m, number, group, 1) : low;
        alignas(64) u8 each[GROUP];
        _mm512_store_si512(each, _mm512_maskz_mov_epi8(_bzhi_u64(~0ull, u32(width)), bytes));
        const __m512i offset = _mm512_set1_epi32(TYPE == INT8 ? 128 : 8);
        for (int i = 0; i < 4; ++i) {
            const __m512i wide = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(each + 16 * i)));
            quarters[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(wide, offset)), _mm512_set1_ps(i < 2 ? low : high));
        }
    }
}

// Writes the weights of a row that are within its columns, in whole vectors that are `apart` elements apart.
template <int TYPE, bool MASKED, class W>
VECTORS void expand_vectors(const Matrix& m, const Row& row, i64 number, const u8* next, W* out, i64 apart) {
    const i64 groups = groups_of(m.cols);
    for (i64 group = 0; group < groups; ++group) {
        const i64 width = std::min(GROUP, m.cols - group * GROUP);
        const u64 within = _bzhi_u64(~0ull, u32(width));
        for (int line = 0; line < (TYPE == FLOAT ? 4 : TYPE == BFLOAT ? 2 : 1); ++line)
            _mm_prefetch(next + AHEAD + line * LINE, _MM_HINT_T0);
        __m512i words[2];
        if constexpr (sizeof(W) == 2 && TYPE == BFLOAT) {
            const u64 bits = MASKED ? row.mask(group) : 0;
            words[0] = some_weights<TYPE, MASKED>(u32(bits), next, width);
            words[1] = some_weights<TYPE, MASKED>(u32(bits >> 32), next, width - 32);
        } else {
            __m512 quarters[4];
            widened<TYPE, MASKED>(m, row, number, group, next, width, quarters);
            if constexpr (sizeof(W) == 4) {
                for (int i = 0; i < 4; ++i, out += apart)
                    _mm512_mask_storeu_ps(out, __mmask16(within >> 16 * i), quarters[i]);
                continue;
            }
            words[0] = (__m512i)_mm512_cvtne2ps_pbh(quarters[1], quarters[0]);
            words[1] = (__m512i)_mm512_cvtne2ps_pbh(quarters[3], quarters[2]);
        }
        for (int i = 0; i < 2; ++i, out += apart) _mm512_mask_storeu_epi16(out, __mmask32(within >> 32 * i), words[i]);
    }
}

#endif

// Expands rows of a matrix, scales included, each weight rounded once.
template <class W>
class Expander {
    static constexpr i64 VECTOR = LINE / i64(sizeof(W));
    using Expand = void (*)(const Matrix&, const Row&, i64 number, const u8* next, W* out, i64 apart);

    const Matrix& m;
    Expand by_vectors = nullptr;
    std::vector<u8> copy, bytes;
    std::vector<W> line;

    template <int TYPE>
    void choose_vectors() {
#if defined(__x86_64__)
        // To bfloat16 it takes instructions that came later.
        if (level >= (sizeof(W) == 2 && TYPE != BFLOAT ? WITH_BF16 : WITH_VNNI))
            by_vectors = m.masks ? expand_vectors<TYPE, true, W> : expand_vectors<TYPE, false, W>;
#endif
    }

    void contiguous(i64 number, const Row& stored, W* out) {
#if defined(__x86_64__)
        if (level >= WITH_AVX2) return expand_avx2(m, stored, number, out);
#endif
        expand_portable(m, stored, number, out);
    }

public:
    explicit Expander(const Matrix& m) : m(m) {
        if (m.type == FLOAT && sizeof(W) == 4) choose_vectors<FLOAT>();
        else if (m.type == BFLOAT) choose_vectors<BFLOAT>();
        else if (m.type == INT8) choose_vectors<INT8>();
        else if (m.type == INT4) choose_vectors<INT4>();
        if (m.type == INT4 && m.masks) bytes.resize(m.cols + 2 * LINE);
    }

    // Writes what is within the columns of a row, 64 bytes after 64 bytes that are `apart` elements apart.
    void row(i64 number, W* out, i64 apart = VECTOR) {
        const Row stored = row_of(m, number, copy);
#if defined(__x86_64__)
        if (by_vectors) {
            const u8* next = stored.values;
            if (m.type == INT4 && m.masks) {
                unpack(stored, bytes.data());
                next = bytes.data() + stored.odd;
            }
            return by_vectors(m, stored, number, next, out, apart);
        }
#endif
        if (apart == VECTOR) return contiguous(number, stored, out);
        line.resize(m.cols);
        contiguous(number, stored, line.data());
        for (i64 col = 0; col < m.cols; col += VECTOR, out += apart)
            std::copy_n(line.data() + col, std::min(VECTOR, m.cols - col), out);
    }
};

// Memory of this thread for expanded rows, on a whole line. It is kept: new pages cost as much as what fills them.
template <class W>
W* expanded_room(i64 size) {
    thread_local std::vector<u8> held;
    const i64 bytes = size * i64(sizeof(W)) + LINE;
    if (i64(held.size()) < bytes) held.resize(bytes);
    return reinterpret_cast<W*>(held.data() + (LINE - reinterpret_cast<std::uintptr_t>(held.data()) % LINE));
}

#if defined(__x86_64__)

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
    Expander<u16> rows(m);
    u16* expanded = expanded_room<u16>(tile * stride);
    if (m.cols % GROUP) std::fill(expanded, expanded + tile * stride, u16(0));
    const u16* x = static_cast<const u16*>(job.in.data);
    for (i64 begin = first; begin < last; begin += tile) {
        const i64 count = std::min(tile, last - begin);
        for (i64 row = 0; row < count; ++row) rows.row(begin + row, expanded + row * stride);
        for (i64 token = 0; token < job.in.tokens; token += 6) {
            const i64 some = std::min<i64>(6, job.in.tokens - token);
            for (i64 row = 0; row < count; row += 4) {
                float* sums = job.sums + token * m.rows + begin + row;
                const u16 *weights = expanded + row * stride, *with = x + token * stride;
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

}  // namespace
