// Sparse matrices times a few vectors, on a CPU. y = W x + b, summed in float32, rounded once at the end.
//
// A matrix is one block of bytes that begins with a Head; every section starts on a 64-byte line, and the last one ends
// with padding for a vector load beyond it. Values of 16 bits (bfloat16) or 32 (float32) are kept bit for bit, in one of three
// layouts: sparse/bitmask.h, sparse/csr16.h and sparse/runs.h. Matrices that are read in part are in sparse/skip.h.

#include <cmath>
#include <thread>

#include "sparse/bitmask.h"
#include "sparse/csr16.h"
#include "sparse/runs.h"
#include "sparse/skip.h"

namespace {

// ---- multiplying -----------------------------------------------------------------------------------------------------

struct Choice {
    Kernel kernel;
    Form form;
    Level needs;
};

Choice choose(const Head& head, int type) {
    const bool narrow = head.item == 2;
#if defined(__x86_64__)
    if (head.kind == RUNS) {
        if (narrow && type == BFLOAT && level >= WITH_BF16) return {runs_bf16, WORDS, WITH_BF16};
        if (level >= WITH_VBMI2) return {narrow ? runs_vbmi2<u16> : runs_vbmi2<float>, PLAIN, WITH_VBMI2};
    } else if (head.kind == CSR16 && type == BFLOAT) {
        if (level >= WITH_AVX512) return {narrow ? csr16_avx512<u16, u16> : csr16_avx512<float, u16>, WORDS, WITH_AVX512};
        if (level >= WITH_AVX2) return {narrow ? csr16_avx2<u16, u16> : csr16_avx2<float, u16>, WORDS, WITH_AVX2};
    } else if (head.kind == CSR16) {
        if (level >= WITH_AVX512) return {narrow ? csr16_avx512<u16, float> : csr16_avx512<float, float>, PLAIN, WITH_AVX512};
        if (level >= WITH_AVX2) return {narrow ? csr16_avx2<u16, float> : csr16_avx2<float, float>, PLAIN, WITH_AVX2};
    } else {
        if (narrow && type == BFLOAT && level >= WITH_BF16) return {bitmask_bf16, WORDS, WITH_BF16};
        if (narrow && level >= WITH_VBMI2) return {bitmask_vbmi2, SPLIT, WITH_VBMI2};
        if (level >= WITH_AVX512) return {narrow ? bitmask_avx512<u16> : bitmask_avx512<float>, PLAIN, WITH_AVX512};
        if (level >= WITH_AVX2) return {narrow ? bitmask_avx2<u16> : bitmask_avx2<float>, PLAIN, WITH_AVX2};
    }
#endif
    (void)type;
    if (head.kind == RUNS) return {narrow ? runs_portable<u16> : runs_portable<float>, PLAIN, PORTABLE};
    if (head.kind == CSR16) return {narrow ? csr16_portable<u16> : csr16_portable<float>, PLAIN, PORTABLE};
    return {narrow ? bitmask_portable<u16> : bitmask_portable<float>, PLAIN, PORTABLE};
}

// The vectors in the form that the kernel wants, with zeros behind the last column.
void prepare(const void* x, int type, i64 cols, i64 tokens, i64 stride, Form form, void* out) {
    for (i64 token = 0; token < tokens; ++token) {
        const u16* words = static_cast<const u16*>(x) + token * cols;
        const float* floats = static_cast<const float*>(x) + token * cols;
        if (form == WORDS) {
            u16* to = static_cast<u16*>(out) + token * stride;
            std::memcpy(to, words, cols * 2);
            std::memset(to + cols, 0, (stride - cols) * 2);
            continue;
        }
        float* to = static_cast<float*>(out) + token * stride;
        if (form == PLAIN) {
            if (type == FLOAT) std::memcpy(to, floats, cols * 4);
            else
                for (i64 col = 0; col < cols; ++col) to[col] = widen(words[col]);
            std::memset(to + cols, 0, (stride - cols) * 4);
            continue;
        }
        std::memset(to + cols / 32 * 32, 0, (stride - cols / 32 * 32) * 4);
        for (i64 col = 0; col < cols; ++col)
            to[col / 32 * 32 + col % 2 * 16 + col % 32 / 2] = type == FLOAT ? floats[col] : widen(words[col]);
    }
}

template <class T>
void finish(const float* sums, const void* bias, i64 rows, i64 tokens, void* y, T (*narrow)(float)) {
    const T* added = static_cast<const T*>(bias);
    for (i64 token = 0; token < tokens; ++token) {
        const float* from = sums + token * rows;
        T* to = static_cast<T*>(y) + token * rows;
        if (added)
            for (i64 row = 0; row < rows; ++row) to[row] = narrow(from[row] + widen(added[row]));
        else
            for (i64 row = 0; row < rows; ++row) to[row] = narrow(from[row]);
    }
}

float same(float value) { return value; }

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

// The first row (or block) of a part, such that all parts read about as many bytes.
i64 cut(const Head& head, i64 part, i64 parts) {
    const i64 count = head.kind == BITMASK ? head.rows : blocks_of(head.rows);
    if (part >= parts) return count;
    const u32* starts = section<u32>(head, head.starts);
    auto before = [&](i64 unit) -> i64 {
        if (head.kind == CSR16) return starts[unit] + unit * 2;
        if (head.kind == BITMASK) return starts[unit] + unit * words_of(head.cols) * (4 / head.item);
        const Start& start = section<Start>(head, head.starts)[unit];
        return i64(start.two) * i64(sizeof(Two)) + i64(start.value) * (1 + head.item);
    };
    const i64 wanted = before(count) / parts * part;
    i64 low = 0, high = count;
    while (low < high) {
        i64 middle = (low + high) / 2;
        if (before(middle) < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

struct Multiplying {
    Job job;
    Kernel kernel;
};

void multiply_part(void* data, i64 part, i64 parts) {
    auto& work = *static_cast<Multiplying*>(data);
    work.kernel(work.job, cut(*work.job.head, part, parts), cut(*work.job.head, part + 1, parts));
}

struct Expanding {
    const Head* head;
    i64 first, last;
    u8* out;
};

template <class V>
void expand_some(const Expanding& work, i64 part, i64 parts) {
    const Head& head = *work.head;
    const i64 each = head.kind == BITMASK ? 1 : LANES, begin = work.first / each;
    const i64 count = (work.last + each - 1) / each - begin;
    const i64 first = begin + count * part / parts, last = begin + count * (part + 1) / parts;
    V* out = reinterpret_cast<V*>(work.out);
    if (head.kind == RUNS) expand_runs(head, first, last, work.first, out);
    else if (head.kind == CSR16) expand_csr16(head, first, last, work.first, out);
    else expand_bitmask(head, first, last, work.first, out);
}

void expand_part(void* data, i64 part, i64 parts) {
    auto& work = *static_cast<Expanding*>(data);
    if (work.head->item == 2) expand_some<u16>(work, part, parts);
    else expand_some<float>(work, part, parts);
}

// ---- skipping --------------------------------------------------------------------------------------------------------

struct Skipped {
    Skipping job;
    Skipper act;      // columns: ranges of outputs, or of panels; rows: ranges of those that are read
    i64 all, each;    // how many to share out, in units that one thread writes
    Multiplying bits; // rows of a bitmask: the kernel for each
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
         i64 tokens, const E* bias, E* y, int threads, i64* values, E (*narrow)(float)) {
    thread_local std::vector<float> floats;
    thread_local std::vector<int> read;
    thread_local std::vector<u8> needs;
    const Head* bits = item ? nullptr : static_cast<const Head*>(weights);
    const i64 deciding = by_columns ? ins : outs, panels = bits && by_columns ? panels_of(*bits, ins) : 1;
    const i64 apart = bits && by_columns ? panels * words_of(bits->cols) * 32 : outs, stride = words_of(ins + 1) * 32;
    floats.resize(2 * LINE + tokens * (stride + apart));
    read.resize(deciding + 1);
    needs.resize((deciding + 1) * tokens);
    // A line is left free before x: see `loose`.
    float* inputs = floats.data() + LINE;
    float* sums = inputs + (tokens * stride + LINE - 1) / LINE * LINE;
    const i64 count = needed(x, decides, limit, deciding, tokens, read.data(), needs.data(), by_columns ? inputs : nullptr);
    Skipped work{{weights, inputs, read.data(), needs.data(), count, ins, outs, tokens, sums, apart}, nullptr, count, 1, {}};
    if (by_columns) {
        work.act = bits ? (bits->item == 2 ? columns_of_bits<u16> : columns_of_bits<float>)
                        : item == 2 ? skipper<u16>(true) : skipper<float>(true);
        work.all = bits ? panels : outs, work.each = bits ? 1 : 32;
    } else {
        std::fill(sums, sums + tokens * apart, 0.f);
        const int type = sizeof(E) == 2 ? BFLOAT : FLOAT;
        const Choice choice = bits ? choose(*bits, type) : Choice{nullptr, PLAIN, PORTABLE};
        prepare(x, type, ins, tokens, bits ? stride : ins, choice.form, inputs);
        if (bits) work.bits = {{bits, inputs, sums, tokens, stride}, choice.kernel};
        else work.act = item == 2 ? skipper<u16>(false) : skipper<float>(false);
    }
    *values = count * (by_columns ? outs : ins);
    if (bits) {
        const u32* starts = section<u32>(*bits, bits->starts);
        *values = 0;
        for (i64 one = 0; one < count; ++one) *values += starts[(read[one] + 1) * panels] - starts[read[one] * panels];
    }
    on_threads(skip_part, &work, *values * (bits ? bits->item : item) < 65536 ? 1 : threads);
    if (!by_columns)
        for (i64 one = 0; one < count; ++one)
            for (i64 token = 0; token < tokens; ++token) {
                float& sum = sums[token * apart + read[one]];
                sum = !needs[one * tokens + token] ? 0.f : bias ? sum + widen(bias[read[one]]) : sum;
            }
    for (i64 token = 0; token < tokens; ++token)
        finish<E>(sums + token * apart, by_columns ? bias : nullptr, outs, 1, y + token * outs, narrow);
    return count;
}

// ---- encoding --------------------------------------------------------------------------------------------------------

Head plan(int kind, int item, const Source& from, const u32* counts) {
    Head head{kind, item, from.rows, from.cols, 0, 0, lines(sizeof(Head)), 0, 0};
    for (i64 row = 0; row < from.rows; ++row) head.nnz += counts[row];
    const i64 last = kind == RUNS ? plan_runs(head, from) : kind == CSR16 ? plan_csr16(head, counts) : plan_bitmask(head);
    head.bytes = lines(head.values + last) + LINE;
    return head;
}

}  // namespace

extern "C" {

// The instruction set in use, as in Level: at first the best one here. `sparse_use` changes it, for tests and tables.
int sparse_level() { return level; }
int sparse_use(int wanted) { return level = std::min(std::max(wanted, 0), best_level()); }

// The instruction set of the kernel that multiplies this matrix with vectors of `type`.
int sparse_needs(const void* matrix, int type) { return choose(*static_cast<const Head*>(matrix), type).needs; }

// GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the OpenMP runtime that is already in the process.
void sparse_threads(void* start, void* number, void* count_of) {
    parallel = reinterpret_cast<Parallel>(start);
    thread_number = reinterpret_cast<Number>(number);
    thread_count = reinterpret_cast<Number>(count_of);
}

// Writes the nonzeros of each row into counts (u32, rows). Returns their total, or -1 where index and values do not match.
i64 sparse_count(int encoding, const void* index, i64 index_bytes, const void* values, i64 count_of, int item, i64 rows,
                 i64 cols, u32* counts) {
    Source from{encoding, static_cast<const u8*>(index), index_bytes, values, count_of, rows, cols};
    return item == 2 ? count<u16>(from, counts) : count<u32>(from, counts);
}

// Bytes of the matrix that sparse_encode would write.
i64 sparse_bytes(int kind, int encoding, const void* index, i64 index_bytes, const void* values, i64 count_of, int item,
                 i64 rows, i64 cols, const u32* counts) {
    return plan(kind, item, {encoding, static_cast<const u8*>(index), index_bytes, values, count_of, rows, cols}, counts).bytes;
}

// Writes the matrix into `out`, zeroed memory of sparse_bytes. Returns 0, or -1 where index and values do not match.
int sparse_encode(int kind, int encoding, const void* index, i64 index_bytes, const void* values, i64 count_of, int item,
                  i64 rows, i64 cols, const u32* counts, void* out) {
    Source from{encoding, static_cast<const u8*>(index), index_bytes, values, count_of, rows, cols};
    Head& head = *static_cast<Head*>(out);
    head = plan(kind, item, from, counts);
    bool fits;
    if (kind == RUNS) fits = item == 2 ? fill_runs<u16>(head, from) : fill_runs<u32>(head, from);
    else if (kind == BITMASK) fits = item == 2 ? fill_bitmask<u16>(head, from) : fill_bitmask<u32>(head, from);
    else fits = item == 2 ? fill_csr16<u16>(head, from, counts) : fill_csr16<u32>(head, from, counts);
    return fits ? 0 : -1;
}

// y (tokens, rows) = x (tokens, cols) · Wᵀ + bias (rows, or null); x, y and bias are of `type`, contiguous.
void sparse_multiply(const void* matrix, const void* x, void* y, const void* bias, i64 tokens, int type, int threads) {
    thread_local std::vector<u8> scratch;
    const Head& head = *static_cast<const Head*>(matrix);
    const Choice choice = choose(head, type);
    const i64 stride = words_of(head.cols + 1) * 32;
    const i64 taken = lines(tokens * stride * 4), summed = lines(tokens * head.rows * 4);
    if (i64(scratch.size()) < taken + summed + 2 * LINE) scratch.resize(taken + summed + 2 * LINE);
    // A line is left free before x: see `loose`.
    u8* base = scratch.data() + (2 * LINE - reinterpret_cast<std::uintptr_t>(scratch.data()) % LINE);
    prepare(x, type, head.cols, tokens, stride, choice.form, base);
    float* sums = type == FLOAT && !bias ? static_cast<float*>(y) : reinterpret_cast<float*>(base + taken);
    Multiplying work{{&head, base, sums, tokens, stride}, choice.kernel};
    on_threads(multiply_part, &work, head.bytes * tokens < 65536 ? 1 : threads);
    if (type == BFLOAT) finish<u16>(sums, bias, head.rows, tokens, y, rounded);
    else if (bias) finish<float>(sums, bias, head.rows, tokens, y, same);
}

// Writes rows first..last of the matrix into `out` as dense words. `first` is a multiple of 512 in csr16, of 16 in runs,
// and so is `last`, unless it is the end.
void sparse_expand(const void* matrix, i64 first, i64 last, void* out, int threads) {
    Expanding work{static_cast<const Head*>(matrix), first, last, static_cast<u8*>(out)};
    on_threads(expand_part, &work, threads);
}

// y (tokens, outs) = W x + bias (or null) for a few x (tokens, ins); x, y, `decides` and bias are of `type`. Returns how many
// inputs (or outputs) were read for all vectors; `values` gets the number of their weights. by_columns: `weights` is (ins,
// outs). Input j counts for a vector where |decides_j| > limit, and is read where it counts for any vector. Else `weights` is
// (outs, ins), and outputs count likewise; one that does not is 0, without bias. Without `decides` all count. `item` is the
// bytes of a weight, or 0 for a bitmask; by columns, `sparse/skip.h` describes it.
i64 sparse_skip(const void* weights, int item, int by_columns, const void* x, const void* decides, float limit, int type,
                i64 ins, i64 outs, i64 tokens, const void* bias, void* y, int threads, i64* values) {
    auto act = [&](auto kind, auto narrow) {
        using E = decltype(kind);
        return skip<E>(weights, item, by_columns != 0, static_cast<const E*>(x), static_cast<const E*>(decides), limit, ins,
                       outs, tokens, static_cast<const E*>(bias), static_cast<E*>(y), threads, values, narrow);
    };
    return type == BFLOAT ? act(u16(), rounded) : act(float(), same);
}
}
