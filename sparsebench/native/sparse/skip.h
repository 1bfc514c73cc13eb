// Matrices of which only the weights of some inputs or outputs are read, for one vector or a few that share these reads.
//
// columns: y = Σ x_j · row j of a matrix stored by inputs, over the inputs that some vector needs; rows: y_i = w_i · x over
// the outputs that some vector needs. Either way the weights read are contiguous, as dense words or as a bitmask's bits and
// nonzeros. By inputs, a row of a bitmask is cut into panels of equal width. Each panel is a row to the Matrix, which tells a
// thread where the nonzeros of its outputs begin.

#pragma once

#include "matrix.h"

namespace {

struct Skipping {
    const void* weights;  // dense words, or the Matrix of a bitmask
    const float* x;       // columns: (count, tokens), of the inputs that are read; rows: (tokens, ins)
    const int* read;      // which inputs, or outputs, are read
    const u8* needs;      // rows: (count, tokens), whether a vector needs this output
    i64 count, ins, outs, tokens;
    float* sums;          // (tokens, outs), one vector's `apart` from the next one's
    i64 apart;
};

constexpr int TOGETHER = 8;  // rows that are added before sums are written back

template <class V>
struct Summands {
    const V* rows[TOGETHER];       // of a bitmask: the next nonzeros
    const u32* masks[TOGETHER];    // of a bitmask
    const float* x[TOGETHER];      // the values of the first vector, then those of the others
    int count;
};

// sums[t][0..n) += x[0][t] · row 0 + … + x[N-1][t] · row N-1. The compiler makes vectors of the loop over sums.
template <int N, int T, class V>
ALWAYS void add_rows(const Summands<V>& group, int token, i64 n, float* sums, i64 apart) {
    const V* rows[N];
    float x[N][T];
    for (int row = 0; row < N; ++row) {
        rows[row] = group.rows[row];
        for (int t = 0; t < T; ++t) x[row][t] = group.x[row][token + t];
    }
    sums += token * apart;
#pragma GCC ivdep
    for (i64 i = 0; i < n; ++i) {
        float sum[T];
        for (int t = 0; t < T; ++t) sum[t] = sums[t * apart + i];
        for (int row = 0; row < N; ++row) {
            const float weight = widen(rows[row][i]);
            for (int t = 0; t < T; ++t) sum[t] += x[row][t] * weight;
        }
        for (int t = 0; t < T; ++t) sums[t * apart + i] = sum[t];
    }
}

// Four vectors at a time: the weights of a group are still in a cache for the next four.
template <int N, class V>
ALWAYS void add_group(const Skipping& job, const Summands<V>& group, float* sums, i64 n) {
    int token = 0;
    for (; token + 4 <= job.tokens; token += 4) add_rows<N, 4>(group, token, n, sums, job.apart);
    for (; token + 2 <= job.tokens; token += 2) add_rows<N, 2>(group, token, n, sums, job.apart);
    for (; token < job.tokens; ++token) add_rows<N, 1>(group, token, n, sums, job.apart);
}

template <class V>
ALWAYS void columns(const Skipping& job, i64 first, i64 last) {
    for (i64 token = 0; token < job.tokens; ++token)
        std::fill(job.sums + token * job.apart + first, job.sums + token * job.apart + last, 0.f);
    Summands<V> group;
    for (i64 done = 0; done < job.count; done += group.count) {
        group.count = job.count - done < TOGETHER ? 1 : TOGETHER;
        for (int row = 0; row < group.count; ++row) {
            group.rows[row] = static_cast<const V*>(job.weights) + job.read[done + row] * job.outs + first;
            group.x[row] = job.x + (done + row) * job.tokens;
        }
        if (group.count == TOGETHER) add_group<TOGETHER>(job, group, job.sums + first, last - first);
        else add_group<1>(job, group, job.sums + first, last - first);
    }
}

// ---- a bitmask by inputs ---------------------------------------------------------------------------------------------

i64 panels_of(const Matrix& m, i64 ins) { return m.rows / ins; }

// Bytes to prefetch ahead of the nonzeros, and lines where a row begins: the processor does not predict eight short rows.
constexpr i64 SOON = 512, BEGIN = 8;

// The same for the next `words` of 32 sums and T vectors; group.rows advance past the values read.
template <int T, class V>
void add_bits_portable(Summands<V>& group, i64 words, int token, float* sums, i64 apart) {
    for (i64 word = 0; word < words; ++word)
        for (int row = 0; row < group.count; ++row)
            for (u32 bits = group.masks[row][word]; bits; bits &= bits - 1) {
                const float weight = widen(*group.rows[row]++);
                for (int t = 0; t < T; ++t)
                    sums[t * apart + word * 32 + __builtin_ctz(bits)] += group.x[row][token + t] * weight;
            }
}

#if defined(__x86_64__)
// The sixteen weights of half a mask's word as float32.
AVX512 inline __m512 sixteen(__mmask16 bits, const u16* next) {
    __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(next));
    return _mm512_castsi512_ps(_mm512_maskz_expand_epi32(bits, _mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16)));
}
AVX512 inline __m512 sixteen(__mmask16 bits, const float* next) {
    return _mm512_maskz_expand_ps(bits, _mm512_loadu_ps(next));
}

template <int T, class V>
AVX512 void add_bits_avx512(Summands<V>& group, i64 words, int token, float* sums, i64 apart) {
    for (i64 word = 0; word < words; ++word, sums += 32) {
        __m512 low[T], high[T];
        for (int t = 0; t < T; ++t) {
            low[t] = _mm512_loadu_ps(sums + t * apart);
            high[t] = _mm512_loadu_ps(sums + t * apart + 16);
        }
        for (int row = 0; row < group.count; ++row) {
            const u32 bits = group.masks[row][word];
            const V* next = group.rows[row];
            __builtin_prefetch(reinterpret_cast<const u8*>(next) + SOON);
            const __m512 left = sixteen(__mmask16(bits), next);
            const __m512 right = sixteen(__mmask16(bits >> 16), next + __builtin_popcount(bits & 0xffff));
            group.rows[row] = next + __builtin_popcount(bits);
            for (int t = 0; t < T; ++t) {
                const __m512 x = _mm512_set1_ps(group.x[row][token + t]);
                low[t] = _mm512_fmadd_ps(x, left, low[t]);
                high[t] = _mm512_fmadd_ps(x, right, high[t]);
            }
        }
        for (int t = 0; t < T; ++t) {
            _mm512_storeu_ps(sums + t * apart, low[t]);
            _mm512_storeu_ps(sums + t * apart + 16, high[t]);
        }
    }
}
#endif

template <int T, class V>
void add_bits(Summands<V> group, i64 words, int token, float* sums, i64 apart) {
#if defined(__x86_64__)
    if (level >= WITH_AVX512) return add_bits_avx512<T>(group, words, token, sums + token * apart, apart);
#endif
    add_bits_portable<T>(group, words, token, sums + token * apart, apart);
}

// Panels first..last of every input that is read.
template <class V>
void columns_of_bits(const Skipping& job, i64 first, i64 last) {
    const Matrix& m = *static_cast<const Matrix*>(job.weights);
    const i64 panels = panels_of(m, job.ins), each = groups_of(m.cols) * 2;
    const i64* starts = m.starts;
    const u32* masks = reinterpret_cast<const u32*>(m.masks);
    const V* values = reinterpret_cast<const V*>(m.values);
    const i64 width = (last - first) * each * 32;
    for (i64 token = 0; token < job.tokens; ++token)
        std::fill_n(job.sums + token * job.apart + first * each * 32, width, 0.f);
    Summands<V> group;
    for (i64 done = 0; done < job.count; done += group.count) {
        group.count = int(std::min<i64>(TOGETHER, job.count - done));
        for (int row = 0; row < group.count; ++row) {
            const i64 panel = job.read[done + row] * panels + first;
            group.rows[row] = values + starts[panel];
            group.masks[row] = masks + panel * each;
            group.x[row] = job.x + (done + row) * job.tokens;
        }
        for (i64 one = done + TOGETHER; one < std::min(done + 2 * TOGETHER, job.count); ++one) {
            const i64 panel = job.read[one] * panels + first;
            const u8* bits = reinterpret_cast<const u8*>(masks + panel * each);
            const u8* begin = reinterpret_cast<const u8*>(values + starts[panel]);
            for (i64 at = 0; at < width / 8; at += LINE) __builtin_prefetch(bits + at);
            for (i64 at = 0; at < BEGIN; ++at) __builtin_prefetch(begin + at * LINE);
        }
        float* sums = job.sums + first * each * 32;
        int token = 0;
        for (; token + 4 <= job.tokens; token += 4) add_bits<4>(group, width / 32, token, sums, job.apart);
        for (; token + 2 <= job.tokens; token += 2) add_bits<2>(group, width / 32, token, sums, job.apart);
        for (; token < job.tokens; ++token) add_bits<1>(group, width / 32, token, sums, job.apart);
    }
}

// ---- rows ------------------------------------------------------------------------------------------------------------

// Eight floats, in whatever registers the calling function is compiled for.
typedef float Eight __attribute__((vector_size(32)));
typedef u32 EightBits __attribute__((vector_size(32)));
typedef u16 EightWords __attribute__((vector_size(16)));

ALWAYS void load8(const float* from, Eight& to) { std::memcpy(&to, from, 32); }
ALWAYS void load8(const u16* from, Eight& to) {
    EightWords words;
    std::memcpy(&words, from, 16);
    const EightBits bits = __builtin_convertvector(words, EightBits) << 16;
    std::memcpy(&to, &bits, 32);
}

template <class V>
ALWAYS void some_rows(const Skipping& job, i64 first, i64 last) {
    for (i64 one = first; one < last; ++one) {
        const V* row = static_cast<const V*>(job.weights) + job.read[one] * job.ins;
        // The processor prefetches the next row only where it is the next in memory.
        const V* next = one + 1 < last ? static_cast<const V*>(job.weights) + job.read[one + 1] * job.ins : row;
        for (i64 token = 0; token < job.tokens; ++token) {
            if (!job.needs[one * job.tokens + token]) continue;
            const float* from = job.x + token * job.ins;
            Eight a = {}, b = {}, c = {}, d = {}, x, w;
            float sum = 0;
            i64 i = 0;
            for (; i + 32 <= job.ins; i += 32) {
                __builtin_prefetch(next + i);
                load8(from + i, x), load8(row + i, w), a += x * w;
                load8(from + i + 8, x), load8(row + i + 8, w), b += x * w;
                load8(from + i + 16, x), load8(row + i + 16, w), c += x * w;
                load8(from + i + 24, x), load8(row + i + 24, w), d += x * w;
            }
            for (; i < job.ins; ++i) sum += from[i] * widen(row[i]);
            a += b, c += d, a += c;
            for (int lane = 0; lane < 8; ++lane) sum += a[lane];
            job.sums[token * job.apart + job.read[one]] = sum;
        }
    }
}

using Skipper = void (*)(const Skipping&, i64 first, i64 last);

template <class V>
void columns_portable(const Skipping& job, i64 first, i64 last) { columns<V>(job, first, last); }
template <class V>
void rows_portable(const Skipping& job, i64 first, i64 last) { some_rows<V>(job, first, last); }

#if defined(__x86_64__)
template <class V>
AVX2 void columns_avx2(const Skipping& job, i64 first, i64 last) { columns<V>(job, first, last); }
template <class V>
AVX2 void rows_avx2(const Skipping& job, i64 first, i64 last) { some_rows<V>(job, first, last); }
template <class V>
AVX512 void columns_avx512(const Skipping& job, i64 first, i64 last) { columns<V>(job, first, last); }
template <class V>
AVX512 void rows_avx512(const Skipping& job, i64 first, i64 last) { some_rows<V>(job, first, last); }
#endif

template <class V>
Skipper skipper(bool by_columns) {
#if defined(__x86_64__)
    if (level >= WITH_AVX512) return by_columns ? columns_avx512<V> : rows_avx512<V>;
    if (level >= WITH_AVX2) return by_columns ? columns_avx2<V> : rows_avx2<V>;
#endif
    return by_columns ? columns_portable<V> : rows_portable<V>;
}

}  // namespace
