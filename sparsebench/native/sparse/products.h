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
            std::conditional_t<INTEGERS, i16, float> weights[GROUP];
            weights_of<TYPE, TABLES>(m, stored, group, next, weights);
            const float low = grouped ? group_scale(m, row, group, 0) : 1;
            const float high = grouped && m.group == 32 && group * GROUP + 32 < m.cols ? group_scale(m, row, group, 1) : low;
            for (i64 token = 0; token < job.in.tokens; ++token) {
                float& sum = job.sums[token * m.rows + row];
                const i64 at = token * job.in.stride + group;
                if constexpr (INTEGERS) {
                    const i8* x = static_cast<const Bytes*>(job.in.data)[at].values;
                    i32 parts[2] = {};
                    for (int i = 0; i < 32; ++i) parts[0] += weights[i] * i16(x[i]);
                    for (int i = 32; i < 64; ++i) parts[1] += weights[i] * i16(x[i]);
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

// Bytes to prefetch ahead of the values: without it the processor fetches them a third slower.
constexpr i64 AHEAD = 4096;

// Rows at a time of a bitmask, or for several vectors: they share the loads of inputs, which else take longer than weights'.
constexpr int TOGETHER_ROWS = 4;

// Where rows that are read at the same time are: what is fetched ahead comes after the last one's end, in order.
template <int ROWS, int SHARE>  // of a byte that is stored for each one at `next`
struct Ahead {
    const u8* first;
    i64 begin = 0;

    VECTORS ALWAYS Ahead(const Row* rows, const u8* const* next) : first(rows[0].values) {
        const i64 block = rows[ROWS - 1].values - first;
        first += std::max(AHEAD, block + block / std::max(1, ROWS - 1));
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) begin += reinterpret_cast<i64>(next[row]);
    }
    template <int LINES>
    VECTORS ALWAYS void fetch(const u8* const* next) const {
        i64 now = -begin;  // bytes that are done
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) now += reinterpret_cast<i64>(next[row]);
        for (int line = 0; line < LINES; ++line) _mm_prefetch(first + now / SHARE + line * LINE, _MM_HINT_T0);
    }
};

// Half bytes to bytes: 64 of them from 32 bytes.
VECTORS inline __m512i halves(__m256i from) {
    const __m512i wide = _mm512_cvtepu8_epi16(from);
    return _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi8(15));
}

// The values of a bitmask of int4 as bytes, plus 8.
VECTORS inline void unpack(const Row& row, u8* out) {
    const __m512i sign = _mm512_set1_epi8(8);
    for (i64 at = 0; at < row.count + row.odd; at += 64) {
        const __m512i bytes = halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.values + at / 2)));
        _mm512_storeu_si512(out + at, _mm512_xor_si512(bytes, sign));
    }
}

// In a register of its own: expanding a vector in memory takes a third longer on Zen 4.
VECTORS ALWAYS __m512i loaded(const void* from) {
    __m512i found = _mm512_loadu_si512(from);
    asm("" : "+v"(found));
    return found;
}

// The 64 weights of a group of int8 or int4, plus 128 or 8. `width` is less than 64 only at the end of a dense row.
template <int TYPE, bool MASKED>
VECTORS ALWAYS __m512i unsigned_weights(const Row& row, i64 group, const u8*& next, i64 width) {
    const u8* from = next;
    if (MASKED) {
        const u64 bits = row.mask(group);
        next += _mm_popcnt_u64(bits);
        if (TYPE == INT4) return _mm512_mask_expand_epi8(_mm512_set1_epi8(8), bits, loaded(from));  // unpacked, plus 8
        return _mm512_xor_si512(_mm512_maskz_expand_epi8(bits, loaded(from)), _mm512_set1_epi8(i8(128)));
    }
    next += TYPE == INT8 ? 64 : 32;
    if (TYPE == INT8)
        return width == GROUP ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, u32(width)), from);
    const __m256i* half = reinterpret_cast<const __m256i*>(from);
    return halves(width == GROUP ? _mm256_loadu_si256(half)
                                 : _mm256_maskz_loadu_epi8(_bzhi_u32(~0u, u32(width + 1) / 2), from));
}

// 32 bfloat16 or 16 float32 of a row, of which `left` are left if it is dense.
template <int TYPE, bool MASKED>
VECTORS ALWAYS __m512i some_weights(u32 bits, const u8*& next, i64 left) {
    const u8* from = next;
    const u32 within = _bzhi_u32(~0u, u32(std::max<i64>(left, 0)));
    if (TYPE == BFLOAT) {
        next += MASKED ? 2 * __builtin_popcount(bits) : LINE;
        if (MASKED) return _mm512_maskz_expand_epi16(bits, loaded(from));
        return left >= 32 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(within, from);
    }
    next += MASKED ? 4 * __builtin_popcount(bits & 0xffff) : LINE;
    if (MASKED) return _mm512_maskz_expand_epi32(__mmask16(bits), loaded(from));
    return left >= 16 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi32(__mmask16(within), from);
}

// Whether a row of integers has one scale, or one for 64 columns or a multiple of them, or one for 32.
enum Scaled { BY_ROW, BY_GROUPS, BY_HALVES };

constexpr i64 FACTORS = 64;  // groups of inputs whose factors are computed at a time

// The products of a row's scales with those of inputs, for up to FACTORS groups of inputs from `begin` on.
VECTORS ALWAYS void multiply_scales(const Matrix& m, i64 row, i64 begin, const float* inputs, float* out) {
    const i64 end = std::min(groups_of(m.cols), begin + FACTORS), scales = scales_of(m);
    const int shift = __builtin_ctzll(m.group / GROUP);
    const __m512i lanes = _mm512_srli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), shift);
    for (; begin < end; begin += 16, out += 16) {
        const i64 first = begin >> shift, at = row * scales + first;
        const __mmask16 there = __mmask16(_bzhi_u32(0xffff, u32(std::min<i64>(16, scales - first))));
        const __m512 some = m.scale_type == BFLOAT ? sixteen_floats(static_cast<const u16*>(m.scales) + at, there)
                                                   : sixteen_floats(static_cast<const float*>(m.scales) + at, there);
        const __mmask16 within = __mmask16(_bzhi_u32(0xffff, u32(std::min<i64>(16, end - begin))));
        const __m512 of_inputs = sixteen_floats(inputs + begin, within);
        _mm512_store_ps(out, _mm512_mul_ps(_mm512_permutexvar_ps(lanes, some), of_inputs));
    }
}

// ROWS rows from `number` on, whose values are at `next`, times TOKENS vectors from `token` on: they share the loads of each
// other. `sums` gets what each lane adds up.
template <int TYPE, bool MASKED, Scaled SCALED, int ROWS, int TOKENS>
VECTORS ALWAYS void integer_rows(const Job& job, const Row* rows, i64 number, i64 token, const u8** next,
                                 __m512 (&sums)[ROWS][TOKENS]) {
    const Matrix& m = *job.matrix;
    const i64 groups = groups_of(m.cols), stride = job.in.stride;
    const Bytes* x = static_cast<const Bytes*>(job.in.data) + token * stride;
    const float* scales = job.in.scales + token * stride;
    alignas(LINE) float factors[ROWS][TOKENS][SCALED == BY_GROUPS ? FACTORS : 1];
    auto factor = [&](int row, int t, i64 group) VECTORS __attribute__((always_inline)) {
        if (SCALED == BY_GROUPS) return _mm512_set1_ps(factors[row][t][group % FACTORS]);
        const __m512 of_input = _mm512_set1_ps(scales[t * stride + group]);
        if (SCALED == BY_ROW) return of_input;
        const __m512 low = _mm512_set1_ps(group_scale(m, number + row, group, 0));
        if (group * GROUP + 32 >= m.cols) return _mm512_mul_ps(of_input, low);
        const __m512 high = _mm512_set1_ps(group_scale(m, number + row, group, 1));
        return _mm512_mul_ps(of_input, _mm512_mask_blend_ps(0xff00, low, high));
    };
    auto add = [&](i64 group, i64 width) VECTORS __attribute__((always_inline)) {
        __m512i weights[ROWS];
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row)
            weights[row] = unsigned_weights<TYPE, MASKED>(rows[row], group, next[row], width);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; ++t) {
            const Bytes& with = x[t * stride + group];
            const __m512i less = _mm512_loadu_si512(with.less), values = _mm512_loadu_si512(with.values);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row) {
                const __m512 dots = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(less, weights[row], values));
                sums[row][t] = _mm512_fmadd_ps(dots, factor(row, t, group), sums[row][t]);
            }
        }
    };
    const Ahead<ROWS, TYPE == INT4 && MASKED ? 2 : 1> ahead(rows, next);
    const i64 whole = MASKED ? groups : m.cols / GROUP;
    for (i64 begin = 0; begin < groups; begin += FACTORS) {
        if (SCALED == BY_GROUPS)
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row)
                for (int t = 0; t < TOKENS; ++t)
                    multiply_scales(m, number + row, begin, scales + t * stride, factors[row][t]);
        const i64 end = std::min(whole, begin + FACTORS);
        for (i64 group = begin; group < end; ++group) {
            ahead.template fetch<TYPE == INT4 ? (ROWS + 1) / 2 : ROWS>(next);
            add(group, GROUP);
        }
        if (end == whole && whole < groups && groups - begin <= FACTORS) add(whole, m.cols % GROUP);
    }
}

template <int TYPE, bool MASKED, Form FORM, int ROWS, int TOKENS>
VECTORS ALWAYS void float_rows(const Job& job, const Row* rows, i64 token, const u8** next, __m512 (&sums)[ROWS][TOKENS]) {
    constexpr int WIDTH = TYPE == BFLOAT ? 32 : 16;
    const Matrix& m = *job.matrix;
    const i64 groups = groups_of(m.cols), stride = job.in.stride;
    const u8* x = static_cast<const u8*>(job.in.data);
    const Ahead<ROWS, 1> ahead(rows, next);
    for (i64 group = 0; group < groups; ++group) {
        u64 bits[ROWS];
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            bits[row] = MASKED ? rows[row].mask(group) : 0;
        }
        ahead.template fetch<ROWS * (MASKED ? 1 : 2)>(next);
        for (int part = 0; part < GROUP / WIDTH; ++part) {
            const i64 col = group * GROUP + part * WIDTH;
            __m512i weights[ROWS];
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row)
                weights[row] = some_weights<TYPE, MASKED>(u32(bits[row] >> part * WIDTH), next[row], m.cols - col);
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; ++t) {
                const u8* with = x + ((token + t) * stride + col) * (FORM == WORDS ? 2 : 4);
#pragma GCC unroll 8
                for (int row = 0; row < ROWS; ++row) {
                    __m512& sum = sums[row][t];
                    if (FORM == WORDS) {
                        sum = _mm512_dpbf16_ps(sum, (__m512bh)weights[row], (__m512bh)_mm512_loadu_si512(with));
                    } else if (FORM == SPLIT) {
                        const __m512i upper = _mm512_and_si512(weights[row], _mm512_set1_epi32(int(0xffff0000)));
                        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(weights[row], 16));
                        sum = _mm512_fmadd_ps(even, _mm512_loadu_ps(with), sum);
                        sum = _mm512_fmadd_ps(_mm512_castsi512_ps(upper), _mm512_loadu_ps(with + LINE), sum);
                    } else {
                        sum = _mm512_fmadd_ps(_mm512_castsi512_ps(weights[row]), _mm512_loadu_ps(with), sum);
                    }
                }
            }
        }
    }
}

template <int TYPE, bool MASKED, Scaled SCALED, Form FORM, int ROWS, int TOKENS>
VECTORS void some_rows(const Job& job, const Row* rows, i64 number, i64 token, const u8* const* begin) {
    const Matrix& m = *job.matrix;
    __m512 sums[ROWS][TOKENS];
    const u8* next[ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
        next[row] = begin[row];
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; ++t) sums[row][t] = _mm512_setzero_ps();
    }
    if constexpr (FORM == BYTES)
        integer_rows<TYPE, MASKED, SCALED, ROWS, TOKENS>(job, rows, number, token, next, sums);
    else
        float_rows<TYPE, MASKED, FORM, ROWS, TOKENS>(job, rows, token, next, sums);
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; ++t) {
            const float sum = _mm512_reduce_add_ps(sums[row][t]);
            const bool scaled = FORM == BYTES && SCALED == BY_ROW;
            job.sums[(token + t) * m.rows + number + row] = scaled ? sum * scale_at(m, number + row) : sum;
        }
}

template <int TYPE, bool MASKED, Scaled SCALED, Form FORM, int ROWS>
VECTORS ALWAYS void all_tokens(const Job& job, i64 number, std::vector<u8>* copies, std::vector<u8>* halves) {
    Row rows[ROWS];
    const u8* next[ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
        rows[row] = row_of(*job.matrix, number + row, copies[row]);
        next[row] = rows[row].values;
        if (TYPE == INT4 && MASKED) {
            unpack(rows[row], halves[row].data());
            next[row] = halves[row].data() + rows[row].odd;
        }
    }
    i64 token = 0;
    for (; token + 4 <= job.in.tokens; token += 4)
        some_rows<TYPE, MASKED, SCALED, FORM, ROWS, 4>(job, rows, number, token, next);
    for (; token + 2 <= job.in.tokens; token += 2)
        some_rows<TYPE, MASKED, SCALED, FORM, ROWS, 2>(job, rows, number, token, next);
    for (; token < job.in.tokens; ++token)
        some_rows<TYPE, MASKED, SCALED, FORM, ROWS, 1>(job, rows, number, token, next);
}

template <int TYPE, bool MASKED, Scaled SCALED, Form FORM>
VECTORS void rows_vectors(const Job& job, i64 first, i64 last) {
    constexpr int ROWS = TOGETHER_ROWS;
    std::vector<u8> copies[ROWS], halves[ROWS];
    if (TYPE == INT4 && MASKED)
        for (auto& half : halves) half.resize(job.matrix->cols + 2 * LINE);
    i64 row = first;
    for (; (MASKED || job.in.tokens > 1) && row + ROWS <= last; row += ROWS)
        all_tokens<TYPE, MASKED, SCALED, FORM, ROWS>(job, row, copies, halves);
    for (; row < last; ++row) all_tokens<TYPE, MASKED, SCALED, FORM, 1>(job, row, copies, halves);
}

template <int TYPE, Scaled SCALED, Form FORM>
Kernel scaled_kernel(bool masked) {
    return masked ? rows_vectors<TYPE, true, SCALED, FORM> : rows_vectors<TYPE, false, SCALED, FORM>;
}

template <int TYPE, Form FORM>
Kernel vector_kernel(const Matrix& m) {
    if constexpr (TYPE == INT4)
        if (m.group < m.cols) {
            const bool halves = m.group < GROUP;
            return halves ? scaled_kernel<TYPE, BY_HALVES, FORM>(m.masks) : scaled_kernel<TYPE, BY_GROUPS, FORM>(m.masks);
        }
    return scaled_kernel<TYPE, BY_ROW, FORM>(m.masks);
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
    if (TYPE == BFLOAT && given == BFLOAT && level >= WITH_BF16) return {vector_kernel<TYPE, WORDS>(m), WORDS, WITH_BF16};
    if (TYPE == BFLOAT && level >= WITH_VNNI) return {vector_kernel<TYPE, SPLIT>(m), SPLIT, WITH_VNNI};
    if (level >= WITH_VNNI) return {vector_kernel<TYPE, TYPE >= INT8 ? BYTES : PLAIN>(m), form, WITH_VNNI};
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
