// A matrix in one of the layouts, and what it is made from.

#pragma once

#include "machine.h"

namespace {

enum Kind : int { BITMASK = 0, CSR16 = 1, RUNS = 2 };
enum Type : int { FLOAT = 0, BFLOAT = 1 };
enum Encoding : int { MASK = 0, GAPS8 = 1, GAPS4 = 2 };

constexpr i64 LANES = 16, WINDOW = 512, LINE = 64, RUN = 32;

struct Head {
    i64 kind, item, rows, cols, nnz, bytes;
    i64 starts;  // bitmask: first value of each row; csr16: first step of each block. u32, one more than there are.
                 // runs: the Start of each block, and of the end
    i64 index;   // bitmask: the words; csr16: the row of each lane within its window, u16, 0xffff for none; runs: the Twos
    i64 values;  // bitmask: the nonzeros; csr16: the steps, sixteen columns then sixteen values each; runs: of each Two the
                 // values of its first step, those of its second, then their columns
};

template <class T>
T* section(const Head& head, i64 offset) {
    return reinterpret_cast<T*>(reinterpret_cast<u8*>(const_cast<Head*>(&head)) + offset);
}

i64 lines(i64 bytes) { return (bytes + LINE - 1) / LINE * LINE; }
i64 words_of(i64 cols) { return (cols + 31) / 32; }
i64 blocks_of(i64 rows) { return (rows + LANES - 1) / LANES; }

bool is_zero(u16 bits) { return !(bits & 0x7fff); }
bool is_zero(u32 bits) { return !(bits & 0x7fffffff); }

struct Source {
    int encoding;  // of the packed format, or -1: the words themselves
    const u8* index;
    i64 index_bytes;
    const void* values;
    i64 count;  // of values
    i64 rows, cols;
};

// Calls take(row, column, value) for every value that is not zero, in order; false where index and values do not fit.
template <class V, class Take>
bool visit(const Source& from, Take take) {
    const V* values = static_cast<const V*>(from.values);
    const i64 n = from.rows * from.cols;
    if (from.encoding < 0) {
        for (i64 row = 0; row < from.rows; ++row, values += from.cols)
            for (i64 col = 0; col < from.cols; ++col)
                if (!is_zero(values[col])) take(row, col, values[col]);
        return true;
    }
    i64 row = 0, begin = 0, done = 0;
    auto place = [&](i64 position) {
        if (position >= n || done >= from.count) return false;
        if (position - begin >= from.cols) {
            row = position / from.cols;
            begin = row * from.cols;
        }
        const V value = values[done++];
        if (!is_zero(value)) take(row, position - begin, value);
        return true;
    };
    if (from.encoding == MASK) {
        for (i64 at = 0; at < from.index_bytes; at += 8) {
            u64 bits = 0;
            std::memcpy(&bits, from.index + at, std::min<i64>(8, from.index_bytes - at));
            for (; bits; bits &= bits - 1)
                if (!place(at * 8 + __builtin_ctzll(bits))) return false;
        }
        return done == from.count;
    }
    const int escape = from.encoding == GAPS8 ? 255 : 15;
    i64 position = -1;
    auto symbol = [&](int gap) {
        position += gap + (gap != escape);
        return gap == escape || place(position);
    };
    for (i64 at = 0; at < from.index_bytes; ++at) {
        const int byte = from.index[at];
        if (escape == 255 ? !symbol(byte) : !symbol(byte & 15) || !symbol(byte >> 4)) return false;
    }
    return done == from.count;
}

template <class V>
i64 count(const Source& from, u32* counts) {
    i64 total = 0;
    std::fill(counts, counts + from.rows, 0);
    bool fits = visit<V>(from, [&](i64 row, i64, V) {
        ++counts[row];
        ++total;
    });
    return fits ? total : -1;
}

}  // namespace
