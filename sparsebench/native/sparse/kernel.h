// What a kernel is given, and what the kernels of several layouts use.

#pragma once

#include "matrix.h"

namespace {

// How a kernel wants its vectors: as they came (bfloat16), as float32, or as float32 with the even elements of each 32
// before the odd ones, which is how a mask and a shift split a vector of 32 bfloat16.
enum Form { WORDS, PLAIN, SPLIT };

struct Job {
    const Head* head;
    const void* x;  // `tokens` vectors in the kernel's form, `stride` elements apart, zeros behind the last column
    float* sums;    // (tokens, rows)
    i64 tokens, stride;
};

using Kernel = void (*)(const Job&, i64 first, i64 last);  // rows of a bitmask, blocks of the other two

// Bytes to prefetch ahead of the values, two lines at a time: without it the processor fetches them a third slower.
constexpr i64 AHEAD = 4096;

#if defined(__x86_64__)

// 32 weights of 16 bits by one instruction.
VBMI2 inline __m512i thirtytwo(u32 bits, const u16* next) {
    return _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(next));
}

#endif

}  // namespace
