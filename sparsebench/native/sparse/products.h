// Products of one row with one vector or a few, which share its expansion in registers.

#pragma once

#include "inputs.h"

namespace {

struct Job {
    const Matrix* matrix;
    Inputs in;
    float* sums;  // (tokens, rows)
};

using Kernel = void (*)(const Job&, i64 first, i64 last);  // rows

// The scale of columns 64 · group + 32 · half and those behind.
ALWAYS float group_scale(const Matrix& m, i64 row, i64 group, int half) {
    return scale_at(m, row * scales_of(m) + (group * GROUP + half * 32) / m.group);
}

// ---- any processor -----------------------------------------------------------------------------------------------------

template <int TYPE, bool TABLES>
ALWAYS void any_rows(const Job& job, i64 first, i64 last) {
    constexpr bool INTEGERS = TYPE >= INT8;
    const Matrix& m = *job.matrix;
    const bool grouped = INTEGERS && m.group < m.cols;
    std::vector<u8> copy;
    for (i64 row = first; row < last; ++row) {
        const Row stored = row_of(m, row, copy);
        for (i64 token = 0; token < job.in.tokens; ++token) job.sums[token * m.rows + row] = 0;
        for (i64 group = 0, next = 0; group < groups_of(m.cols); ++group) {
            std::conditional_t<INTEGERS, i32, float> weights[GROUP];
            weights_of<TYPE, TABLES>(m, stored, group, next, weights);
            const float low = grouped ? group_scale(m, row, group, 0) : 1;
            const float high = grouped && m.group == 32 && group * GROUP + 32 < m.cols ? group_scale(m, row, group, 1) : low;
            for (i64 token = 0; token < job.in.tokens; ++token) {
                float& sum = job.sums[token * m.rows + row];
                const i64 at = token * job.in.stride + group;
                if constexpr (INTEGERS) {
                    const i8* x = static_cast<const Bytes*>(job.in.data)[at].values;
                    i32 parts[2] = {};
                    for (int i = 0; i < 32; ++i) parts[0] += weights[i] * x[i], parts[1] += weights[i + 32] * x[i + 32];
                    sum += job.in.scales[at] * (low * float(parts[0]) + high * float(parts[1]));
                } else {
                    const float* x = static_cast<const float*>(job.in.data) + token * job.in.stride + group * GROUP;
                    float lanes[16] = {};
                    for (int i = 0; i < GROUP; i += 16)
                        for (int lane = 0; lane < 16; ++lane) lanes[lane] += weights[i + lane] * x[i + lane];
                    for (int lane = 0; lane < 16; ++lane) sum += lanes[lane];
                }
            }
        }
        if (INTEGERS && !grouped)
            for (i64 token = 0; token < job.in.tokens; ++token) job.sums[token * m.rows + row] *= scale_at(m, row);
    }
}

template <int TYPE>
void rows_portable(const Job& job, i64 first, i64 last) { any_rows<TYPE, false>(job, first, last); }

#if defined(__x86_64__)

template <int TYPE>
AVX2 void rows_avx2(const Job& job, i64 first, i64 last) { any_rows<TYPE, true>(job, first, last); }
template <int TYPE>
AVX512 void rows_avx512(const Job& job, i64 first, i64 last) { any_rows<TYPE, true>(job, first, last); }

// ---- AVX-512 with VBMI2 and VNNI ---------------------------------------------------------------------------------------

// Bytes to prefetch ahead of the values, two lines at a time: without it the processor fetches them a third slower.
constexpr i64 AHEAD = 4096;

// Half bytes to bytes: 64 of them from 32 bytes.
VECTORS inline __m512i halves(__m256i from) {
    const __m512i wide = _mm512_cvtepu8_epi16(from);
    return _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi8(15));
}

VECTORS inline void unpack(const Row& row, u8* out) {
    for (i64 at = 0; at < row.count + row.odd; at += 64)
        _mm512_storeu_si512(out + at, halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.values + at / 2))));
}

// The 64 weights of a group of int8 or int4, plus 128 or 8. `width` is less than 64 only at the end of a dense row.
template <int TYPE, bool MASKED>
VECTORS ALWAYS __m512i unsigned_weights(const Row& row, i64 group, const u8*& next, i64 width) {
    if (MASKED) {
        const u64 bits = row.mask(group);
        const __m512i placed = _mm512_maskz_expand_epi8(bits, _mm512_loadu_si512(next));
        next += _mm_popcnt_u64(bits);
        return _mm512_xor_si512(placed, _mm512_set1_epi8(TYPE == INT8 ? i8(128) : i8(8)));
    }
    const u8* from = next;
    next += TYPE == INT8 ? 64 : 32;
    if (TYPE == INT8) return width == GROUP ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, u32(width)), from);
    const __m256i* half = reinterpret_cast<const __m256i*>(from);
    return halves(width == GROUP ? _mm256_loadu_si256(half)
                                 : _mm256_maskz_loadu_epi8(_bzhi_u32(~0u, u32(width + 1) / 2), from));
}

template <int TYPE, bool MASKED, bool GROUPED, int TOKENS>
VECTORS void integer_row(const Job& job, const Row& row, i64 number, i64 token, const u8* next) {
    const Matrix& m = *job.matrix;
    const i64 groups = groups_of(m.cols), stride = job.in.stride;
    const Bytes* x = static_cast<const Bytes*>(job.in.data) + token * stride;
    const float* scales = job.in.scales + token * stride;
    const i64 first = GROUPED ? number * scales_of(m) : 0;
    const int shift = GROUPED ? __builtin_ctzll(m.group) : 0;
    __m512 sums[2][TOKENS];
    for (int t = 0; t < TOKENS; ++t) sums[0][t] = sums[1][t] = _mm512_setzero_ps();
    auto add = [&](__m512* to, i64 group, i64 width) VECTORS __attribute__((always_inline)) {
        const __m512i weights = unsigned_weights<TYPE, MASKED>(row, group, next, width);
        __m512 scale = _mm512_set1_ps(1);
        if (GROUPED) {
            const i64 at = group * GROUP >> shift;
            scale = _mm512_set1_ps(scale_at(m, first + at));
            if (shift == 5 && width > 32)
                scale = _mm512_mask_blend_ps(0xff00, scale, _mm512_set1_ps(scale_at(m, first + at + 1)));
        }
        for (int t = 0; t < TOKENS; ++t) {
            const Bytes& with = x[t * stride + group];
            const __m512i dots = _mm512_dpbusd_epi32(_mm512_loadu_si512(with.less), weights, _mm512_loadu_si512(with.values));
            __m512 factor = _mm512_set1_ps(scales[t * stride + group]);
            if (GROUPED) factor = _mm512_mul_ps(factor, scale);
            to[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), factor, to[t]);
        }
    };
    i64 group = 0;
    const i64 whole = MASKED ? groups : m.cols / GROUP;
    for (; group + 2 <= whole; group += 2) {
        _mm_prefetch(next + AHEAD, _MM_HINT_T0);
        if (TYPE == INT8) _mm_prefetch(next + AHEAD + LINE, _MM_HINT_T0);
        add(sums[0], group, GROUP);
        add(sums[1], group + 1, GROUP);
    }
    for (; group < groups; ++group) add(sums[0], group, std::min(GROUP, m.cols - group * GROUP));
    for (int t = 0; t < TOKENS; ++t) {
        const float sum = _mm512_reduce_add_ps(_mm512_add_ps(sums[0][t], sums[1][t]));
        job.sums[(token + t) * m.rows + number] = GROUPED ? sum : sum * scale_at(m, number);
    }
}

// 32 bfloat16 or 16 float32 of a row.
template <int TYPE, bool MASKED>
VECTORS ALWAYS __m512i some_weights(u32 bits, const u8*& next, i64 left) {
    const u8* from = next;
    if (TYPE == BFLOAT) {
        next += MASKED ? 2 * __builtin_popcount(bits) : LINE;
        if (MASKED) return _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(from));
        return left >= 32 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(_bzhi_u32(~0u, u32(std::max<i64>(left, 0))), from);
    }
    next += MASKED ? 4 * __builtin_popcount(bits & 0xffff) : LINE;
    if (MASKED) return _mm512_maskz_expand_epi32(__mmask16(bits), _mm512_loadu_si512(from));
    return left >= 16 ? _mm512_loadu_si512(from)
                      : _mm512_maskz_loadu_epi32(__mmask16(_bzhi_u32(~0u, u32(std::max<i64>(left, 0)))), from);
}

template <int TYPE, bool MASKED, Form FORM, int TOKENS>
VECTORS void float_row(const Job& job, const Row& row, i64 number, i64 token, const u8* next) {
    constexpr int WIDTH = TYPE == BFLOAT ? 32 : 16;
    const Matrix& m = *job.matrix;
    const i64 groups = groups_of(m.cols), stride = job.in.stride;
    const u8* x = static_cast<const u8*>(job.in.data);
    __m512 sums[2][TOKENS];
    for (int t = 0; t < TOKENS; ++t) sums[0][t] = sums[1][t] = _mm512_setzero_ps();
    for (i64 group = 0; group < groups; ++group) {
        const u64 bits = MASKED ? row.mask(group) : 0;
        _mm_prefetch(next + AHEAD, _MM_HINT_T0);
        _mm_prefetch(next + AHEAD + LINE, _MM_HINT_T0);
        for (int part = 0; part < GROUP / WIDTH; ++part) {
            const i64 col = group * GROUP + part * WIDTH;
            const __m512i weights = some_weights<TYPE, MASKED>(u32(bits >> part * WIDTH), next, m.cols - col);
            for (int t = 0; t < TOKENS; ++t) {
                const i64 at = (token + t) * stride + col;
                __m512& sum = sums[part % 2][t];
                if (FORM == WORDS) {
                    sum = _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)_mm512_loadu_si512(x + at * 2));
                } else if (FORM == SPLIT) {
                    const __m512i upper = _mm512_and_si512(weights, _mm512_set1_epi32(int(0xffff0000)));
                    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(weights, 16));
                    sum = _mm512_fmadd_ps(even, _mm512_loadu_ps(x + at * 4), sum);
                    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(upper), _mm512_loadu_ps(x + at * 4 + LINE), sum);
                } else {
                    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(weights), _mm512_loadu_ps(x + at * 4), sum);
                }
            }
        }
    }
    for (int t = 0; t < TOKENS; ++t)
        job.sums[(token + t) * m.rows + number] = _mm512_reduce_add_ps(_mm512_add_ps(sums[0][t], sums[1][t]));
}

template <int TYPE, bool MASKED, bool GROUPED, Form FORM, int TOKENS>
VECTORS ALWAYS void one_row(const Job& job, const Row& row, i64 number, i64 token, const u8* next) {
    if constexpr (FORM == BYTES) integer_row<TYPE, MASKED, GROUPED, TOKENS>(job, row, number, token, next);
    else float_row<TYPE, MASKED, FORM, TOKENS>(job, row, number, token, next);
}

template <int TYPE, bool MASKED, bool GROUPED, Form FORM>
VECTORS void rows_vectors(const Job& job, i64 first, i64 last) {
    std::vector<u8> copy, bytes(TYPE == INT4 && MASKED ? job.matrix->cols + 2 * LINE : 0);
    for (i64 number = first; number < last; ++number) {
        const Row row = row_of(*job.matrix, number, copy);
        const u8* next = row.values;
        if (TYPE == INT4 && MASKED) {
            unpack(row, bytes.data());
            next = bytes.data() + row.odd;
        }
        i64 token = 0;
        for (; token + 4 <= job.in.tokens; token += 4) one_row<TYPE, MASKED, GROUPED, FORM, 4>(job, row, number, token, next);
        for (; token + 2 <= job.in.tokens; token += 2) one_row<TYPE, MASKED, GROUPED, FORM, 2>(job, row, number, token, next);
        for (; token < job.in.tokens; ++token) one_row<TYPE, MASKED, GROUPED, FORM, 1>(job, row, number, token, next);
    }
}

template <int TYPE, Form FORM>
Kernel vector_kernel(bool masked, bool grouped) {
    if constexpr (TYPE == INT4)
        if (grouped) return masked ? rows_vectors<TYPE, true, true, FORM> : rows_vectors<TYPE, false, true, FORM>;
    return masked ? rows_vectors<TYPE, true, false, FORM> : rows_vectors<TYPE, false, false, FORM>;
}

#endif

struct Choice {
    Kernel kernel;
    Form form;
    Level needs;
};

template <int TYPE>
Choice choose_type(const Matrix& m, int given) {
    const Form form = TYPE >= INT8 ? BYTES : PLAIN;
    (void)m, (void)given;
#if defined(__x86_64__)
    const bool masked = m.masks, grouped = TYPE >= INT8 && m.group < m.cols;
    if (TYPE == BFLOAT && given == BFLOAT && level >= WITH_BF16) return {vector_kernel<TYPE, WORDS>(masked, false), WORDS, WITH_BF16};
    if (TYPE == BFLOAT && level >= WITH_VNNI) return {vector_kernel<TYPE, SPLIT>(masked, false), SPLIT, WITH_VNNI};
    if (level >= WITH_VNNI) return {vector_kernel<TYPE, TYPE >= INT8 ? BYTES : PLAIN>(masked, grouped), form, WITH_VNNI};
    if (level >= WITH_AVX512) return {rows_avx512<TYPE>, form, WITH_AVX512};
    if (level >= WITH_AVX2) return {rows_avx2<TYPE>, form, WITH_AVX2};
#endif
    return {rows_portable<TYPE>, form, PORTABLE};
}

Choice choose(const Matrix& m, int given) {
    if (m.type == FLOAT) return choose_type<FLOAT>(m, given);
    if (m.type == BFLOAT) return choose_type<BFLOAT>(m, given);
    return m.type == INT8 ? choose_type<INT8>(m, given) : choose_type<INT4>(m, given);
}

}  // namespace
