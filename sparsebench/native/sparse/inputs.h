// The vectors that a matrix is multiplied with, in the form that its kernel wants, with zeros behind the last column.

#pragma once

#include "matrix.h"

namespace {

// WORDS: as they came (bfloat16). PLAIN: float32. SPLIT: float32, of each 32 the even ones before the odd ones, which is how
// a mask and a shift split a vector of 32 bfloat16. BYTES: rounded to 8 bits, with a scale for every 64.
enum Form { WORDS, PLAIN, SPLIT, BYTES };

// 64 inputs in 8 bits. `less` undoes that kernels add 128 (int8) or 8 (int4) to each weight, because the instruction takes
// unsigned ones: less[i] is minus that number times inputs 4i to 4i + 3.
struct Bytes {
    i8 values[GROUP];
    i32 less[GROUP / 4];
};

struct Inputs {
    Form form;
    i64 tokens, stride;  // elements from one vector to the next; of BYTES, groups
    void* data;
    float* scales;  // of BYTES
};

ALWAYS i64 input_bytes(Form form, i64 groups) {
    return form == BYTES ? groups * (i64(sizeof(Bytes)) + 4) : groups * GROUP * (form == WORDS ? 2 : 4);
}

template <class E>
ALWAYS void round_group(const E* x, i64 width, int offset, Bytes& to, float& scale) {
    float wide[GROUP] = {}, most = 0;
    bool finite = true;
    for (i64 i = 0; i < width; ++i) {
        wide[i] = widen(x[i]);
        most = std::max(most, std::fabs(wide[i]));
        finite &= std::fabs(wide[i]) <= 3e38f;
    }
    scale = finite ? most / 127 : NAN;  // a product with infinite inputs may be anything
    const float inverse = most > 1e-36f ? 127 / most : 0;
    for (i64 i = 0; i < GROUP; ++i) to.values[i] = i8(std::nearbyint(finite ? wide[i] * inverse : 0));
    for (i64 i = 0; i < GROUP; i += 4)
        to.less[i / 4] = -offset * (to.values[i] + to.values[i + 1] + to.values[i + 2] + to.values[i + 3]);
}

#if defined(__x86_64__)
AVX512 ALWAYS __m512 sixteen_floats(const u16* x, __mmask16 within) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(within, x)), 16));
}
AVX512 ALWAYS __m512 sixteen_floats(const float* x, __mmask16 within) { return _mm512_maskz_loadu_ps(within, x); }

// Sixteen rows of sixteen become their columns.
AVX512 ALWAYS void transpose(__m512i (&rows)[16]) {
    __m512i two[16], four[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        two[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        two[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Each quarter of four[4 i + j] has column j of that quarter, of rows 4 i to 4 i + 3.
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        const __m512i first = two[i / 4 * 4 + i % 4 / 2], second = two[i / 4 * 4 + i % 4 / 2 + 2];
        four[i] = i % 2 ? _mm512_unpackhi_epi64(first, second) : _mm512_unpacklo_epi64(first, second);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i even = _mm512_shuffle_i32x4(four[j], four[4 + j], 0x88), odd = _mm512_shuffle_i32x4(four[j], four[4 + j], 0xdd);
        const __m512i even_after = _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0x88);
        const __m512i odd_after = _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0xdd);
        rows[j] = _mm512_shuffle_i32x4(even, even_after, 0x88);
        rows[4 + j] = _mm512_shuffle_i32x4(odd, odd_after, 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(even, even_after, 0xdd);
        rows[12 + j] = _mm512_shuffle_i32x4(odd, odd_after, 0xdd);
    }
}

// What round_group does, in a tenth of the time.
template <class E>
VECTORS void round_group_vectors(const E* x, i64 width, int offset, Bytes& to, float& scale) {
    __m512 parts[4], most = _mm512_setzero_ps();
    __mmask16 ordered = 0xffff;
    const u64 within = _bzhi_u64(~0ull, u32(width));
    for (int i = 0; i < 4; ++i) {
        parts[i] = sixteen_floats(x + 16 * i, __mmask16(within >> 16 * i));
        most = _mm512_max_ps(most, _mm512_abs_ps(parts[i]));
        ordered &= _mm512_cmp_ps_mask(parts[i], parts[i], _CMP_ORD_Q);
    }
    const float largest = ordered == 0xffff ? _mm512_reduce_max_ps(most) : INFINITY;
    const bool finite = largest <= 3e38f;
    scale = finite ? largest / 127 : NAN;
    const __m512 inverse = _mm512_set1_ps(finite && largest > 1e-36f ? 127 / largest : 0);
    for (int i = 0; i < 4; ++i) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(finite ? parts[i] : _mm512_setzero_ps(), inverse));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to.values + 16 * i), _mm512_cvtepi32_epi8(whole));
    }
    const __m512i values = _mm512_loadu_si512(to.values);
    const __m512i fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), values);
    _mm512_storeu_si512(to.less, _mm512_mullo_epi32(fours, _mm512_set1_epi32(-offset)));
}
#endif

template <class E>
void round_group_here(const E* x, i64 width, int offset, Bytes& to, float& scale) {
#if defined(__x86_64__)
    if (level >= WITH_VNNI) return round_group_vectors(x, width, offset, to, scale);
#endif
    round_group(x, width, offset, to, scale);
}

template <class E>
ALWAYS void prepare(const E* x, i64 cols, int offset, const Inputs& in) {
    const i64 groups = groups_of(cols);
    for (i64 token = 0; token < in.tokens; ++token, x += cols) {
        if (in.form == BYTES) {
            Bytes* to = static_cast<Bytes*>(in.data) + token * in.stride;
            for (i64 group = 0; group < groups; ++group)
                round_group_here(x + group * GROUP, std::min(GROUP, cols - group * GROUP), offset, to[group],
                                 in.scales[token * in.stride + group]);
        } else if (in.form == WORDS) {
            u16* to = static_cast<u16*>(in.data) + token * in.stride;
            if constexpr (sizeof(E) == 2) std::memcpy(to, x, cols * 2);
            std::memset(to + cols, 0, (in.stride - cols) * 2);
        } else {
            float* to = static_cast<float*>(in.data) + token * in.stride;
            const i64 whole = in.form == SPLIT ? cols / 32 * 32 : cols;
            std::memset(to + whole, 0, (in.stride - whole) * 4);
            if (in.form == PLAIN)
                for (i64 col = 0; col < cols; ++col) to[col] = widen(x[col]);
            else
                for (i64 col = 0; col < cols; ++col) to[col / 32 * 32 + col % 2 * 16 + col % 32 / 2] = widen(x[col]);
        }
    }
}

}  // namespace
