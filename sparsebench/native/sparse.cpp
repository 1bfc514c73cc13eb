// Sparse matrices times a few vectors, on a CPU. y = W x + b, summed in float32, rounded once at the end.
//
// A matrix is one block of bytes that begins with a Head; every section lies on a 64-byte line, and the last one ends with
// room for a vector load too far. Three layouts, values of 16 bits (bfloat16) or 32 (float32), kept bit for bit:
//
// bitmask  one bit per weight, rows padded to whole 32-bit words; the nonzeros in order.
// csr16    CSR with 16-bit columns, sixteen rows abreast: within each window of 512 rows the rows are sorted by their
//          number of nonzeros, and step k of a block holds the k-th column of its sixteen rows, then the k-th value.
//          (SELL-C-sigma: Kreutzer et al., SIAM J. Sci. Comput. 36(5), 2014.) Lanes without a value point at x[cols], which is 0.
// runs     sixteen rows abreast, two nonzeros of each at a step, all in one run of 32 columns: what they are multiplied with
//          is then found by permuting a register, and not by a load for each. A step has 32 slots, two a row, and only what
//          fills them is stored: a mask says which. Steps come in twos, whose columns are expanded together.
//
// Nothing is compiled for one machine: each function names the instructions it needs, and the best are chosen when it runs.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,bmi,popcnt")))
#define AVX512 __attribute__((target("avx2,fma,bmi,popcnt,avx512f,avx512bw,avx512vl,avx512dq")))
#define VBMI2 __attribute__((target("avx2,fma,bmi,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2")))
#define BF16 __attribute__((target("avx2,fma,bmi,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16")))
#endif

namespace {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;

enum Kind : int { BITMASK = 0, CSR16 = 1, RUNS = 2 };
enum Type : int { FLOAT = 0, BFLOAT = 1 };
enum Level : int { PORTABLE, WITH_AVX2, WITH_AVX512, WITH_VBMI2, WITH_BF16 };
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

struct Start {
    u32 two, value;  // how many come before this block
};

// Two steps. Slot 2r + i of a step is the i-th nonzero of row r; values lie by slot (of 32 bits: even slots, then odd ones).
// Columns, one byte each and less the run's first, lie by slot too, at each slot that of the first step before the second's.
struct Two {
    u16 run[2];
    u32 mask[2];
};
static_assert(sizeof(Two) == 12, "as documented");

template <class T>
T* section(const Head& head, i64 offset) {
    return reinterpret_cast<T*>(reinterpret_cast<u8*>(const_cast<Head*>(&head)) + offset);
}

i64 lines(i64 bytes) { return (bytes + LINE - 1) / LINE * LINE; }
i64 words_of(i64 cols) { return (cols + 31) / 32; }
i64 blocks_of(i64 rows) { return (rows + LANES - 1) / LANES; }

inline float widen(u16 bits) {
    u32 wide = u32(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}
inline float widen(float value) { return value; }

inline u16 rounded(float value) {  // to nearest, ties to even
    u32 bits;
    std::memcpy(&bits, &value, 4);
    u32 even = bits + 0x7fff + ((bits >> 16) & 1);
    return u16(((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : even) >> 16);
}

// ---- multiplying -----------------------------------------------------------------------------------------------------

// How a kernel wants its vectors: as they came (bfloat16), as float32, or as float32 with the even elements of each 32
// before the odd ones, which is how a vector of 32 bfloat16 falls apart by a mask and a shift.
enum Form { WORDS, PLAIN, SPLIT };

struct Job {
    const Head* head;
    const void* x;  // `tokens` vectors in the kernel's form, `stride` elements apart, zeros behind the last column
    float* sums;    // (tokens, rows)
    i64 tokens, stride;
};

using Kernel = void (*)(const Job&, i64 first, i64 last);  // rows of a bitmask, blocks of the other two

template <class V>
void bitmask_portable(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32 *starts = section<u32>(head, head.starts), *masks = section<u32>(head, head.index);
    const V* values = section<V>(head, head.values);
    const i64 words = words_of(head.cols);
    for (i64 row = first; row < last; ++row)
        for (i64 token = 0; token < job.tokens; ++token) {
            const float* x = static_cast<const float*>(job.x) + token * job.stride;
            const V* next = values + starts[row];
            float sum[2] = {0, 0};
            for (i64 word = 0; word < words; ++word, x += 32)
                for (u32 bits = masks[row * words + word]; bits; bits &= bits - 1, ++next)
                    sum[word & 1] += widen(*next) * x[__builtin_ctz(bits)];
            job.sums[token * head.rows + row] = sum[0] + sum[1];
        }
}

// Where the sixteen rows of a block go: to their places among the sums.
inline void spread(const Job& job, i64 block, i64 token, const float* lanes) {
    const Head& head = *job.head;
    const u16* rows = section<u16>(head, head.index) + block * LANES;
    float* sums = job.sums + token * head.rows + block * LANES / WINDOW * WINDOW;
    if ((block + 1) * LANES <= head.rows) {
        for (i64 lane = 0; lane < LANES; ++lane) sums[rows[lane]] = lanes[lane];
        return;
    }
    for (i64 lane = 0; lane < LANES; ++lane)
        if (rows[lane] != 0xffff) sums[rows[lane]] = lanes[lane];
}

template <class V>
void csr16_portable(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32* starts = section<u32>(head, head.starts);
    const i64 size = LANES * (2 + i64(sizeof(V)));
    for (i64 block = first; block < last; ++block)
        for (i64 token = 0; token < job.tokens; ++token) {
            const float* x = static_cast<const float*>(job.x) + token * job.stride;
            float sums[LANES] = {};
            for (i64 step = starts[block]; step < starts[block + 1]; ++step) {
                const u16* cols = section<u16>(head, head.values + step * size);
                const V* values = reinterpret_cast<const V*>(cols + LANES);
                for (i64 lane = 0; lane < LANES; ++lane) sums[lane] += widen(values[lane]) * x[cols[lane]];
            }
            spread(job, block, token, sums);
        }
}

// The bits of a mask, one free place behind each.
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
        // Where the next value of each step lies, and of 32 bits the next one of each step's even and odd slots.
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

template <class V>
void expand_portable(const Head& head, i64 row, V* out) {
    const u32* masks = section<u32>(head, head.index) + row * words_of(head.cols);
    const V* next = section<V>(head, head.values) + section<u32>(head, head.starts)[row];
    for (i64 col = 0; col < head.cols; ++col) out[col] = masks[col / 32] >> (col % 32) & 1 ? *next++ : V(0);
}

#if defined(__x86_64__)

// For each byte of a mask: which of the next eight values goes where (as bytes of a shuffle), 0x80 where none does.
struct Places {
    alignas(64) u8 words[256][16];
    alignas(64) u8 values[256][8];
    Places() {
        for (int bits = 0; bits < 256; ++bits)
            for (int place = 0, next = 0; place < 8; ++place) {
                bool there = bits >> place & 1;
                words[bits][2 * place] = there ? u8(2 * next) : 0x80;
                words[bits][2 * place + 1] = there ? u8(2 * next + 1) : 0x80;
                values[bits][place] = there ? u8(next++) : 0x80;
            }
    }
};
const Places PLACES;

AVX2 inline float total(__m256 sums) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// The eight weights of a mask's byte as float32.
AVX2 inline __m256 eight(u8 bits, const u16* next) {
    __m128i words = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)),
                                     _mm_load_si128(reinterpret_cast<const __m128i*>(PLACES.words[bits])));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}
AVX2 inline __m256 eight(u8 bits, const float* next) {
    __m256i places = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(PLACES.values[bits])));
    __m256 found = _mm256_permutevar8x32_ps(_mm256_loadu_ps(next), places);
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(places, 31)), found);
}

template <class V>
AVX2 void bitmask_avx2(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32 *starts = section<u32>(head, head.starts), *masks = section<u32>(head, head.index);
    const V* values = section<V>(head, head.values);
    const i64 words = words_of(head.cols);
    for (i64 row = first; row < last; ++row)
        for (i64 token = 0; token < job.tokens; ++token) {
            const float* x = static_cast<const float*>(job.x) + token * job.stride;
            const V* next = values + starts[row];
            __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
            for (i64 word = 0; word < words; ++word, x += 32) {
                const u32 bits = masks[row * words + word];
                for (int part = 0; part < 4; ++part) {
                    const u8 byte = u8(bits >> 8 * part);
                    sums[part] = _mm256_fmadd_ps(eight(byte, next), _mm256_loadu_ps(x + 8 * part), sums[part]);
                    next += __builtin_popcount(byte);
                }
            }
            job.sums[token * head.rows + row] =
                total(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
        }
}

AVX2 inline __m256 values8(const u16* from) {
    __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}
AVX2 inline __m256 values8(const float* from) { return _mm256_loadu_ps(from); }

// An element of x as the upper half of a float, whatever lies in the lower: of bfloat16 the half before it, which is masked
// away below. So x may stay half as large and fit the first cache, at no more loads.
AVX2 inline float loose(const float* x, u16 col) { return x[col]; }
AVX2 inline float loose(const u16* x, u16 col) {
    float value;
    std::memcpy(&value, x + col - 1, 4);
    return value;
}
AVX2 inline __m256 exact(const float*, __m256 found) { return found; }
AVX2 inline __m256 exact(const u16*, __m256 found) {
    return _mm256_and_ps(found, _mm256_castsi256_ps(_mm256_set1_epi32(int(0xffff0000))));
}

// Eight elements of x by eight loads, not by the gather instruction, which takes longer on Zen.
template <class X>
AVX2 inline __m256 fetch8(const X* x, const u16* cols) {
    return exact(x, _mm256_set_m128(_mm_setr_ps(loose(x, cols[4]), loose(x, cols[5]), loose(x, cols[6]), loose(x, cols[7])),
                                    _mm_setr_ps(loose(x, cols[0]), loose(x, cols[1]), loose(x, cols[2]), loose(x, cols[3]))));
}

template <class V, class X>
AVX2 void csr16_avx2(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32* starts = section<u32>(head, head.starts);
    const i64 size = LANES * (2 + i64(sizeof(V)));
    for (i64 block = first; block < last; ++block)
        for (i64 token = 0; token < job.tokens; ++token) {
            const X* x = static_cast<const X*>(job.x) + token * job.stride;
            __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
            for (i64 step = starts[block]; step < starts[block + 1]; ++step) {
                const u16* cols = section<u16>(head, head.values + step * size);
                const V* values = reinterpret_cast<const V*>(cols + LANES);
                low = _mm256_fmadd_ps(values8(values), fetch8(x, cols), low);
                high = _mm256_fmadd_ps(values8(values + 8), fetch8(x, cols + 8), high);
            }
            alignas(32) float sums[LANES];
            _mm256_store_ps(sums, low);
            _mm256_store_ps(sums + 8, high);
            spread(job, block, token, sums);
        }
}

AVX2 void expand_avx2(const Head& head, i64 row, u16* out) {
    const u8* masks = reinterpret_cast<const u8*>(section<u32>(head, head.index) + row * words_of(head.cols));
    const u16* next = section<u16>(head, head.values) + section<u32>(head, head.starts)[row];
    i64 col = 0;
    for (; col + 8 <= head.cols; col += 8, ++masks) {
        __m128i words = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)),
                                         _mm_load_si128(reinterpret_cast<const __m128i*>(PLACES.words[*masks])));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + col), words);
        next += __builtin_popcount(*masks);
    }
    for (int bit = 0; col < head.cols; ++col, ++bit) out[col] = *masks >> bit & 1 ? *next++ : u16(0);
}

// The sixteen weights of half a mask's word as float32.
AVX512 inline __m512 sixteen(__mmask16 bits, const u16* next) {
    __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(next));
    return _mm512_castsi512_ps(_mm512_maskz_expand_epi32(bits, _mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16)));
}
AVX512 inline __m512 sixteen(__mmask16 bits, const float* next) {
    return _mm512_maskz_expand_ps(bits, _mm512_loadu_ps(next));
}

template <class V>
AVX512 void bitmask_avx512(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32 *starts = section<u32>(head, head.starts), *masks = section<u32>(head, head.index);
    const V* values = section<V>(head, head.values);
    const i64 words = words_of(head.cols);
    for (i64 row = first; row < last; ++row)
        for (i64 token = 0; token < job.tokens; ++token) {
            const float* x = static_cast<const float*>(job.x) + token * job.stride;
            const V* next = values + starts[row];
            __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
            for (i64 word = 0; word < words; ++word, x += 32) {
                const u32 bits = masks[row * words + word];
                low = _mm512_fmadd_ps(sixteen(__mmask16(bits), next), _mm512_loadu_ps(x), low);
                next += __builtin_popcount(bits & 0xffff);
                high = _mm512_fmadd_ps(sixteen(__mmask16(bits >> 16), next), _mm512_loadu_ps(x + 16), high);
                next += __builtin_popcount(bits >> 16);
            }
            job.sums[token * head.rows + row] = _mm512_reduce_add_ps(_mm512_add_ps(low, high));
        }
}

AVX512 inline __m512 values16(const u16* from) {
    __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}
AVX512 inline __m512 values16(const float* from) { return _mm512_loadu_ps(from); }

template <class X>
AVX512 inline __m512 fetch16(const X* x, const u16* cols) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(fetch8(x, cols)), fetch8(x, cols + 8), 1);
}

template <class V, class X>
AVX512 void csr16_avx512(const Job& job, i64 first, i64 last) {
    const Head& head = *job.head;
    const u32* starts = section<u32>(head, head.starts);
    const i64 size = LANES * (2 + i64(sizeof(V)));
    for (i64 block = first; block < last; ++block)
        for (i64 token = 0; token < job.tokens; ++token) {
            const X* x = static_cast<const X*>(job.x) + token * job.stride;
            __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
            const u8* from = section<u8>(head, head.values + starts[block] * size);
            i64 steps = starts[block + 1] - starts[block];
            for (; steps >= 2; steps -= 2, from += 2 * size) {
                const u16 *one = reinterpret_cast<const u16*>(from), *two = reinterpret_cast<const u16*>(from + size);
                even = _mm512_fmadd_ps(values16(reinterpret_cast<const V*>(one + LANES)), fetch16(x, one), even);
                odd = _mm512_fmadd_ps(values16(reinterpret_cast<const V*>(two + LANES)), fetch16(x, two), odd);
            }
            if (steps) {
                const u16* one = reinterpret_cast<const u16*>(from);
                even = _mm512_fmadd_ps(values16(reinterpret_cast<const V*>(one + LANES)), fetch16(x, one), even);
            }
            alignas(64) float sums[LANES];
            _mm512_store_ps(sums, _mm512_add_ps(even, odd));
            spread(job, block, token, sums);
        }
}

AVX512 void expand_avx512(const Head& head, i64 row, float* out) {
    const u16* masks = reinterpret_cast<const u16*>(section<u32>(head, head.index) + row * words_of(head.cols));
    const float* next = section<float>(head, head.values) + section<u32>(head, head.starts)[row];
    for (i64 col = 0; col < head.cols; col += 16, ++masks) {
        const __mmask16 within = __mmask16(head.cols - col >= 16 ? 0xffff : (1u << (head.cols - col)) - 1);
        _mm512_mask_storeu_ps(out + col, within, sixteen(*masks, next));
        next += __builtin_popcount(*masks);
    }
}

// 32 weights of 16 bits by one instruction.
VBMI2 inline __m512i thirtytwo(u32 bits, const u16* next) {
    return _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(next));
}

// Bytes to ask for ahead of the values, two lines at a time: left to itself the processor fetches them a third slower.
constexpr i64 AHEAD = 4096;

// One body for two ways to add 32 products to the sums (a macro: a template cannot take its target as a parameter). Two
// words are counted at a time, so that the second does not wait for the first.
#define BITMASK_ROWS(X, ADD)                                                                                     \
    const Head& head = *job.head;                                                                                \
    const u32* starts = section<u32>(head, head.starts);                                                         \
    const i64 words = words_of(head.cols);                                                                       \
    for (i64 row = first; row < last; ++row)                                                                     \
        for (i64 token = 0; token < job.tokens; ++token) {                                                       \
            const X* x = static_cast<const X*>(job.x) + token * job.stride;                                      \
            const u32* masks = section<u32>(head, head.index) + row * words;                                     \
            const u16* next = section<u16>(head, head.values) + starts[row];                                     \
            __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;                                                 \
            i64 word = 0;                                                                                        \
            for (; word + 4 <= words; word += 4, x += 128) {                                                     \
                __builtin_prefetch(reinterpret_cast<const u8*>(next) + AHEAD);                                   \
                __builtin_prefetch(reinterpret_cast<const u8*>(next) + AHEAD + LINE);                            \
                u64 low, high;                                                                                   \
                std::memcpy(&low, masks + word, 8);                                                              \
                std::memcpy(&high, masks + word + 2, 8);                                                         \
                const u16* third = next + __builtin_popcountll(low);                                             \
                ADD(a, b, thirtytwo(u32(low), next), x);                                                         \
                ADD(c, d, thirtytwo(u32(low >> 32), next + __builtin_popcount(u32(low))), x + 32);               \
                ADD(a, b, thirtytwo(u32(high), third), x + 64);                                                  \
                ADD(c, d, thirtytwo(u32(high >> 32), third + __builtin_popcount(u32(high))), x + 96);            \
                next = third + __builtin_popcountll(high);                                                       \
            }                                                                                                    \
            for (; word < words; ++word, x += 32) {                                                              \
                ADD(a, b, thirtytwo(masks[word], next), x);                                                      \
                next += __builtin_popcount(masks[word]);                                                         \
            }                                                                                                    \
            job.sums[token * head.rows + row] =                                                                  \
                _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));                   \
        }

#define ADD_SPLIT(even, odd, found, at)                                                                           \
    {                                                                                                             \
        const __m512i weights = found;                                                                            \
        const __m512i upper = _mm512_and_si512(weights, _mm512_set1_epi32(int(0xffff0000)));                      \
        even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(weights, 16)), _mm512_loadu_ps(at), even);   \
        odd = _mm512_fmadd_ps(_mm512_castsi512_ps(upper), _mm512_loadu_ps((at) + 16), odd);                       \
    }
#define ADD_PAIRS(sums, unused, found, at) \
    sums = _mm512_dpbf16_ps(sums, (__m512bh)(found), (__m512bh)_mm512_loadu_si512(at))

VBMI2 void bitmask_vbmi2(const Job& job, i64 first, i64 last) { BITMASK_ROWS(float, ADD_SPLIT) }

BF16 void bitmask_bf16(const Job& job, i64 first, i64 last) { BITMASK_ROWS(u16, ADD_PAIRS) }

VBMI2 void expand_vbmi2(const Head& head, i64 row, u16* out) {
    const u32* masks = section<u32>(head, head.index) + row * words_of(head.cols);
    const u16* next = section<u16>(head, head.values) + section<u32>(head, head.starts)[row];
    for (i64 col = 0; col < head.cols; col += 32, ++masks) {
        const __mmask32 within = __mmask32(head.cols - col >= 32 ? ~0u : (1u << (head.cols - col)) - 1);
        _mm512_mask_storeu_epi16(out + col, within, thirtytwo(*masks, next));
        next += __builtin_popcount(*masks);
    }
}

// The columns of two steps in words of 16 bits: those of the first step in the lower bytes, of the second in the upper.
VBMI2 inline __m512i columns_of(const Two& two, const u8* from) {
    const u64 mask = _pdep_u64(two.mask[0], 0x5555555555555555) | _pdep_u64(two.mask[1], 0xaaaaaaaaaaaaaaaa);
    return _mm512_maskz_expand_epi8(mask, _mm512_loadu_si512(from));
}

// What a row adds to its sum in one step, by instructions that look at the lowest five bits of a column only. Slots that
// nothing fills are multiplied with 0 and not with an input, which may be infinite.
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

// One block times some tokens, which share what is expanded; two sums a token, so that neither waits for the other. A macro
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

// The rows of a block into `out`, run by run: sixteen rows that lie a power of two apart fall into one place of the cache.
// First the places of some steps' values within a run, then the values: a loop whose end is hard to foresee would otherwise
// wait for each step's places anew.
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
                for (i64 at = 0; at < count; at += 8)  // up to seven too many, which go nowhere
                    for (i64 k = at; k < at + 8; ++k) std::memcpy(tile + places[i][step][k], values + k * SIZE, SIZE);
                both += count;
            }
            from += both * (SIZE + 1);
        }
    }
    while (done < words_of(head.cols)) write();
}

int best_level() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return PORTABLE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return WITH_AVX2;
    if (!__builtin_cpu_supports("avx512vbmi2") || !__builtin_cpu_supports("bmi2")) return WITH_AVX512;
    return __builtin_cpu_supports("avx512bf16") ? WITH_BF16 : WITH_VBMI2;
}

#else

int best_level() { return PORTABLE; }

#endif

int level = best_level();

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

// The first row (or block) of a part, such that each part has as much to read.
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
void expand_blocks(const Head& head, i64 first, i64 last, i64 base, V* out) {
    const u32* starts = section<u32>(head, head.starts);
    const i64 size = LANES * (2 + i64(sizeof(V)));
    for (i64 block = first; block < last; ++block) {
        const u16* rows = section<u16>(head, head.index) + block * LANES;
        const i64 window = block * LANES / WINDOW * WINDOW - base;
        V* to[LANES];
        for (i64 lane = 0; lane < LANES; ++lane) {
            to[lane] = rows[lane] == 0xffff ? nullptr : out + (window + rows[lane]) * head.cols;
            if (to[lane]) std::memset(to[lane], 0, head.cols * sizeof(V));
        }
        for (i64 step = starts[block]; step < starts[block + 1]; ++step) {
            const u16* cols = section<u16>(head, head.values + step * size);
            const V* values = reinterpret_cast<const V*>(cols + LANES);
            for (i64 lane = 0; lane < LANES; ++lane)
                if (cols[lane] < head.cols) to[lane][cols[lane]] = values[lane];
        }
    }
}

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

template <class V>
void expand_some(const Head& head, i64 first, i64 last, i64 base, V* out) {
    if (head.kind == RUNS) expand_runs(head, first, last, base, out);
    else expand_blocks(head, first, last, base, out);
}

void expand_part(void* data, i64 part, i64 parts) {
    auto& work = *static_cast<Expanding*>(data);
    const Head& head = *work.head;
    if (head.kind != BITMASK) {
        const i64 first = work.first / LANES, count = blocks_of(work.last) - first;
        const i64 from = first + count * part / parts, to = first + count * (part + 1) / parts;
        if (head.item == 2) expand_some(head, from, to, work.first, reinterpret_cast<u16*>(work.out));
        else expand_some(head, from, to, work.first, reinterpret_cast<float*>(work.out));
        return;
    }
    const i64 count = work.last - work.first;
    for (i64 row = work.first + count * part / parts; row < work.first + count * (part + 1) / parts; ++row) {
        u8* to = work.out + (row - work.first) * head.cols * head.item;
        u16* words = reinterpret_cast<u16*>(to);
        float* floats = reinterpret_cast<float*>(to);
#if defined(__x86_64__)
        if (head.item == 2 && level >= WITH_VBMI2) {
            expand_vbmi2(head, row, words);
            continue;
        }
        if (head.item == 2 && level >= WITH_AVX2) {
            expand_avx2(head, row, words);
            continue;
        }
        if (head.item == 4 && level >= WITH_AVX512) {
            expand_avx512(head, row, floats);
            continue;
        }
#endif
        if (head.item == 2) expand_portable(head, row, words);
        else expand_portable(head, row, floats);
    }
}

// ---- encoding --------------------------------------------------------------------------------------------------------

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
bool fill_bitmask(const Head& head, const Source& from) {
    u32 *starts = section<u32>(head, head.starts), *masks = section<u32>(head, head.index);
    V* values = section<V>(head, head.values);
    const i64 words = words_of(head.cols);
    i64 done = 0, reached = 0;
    bool fits = visit<V>(from, [&](i64 row, i64 col, V value) {
        while (reached <= row) starts[reached++] = u32(done);
        masks[row * words + col / 32] |= 1u << (col % 32);
        values[done++] = value;
    });
    while (reached <= head.rows) starts[reached++] = u32(done);
    return fits;
}

// The rows of each window, fullest first; equal ones stay in order.
std::vector<u16> arrange(i64 rows, const u32* counts) {
    std::vector<u16> order(blocks_of(rows) * LANES, 0xffff);
    for (i64 window = 0; window < rows; window += WINDOW) {
        const i64 size = std::min(WINDOW, rows - window);
        u16* here = order.data() + window;
        for (i64 row = 0; row < size; ++row) here[row] = u16(row);
        std::stable_sort(here, here + size, [&](u16 a, u16 b) { return counts[window + a] > counts[window + b]; });
    }
    return order;
}

template <class V>
bool fill_csr16(const Head& head, const Source& from, const u32* counts) {
    const i64 blocks = blocks_of(head.rows), size = LANES * (2 + i64(sizeof(V)));
    const std::vector<u16> order = arrange(head.rows, counts);
    std::memcpy(section<u16>(head, head.index), order.data(), order.size() * 2);
    u32* starts = section<u32>(head, head.starts);
    std::vector<u8*> next(head.rows);
    i64 steps = 0;
    for (i64 block = 0; block < blocks; ++block) {
        starts[block] = u32(steps);
        const i64 window = block * LANES / WINDOW * WINDOW;
        for (i64 lane = 0; lane < LANES; ++lane)
            if (order[block * LANES + lane] != 0xffff)
                next[window + order[block * LANES + lane]] = section<u8>(head, head.values + steps * size + lane * 2);
        steps += counts[window + order[block * LANES]];
    }
    starts[blocks] = u32(steps);
    for (i64 step = 0; step < steps; ++step) {
        u16* cols = section<u16>(head, head.values + step * size);
        std::fill(cols, cols + LANES, u16(head.cols));
    }
    return visit<V>(from, [&](i64 row, i64 col, V value) {
        u8*& at = next[row];
        const u16 narrow = u16(col);
        std::memcpy(at, &narrow, 2);
        const i64 lane = (at - section<u8>(head, head.values)) % size / 2;
        std::memcpy(at + (LANES - lane) * 2 + lane * i64(sizeof(V)), &value, sizeof(V));
        at += size;
    });
}

// Of each block of runs, how many Twos it needs: in each run as many steps as its fullest row has pairs of nonzeros.
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

Head plan(int kind, int item, const Source& from, const u32* counts) {
    const i64 rows = from.rows, cols = from.cols;
    Head head{kind, item, rows, cols, 0, 0, lines(sizeof(Head)), 0, 0};
    for (i64 row = 0; row < rows; ++row) head.nnz += counts[row];
    i64 payload;
    if (kind == RUNS) {
        i64 twos = 0;
        for (u32 count : item == 2 ? twos_of<u16>(from) : twos_of<u32>(from)) twos += count;
        head.index = head.starts + lines((blocks_of(rows) + 1) * i64(sizeof(Start)));
        head.values = head.index + lines(twos * i64(sizeof(Two)));
        payload = head.nnz * (1 + item);
    } else if (kind == BITMASK) {
        head.index = head.starts + lines((rows + 1) * 4);
        head.values = head.index + lines(rows * words_of(cols) * 4);
        payload = head.nnz * item;
    } else {
        const std::vector<u16> order = arrange(rows, counts);
        i64 steps = 0;
        for (i64 block = 0; block < blocks_of(rows); ++block)
            steps += counts[block * LANES / WINDOW * WINDOW + order[block * LANES]];
        head.index = head.starts + lines((blocks_of(rows) + 1) * 4);
        head.values = head.index + lines(blocks_of(rows) * LANES * 2);
        payload = steps * LANES * (2 + item);
    }
    head.bytes = lines(head.values + payload) + LINE;
    return head;
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

// The nonzeros of each row into counts (u32, rows); their total, or -1 where index and values do not belong together.
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

// Writes the matrix into `out`, zeroed memory of sparse_bytes; 0, or -1 where index and values do not belong together.
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

// Rows first..last of the matrix as dense words into `out`; in csr16 `first` is a multiple of 512, in runs of 16,
// and so is `last` or the end.
void sparse_expand(const void* matrix, i64 first, i64 last, void* out, int threads) {
    Expanding work{static_cast<const Head*>(matrix), first, last, static_cast<u8*>(out)};
    on_threads(expand_part, &work, threads);
}
}
