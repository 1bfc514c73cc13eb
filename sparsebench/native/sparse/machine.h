// Words, and the instruction sets that functions are compiled for. Nothing is compiled for one machine: each function names
// the instructions it needs, and the best ones are chosen when it runs.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,bmi,popcnt")))
#define AVX512 __attribute__((target("avx2,fma,bmi,popcnt,avx512f,avx512bw,avx512vl,avx512dq")))
// The kernels of products.h and tiles.h. Their BF16 instructions are on branches that only a machine with them takes.
#define VECTORS \
    __attribute__((target("avx2,fma,bmi,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512vnni,avx512bf16")))
#endif
#define ALWAYS __attribute__((always_inline)) inline

namespace {

using u8 = std::uint8_t;
using i8 = std::int8_t;
using u16 = std::uint16_t;
using i16 = std::int16_t;
using u32 = std::uint32_t;
using i32 = std::int32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;

// WITH_VNNI has AVX-512 VBMI2 and VNNI, which came together.
enum Level : int { PORTABLE, WITH_AVX2, WITH_AVX512, WITH_VNNI, WITH_BF16 };

#if defined(__x86_64__)
int best_level() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return PORTABLE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return WITH_AVX2;
    if (!__builtin_cpu_supports("avx512vbmi2") || !__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("bmi2"))
        return WITH_AVX512;
    return __builtin_cpu_supports("avx512bf16") ? WITH_BF16 : WITH_VNNI;
}
#else
int best_level() { return PORTABLE; }
#endif

int level = best_level();

ALWAYS float widen(u16 bits) {
    u32 wide = u32(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}
ALWAYS float widen(float value) { return value; }

ALWAYS u16 rounded(float value) {  // to nearest, ties to even
    u32 bits;
    std::memcpy(&bits, &value, 4);
    u32 even = bits + 0x7fff + ((bits >> 16) & 1);
    return u16(((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : even) >> 16);
}

}  // namespace
