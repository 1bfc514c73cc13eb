// Matrices of weights times vectors, on a CPU: y = W x + b. Sums are in float32 and rounded once at the end. sparse/matrix.h
// says how weights are stored; integers are multiplied with inputs rounded to 8 bits (sparse/inputs.h). One vector or a few
// go through sparse/products.h, many through sparse/tiles.h, sparse/amx.h, sparse/nonzeros.h or sparse/blocks.h;
// sparse/multiply.h shares them out to threads. sparse/decoder.h has the other steps of a decoder. Matrices that are read in
// part are in sparse/skip.h.

#include "sparse/amx.h"
#include "sparse/blocks.h"
#include "sparse/decoder.h"
#include "sparse/nonzeros.h"
#include "sparse/skip.h"

namespace {

template <class W>
struct Expanding {
    const Matrix* matrix;
    i64 first, last;
    W* out;
};

template <class W>
void expand_part(void* data, i64 part, i64 parts) {
    auto& work = *static_cast<Expanding<W>*>(data);
    const i64 count = work.last - work.first, cols = work.matrix->cols;
    Expander<W> rows(*work.matrix);
    for (i64 row = count * part / parts; row < count * (part + 1) / parts; ++row)
        rows.row(work.first + row, work.out + row * cols);
}

// ---- skipping --------------------------------------------------------------------------------------------------------

struct Skipped {
    Skipping job;
    Skipper act;      // columns: ranges of outputs, or of panels; rows: ranges of those that are read
    i64 all, each;    // how many to share out, in units that one thread writes
    Product bits;     // rows of a bitmask: the kernel for each
};

void skip_part(void* data, i64 part, i64 parts) {
    auto& work = *static_cast<Skipped*>(data);
    const i64 units = (work.all + work.each - 1) / work.each;
    const i64 first = std::min(work.all, units * part / parts * work.each);
    const i64 last = std::min(work.all, units * (part + 1) / parts * work.each);
    if (work.act) return work.act(work.job, first, last);
    for (i64 one = first; one < last; ++one) work.bits.kernel(work.bits.job, work.job.read[one], work.job.read[one] + 1);
}

// Lists which of `all` inputs or outputs some vector needs, in order: those where |decides| (tokens, all) is over `limit`,
// or all if it is null. `needs` (count, tokens) says which vectors need them; `x` (count, tokens) or null gets their inputs.
template <class E>
i64 needed(const E* given, const E* decides, float limit, i64 all, i64 tokens, int* read, u8* needs, float* x) {
    i64 count = 0;
    for (i64 at = 0; at < all; ++at) {
        bool any = false;
        for (i64 token = 0; token < tokens; ++token) {
            const bool need = !decides || !(std::abs(widen(decides[token * all + at])) <= limit);
            needs[count * tokens + token] = need;
            if (x) x[count * tokens + token] = need ? widen(given[token * all + at]) : 0.f;
            any |= need;
        }
        read[count] = int(at);
        count += any;
    }
    return count;
}

template <class E>
i64 skip(const void* weights, int item, bool by_columns, const E* x, const E* decides, float limit, i64 ins, i64 outs,
         i64 tokens, const E* bias, E* y, int threads, i64* values) {
    thread_local std::vector<float> floats;
    thread_local std::vector<int> read;
    thread_local std::vector<u8> needs;
    const Matrix* bits = item ? nullptr : static_cast<const Matrix*>(weights);
    const i64 deciding = by_columns ? ins : outs, panels = bits && by_columns ? panels_of(*bits, ins) : 1;
    const i64 apart = bits && by_columns ? panels * groups_of(bits->cols) * GROUP : outs, stride = groups_of(ins) * GROUP;
    floats.resize(tokens * (stride + apart));
    read.resize(deciding + 1);
    needs.resize((deciding + 1) * tokens);
    float* inputs = floats.data();
    float* sums = inputs + tokens * stride;
    const i64 count = needed(x, decides, limit, deciding, tokens, read.data(), needs.data(), by_columns ? inputs : nullptr);
    Skipped work{{weights, inputs, read.data(), needs.data(), count, ins, outs, tokens, sums, apart}, nullptr, count, 1, {}};
    if (by_columns) {
        work.act = bits ? (bits->type == BFLOAT ? columns_of_bits<u16> : columns_of_bits<float>)
                        : item == 2 ? skipper<u16>(true) : skipper<float>(true);
        work.all = bits ? panels : outs, work.each = bits ? 1 : 32;
    } else {
        std::fill(sums, sums + tokens * apart, 0.f);
        const int type = sizeof(E) == 2 ? BFLOAT : FLOAT;
        const Choice choice = bits ? choose(*bits, type) : Choice{nullptr, PLAIN, PORTABLE};
        const Inputs in{choice.form, tokens, bits ? stride : ins, inputs, nullptr};
        prepare_here(x, ins, 0, in);
        if (bits) work.bits = {{bits, in, sums}, choice.kernel};
        else work.act = item == 2 ? skipper<u16>(false) : skipper<float>(false);
    }
    *values = count * (by_columns ? outs : ins);
    if (bits) {
        const i64* starts = bits->starts;
        *values = 0;
        for (i64 one = 0; one < count; ++one) *values += starts[(read[one] + 1) * panels] - starts[read[one] * panels];
    }
    on_threads(skip_part, &work, *values * (bits ? bytes_of(int(bits->type), 1) : item) < 65536 ? 1 : threads);
    if (!by_columns)
        for (i64 one = 0; one < count; ++one)
            for (i64 token = 0; token < tokens; ++token) {
                float& sum = sums[token * apart + read[one]];
                sum = !needs[one * tokens + token] ? 0.f : bias ? sum + widen(bias[read[one]]) : sum;
            }
    for (i64 token = 0; token < tokens; ++token)
        finish(sums + token * apart, by_columns ? bias : nullptr, outs, 1, y + token * outs);
    return count;
}

}  // namespace

extern "C" {

// The instruction set in use, as in Level: at first the best one here. `sparse_use` changes it, for tests and tables.
int sparse_level() { return level; }
int sparse_use(int wanted) { return level = std::min(std::max(wanted, 0), best_level()); }

// The instruction set of the kernel that multiplies this matrix with vectors of `type`.
int sparse_needs(const Matrix* matrix, int type) { return choose(*matrix, type).needs; }

// GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the OpenMP runtime that is already in the process.
void sparse_threads(void* start, void* number, void* count_of) {
    parallel = reinterpret_cast<Parallel>(start);
    thread_number = reinterpret_cast<Number>(number);
    thread_count = reinterpret_cast<Number>(count_of);
}

// Ways to multiply several vectors. ONE_BY_ONE: as one is multiplied, four sharing what is read. TILES: rows are expanded to
// bfloat16, inputs are not rounded; it is ONE_BY_ONE unless x is bfloat16 and the processor multiplies these. NONZEROS: each
// weight that is not zero times all vectors, in float32; for bitmasks. BLOCKS: rows are expanded to float32, inputs are not
// rounded.
enum Way : int { ONE_BY_ONE, TILES, NONZEROS, BLOCKS };

// y (tokens, rows) = x (tokens, cols) · Wᵀ + bias (rows, or null); x, y and bias are of `type`, contiguous.
void sparse_multiply(const Matrix* matrix, const void* x, void* y, const void* bias, i64 tokens, int type, int threads,
                     int way) {
    const Layer layer{matrix, bias};
#if defined(AMX)
    if (way == TILES && type == BFLOAT && matrix->type != FLOAT && level >= WITH_AMX)
        return multiply_by_amx(layer, static_cast<const u16*>(x), static_cast<u16*>(y), tokens, threads);
#endif
    auto act = [&](auto kind) {
        using E = decltype(kind);
        E* out = static_cast<E*>(y);
        if (way == NONZEROS && matrix->masks)
            return multiply_by_columns(layer, static_cast<const E*>(x), out, tokens, threads, by_nonzeros<E>(*matrix));
        if (way == BLOCKS) return multiply_by_columns(layer, static_cast<const E*>(x), out, tokens, threads, by_blocks<E>());
        multiply(&layer, 1, static_cast<const E*>(x), &out, tokens, threads, way == TILES);
    };
    type == BFLOAT ? act(u16()) : act(float());
}

// One new token through a decoder's blocks and its last norm: `hidden` (width), of `type`, which becomes the output. `caches`
// has of each block the keys (shared heads, size, room) and values (shared heads, room, size) of the `before` tokens before it,
// where the new ones are added; `cos` and `sin` (size) are the rotation of the token's position.
void sparse_decode(const Decoder* decoder, void* hidden, const void* cos, const void* sin, void* const* caches, i64 before,
                   i64 room, int type, int threads) {
    auto act = [&](auto kind) {
        using E = decltype(kind);
        const Position<E> position{static_cast<const E*>(cos), static_cast<const E*>(sin), before, room, threads};
        decode(*decoder, static_cast<E*>(hidden), position, reinterpret_cast<E* const*>(caches));
    };
    type == BFLOAT ? act(u16()) : act(float());
}

// Writes rows first..last of the matrix into `out` as dense bfloat16 (`words`) or float32, scales included.
void sparse_expand(const Matrix* matrix, i64 first, i64 last, void* out, int words, int threads) {
    auto act = [&](auto kind) {
        using W = decltype(kind);
        Expanding<W> work{matrix, first, last, static_cast<W*>(out)};
        on_threads(expand_part<W>, &work, threads);
    };
    words ? act(u16()) : act(float());
}

// Removes memory from the caches, as it is not in them when a layer of a large model is next.
void sparse_flush(const u8* begin, i64 bytes) {
#if defined(__x86_64__)
    for (i64 at = 0; at < bytes; at += LINE) _mm_clflush(begin + at);
    _mm_mfence();
#endif
    (void)begin, (void)bytes;
}

// y (tokens, outs) = W x + bias (or null) for a few x (tokens, ins); x, y, `decides` and bias are of `type`. Returns how many
// inputs (or outputs) were read for all vectors; `values` gets the number of their weights. by_columns: `weights` is (ins,
// outs). Input j counts for a vector where |decides_j| > limit, and is read where it counts for any vector. Else `weights` is
// (outs, ins), and outputs count likewise; one that does not is 0, without bias. Without `decides` all count. `item` is the
// bytes of a weight, or 0 for a bitmask; by columns, `sparse/skip.h` describes it.
i64 sparse_skip(const void* weights, int item, int by_columns, const void* x, const void* decides, float limit, int type,
                i64 ins, i64 outs, i64 tokens, const void* bias, void* y, int threads, i64* values) {
    auto act = [&](auto kind) {
        using E = decltype(kind);
        return skip<E>(weights, item, by_columns != 0, static_cast<const E*>(x), static_cast<const E*>(decides), limit, ins,
                       outs, tokens, static_cast<const E*>(bias), static_cast<E*>(y), threads, values);
    };
    return type == BFLOAT ? act(u16()) : act(float());
}
}
