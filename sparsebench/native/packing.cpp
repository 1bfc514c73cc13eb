// Splits a tensor into an index of its nonzeros and their values, and joins them. docs/format.md says what the bytes mean.
//
// An element is a word of 1, 2, 4 or 8 bytes; it is zero when all of its bits are. Buffers that values are written to
// need 64 more bytes than the values, because whole vectors are stored. `simd` is at most packing_simd().

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vbmi2,popcnt")))
#endif

namespace {

constexpr int64_t GROUP = 64;      // elements per word of the bitmask
constexpr int64_t CHUNK = 1 << 13;  // elements decoded at a time, so that words just zeroed are still in the cache
constexpr int64_t STRETCH = 1 << 12;  // elements whose nonzeros are listed at a time
constexpr int64_t DAMAGED = -1;

uint64_t group_of(const uint8_t* mask, int64_t first, int64_t n) {
    uint64_t bits = 0;
    if (n - first >= GROUP) {
        std::memcpy(&bits, mask + first / 8, 8);
        return bits;
    }
    for (int64_t byte = first / 8; byte * 8 < n; ++byte) bits |= uint64_t(mask[byte]) << (byte * 8 - first);
    return bits & ((uint64_t(1) << (n - first)) - 1);
}

void put_group(uint8_t* mask, int64_t first, int64_t n, uint64_t bits) {
    const int64_t left = n - first;
    std::memcpy(mask + first / 8, &bits, left >= GROUP ? 8 : (left + 7) / 8);
}

template <class Word>
int64_t split_from(int64_t first, const Word* words, int64_t n, uint8_t* mask, Word* values, int64_t done) {
    for (; first < n; first += GROUP) {
        const int64_t size = n - first < GROUP ? n - first : GROUP;
        uint64_t bits = 0;
        for (int64_t place = 0; place < size; ++place) {
            const Word word = words[first + place];
            bits |= uint64_t(word != 0) << place;
            values[done] = word;
            done += word != 0;
        }
        put_group(mask, first, n, bits);
    }
    return done;
}

// A tensor without zeros stays raw, so nothing is copied before the first zero: `first` elements are skipped.
template <class Word>
int64_t skip_nonzero(const Word* words, int64_t n, uint8_t* mask) {
    int64_t first = 0;
    for (; first < n; first += GROUP) {
        const int64_t size = n - first < GROUP ? n - first : GROUP;
        Word zeros = 0;  // at most 64: as wide as the words, so that the compiler makes vectors of it
        for (int64_t place = 0; place < size; ++place) zeros += words[first + place] == 0;
        if (zeros) break;
        put_group(mask, first, n, ~uint64_t(0) >> (GROUP - size));
    }
    return first < n ? first : n;
}

// Writes elements first..n of `words`, after those before. Returns the number of values placed, or DAMAGED.
template <class Word>
int64_t place_mask_from(int64_t first, const uint8_t* mask, int64_t n, const Word* values, int64_t count, Word* words,
                        int64_t done) {
    for (; first < n; first += GROUP) {
        uint64_t bits = group_of(mask, first, n);
        if (done + __builtin_popcountll(bits) > count) return DAMAGED;
        std::memset(words + first, 0, sizeof(Word) * (n - first < GROUP ? n - first : GROUP));
        for (; bits; bits &= bits - 1) words[first + __builtin_ctzll(bits)] = values[done++];
    }
    return done;
}

// ESCAPE is 255 (a symbol per byte) or 15 (two symbols per byte, the lower half first).
template <int ESCAPE>
int symbol_at(const uint8_t* index, int64_t number) {
    return ESCAPE == 255 ? index[number] : index[number >> 1] >> (number & 1) * 4 & 15;
}

template <int ESCAPE, class Word>
int64_t place_gaps(const uint8_t* index, int64_t size, const Word* values, int64_t count, Word* words, int64_t n) {
    const int64_t symbols = ESCAPE == 255 ? size : size * 2;
    int64_t number = 0, next = 0, done = 0;
    for (int64_t first = 0; first < n; first += CHUNK) {
        const int64_t end = n - first < CHUNK ? n : first + CHUNK;
        std::memset(words + first, 0, sizeof(Word) * (end - first));
        for (; number < symbols && done < count; ++number) {
            const int symbol = symbol_at<ESCAPE>(index, number);
            const int64_t place = next + symbol;
            if (place >= end) break;
            // No branch on the escape, which is unpredictable: it writes a zero on a zero.
            const int lands = symbol != ESCAPE;
            words[place] = values[done] & Word(-Word(lands));
            done += lands;
            next = place + lands;
        }
    }
    // The symbols left have no value or no element, so they may only be escapes.
    for (; number < symbols; ++number)
        if (symbol_at<ESCAPE>(index, number) != ESCAPE) return DAMAGED;
    return done;
}

// Writes the positions of the nonzeros among the elements first..end, counted from first; returns their number.
int64_t places_in(const uint8_t* mask, int64_t n, int64_t first, int64_t end, uint16_t* places) {
    int64_t found = 0;
    for (int64_t group = first; group < end; group += GROUP)
        for (uint64_t bits = group_of(mask, group, n); bits; bits &= bits - 1)
            places[found++] = uint16_t(group - first + __builtin_ctzll(bits));
    return found;
}

#if defined(AVX512)

// One vector of words. Compressing goes through a register: to memory it is microcode on AMD.
template <class Word>
struct Vector;

template <>
struct Vector<uint8_t> {
    AVX512 static uint64_t nonzero(__m512i words) { return _mm512_test_epi8_mask(words, words); }
    AVX512 static __m512i compress(uint64_t at, __m512i words) { return _mm512_maskz_compress_epi8(at, words); }
    AVX512 static __m512i expand(uint64_t at, __m512i values) { return _mm512_maskz_expand_epi8(at, values); }
};

template <>
struct Vector<uint16_t> {
    AVX512 static uint64_t nonzero(__m512i words) { return _mm512_test_epi16_mask(words, words); }
    AVX512 static __m512i compress(uint64_t at, __m512i words) { return _mm512_maskz_compress_epi16(at, words); }
    AVX512 static __m512i expand(uint64_t at, __m512i values) { return _mm512_maskz_expand_epi16(at, values); }
};

template <>
struct Vector<uint32_t> {
    AVX512 static uint64_t nonzero(__m512i words) { return _mm512_test_epi32_mask(words, words); }
    AVX512 static __m512i compress(uint64_t at, __m512i words) { return _mm512_maskz_compress_epi32(at, words); }
    AVX512 static __m512i expand(uint64_t at, __m512i values) { return _mm512_maskz_expand_epi32(at, values); }
};

template <>
struct Vector<uint64_t> {
    AVX512 static uint64_t nonzero(__m512i words) { return _mm512_test_epi64_mask(words, words); }
    AVX512 static __m512i compress(uint64_t at, __m512i words) { return _mm512_maskz_compress_epi64(at, words); }
    AVX512 static __m512i expand(uint64_t at, __m512i values) { return _mm512_maskz_expand_epi64(at, values); }
};

template <class Word>
AVX512 int64_t split_avx512(int64_t first, const Word* words, int64_t n, uint8_t* mask, Word* values, int64_t done) {
    constexpr int LANES = 64 / sizeof(Word);
    for (; first + GROUP <= n; first += GROUP) {
        uint64_t bits = 0;
        for (int part = 0; part < GROUP; part += LANES) {
            const __m512i vector = _mm512_loadu_si512(words + first + part);
            const uint64_t present = Vector<Word>::nonzero(vector);
            _mm512_storeu_si512(values + done, Vector<Word>::compress(present, vector));
            done += __builtin_popcountll(present);
            bits |= present << part;
        }
        put_group(mask, first, n, bits);
    }
    return split_from(first, words, n, mask, values, done);
}

template <class Word>
AVX512 int64_t place_mask_avx512(const uint8_t* mask, int64_t n, const Word* values, int64_t count, Word* words) {
    constexpr int LANES = 64 / sizeof(Word);
    int64_t first = 0, done = 0;
    // While a group's worth of values is left, no vector is read beyond them; place_mask_from does the rest.
    for (; first + GROUP <= n && count - done >= GROUP; first += GROUP) {
        uint64_t bits = group_of(mask, first, n);
        for (int part = 0; part < GROUP; part += LANES) {
            const uint64_t present = LANES == GROUP ? bits : bits >> part & ((uint64_t(1) << LANES % GROUP) - 1);
            const __m512i vector = _mm512_loadu_si512(values + done);
            _mm512_storeu_si512(words + first + part, Vector<Word>::expand(present, vector));
            done += __builtin_popcountll(present);
        }
    }
    return place_mask_from(first, mask, n, values, count, words, done);
}

AVX512 int64_t places_avx512(const uint8_t* mask, int64_t n, int64_t first, int64_t end, uint16_t* places) {
    alignas(64) uint8_t counting[64];
    for (int place = 0; place < 64; ++place) counting[place] = uint8_t(place);
    const __m512i numbers = _mm512_load_si512(counting);
    int64_t found = 0;
    for (int64_t group = first; group < end; group += GROUP) {
        const uint64_t bits = group_of(mask, group, n);
        const __m512i base = _mm512_set1_epi16(int16_t(group - first)), here = _mm512_maskz_compress_epi8(bits, numbers);
        const __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(here));
        const __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(here, 1));
        _mm512_storeu_si512(places + found, _mm512_add_epi16(low, base));
        _mm512_storeu_si512(places + found + 32, _mm512_add_epi16(high, base));
        found += __builtin_popcountll(bits);
    }
    return found;
}

#endif

int64_t places_of(const uint8_t* mask, int64_t n, int64_t first, int64_t end, uint16_t* places, int simd) {
#if defined(AVX512)
    if (simd) return places_avx512(mask, n, first, end, places);
#endif
    (void)simd;
    return places_in(mask, n, first, end, places);
}

// Passes the gaps of a bitmask to `take`, STRETCH elements at a time: first one of any length, then the short ones between
// the nonzeros that follow.
template <class Take>
void each_gap(const uint8_t* mask, int64_t n, int simd, Take take) {
    int64_t next = 0;
    uint16_t places[STRETCH + GROUP], gaps[STRETCH + GROUP];
    for (int64_t first = 0; first < n; first += STRETCH) {
        const int64_t end = n - first < STRETCH ? n : first + STRETCH;
        const int64_t found = places_of(mask, n, first, end, places, simd);
        if (!found) continue;
        for (int64_t number = 1; number < found; ++number)
            gaps[number - 1] = uint16_t(places[number] - places[number - 1] - 1);
        take(first + places[0] - next, gaps, found - 1);
        next = first + places[found - 1] + 1;
    }
}

// Collects symbols of one byte each, and writes them as ESCAPE asks.
template <int ESCAPE>
struct Symbols {
    uint8_t* out;
    int64_t held = 0;
    uint8_t symbols[2 * STRETCH + 8];

    explicit Symbols(uint8_t* to) : out(to) {}

    void put(uint8_t symbol) {
        symbols[held++] = symbol;
        if (held == STRETCH) flush();
    }

    void put_gap(int64_t gap) {
        for (; gap >= ESCAPE; gap -= ESCAPE) put(ESCAPE);
        put(uint8_t(gap));
    }

    // At most STRETCH elements, so at most as many symbols.
    void put_gaps(const uint16_t* gaps, int64_t count) {
        uint8_t* to = symbols + held;
        for (int64_t number = 0; number < count; ++number) {
            const unsigned escapes = unsigned(gaps[number]) / ESCAPE, rest = unsigned(gaps[number]) - escapes * ESCAPE;
            std::memset(to, ESCAPE, 8);
            if (escapes >= 8) std::memset(to, ESCAPE, escapes);
            to[escapes] = uint8_t(rest);
            to += escapes + 1;
        }
        held = to - symbols;
        flush();
    }

    void flush() {
        if (ESCAPE == 255) {
            std::memcpy(out, symbols, size_t(held));
            out += held;
            held = 0;
        } else {
            const int64_t pairs = held / 2;
            for (int64_t pair = 0; pair < pairs; ++pair)
                out[pair] = uint8_t(symbols[2 * pair] | symbols[2 * pair + 1] << 4);
            out += pairs;
            if (held & 1) symbols[0] = symbols[held - 1];
            held &= 1;
        }
    }
};

template <int ESCAPE>
void write_gaps(const uint8_t* mask, int64_t n, uint8_t* out, int simd) {
    Symbols<ESCAPE> symbols(out);
    each_gap(mask, n, simd, [&](int64_t lead, const uint16_t* gaps, int64_t count) {
        symbols.put_gap(lead);
        symbols.put_gaps(gaps, count);
    });
    if (symbols.held) symbols.put(ESCAPE);
    symbols.flush();
}

template <class Word>
int64_t split(const Word* words, int64_t n, uint8_t* mask, Word* values, int simd) {
    const int64_t first = skip_nonzero(words, n, mask);
    if (first == n) return n;
    std::memcpy(values, words, sizeof(Word) * first);
#if defined(AVX512)
    if (simd) return split_avx512(first, words, n, mask, values, first);
#endif
    (void)simd;
    return split_from(first, words, n, mask, values, first);
}

template <class Word>
int64_t place_mask(const uint8_t* mask, int64_t n, const Word* values, int64_t count, Word* words, int simd) {
#if defined(AVX512)
    if (simd) return place_mask_avx512(mask, n, values, count, words);
#endif
    (void)simd;
    return place_mask_from(0, mask, n, values, count, words, 0);
}

template <class Word>
Word rotated(Word word, int left) {
    constexpr int WIDTH = int(sizeof(Word) * 8);
    return left % WIDTH ? Word(uint64_t(word) << left | uint64_t(word) >> (WIDTH - left)) : word;
}

template <class Word>
void split_planes(const Word* words, int64_t n, int rotate, uint8_t* planes) {
    for (int plane = 0; plane < int(sizeof(Word)); ++plane, planes += n)
        for (int64_t place = 0; place < n; ++place) planes[place] = uint8_t(rotated(words[place], rotate) >> plane * 8);
}

// Planes come one after another: the first one begins the words, the last one rotates them back.
template <class Word>
void join_plane(const uint8_t* bytes, int64_t n, int plane, int rotate, Word* words) {
    constexpr int ITEM = int(sizeof(Word));
    for (int64_t place = 0; place < n; ++place) {
        const Word word = Word((plane ? words[place] : 0) | Word(bytes[place]) << plane * 8);
        words[place] = plane == ITEM - 1 ? rotated(word, ITEM * 8 - rotate) : word;
    }
}

}  // namespace

#define FOR_WORDS(item, CALL)      \
    switch (item) {                \
        case 1: CALL(uint8_t);     \
        case 2: CALL(uint16_t);    \
        case 4: CALL(uint32_t);    \
        case 8: CALL(uint64_t);    \
    }

extern "C" {

// What this processor can do: 1 for AVX-512 with VBMI2, else 0.
int packing_simd() {
#if defined(AVX512)
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi2");
#else
    return 0;
#endif
}

// Writes the bitmask of n words and the nonzero words; returns their number. If all are nonzero, `values` is unchanged.
int64_t packing_split(const void* words, int64_t n, int item, uint8_t* mask, void* values, int simd) {
#define CALL(Word) return split(static_cast<const Word*>(words), n, mask, static_cast<Word*>(values), simd)
    FOR_WORDS(item, CALL)
#undef CALL
    return DAMAGED;
}

// How many symbols the gaps in a bitmask take with the escapes 255 and 15.
void packing_count_gaps(const uint8_t* mask, int64_t n, int64_t* eights, int64_t* fours, int simd) {
    *eights = *fours = 0;
    each_gap(mask, n, simd, [&](int64_t lead, const uint16_t* gaps, int64_t count) {
        uint16_t by_255 = 0, by_15 = 0;  // of STRETCH elements at most
        for (int64_t number = 0; number < count; ++number) {
            by_255 = uint16_t(by_255 + gaps[number] / 255);
            by_15 = uint16_t(by_15 + gaps[number] / 15);
        }
        *eights += lead / 255 + 1 + count + by_255;
        *fours += lead / 15 + 1 + count + by_15;
    });
}

// Writes the gap symbols of a bitmask; `out` has the size that packing_count_gaps gives.
void packing_write_gaps(const uint8_t* mask, int64_t n, int escape, uint8_t* out, int simd) {
    if (escape == 255)
        write_gaps<255>(mask, n, out, simd);
    else
        write_gaps<15>(mask, n, out, simd);
}

// Makes n words from a bitmask of (n + 7) / 8 bytes and `count` values. Returns how many values the mask places, or -1 where
// there are fewer. Nothing is written outside `words`.
int64_t packing_place_mask(const uint8_t* mask, const void* values, int64_t count, int item, void* words, int64_t n,
                           int simd) {
#define CALL(Word) return place_mask(mask, n, static_cast<const Word*>(values), count, static_cast<Word*>(words), simd)
    FOR_WORDS(item, CALL)
#undef CALL
    return DAMAGED;
}

// The same from `size` bytes of gap symbols; -1 also where a position is beyond the last word.
int64_t packing_place_gaps(const uint8_t* index, int64_t size, int escape, const void* values, int64_t count, int item,
                           void* words, int64_t n) {
#define CALL(Word)                                                                                                 \
    return escape == 255                                                                                           \
               ? place_gaps<255>(index, size, static_cast<const Word*>(values), count, static_cast<Word*>(words), n) \
               : place_gaps<15>(index, size, static_cast<const Word*>(values), count, static_cast<Word*>(words), n)
    FOR_WORDS(item, CALL)
#undef CALL
    return DAMAGED;
}

// Writes the bytes of n words rotated to the left: n of the lowest, then n of the next, and so on.
void packing_split_planes(const void* words, int64_t n, int item, int rotate, uint8_t* planes) {
#define CALL(Word) return split_planes(static_cast<const Word*>(words), n, rotate, planes)
    FOR_WORDS(item, CALL)
#undef CALL
}

// Puts one plane of n bytes into n words; all planes in order, the lowest first, give the words.
void packing_join_plane(const uint8_t* bytes, int64_t n, int item, int plane, int rotate, void* words) {
#define CALL(Word) return join_plane(bytes, n, plane, rotate, static_cast<Word*>(words))
    FOR_WORDS(item, CALL)
#undef CALL
}

}  // extern "C"
