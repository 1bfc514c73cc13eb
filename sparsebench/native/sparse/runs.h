// runs: a step takes two nonzeros of each of sixteen rows, all in one run of 32 columns. Permuting a register gives their
// inputs, without a load for each. A step has 32 slots, two per row; only the filled ones are stored, and a mask says which
// they are. Steps come in twos, whose columns are expanded together.

#pragma once

#include "kernel.h"

namespace {

struct Start {
    u32 two, value;  // how many come before this block
};

// Two steps. Slot 2r + i of a step is the i-th nonzero of row r. Values are in order of slots (of 32 bits: even, then odd).
// So are columns, one byte each, counted from the run's first; at each slot, the first step's comes before the second's.
struct Two {
    u16 run[2];
    u32 mask[2];
};
static_assert(sizeof(Two) == 12, "as documented");

// The bits of a mask, one free bit behind each.
inline u64 apart(u64 bits) {
    bits = (bits | bits << 16) & 0x0000ffff0000ffff;
    bits = (bits | bits << 8) & 0x00ff00ff00ff00ff;
    bits = (bits | bits << 4) & 0x0f0f0f0f0f0f0f0f;
    bits = (bits | bits << 2) & 0x3333333333333333;
    return (bits | bits << 1) & 0x5555555555555555;
}

// Calls take(row, column, value) for every nonzero of a block of runs; those of one row are not in order.
template <class V, class Take>
inline void visit_runs(const Head& head, i64 block, Take take) {
    const Start* start = section<Start>(head, head.starts) + block;
    const Two* twos = section<Two>(head, head.index);
    const u8* from = section<u8>(head, head.values) + i64(start->value) * (1 + i64(sizeof(V)));
    for (const Two* two = twos + start[0].two; two < twos + start[1].two; ++two) {
        const u32 first = two->mask[0], second = two->mask[1], evens = 0x55555555;
        // The next value of each step, and of 32 bits the next one of each step's even and odd slots.
        const u8* next[2][2];
        next[0][0] = from;
        next[1][0] = from + __builtin_popcount(first) * i64(sizeof(V));
        next[0][1] = from + __builtin_popcount(first & evens) * i64(sizeof(V));
        next[1][1] = next[1][0] + __builtin_popcount(second & evens) * i64(sizeof(V));
        from = next[1][0] + __builtin_popcount(second) * i64(sizeof(V));
        for (u64 slots = apart(first) | apart(second) << 1; slots; slots &= slots - 1) {
            const int bit = __builtin_ctzll(slots), step = bit & 1;
            const u8*& at = next[step][sizeof(V) == 2 ? 0 : bit >> 1 & 1];
            V value;
            std::memcpy(&value, at, sizeof(V));
            at += sizeof(V);
            take(block * LANES + (bit >> 2), two->run[step] * RUN + *from++, value);
        }
    }
}

template <class V>
void runs_portable(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    for (i64 block = first; block < last; ++block)
        for (i64 token = 0; token < job.tokens; ++token) {
            const float* x = static_cast<const float*>(job.x) + token * job.stride;
            float sums[LANES] = {};
            visit_runs<V>(head, block, [&](i64 row, i64 col, V value) { sums[row % LANES] += widen(value) * x[col]; });
            const i64 rows = std::min(LANES, head.rows - block * LANES);
            std::memcpy(job.sums + token * head.rows + block * LANES, sums, rows * 4);
        }
}

#if defined(__x86_64__)

// The columns of two steps in words of 16 bits: those of the first step in the lower bytes, of the second in the upper.
VBMI2 inline __m512i columns_of(const Two& two, const u8* from) {
    const u64 mask = _pdep_u64(two.mask[0], 0x5555555555555555) | _pdep_u64(two.mask[1], 0xaaaaaaaaaaaaaaaa);
    return _mm512_maskz_expand_epi8(mask, _mm512_loadu_si512(from));
}

// What a row adds to its sum in one step, by instructions that look at the lowest five bits of a column only. Empty
// slots are multiplied with 0, not with an input, which may be infinite.
struct Pairs {  // two bfloat16 by one instruction
    using X = u16;
    using V = u16;
    __m512i weights;
    __mmask32 mask;

    BF16 void take(u32 slots, const u8* from) {
        mask = slots;
        weights = thirtytwo(slots, reinterpret_cast<const u16*>(from));
    }
    BF16 __m512 add(__m512 sums, __m512i cols, int step, const u16* run) const {
        const __m512i at = step ? _mm512_srli_epi16(cols, 8) : cols;
        const __m512i inputs = _mm512_maskz_permutexvar_epi16(mask, at, _mm512_loadu_si512(run));
        return _mm512_dpbf16_ps(sums, (__m512bh)weights, (__m512bh)inputs);
    }
};

template <class Value>
struct Singly {  // two products in float32
    using X = float;
    using V = Value;
    __m512 even, odd;
    __mmask16 even_mask, odd_mask;

    VBMI2 void take(u32 slots, const u8* from) {
        const u32 evens = _pext_u32(slots, 0x55555555);
        even_mask = __mmask16(evens);
        odd_mask = __mmask16(_pext_u32(slots, 0xaaaaaaaa));
        if (sizeof(Value) == 2) {
            const __m512i found = thirtytwo(slots, reinterpret_cast<const u16*>(from));
            even = _mm512_castsi512_ps(_mm512_slli_epi32(found, 16));
            odd = _mm512_castsi512_ps(_mm512_and_si512(found, _mm512_set1_epi32(int(0xffff0000))));
        } else {
            const float* values = reinterpret_cast<const float*>(from);
            even = _mm512_maskz_expand_ps(even_mask, _mm512_loadu_ps(values));
            odd = _mm512_maskz_expand_ps(odd_mask, _mm512_loadu_ps(values + __builtin_popcount(evens)));
        }
    }
    VBMI2 __m512 add(__m512 sums, __m512i cols, int step, const float* run) const {
        const __m512 low = _mm512_loadu_ps(run), high = _mm512_loadu_ps(run + 16);
        const __m512i at = step ? _mm512_srli_epi32(cols, 8) : cols, odds = _mm512_srli_epi32(cols, step ? 24 : 16);
        sums = _mm512_fmadd_ps(even, _mm512_maskz_permutex2var_ps(even_mask, low, at, high), sums);
        return _mm512_fmadd_ps(odd, _mm512_maskz_permutex2var_ps(odd_mask, low, odds, high), sums);
    }
};

// One block times some tokens, which share its expansion; two sums per token, so that neither waits for the other. A macro
// for the same reason as above: a template cannot take its target as a parameter.
#define RUNS_BLOCK(STEP, TOKENS)                                                                                     \
    const Head& head = *job.head;                                                                                    \
    const Start* start = section<Start>(head, head.starts) + block;                                                  \
    const Two *two = section<Two>(head, head.index) + start[0].two, *end = two + (start[1].two - start[0].two);      \
    constexpr i64 SIZE = sizeof(typename STEP::V);                                                                   \
    const u8* from = section<u8>(head, head.values) + start->value * (SIZE + 1);                                     \
    const auto* x = static_cast<const typename STEP::X*>(job.x) + token * job.stride;                                \
    __m512 even[TOKENS], odd[TOKENS];                                                                                \
    for (int t = 0; t < TOKENS; ++t) even[t] = odd[t] = _mm512_setzero_ps();                                         \
    for (; two < end; ++two) {                                                                                       \
        const i64 one = __builtin_popcount(two->mask[0]), both = one + __builtin_popcount(two->mask[1]);             \
        const __m512i cols = columns_of(*two, from + both * SIZE);                                                   \
        STEP first, second;                                                                                          \
        first.take(two->mask[0], from);                                                                              \
        second.take(two->mask[1], from + one * SIZE);                                                                \
        for (int t = 0; t < TOKENS; ++t) {                                                                           \
            even[t] = first.add(even[t], cols, 0, x + t * job.stride + two->run[0] * RUN);                           \
            odd[t] = second.add(odd[t], cols, 1, x + t * job.stride + two->run[1] * RUN);                            \
        }                                                                                                            \
        __builtin_prefetch(reinterpret_cast<const u8*>(two) + AHEAD / 8);                                            \
        __builtin_prefetch(from + AHEAD);                                                                            \
        __builtin_prefetch(from + AHEAD + LINE);                                                                     \
        from += both * (SIZE + 1);                                                                                   \
    }                                                                                                                \
    const i64 rows = std::min(LANES, head.rows - block * LANES);                                                     \
    for (int t = 0; t < TOKENS; ++t)                                                                                 \
        _mm512_mask_storeu_ps(job.sums + (token + t) * head.rows + block * LANES, __mmask16((1u << rows) - 1),       \
                              _mm512_add_ps(even[t], odd[t]));

#define RUNS_BLOCKS(NAME, ...)                                                                                       \
    for (i64 block = first; block < last; ++block) {                                                                 \
        i64 token = 0;                                                                                               \
        for (; token + 8 <= job.tokens; token += 8) NAME<__VA_ARGS__ 8>(job, block, token);                          \
        for (; token + 2 <= job.tokens; token += 2) NAME<__VA_ARGS__ 2>(job, block, token);                          \
        for (; token < job.tokens; ++token) NAME<__VA_ARGS__ 1>(job, block, token);                                  \
    }

template <int TOKENS>
BF16 void runs_pairs(const Job& job, i64 block, i64 token) { RUNS_BLOCK(Pairs, TOKENS) }
template <class V, int TOKENS>
VBMI2 void runs_singly(const Job& job, i64 block, i64 token) { RUNS_BLOCK(Singly<V>, TOKENS) }

BF16 void runs_bf16(const Job& job, i64 first, i64 last) { RUNS_BLOCKS(runs_pairs, ) }
template <class V>
VBMI2 void runs_vbmi2(const Job& job, i64 first, i64 last) { RUNS_BLOCKS(runs_singly, V, ) }

// Writes the rows of a block into `out`, run by run: sixteen rows a power of two apart would share one set of the cache.
// First come the positions of some steps' values within a run, then the values: otherwise a loop whose end is hard to predict
// would wait for each step's positions.
template <class V>
VBMI2 void expand_block_vbmi2(const Head& head, i64 block, V* out) {
    constexpr i64 SIZE = sizeof(V), SOME = 16, NOWHERE = LANES * RUN;
    const Start* start = section<Start>(head, head.starts) + block;
    const Two *two = section<Two>(head, head.index) + start[0].two, *end = two + (start[1].two - start[0].two);
    const u8 *from = section<u8>(head, head.values) + start->value * (SIZE + 1), *ahead = from;
    const i64 rows = std::min(LANES, head.rows - block * LANES);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i row_of = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(RUN << 16 | RUN));  // of both slots: where it begins
    alignas(64) u16 places[SOME][2][2 * RUN];
    alignas(64) V tile[NOWHERE + 1];
    i64 done = 0;  // runs
    auto clear = [&]() VBMI2 {
        for (i64 at = 0; at < NOWHERE * SIZE; at += LINE)
            _mm512_store_si512(reinterpret_cast<u8*>(tile) + at, _mm512_setzero_si512());
    };
    auto write = [&]() VBMI2 {
        const i64 width = std::min(RUN, head.cols - done * RUN);
        V* to = out + done++ * RUN;
        for (i64 row = 0; row < rows; ++row, to += head.cols) {
            if (width == RUN) std::memcpy(to, tile + row * RUN, RUN * SIZE);
            else std::memcpy(to, tile + row * RUN, width * SIZE);
        }
        clear();
    };
    clear();
    for (; two < end; two += SOME) {
        const i64 some = std::min<i64>(SOME, end - two);
        for (i64 i = 0; i < some; ++i) {
            const i64 both = __builtin_popcount(two[i].mask[0]) + __builtin_popcount(two[i].mask[1]);
            const __m512i cols = columns_of(two[i], ahead + both * SIZE);
            for (int step = 0; step < 2; ++step) {
                const __m512i col = step ? _mm512_srli_epi16(cols, 8) : _mm512_and_si512(cols, _mm512_set1_epi16(255));
                const __m512i place = _mm512_or_si512(col, row_of), nowhere = _mm512_set1_epi16(NOWHERE);
                const u32 mask = two[i].mask[step], first = SIZE == 2 ? mask : mask & 0x55555555;
                u16* to = places[i][step];
                _mm512_storeu_si512(to, _mm512_mask_compress_epi16(nowhere, first, place));
                if (SIZE == 4)
                    _mm512_storeu_si512(to + __builtin_popcount(first),
                                        _mm512_mask_compress_epi16(nowhere, mask ^ first, place));
            }
            ahead += both * (SIZE + 1);
        }
        for (i64 i = 0; i < some; ++i) {
            i64 both = 0;
            for (int step = 0; step < 2; ++step) {
                const i64 count = __builtin_popcount(two[i].mask[step]);
                if (!count) continue;
                while (done < two[i].run[step]) write();
                const u8* values = from + both * SIZE;
                for (i64 at = 0; at < count; at += 8)  // up to seven too many, at NOWHERE
                    for (i64 k = at; k < at + 8; ++k) std::memcpy(tile + places[i][step][k], values + k * SIZE, SIZE);
                both += count;
            }
            from += both * (SIZE + 1);
        }
    }
    while (done < words_of(head.cols)) write();
}

#endif

template <class V>
void expand_runs(const Head& head, i64 first, i64 last, i64 base, V* out) {
    for (i64 block = first; block < last; ++block) {
        V* here = out + (block * LANES - base) * head.cols;
#if defined(__x86_64__)
        if (level >= WITH_VBMI2) {
            expand_block_vbmi2(head, block, here);
            continue;
        }
#endif
        std::memset(here, 0, std::min(LANES, head.rows - block * LANES) * head.cols * sizeof(V));
        visit_runs<V>(head, block, [&](i64 at, i64 col, V value) { out[(at - base) * head.cols + col] = value; });
    }
}

// The number of Twos that each block of runs needs: in each run as many steps as its fullest row has pairs of nonzeros.
template <class V>
std::vector<u32> twos_of(const Source& from) {
    std::vector<u32> twos(blocks_of(from.rows));
    std::vector<u8> most(words_of(from.cols));
    i64 block = 0, row = -1, run = -1, here = 0;
    auto end = [&] {
        u32 steps = 0;
        for (u8& count : most) steps += (count + 1) / 2, count = 0;
        if (block < i64(twos.size())) twos[block] = (steps + 1) / 2;
    };
    visit<V>(from, [&](i64 at, i64 col, V) {
        if (at / LANES != block) end(), block = at / LANES;
        if (at != row || col / RUN != run) row = at, run = col / RUN, here = 0;
        most[run] = std::max(most[run], u8(++here));
    });
    end();
    return twos;
}

// Sets the sections' offsets; returns the bytes of the last one.
i64 plan_runs(Head& head, const Source& from) {
    i64 twos = 0;
    for (u32 count : head.item == 2 ? twos_of<u16>(from) : twos_of<u32>(from)) twos += count;
    head.index = head.starts + lines((blocks_of(head.rows) + 1) * i64(sizeof(Start)));
    head.values = head.index + lines(twos * i64(sizeof(Two)));
    return head.nnz * (1 + head.item);
}

template <class V>
struct Entry {
    u32 col;
    V value;
};

// Writes the steps of one block: its rows' nonzeros, in order.
template <class V>
struct Writer {
    Two* two;
    u8* to;
    int step = 0;  // of the Two that is begun
    u8 cols[2][RUN];
    V values[2][RUN];

    Writer(Two* two, u8* to) : two(two), to(to) {}

    void add(u16 run, u32 mask, const u8* at, const V* value) {
        if (!step) *two = Two{};
        two->run[step] = run;
        two->mask[step] = mask;
        std::copy(at, at + RUN, cols[step]);
        std::copy(value, value + RUN, values[step]);
        if (++step == 2) end();
    }

    void end() {
        if (!step) return;
        for (int one = 0; one < 2; ++one)
            for (int place = 0; place < RUN; ++place) {
                const int slot = sizeof(V) == 2 ? place : place % LANES * 2 + place / LANES;
                if (!(two->mask[one] >> slot & 1)) continue;
                std::memcpy(to, &values[one][slot], sizeof(V));
                to += sizeof(V);
            }
        for (int slot = 0; slot < RUN; ++slot)
            for (int one = 0; one < 2; ++one)
                if (two->mask[one] >> slot & 1) *to++ = cols[one][slot];
        ++two;
        step = 0;
    }
};

template <class V>
bool fill_runs(const Head& head, const Source& from) {
    const i64 blocks = blocks_of(head.rows), runs = words_of(head.cols);
    Start* starts = section<Start>(head, head.starts);
    Two* first = section<Two>(head, head.index);
    u8* begin = section<u8>(head, head.values);
    Writer<V> writer(first, begin);
    std::vector<Entry<V>> rows[LANES];
    i64 block = 0;
    auto end = [&] {
        const Entry<V>*next[LANES], *last[LANES];
        for (i64 lane = 0; lane < LANES; ++lane) {
            next[lane] = rows[lane].data();
            last[lane] = next[lane] + rows[lane].size();
        }
        for (i64 run = 0; run < runs; ++run)
            for (;;) {
                u32 mask = 0;
                u8 cols[RUN] = {};
                V values[RUN] = {};
                for (i64 slot = 0; slot < RUN; ++slot) {
                    const Entry<V>*& entry = next[slot / 2];
                    if (entry == last[slot / 2] || entry->col / RUN != run) continue;
                    mask |= 1u << slot;
                    cols[slot] = u8(entry->col % RUN);
                    values[slot] = entry++->value;
                }
                if (!mask) break;
                writer.add(u16(run), mask, cols, values);
            }
        writer.end();
        for (auto& row : rows) row.clear();
        ++block;
        starts[block] = {u32(writer.two - first), u32((writer.to - begin) / (1 + i64(sizeof(V))))};
    };
    const bool fits = visit<V>(from, [&](i64 row, i64 col, V value) {
        while (block < row / LANES) end();
        rows[row % LANES].push_back({u32(col), value});
    });
    while (block < blocks) end();
    return fits;
}

}  // namespace
