// CRC-32 as zlib computes it (polynomial 0xEDB88320, bits reflected), by carry-less multiplication.
//
// After V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009: the
// bytes read so far are folded onto those D bits further on; their halves are multiplied by x^(D+32) and x^(D-32) mod P.

#include <array>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define CLMUL __attribute__((target("pclmul,sse4.1")))
#define VCLMUL __attribute__((target("pclmul,vpclmulqdq,avx512f")))
#endif

namespace {

constexpr uint32_t POLYNOMIAL = 0xEDB88320;

constexpr uint32_t times_x(uint32_t value) { return value >> 1 ^ (value & 1 ? POLYNOMIAL : 0); }

// x^n mod P; the product of two reflected numbers comes out one bit lower, hence the shift.
constexpr uint64_t power(int n) {
    uint32_t value = 0x80000000;
    for (int step = 0; step < n; ++step) value = times_x(value);
    return uint64_t(value) << 1;
}

constexpr std::array<uint32_t, 256> table() {
    std::array<uint32_t, 256> rows{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) value = times_x(value);
        rows[byte] = value;
    }
    return rows;
}

constexpr std::array<uint32_t, 256> TABLE = table();

uint32_t by_table(uint32_t state, const uint8_t* data, int64_t size) {
    for (; size > 0; --size) state = TABLE[(state ^ *data++) & 0xFF] ^ state >> 8;
    return state;
}

#if defined(CLMUL)

template <int BITS>
CLMUL __m128i fold(__m128i old, __m128i next) {
    constexpr int64_t upper = int64_t(power(BITS - 32)), lower = int64_t(power(BITS + 32));
    const __m128i by = _mm_set_epi64x(upper, lower);
    const __m128i low = _mm_clmulepi64_si128(old, by, 0x00), high = _mm_clmulepi64_si128(old, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

CLMUL __m128i load(const uint8_t* data) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data)); }

// Folds the rest of the data onto what was read, and takes the remainder of those 16 bytes by table.
CLMUL uint32_t finish(__m128i folded, const uint8_t* data, int64_t size) {
    for (; size >= 16; size -= 16, data += 16) folded = fold<128>(folded, load(data));
    uint8_t last[16];
    std::memcpy(last, &folded, 16);
    return by_table(by_table(0, last, 16), data, size);
}

CLMUL uint32_t by_128(uint32_t state, const uint8_t* data, int64_t size) {
    if (size < 64) return by_table(state, data, size);
    __m128i part[4];
    for (int k = 0; k < 4; ++k) part[k] = load(data + 16 * k);
    part[0] = _mm_xor_si128(part[0], _mm_cvtsi32_si128(int(state)));
    for (data += 64, size -= 64; size >= 64; data += 64, size -= 64)
        for (int k = 0; k < 4; ++k) part[k] = fold<512>(part[k], load(data + 16 * k));
    for (int k = 0; k < 3; ++k) part[k + 1] = fold<128>(part[k], part[k + 1]);
    return finish(part[3], data, size);
}

template <int BITS>
VCLMUL __m512i fold_wide(__m512i old, __m512i next) {
    constexpr int64_t upper = int64_t(power(BITS - 32)), lower = int64_t(power(BITS + 32));
    const __m512i by = _mm512_broadcast_i32x4(_mm_set_epi64x(upper, lower));
    const __m512i low = _mm512_clmulepi64_epi128(old, by, 0x00), high = _mm512_clmulepi64_epi128(old, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96);
}

VCLMUL uint32_t by_512(uint32_t state, const uint8_t* data, int64_t size) {
    if (size < 256) return by_128(state, data, size);
    __m512i part[4];
    for (int k = 0; k < 4; ++k) part[k] = _mm512_loadu_si512(data + 64 * k);
    part[0] = _mm512_xor_si512(part[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(int(state))));
    for (data += 256, size -= 256; size >= 256; data += 256, size -= 256)
        for (int k = 0; k < 4; ++k) part[k] = fold_wide<2048>(part[k], _mm512_loadu_si512(data + 64 * k));
    for (int k = 0; k < 3; ++k) part[k + 1] = fold_wide<512>(part[k], part[k + 1]);
    __m128i lane[4];
    std::memcpy(lane, &part[3], 64);
    for (int k = 0; k < 3; ++k) lane[k + 1] = fold<128>(lane[k], lane[k + 1]);
    return finish(lane[3], data, size);
}

#endif

}  // namespace

extern "C" {

// What this processor can do: 2 for 512-bit carry-less multiplication, 1 for 128-bit, 0 for neither.
int checksum_simd() {
#if defined(CLMUL)
    if (!__builtin_cpu_supports("pclmul") || !__builtin_cpu_supports("sse4.1")) return 0;
    return __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f") ? 2 : 1;
#else
    return 0;
#endif
}

uint32_t checksum_crc32(const uint8_t* data, int64_t size, int simd) {
    uint32_t state = 0xFFFFFFFF;
#if defined(CLMUL)
    if (simd) return ~(simd > 1 ? by_512(state, data, size) : by_128(state, data, size));
#endif
    (void)simd;
    return ~by_table(state, data, size);
}

}  // extern "C"
