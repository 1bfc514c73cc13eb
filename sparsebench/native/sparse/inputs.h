// The vectors that a matrix is multiplied with, in the form that its kernel wants, with zeros behind the last column.

#pragma once

#include "matrix.h"

namespace {

// WORDS: as they came (bfloat16). PLAIN: float32. SPLIT: float32, of each 32 the even ones before the odd ones, which is how
// a mask and a shift split a vector of 32 bfloat16. BYTES: rounded to 8 bits, with a scale for every 64.
enum Form { WORDS, PLAIN, SPLIT, BYTES };

// 64 inputs in 8 bits. `less` undoes that kernels add 128 (int8) or 8 (int4) to each weight, because the instruction takes
// unsigned ones: less[i] is minus that number times inputs 4i to 4i + 3.
struct Bytes {
    i8 values[GROUP];
    i32 less[GROUP / 4];
};

struct Inputs {
    Form form;
    i64 tokens, stride;  // elements from one vector to the next; of BYTES, groups
    void* data;
    float* scales;  // of BYTES
};

ALWAYS i64 input_bytes(Form form, i64 groups) {
    return form == BYTES ? groups * (i64(sizeof(Bytes)) + 4) : groups * GROUP * (form == WORDS ? 2 : 4);
}

template <class E>
ALWAYS void round_group(const E* x, i64 width, int offset, Bytes& to, float& scale) {
    float wide[GROUP] = {}, most = 0;
    for (i64 i = 0; i < width; ++i) wide[i] = widen(x[i]);
    for (i64 i = 0; i < GROUP; ++i) most = std::max(most, std::fabs(wide[i]));
    for (i64 i = 0; i < GROUP; ++i) most = wide[i] == wide[i] ? most : wide[i];  // max drops a NaN
    scale = most / 127;
    const bool finite = most <= 3e38f;
    const float inverse = finite && most > 1e-36f ? 127 / most : 0;
    if (!finite) scale = most - most;  // NaN, as a product with infinite inputs may be anything
    for (i64 i = 0; i < GROUP; ++i) to.values[i] = i8(std::nearbyint(finite ? wide[i] * inverse : 0));
    for (i64 i = 0; i < GROUP; i += 4)
        to.less[i / 4] = -offset * (to.values[i] + to.values[i + 1] + to.values[i + 2] + to.values[i + 3]);
}

template <class E>
ALWAYS void prepare(const E* x, i64 cols, int offset, const Inputs& in) {
    const i64 groups = groups_of(cols);
    for (i64 token = 0; token < in.tokens; ++token, x += cols) {
        if (in.form == BYTES) {
            Bytes* to = static_cast<Bytes*>(in.data) + token * in.stride;
            for (i64 group = 0; group < groups; ++group)
                round_group(x + group * GROUP, std::min(GROUP, cols - group * GROUP), offset, to[group],
                            in.scales[token * in.stride + group]);
        } else if (in.form == WORDS) {
            u16* to = static_cast<u16*>(in.data) + token * in.stride;
            if constexpr (sizeof(E) == 2) std::memcpy(to, x, cols * 2);
            std::memset(to + cols, 0, (in.stride - cols) * 2);
        } else {
            float* to = static_cast<float*>(in.data) + token * in.stride;
            const i64 whole = in.form == SPLIT ? cols / 32 * 32 : cols;
            std::memset(to + whole, 0, (in.stride - whole) * 4);
            if (in.form == PLAIN)
                for (i64 col = 0; col < cols; ++col) to[col] = widen(x[col]);
            else
                for (i64 col = 0; col < cols; ++col) to[col / 32 * 32 + col % 2 * 16 + col % 32 / 2] = widen(x[col]);
        }
    }
}

}  // namespace
