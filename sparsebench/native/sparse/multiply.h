// Matrices times the same vectors, shared out to threads: y = W x + b.

#pragma once

#include <thread>

#include "tiles.h"

namespace {

// A matrix and the bias of its rows (null where there is none), which has the type of the vectors.
struct Layer {
    const Matrix* matrix;
    const void* bias;
};
constexpr int MOST = 3;  // layers that share vectors

// ---- inputs and outputs ----------------------------------------------------------------------------------------------

#if defined(__x86_64__)
template <class Act>
AVX512 void on_avx512(const Act& act) { act(); }
template <class Act>
AVX2 void on_avx2(const Act& act) { act(); }
#endif

// Does what `act`, which must always be inlined, says, with vectors as wide as there are.
template <class Act>
void widest(const Act& act) {
#if defined(__x86_64__)
    if (level >= WITH_AVX512) return on_avx512(act);
    if (level >= WITH_AVX2) return on_avx2(act);
#endif
    act();
}

template <class E>
void prepare_here(const E* x, i64 cols, int offset, const Inputs& in) {
    widest([&]() __attribute__((always_inline)) { prepare(x, cols, offset, in); });
}

template <class E>
void finish(const float* sums, const E* bias, i64 rows, i64 tokens, E* y) {
    widest([&]() __attribute__((always_inline)) {
        for (i64 token = 0; token < tokens; ++token)
            for (i64 row = 0; row < rows; ++row) {
                const float sum = sums[token * rows + row];
                put(bias ? sum + widen(bias[row]) : sum, y + token * rows + row);
            }
    });
}

// Memory of this thread for vectors in a kernel's form, on a whole line, and for their sums behind.
u8* scratch(i64 bytes) {
    thread_local std::vector<u8> held;
    if (i64(held.size()) < bytes + LINE) held.resize(bytes + LINE);
    return held.data() + (LINE - reinterpret_cast<std::uintptr_t>(held.data()) % LINE);
}

i64 lines(i64 bytes) { return (bytes + LINE - 1) / LINE * LINE; }

// ---- threads ---------------------------------------------------------------------------------------------------------

// torch's own OpenMP threads, by address: a second runtime would spin against them.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();
Parallel parallel = nullptr;
Number thread_number = nullptr, thread_count = nullptr;

struct Shared {
    void (*act)(void*, i64 part, i64 parts);
    void* data;
};

void enter(void* given) {
    auto* shared = static_cast<Shared*>(given);
    shared->act(shared->data, thread_number(), thread_count());
}

void on_threads(void (*act)(void*, i64, i64), void* data, int threads) {
    if (threads <= 1) return act(data, 0, 1);
    Shared shared{act, data};
    if (parallel) return parallel(enter, &shared, unsigned(threads), 0);
    std::vector<std::thread> others;
    for (int part = 1; part < threads; ++part) others.emplace_back(act, data, part, threads);
    act(data, 0, threads);
    for (auto& other : others) other.join();
}

// The first row of a part, such that all parts read about as many bytes.
i64 cut(const Matrix& m, i64 part, i64 parts) {
    if (part >= parts) return m.rows;
    if (!m.masks) return m.rows * part / parts;
    auto before = [&](i64 row) { return bytes_of(int(m.type), m.starts[row]) + row * groups_of(m.cols) * 8; };
    const i64 wanted = before(m.rows) / parts * part;
    i64 low = 0, high = m.rows;
    while (low < high) {
        i64 middle = (low + high) / 2;
        if (before(middle) < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

// ---- products --------------------------------------------------------------------------------------------------------

struct Product {
    Job job;
    Kernel kernel;
};

struct Products {
    Product each[MOST];
    int count;
};

void multiply_part(void* data, i64 part, i64 parts) {
    auto& work = *static_cast<Products*>(data);
    for (int i = 0; i < work.count; ++i) {
        const Product& product = work.each[i];
        const Matrix& m = *product.job.matrix;
        product.kernel(product.job, cut(m, part, parts), cut(m, part + 1, parts));
    }
}

// What multiplies a matrix, and where its vectors and sums are among the bytes of all.
struct Plan {
    Choice choice;
    i64 stride, inputs, sums, end;
};

template <class E>
Plan planned(const Matrix& m, i64 tokens, bool tiles, i64 begin) {
    constexpr int type = sizeof(E) == 2 ? BFLOAT : FLOAT;
    Plan plan{choose(m, type), groups_of(m.cols) * GROUP, begin, 0, 0};
#if defined(__x86_64__)
    if (tiles && type == BFLOAT && m.type != FLOAT && level >= WITH_BF16) {
        plan.choice = {rows_by_tiles, WORDS, WITH_BF16};
        plan.stride = tile_stride(m.cols);
    }
#endif
    const i64 each = plan.choice.form == WORDS ? plan.stride * 2 : input_bytes(plan.choice.form, groups_of(m.cols));
    if (plan.choice.form == BYTES) plan.stride /= GROUP;
    plan.sums = begin + lines(tokens * each);
    plan.end = plan.sums + lines(tokens * m.rows * 4);
    return plan;
}

// y[i] (tokens, rows) = x (tokens, cols) · Wᵢᵀ + bᵢ for `count` layers. `tiles` says that rows are expanded to bfloat16 and
// inputs not rounded; it has an effect on bfloat16 x where the processor multiplies these.
template <class E>
void multiply(const Layer* layers, int count, const E* x, E* const* y, i64 tokens, int threads, bool tiles) {
    Plan plans[MOST];
    i64 bytes = 0, products = 0;
    for (int i = 0; i < count; ++i) {
        plans[i] = planned<E>(*layers[i].matrix, tokens, tiles, bytes);
        bytes = plans[i].end;
        products += layers[i].matrix->rows * layers[i].matrix->cols * tokens;
    }
    u8* base = scratch(bytes);
    Products work{{}, count};
    for (int i = 0; i < count; ++i) {
        const Matrix& m = *layers[i].matrix;
        const Plan& plan = plans[i];
        u8* at = base + plan.inputs;
        Inputs in{plan.choice.form, tokens, plan.stride, at, nullptr};
        if (in.form == BYTES) in.scales = reinterpret_cast<float*>(at + tokens * plan.stride * i64(sizeof(Bytes)));
        if (i && layers[i - 1].matrix->type == m.type) in = work.each[i - 1].job.in;  // they want the same form
        else prepare_here(x, m.cols, m.type == INT8 ? 128 : 8, in);
        float* sums = reinterpret_cast<float*>(base + plan.sums);
        if constexpr (sizeof(E) == 4)
            if (!layers[i].bias) sums = y[i];
        work.each[i] = {{&m, in, sums}, plan.choice.kernel};
    }
    on_threads(multiply_part, &work, products < 65536 ? 1 : threads);
    for (int i = 0; i < count; ++i) {
        const float* sums = work.each[i].job.sums;
        if (static_cast<const void*>(sums) != y[i])
            finish(sums, static_cast<const E*>(layers[i].bias), layers[i].matrix->rows, tokens, y[i]);
    }
}

}  // namespace
