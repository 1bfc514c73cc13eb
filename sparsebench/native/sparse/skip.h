// Dense matrices of which only some inputs' or outputs' weights are read, for one vector.
//
// columns: y = Σ x_j · row j of a matrix stored by inputs, over the inputs that are read; rows: y_i = w_i · x over the outputs
// that are. Either way what is read lies side by side. The compiler makes vectors of the loops.

#pragma once

#include "kernel.h"

namespace {

struct Skipping {
    const void* weights;
    const float* x;      // columns: of the inputs that are read, in their order; rows: all
    const int* read;     // which inputs, or outputs, are read
    i64 count, ins, outs;
    float* sums;
};

// sums[0..n) += x[0] · row 0 + … + x[N-1] · row N-1
template <int N, class V>
__attribute__((always_inline)) inline void add_rows(const V* const* rows, const float* x, i64 n, float* __restrict sums) {
    for (i64 i = 0; i < n; ++i) {
        float sum = sums[i];
        for (int row = 0; row < N; ++row) sum += x[row] * widen(rows[row][i]);
        sums[i] = sum;
    }
}

template <class V>
__attribute__((always_inline)) inline void columns(const Skipping& job, i64 first, i64 last) {
    const V* weights = static_cast<const V*>(job.weights) + first;
    float* sums = job.sums + first;
    const V* rows[8];
    std::fill(sums, sums + (last - first), 0.f);
    i64 done = 0;
    for (; done + 8 <= job.count; done += 8) {
        for (int row = 0; row < 8; ++row) rows[row] = weights + job.read[done + row] * job.outs;
        add_rows<8>(rows, job.x + done, last - first, sums);
    }
    for (; done < job.count; ++done) {
        rows[0] = weights + job.read[done] * job.outs;
        add_rows<1>(rows, job.x + done, last - first, sums);
    }
}

// Eight floats, in whatever registers the calling function is compiled for.
typedef float Eight __attribute__((vector_size(32)));
typedef u32 EightBits __attribute__((vector_size(32)));
typedef u16 EightWords __attribute__((vector_size(16)));

__attribute__((always_inline)) inline void load8(const float* from, Eight& to) { std::memcpy(&to, from, 32); }
__attribute__((always_inline)) inline void load8(const u16* from, Eight& to) {
    EightWords words;
    std::memcpy(&words, from, 16);
    const EightBits bits = __builtin_convertvector(words, EightBits) << 16;
    std::memcpy(&to, &bits, 32);
}

template <class V>
__attribute__((always_inline)) inline void some_rows(const Skipping& job, i64 first, i64 last) {
    for (i64 one = first; one < last; ++one) {
        const V* row = static_cast<const V*>(job.weights) + job.read[one] * job.ins;
        // The processor foresees the next row only where it is the next in memory.
        const V* next = one + 1 < last ? static_cast<const V*>(job.weights) + job.read[one + 1] * job.ins : row;
        Eight a = {}, b = {}, c = {}, d = {}, x, w;
        float sum = 0;
        i64 i = 0;
        for (; i + 32 <= job.ins; i += 32) {
            __builtin_prefetch(next + i);
            load8(job.x + i, x), load8(row + i, w), a += x * w;
            load8(job.x + i + 8, x), load8(row + i + 8, w), b += x * w;
            load8(job.x + i + 16, x), load8(row + i + 16, w), c += x * w;
            load8(job.x + i + 24, x), load8(row + i + 24, w), d += x * w;
        }
        for (; i < job.ins; ++i) sum += job.x[i] * widen(row[i]);
        a += b, c += d, a += c;
        for (int lane = 0; lane < 8; ++lane) sum += a[lane];
        job.sums[job.read[one]] = sum;
    }
}

using Skipper = void (*)(const Skipping&, i64 first, i64 last);

template <class V>
void columns_portable(const Skipping& job, i64 first, i64 last) {
    columns<V>(job, first, last);
}
template <class V>
void rows_portable(const Skipping& job, i64 first, i64 last) {
    some_rows<V>(job, first, last);
}

#if defined(__x86_64__)
template <class V>
AVX2 void columns_avx2(const Skipping& job, i64 first, i64 last) {
    columns<V>(job, first, last);
}
template <class V>
AVX2 void rows_avx2(const Skipping& job, i64 first, i64 last) {
    some_rows<V>(job, first, last);
}
template <class V>
AVX512 void columns_avx512(const Skipping& job, i64 first, i64 last) {
    columns<V>(job, first, last);
}
template <class V>
AVX512 void rows_avx512(const Skipping& job, i64 first, i64 last) {
    some_rows<V>(job, first, last);
}
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
