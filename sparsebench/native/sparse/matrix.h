// A matrix of weights: {dense, bitmask} × {float32, bfloat16, int8, int4}, with scales where the values are integers. Its
// parts are wherever they were read or mapped: nothing is laid out anew.

#pragma once

#include "machine.h"

namespace {

enum Type : int { FLOAT = 0, BFLOAT = 1, INT8 = 2, INT4 = 3 };
constexpr i64 LINE = 64;
constexpr i64 GROUP = 64;  // columns per word of a mask, and inputs that share a scale where they are rounded to 8 bits

// Dense rows are `stride` bytes apart; int8 and int4 are stored as value + 128 and + 8, as compressed-tensors has them.
// A bitmask has a bit per column, in whole words a row, and the values of its ones in order: int8 and int4 in two's
// complement, as the packed format has them. Of int4 the lower half of a byte is the first.
struct Matrix {
    i64 type, rows, cols;
    i64 stride;           // of a dense row; 0 for a bitmask
    i64 count;            // of stored values
    const u8* masks;      // (rows, groups of columns), 8 bytes each, wherever they begin; null where dense
    const i64* starts;    // of a bitmask: how many values come before each row, and the end
    const u8* values;
    const void* scales;   // (rows, groups of `group` columns); null for floats
    i64 scale_type, group;
};

ALWAYS i64 groups_of(i64 cols) { return (cols + GROUP - 1) / GROUP; }
ALWAYS i64 bytes_of(int type, i64 count) {
    return type == INT4 ? (count + 1) / 2 : count * (type == FLOAT ? 4 : type == BFLOAT ? 2 : 1);
}
ALWAYS i64 scales_of(const Matrix& m) { return (m.cols + m.group - 1) / m.group; }
ALWAYS float scale_at(const Matrix& m, i64 at) {
    return m.scale_type == BFLOAT ? widen(static_cast<const u16*>(m.scales)[at]) : static_cast<const float*>(m.scales)[at];
}

// Values of one row for kernels that load whole vectors: those that would read beyond the last value get a copy.
struct Row {
    const u8* masks;
    const u8* values;
    bool odd;  // of int4: begins with the upper half of a byte
    i64 count;

    ALWAYS u64 mask(i64 group) const {
        u64 bits;
        std::memcpy(&bits, masks + group * 8, 8);
        return bits;
    }
};

ALWAYS Row row_of(const Matrix& m, i64 row, std::vector<u8>& copy) {
    const i64 groups = groups_of(m.cols);
    if (!m.masks) return {nullptr, m.values + row * m.stride, false, m.cols};
    const i64 first = m.starts[row], count = m.starts[row + 1] - first;
    const bool odd = m.type == INT4 && first % 2;
    const i64 begin = m.type == INT4 ? first / 2 : bytes_of(int(m.type), first), bytes = bytes_of(int(m.type), count + odd);
    Row found{m.masks + row * groups * 8, m.values + begin, odd, count};
    if (begin + bytes + 4 * LINE > bytes_of(int(m.type), m.count)) {
        copy.assign(bytes + 4 * LINE, 0);
        std::memcpy(copy.data(), found.values, bytes);
        found.values = copy.data();
    }
    return found;
}

// ---- a group's weights, the portable way -------------------------------------------------------------------------------

#if defined(__x86_64__)

// For each byte of a mask: which of the next eight values goes where (as bytes of a shuffle), 0x80 where none does.
struct Places {
    alignas(64) u8 words[256][16];
    alignas(64) u8 bytes[256][8];
    Places() {
        for (int bits = 0; bits < 256; ++bits)
            for (int place = 0, next = 0; place < 8; ++place) {
                bool there = bits >> place & 1;
                words[bits][2 * place] = there ? u8(2 * next) : 0x80;
                words[bits][2 * place + 1] = there ? u8(2 * next + 1) : 0x80;
                bytes[bits][place] = there ? u8(next++) : 0x80;
            }
    }
};
const Places PLACES;

AVX2 inline __m128i eight(int bits, const u8* next) {
    const __m128i places = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(PLACES.bytes[bits]));
    return _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(next)), places);
}
AVX2 inline void eight(int bits, const u16* next, u16* out) {
    const __m128i places = _mm_load_si128(reinterpret_cast<const __m128i*>(PLACES.words[bits]));
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(next));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(values, places));
}
AVX2 inline void eight(int bits, const float* next, float* out) {
    const __m256i places =
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(PLACES.bytes[bits])));
    const __m256 values = _mm256_permutevar8x32_ps(_mm256_loadu_ps(next), places);
    _mm256_storeu_ps(out, _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(places, 31)), values));
}

// Puts the next values where a mask's ones are, zeros elsewhere.
template <class V>
AVX2 void place_avx2(u64 bits, const V* next, V* out) {
    for (int byte = 0; byte < 8; ++byte, bits >>= 8) {
        eight(int(bits & 255), next, out + byte * 8);
        next += __builtin_popcount(bits & 255);
    }
}
// Sixteen bytes are stored at once, because they are read so.
AVX2 inline void place_avx2(u64 bits, const u8* next, u8* out) {
    for (int pair = 0; pair < 4; ++pair, bits >>= 16) {
        const u8* second = next + __builtin_popcount(bits & 255);
        const __m128i both = _mm_unpacklo_epi64(eight(int(bits & 255), next), eight(int(bits >> 8 & 255), second));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + pair * 16), both);
        next += __builtin_popcount(bits & 65535);
    }
}
#endif

template <bool TABLES, class V>
ALWAYS void place(u64 bits, const V* next, V* out) {
#if defined(__x86_64__)
    if constexpr (TABLES) return place_avx2(bits, next, out);
#endif
    std::fill(out, out + GROUP, V(0));
    for (; bits; bits &= bits - 1) std::memcpy(out + __builtin_ctzll(bits), next++, sizeof(V));  // may begin at any byte
}

// The 64 weights of a group, without scales, zeros beyond the last column; `next` counts the row's values before it.
template <int TYPE, bool TABLES, class W>
ALWAYS void weights_of(const Matrix& m, const Row& row, i64 group, i64& next, W* out) {
    using V = std::conditional_t<TYPE == FLOAT, float, std::conditional_t<TYPE == BFLOAT, u16, u8>>;
    const i64 width = std::min(GROUP, m.cols - group * GROUP);
    const V* values = reinterpret_cast<const V*>(row.values + next * i64(sizeof(V)));
    V placed[GROUP] = {};
    [[maybe_unused]] u8 halves[GROUP + 2];
    if constexpr (TYPE == INT4) {
        const i64 begin = next + row.odd;
        const u8* from = row.values + begin / 2;
        auto split = [&](int bytes) __attribute__((always_inline)) {
            for (int i = 0; i < bytes; ++i) halves[2 * i] = from[i] & 15, halves[2 * i + 1] = from[i] >> 4;
        };
        if (row.masks) split(GROUP / 2 + 1);
        else if (width == GROUP) split(GROUP / 2);
        else split(int(width + 1) / 2);
        values = halves + begin % 2;
    }
    if (row.masks) place<TABLES>(row.mask(group), values, placed);
    else if (width == GROUP) std::memcpy(placed, values, sizeof(placed));
    else std::memcpy(placed, values, width * sizeof(V));
    next += row.masks ? __builtin_popcountll(row.mask(group)) : width;
    for (int col = 0; col < GROUP; ++col) {
        if constexpr (TYPE == INT8) out[col] = W(row.masks ? int(i8(placed[col])) : int(placed[col]) - 128);
        else if constexpr (TYPE == INT4) out[col] = W(row.masks ? (int(placed[col]) ^ 8) - 8 : int(placed[col]) - 8);
        else out[col] = W(widen(placed[col]));
    }
    for (i64 col = width; col < GROUP; ++col) out[col] = 0;
}

}  // namespace
