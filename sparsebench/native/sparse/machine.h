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
#define WITH_VECTORS "avx2,fma,bmi,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512vnni,avx512bf16"
#define VECTORS __attribute__((target(WITH_VECTORS)))
#if defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define AMX __attribute__((target(WITH_VECTORS ",amx-tile,amx-bf16")))
#endif
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
enum Level : int { PORTABLE, WITH_AVX2, WITH_AVX512, WITH_VNNI, WITH_BF16, WITH_AMX };

#if defined(__x86_64__)
// Whether the processor multiplies tiles of bfloat16 and the system lets this process do so.
bool has_amx() {
#if defined(AMX)
    constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24;
    constexpr long ASK_FOR_STATE = 0x1023, TILE_DATA = 18;  // arch_prctl's ARCH_REQ_XCOMP_PERM, and the state's number
    unsigned a, b, c, d;
    const bool there = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILE);
    return there && syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0;
#else
    return false;
#endif
}

int best_level() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return PORTABLE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return WITH_AVX2;
    if (!__builtin_cpu_supports("avx512vbmi2") || !__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("bmi2"))
        return WITH_AVX512;
    if (!__builtin_cpu_supports("avx512bf16")) return WITH_VNNI;
    return has_amx() ? WITH_AMX : WITH_BF16;
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
