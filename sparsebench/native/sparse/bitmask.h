// bitmask: one bit per weight, rows padded to whole 32-bit words; the nonzeros in order.

#pragma once

#include "kernel.h"

namespace {

template <class V>
void bitmask_portable(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32 *starts = section<u32>(head, head.starts), *masks = section<u32>(head, head.index);
    const V* values = section<V>(head, head.values);
    const i64 words = words_of(head.cols);
    for (i64 row = first; row < last; ++row)
        for (i64 token = 0; token < job.tokens; ++token) {
            const float* x = static_cast<const float*>(job.x) + token * job.stride;
            const V* next = values + starts[row];
            float sum[2] = {0, 0};
            for (i64 word = 0; word < words; ++word, x += 32)
                for (u32 bits = masks[row * words + word]; bits; bits &= bits - 1, ++next)
                    sum[word & 1] += widen(*next) * x[__builtin_ctz(bits)];
            job.sums[token * head.rows + row] = sum[0] + sum[1];
        }
}

template <class V>
void expand_portable(const Head& head, i64 row, V* out) {
    const u32* masks = section<u32>(head, head.index) + row * words_of(head.cols);
    const V* next = section<V>(head, head.values) + section<u32>(head, head.starts)[row];
    for (i64 col = 0; col < head.cols; ++col) out[col] = masks[col / 32] >> (col % 32) & 1 ? *next++ : V(0);
}

#if defined(__x86_64__)

// For each byte of a mask: which of the next eight values goes where (as bytes of a shuffle), 0x80 where none does.
struct Places {
    alignas(64) u8 words[256][16];
    alignas(64) u8 values[256][8];
    Places() {
        for (int bits = 0; bits < 256; ++bits)
            for (int place = 0, next = 0; place < 8; ++place) {
                bool there = bits >> place & 1;
                words[bits][2 * place] = there ? u8(2 * next) : 0x80;
                words[bits][2 * place + 1] = there ? u8(2 * next + 1) : 0x80;
                values[bits][place] = there ? u8(next++) : 0x80;
            }
    }
};
const Places PLACES;

AVX2 inline float total(__m256 sums) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// The eight weights of a mask's byte as float32.
AVX2 inline __m256 eight(u8 bits, const u16* next) {
    __m128i words = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)),
                                     _mm_load_si128(reinterpret_cast<const __m128i*>(PLACES.words[bits])));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}
AVX2 inline __m256 eight(u8 bits, const float* next) {
    __m256i places = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(PLACES.values[bits])));
    __m256 found = _mm256_permutevar8x32_ps(_mm256_loadu_ps(next), places);
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(places, 31)), found);
}

template <class V>
AVX2 void bitmask_avx2(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32 *starts = section<u32>(head, head.starts), *masks = section<u32>(head, head.index);
    const V* values = section<V>(head, head.values);
    const i64 words = words_of(head.cols);
    for (i64 row = first; row < last; ++row)
        for (i64 token = 0; token < job.tokens; ++token) {
            const float* x = static_cast<const float*>(job.x) + token * job.stride;
            const V* next = values + starts[row];
            __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
            for (i64 word = 0; word < words; ++word, x += 32) {
                const u32 bits = masks[row * words + word];
                for (int part = 0; part < 4; ++part) {
                    const u8 byte = u8(bits >> 8 * part);
                    sums[part] = _mm256_fmadd_ps(eight(byte, next), _mm256_loadu_ps(x + 8 * part), sums[part]);
                    next += __builtin_popcount(byte);
                }
            }
            job.sums[token * head.rows + row] =
                total(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
        }
}

AVX2 void expand_avx2(const Head& head, i64 row, u16* out) {
    const u8* masks = reinterpret_cast<const u8*>(section<u32>(head, head.index) + row * words_of(head.cols));
    const u16* next = section<u16>(head, head.values) + section<u32>(head, head.starts)[row];
    i64 col = 0;
    for (; col + 8 <= head.cols; col += 8, ++masks) {
        __m128i words = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)),
                                         _mm_load_si128(reinterpret_cast<const __m128i*>(PLACES.words[*masks])));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + col), words);
        next += __builtin_popcount(*masks);
    }
    for (int bit = 0; col < head.cols; ++col, ++bit) out[col] = *masks >> bit & 1 ? *next++ : u16(0);
}

// The sixteen weights of half a mask's word as float32.
AVX512 inline __m512 sixteen(__mmask16 bits, const u16* next) {
    __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(next));
    return _mm512_castsi512_ps(_mm512_maskz_expand_epi32(bits, _mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16)));
}
AVX512 inline __m512 sixteen(__mmask16 bits, const float* next) {
    return _mm512_maskz_expand_ps(bits, _mm512_loadu_ps(next));
}

template <class V>
AVX512 void bitmask_avx512(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32 *starts = section<u32>(head, head.starts), *masks = section<u32>(head, head.index);
    const V* values = section<V>(head, head.values);
    const i64 words = words_of(head.cols);
    for (i64 row = first; row < last; ++row)
        for (i64 token = 0; token < job.tokens; ++token) {
            const float* x = static_cast<const float*>(job.x) + token * job.stride;
            const V* next = values + starts[row];
            __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
            for (i64 word = 0; word < words; ++word, x += 32) {
                const u32 bits = masks[row * words + word];
                low = _mm512_fmadd_ps(sixteen(__mmask16(bits), next), _mm512_loadu_ps(x), low);
                next += __builtin_popcount(bits & 0xffff);
                high = _mm512_fmadd_ps(sixteen(__mmask16(bits >> 16), next), _mm512_loadu_ps(x + 16), high);
                next += __builtin_popcount(bits >> 16);
            }
            job.sums[token * head.rows + row] = _mm512_reduce_add_ps(_mm512_add_ps(low, high));
        }
}

AVX512 void expand_avx512(const Head& head, i64 row, float* out) {
    const u16* masks = reinterpret_cast<const u16*>(section<u32>(head, head.index) + row * words_of(head.cols));
    const float* next = section<float>(head, head.values) + section<u32>(head, head.starts)[row];
    for (i64 col = 0; col < head.cols; col += 16, ++masks) {
        const __mmask16 within = __mmask16(head.cols - col >= 16 ? 0xffff : (1u << (head.cols - col)) - 1);
        _mm512_mask_storeu_ps(out + col, within, sixteen(*masks, next));
        next += __builtin_popcount(*masks);
    }
}

// One body for two ways to add 32 products to the sums (a macro: a template cannot take its target as a parameter). Two
// words are counted at a time, so that the second does not wait for the first.
#define BITMASK_ROWS(X, ADD)                                                                                     \
    const Head& head = *job.head;                                                                                \
    const u32* starts = section<u32>(head, head.starts);                                                         \
    const i64 words = words_of(head.cols);                                                                       \
    for (i64 row = first; row < last; ++row)                                                                     \
        for (i64 token = 0; token < job.tokens; ++token) {                                                       \
            const X* x = static_cast<const X*>(job.x) + token * job.stride;                                      \
            const u32* masks = section<u32>(head, head.index) + row * words;                                     \
            const u16* next = section<u16>(head, head.values) + starts[row];                                     \
            __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;                                                 \
            i64 word = 0;                                                                                        \
            for (; word + 4 <= words; word += 4, x += 128) {                                                     \
                __builtin_prefetch(reinterpret_cast<const u8*>(next) + AHEAD);                                   \
                __builtin_prefetch(reinterpret_cast<const u8*>(next) + AHEAD + LINE);                            \
                u64 low, high;                                                                                   \
                std::memcpy(&low, masks + word, 8);                                                              \
                std::memcpy(&high, masks + word + 2, 8);                                                         \
                const u16* third = next + __builtin_popcountll(low);                                             \
                ADD(a, b, thirtytwo(u32(low), next), x);                                                         \
                ADD(c, d, thirtytwo(u32(low >> 32), next + __builtin_popcount(u32(low))), x + 32);               \
                ADD(a, b, thirtytwo(u32(high), third), x + 64);                                                  \
                ADD(c, d, thirtytwo(u32(high >> 32), third + __builtin_popcount(u32(high))), x + 96);            \
                next = third + __builtin_popcountll(high);                                                       \
            }                                                                                                    \
            for (; word < words; ++word, x += 32) {                                                              \
                ADD(a, b, thirtytwo(masks[word], next), x);                                                      \
                next += __builtin_popcount(masks[word]);                                                         \
            }                                                                                                    \
            job.sums[token * head.rows + row] =                                                                  \
                _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));                   \
        }

#define ADD_SPLIT(even, odd, found, at)                                                                           \
    {                                                                                                             \
        const __m512i weights = found;                                                                            \
        const __m512i upper = _mm512_and_si512(weights, _mm512_set1_epi32(int(0xffff0000)));                      \
        even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(weights, 16)), _mm512_loadu_ps(at), even);   \
        odd = _mm512_fmadd_ps(_mm512_castsi512_ps(upper), _mm512_loadu_ps((at) + 16), odd);                       \
    }
#define ADD_PAIRS(sums, unused, found, at) \
    sums = _mm512_dpbf16_ps(sums, (__m512bh)(found), (__m512bh)_mm512_loadu_si512(at))

VBMI2 void bitmask_vbmi2(const Job& job, i64 first, i64 last) { BITMASK_ROWS(float, ADD_SPLIT) }

BF16 void bitmask_bf16(const Job& job, i64 first, i64 last) { BITMASK_ROWS(u16, ADD_PAIRS) }

VBMI2 void expand_vbmi2(const Head& head, i64 row, u16* out) {
    const u32* masks = section<u32>(head, head.index) + row * words_of(head.cols);
    const u16* next = section<u16>(head, head.values) + section<u32>(head, head.starts)[row];
    for (i64 col = 0; col < head.cols; col += 32, ++masks) {
        const __mmask32 within = __mmask32(head.cols - col >= 32 ? ~0u : (1u << (head.cols - col)) - 1);
        _mm512_mask_storeu_epi16(out + col, within, thirtytwo(*masks, next));
        next += __builtin_popcount(*masks);
    }
}

#endif

template <class V>
void expand_bitmask(const Head& head, i64 first, i64 last, i64 base, V* out) {
    for (i64 row = first; row < last; ++row) {
        V* to = out + (row - base) * head.cols;
#if defined(__x86_64__)
        u16* words = reinterpret_cast<u16*>(to);
        if (sizeof(V) == 2 && level >= WITH_VBMI2) expand_vbmi2(head, row, words);
        else if (sizeof(V) == 2 && level >= WITH_AVX2) expand_avx2(head, row, words);
        else if (sizeof(V) == 4 && level >= WITH_AVX512) expand_avx512(head, row, reinterpret_cast<float*>(to));
        else
#endif
            expand_portable(head, row, to);
    }
}

// Sets the sections' offsets; returns the bytes of the last one.
i64 plan_bitmask(Head& head) {
    head.index = head.starts + lines((head.rows + 1) * 4);
    head.values = head.index + lines(head.rows * words_of(head.cols) * 4);
    return head.nnz * head.item;
}

template <class V>
bool fill_bitmask(const Head& head, const Source& from) {
    u32 *starts = section<u32>(head, head.starts), *masks = section<u32>(head, head.index);
    V* values = section<V>(head, head.values);
    const i64 words = words_of(head.cols);
    i64 done = 0, reached = 0;
    bool fits = visit<V>(from, [&](i64 row, i64 col, V value) {
        while (reached <= row) starts[reached++] = u32(done);
        masks[row * words + col / 32] |= 1u << (col % 32);
        values[done++] = value;
    });
    while (reached <= head.rows) starts[reached++] = u32(done);
    return fits;
}

}  // namespace
