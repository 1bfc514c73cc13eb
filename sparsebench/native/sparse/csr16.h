// csr16: CSR with 16-bit columns, sixteen rows at a time. Within each window of 512 rows the rows are sorted by their number
// of nonzeros. Step k of a block holds the k-th column of its sixteen rows, then the k-th value. (SELL-C-sigma: Kreutzer
// et al., SIAM J. Sci. Comput. 36(5), 2014.) Lanes without a value point at x[cols], which is 0.

#pragma once

#include "kernel.h"

namespace {

// Writes the sums of a block's sixteen rows to their positions.
inline void spread(const Job& job, i64 block, i64 token, const float* lanes) {
    const Head& head = *job.head;
    const u16* rows = section<u16>(head, head.index) + block * LANES;
    float* sums = job.sums + token * head.rows + block * LANES / WINDOW * WINDOW;
    if ((block + 1) * LANES <= head.rows) {
        for (i64 lane = 0; lane < LANES; ++lane) sums[rows[lane]] = lanes[lane];
        return;
    }
    for (i64 lane = 0; lane < LANES; ++lane)
        if (rows[lane] != 0xffff) sums[rows[lane]] = lanes[lane];
}

template <class V>
void csr16_portable(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32* starts = section<u32>(head, head.starts);
    const i64 size = LANES * (2 + i64(sizeof(V)));
    for (i64 block = first; block < last; ++block)
        for (i64 token = 0; token < job.tokens; ++token) {
            const float* x = static_cast<const float*>(job.x) + token * job.stride;
            float sums[LANES] = {};
            for (i64 step = starts[block]; step < starts[block + 1]; ++step) {
                const u16* cols = section<u16>(head, head.values + step * size);
                const V* values = reinterpret_cast<const V*>(cols + LANES);
                for (i64 lane = 0; lane < LANES; ++lane) sums[lane] += widen(values[lane]) * x[cols[lane]];
            }
            spread(job, block, token, sums);
        }
}

#if defined(__x86_64__)

AVX2 inline __m256 values8(const u16* from) {
    __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}
AVX2 inline __m256 values8(const float* from) { return _mm256_loadu_ps(from); }

// An element of x as the upper half of a float. Of bfloat16, the lower half is the element before it, which `exact` masks
// away. So x stays half as large and fits the first cache, at no more loads.
AVX2 inline float loose(const float* x, u16 col) { return x[col]; }
AVX2 inline float loose(const u16* x, u16 col) {
    float value;
    std::memcpy(&value, x + col - 1, 4);
    return value;
}
AVX2 inline __m256 exact(const float*, __m256 found) { return found; }
AVX2 inline __m256 exact(const u16*, __m256 found) {
    return _mm256_and_ps(found, _mm256_castsi256_ps(_mm256_set1_epi32(int(0xffff0000))));
}

// Eight elements of x by eight loads, not by the gather instruction, which takes longer on Zen.
template <class X>
AVX2 inline __m256 fetch8(const X* x, const u16* cols) {
    return exact(x, _mm256_set_m128(_mm_setr_ps(loose(x, cols[4]), loose(x, cols[5]), loose(x, cols[6]), loose(x, cols[7])),
                                    _mm_setr_ps(loose(x, cols[0]), loose(x, cols[1]), loose(x, cols[2]), loose(x, cols[3]))));
}

template <class V, class X>
AVX2 void csr16_avx2(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32* starts = section<u32>(head, head.starts);
    const i64 size = LANES * (2 + i64(sizeof(V)));
    for (i64 block = first; block < last; ++block)
        for (i64 token = 0; token < job.tokens; ++token) {
            const X* x = static_cast<const X*>(job.x) + token * job.stride;
            __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
            for (i64 step = starts[block]; step < starts[block + 1]; ++step) {
                const u16* cols = section<u16>(head, head.values + step * size);
                const V* values = reinterpret_cast<const V*>(cols + LANES);
                low = _mm256_fmadd_ps(values8(values), fetch8(x, cols), low);
                high = _mm256_fmadd_ps(values8(values + 8), fetch8(x, cols + 8), high);
            }
            alignas(32) float sums[LANES];
            _mm256_store_ps(sums, low);
            _mm256_store_ps(sums + 8, high);
            spread(job, block, token, sums);
        }
}

AVX512 inline __m512 values16(const u16* from) {
    __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}
AVX512 inline __m512 values16(const float* from) { return _mm512_loadu_ps(from); }

template <class X>
AVX512 inline __m512 fetch16(const X* x, const u16* cols) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(fetch8(x, cols)), fetch8(x, cols + 8), 1);
}

template <class V, class X>
AVX512 void csr16_avx512(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32* starts = section<u32>(head, head.starts);
    const i64 size = LANES * (2 + i64(sizeof(V)));
    for (i64 block = first; block < last; ++block)
        for (i64 token = 0; token < job.tokens; ++token) {
            const X* x = static_cast<const X*>(job.x) + token * job.stride;
            __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
            const u8* from = section<u8>(head, head.values + starts[block] * size);
            i64 steps = starts[block + 1] - starts[block];
            for (; steps >= 2; steps -= 2, from += 2 * size) {
                const u16 *one = reinterpret_cast<const u16*>(from), *two = reinterpret_cast<const u16*>(from + size);
                even = _mm512_fmadd_ps(values16(reinterpret_cast<const V*>(one + LANES)), fetch16(x, one), even);
                odd = _mm512_fmadd_ps(values16(reinterpret_cast<const V*>(two + LANES)), fetch16(x, two), odd);
            }
            if (steps) {
                const u16* one = reinterpret_cast<const u16*>(from);
                even = _mm512_fmadd_ps(values16(reinterpret_cast<const V*>(one + LANES)), fetch16(x, one), even);
            }
            alignas(64) float sums[LANES];
            _mm512_store_ps(sums, _mm512_add_ps(even, odd));
            spread(job, block, token, sums);
        }
}

#endif

template <class V>
void expand_csr16(const Head& head, i64 first, i64 last, i64 base, V* out) {
    const u32* starts = section<u32>(head, head.starts);
    const i64 size = LANES * (2 + i64(sizeof(V)));
    for (i64 block = first; block < last; ++block) {
        const u16* rows = section<u16>(head, head.index) + block * LANES;
        const i64 window = block * LANES / WINDOW * WINDOW - base;
        V* to[LANES];
        for (i64 lane = 0; lane < LANES; ++lane) {
            to[lane] = rows[lane] == 0xffff ? nullptr : out + (window + rows[lane]) * head.cols;
            if (to[lane]) std::memset(to[lane], 0, head.cols * sizeof(V));
        }
        for (i64 step = starts[block]; step < starts[block + 1]; ++step) {
            const u16* cols = section<u16>(head, head.values + step * size);
            const V* values = reinterpret_cast<const V*>(cols + LANES);
            for (i64 lane = 0; lane < LANES; ++lane)
                if (cols[lane] < head.cols) to[lane][cols[lane]] = values[lane];
        }
    }
}

// The rows of each window, fullest first; equal ones stay in order.
std::vector<u16> arrange(i64 rows, const u32* counts) {
    std::vector<u16> order(blocks_of(rows) * LANES, 0xffff);
    for (i64 window = 0; window < rows; window += WINDOW) {
        const i64 size = std::min(WINDOW, rows - window);
        u16* here = order.data() + window;
        for (i64 row = 0; row < size; ++row) here[row] = u16(row);
        std::stable_sort(here, here + size, [&](u16 a, u16 b) { return counts[window + a] > counts[window + b]; });
    }
    return order;
}

// Sets the sections' offsets; returns the bytes of the last one.
i64 plan_csr16(Head& head, const u32* counts) {
    const i64 blocks = blocks_of(head.rows);
    const std::vector<u16> order = arrange(head.rows, counts);
    i64 steps = 0;
    for (i64 block = 0; block < blocks; ++block) steps += counts[block * LANES / WINDOW * WINDOW + order[block * LANES]];
    head.index = head.starts + lines((blocks + 1) * 4);
    head.values = head.index + lines(blocks * LANES * 2);
    return steps * LANES * (2 + head.item);
}

template <class V>
bool fill_csr16(const Head& head, const Source& from, const u32* counts) {
    const i64 blocks = blocks_of(head.rows), size = LANES * (2 + i64(sizeof(V)));
    const std::vector<u16> order = arrange(head.rows, counts);
    std::memcpy(section<u16>(head, head.index), order.data(), order.size() * 2);
    u32* starts = section<u32>(head, head.starts);
    std::vector<u8*> next(head.rows);
    i64 steps = 0;
    for (i64 block = 0; block < blocks; ++block) {
        starts[block] = u32(steps);
        const i64 window = block * LANES / WINDOW * WINDOW;
        for (i64 lane = 0; lane < LANES; ++lane)
            if (order[block * LANES + lane] != 0xffff)
                next[window + order[block * LANES + lane]] = section<u8>(head, head.values + steps * size + lane * 2);
        steps += counts[window + order[block * LANES]];
    }
    starts[blocks] = u32(steps);
    for (i64 step = 0; step < steps; ++step) {
        u16* cols = section<u16>(head, head.values + step * size);
        std::fill(cols, cols + LANES, u16(head.cols));
    }
    return visit<V>(from, [&](i64 row, i64 col, V value) {
        u8*& at = next[row];
        const u16 narrow = u16(col);
        std::memcpy(at, &narrow, 2);
        const i64 lane = (at - section<u8>(head, head.values)) % size / 2;
        std::memcpy(at + (LANES - lane) * 2 + lane * i64(sizeof(V)), &value, sizeof(V));
        at += size;
    });
}

}  // namespace
