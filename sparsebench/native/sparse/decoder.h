// One new token through the blocks of a decoder of Llama's kind. Values are rounded to the model's type where transformers'
// modules hand them on; within one of these steps they are float32.

#pragma once

#include "multiply.h"

namespace {

// A root mean square norm; without weight there is none.
struct Norm {
    const void* weight;
    double epsilon;
};

struct Block {
    Norm before_attention, before_mlp, queries, keys;  // the last two are those of single heads
    Layer inputs[3];                                   // query, key, value
    Layer output;
    Layer gate_up[2];
    Layer down;
    i64 rotates;                                       // whether positions turn queries and keys

    i64 heads(i64 size) const { return inputs[0].matrix->rows / size; }
    i64 shared(i64 size) const { return inputs[1].matrix->rows / size; }  // of keys and values
    i64 inner() const { return down.matrix->cols; }
};

struct Decoder {
    const Block* blocks;
    i64 count, width, size;  // of a head
    double scaling;          // of scores
    Norm last;
};

template <class E>
struct Position {
    const E *cos, *sin;
    i64 before, room;  // tokens in the cache, and for which it has room: a multiple of 2 · LANES
    int threads;
};

// ---- the steps between products ----------------------------------------------------------------------------------------

// eˣ within two units in the last place, and without branches; x is held between -87 and 88.
ALWAYS float exponential(float x) {
    x = x < -87.f ? -87.f : x;
    x = x > 88.f ? 88.f : x;
    const float whole = (x * 1.44269504f + 12582912.f) - 12582912.f;  // to the nearest, by adding 1.5 · 2²³
    const float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f * rest + 1.3981999507e-3f;
    sum = (sum * rest + 8.3334519073e-3f) * rest + 4.1665795894e-2f;
    sum = (sum * rest + 1.6666665459e-1f) * rest + 5.0000001201e-1f;
    const i32 bits = (i32(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return (sum * rest * rest + rest + 1) * power;
}

constexpr int LANES = 16;

ALWAYS float total(float (&lanes)[LANES]) {
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

template <class A, class B>
ALWAYS float dot(const A* a, const B* b, i64 size) {
    float lanes[LANES] = {};
    i64 i = 0;
    for (; i + LANES <= size; i += LANES)
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] += widen(a[i + lane]) * widen(b[i + lane]);
    for (int lane = 0; i < size; ++i, ++lane) lanes[lane] += widen(a[i]) * widen(b[i]);
    return total(lanes);
}

template <class E>
ALWAYS E as(float value) {
    E result;
    put(value, &result);
    return result;
}

template <class E>
ALWAYS void normalize(const Norm& norm, const E* x, i64 size, E* y) {
    const auto* weight = static_cast<const E*>(norm.weight);
    const float factor = 1 / std::sqrt(dot(x, x, size) / float(size) + float(norm.epsilon));
    for (i64 i = 0; i < size; ++i) put(widen(weight[i]) * widen(as<E>(widen(x[i]) * factor)), y + i);
}

// silu(gate) · up, in place of gate.
template <class E>
ALWAYS void activate(E* gate, const E* up, i64 size) {
    for (i64 i = 0; i < size; ++i) {
        const float x = widen(gate[i]);
        put(widen(as<E>(x / (1 + exponential(-x)))) * widen(up[i]), gate + i);
    }
}

template <class E>
ALWAYS void add(E* x, const E* y, i64 size) {
    for (i64 i = 0; i < size; ++i) put(widen(x[i]) + widen(y[i]), x + i);
}

// A head's norm and rotation by the position, in place.
template <class E>
ALWAYS void turn(const Norm& norm, const Position<E>* position, E* x, i64 size) {
    if (norm.weight) normalize(norm, x, size, x);
    const i64 half = size / 2;
    for (i64 i = 0; position && i < half; ++i) {
        const float low = widen(x[i]), high = widen(x[half + i]);
        put(low * widen(position->cos[i]) - high * widen(position->sin[i]), x + i);
        put(high * widen(position->cos[half + i]) + low * widen(position->sin[half + i]), x + half + i);
    }
}

// Vectors that any compiler target has, in one register or several. They are passed by reference: no ABI has them all.
using Floats = float __attribute__((vector_size(LANES * 4)));
using Words = u16 __attribute__((vector_size(LANES * 2)));
using Bits = u32 __attribute__((vector_size(LANES * 4)));

ALWAYS void load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof(to)); }
ALWAYS void load(const u16* from, Floats& to) {
    Words words;
    std::memcpy(&words, from, sizeof(words));
    const Bits wide = __builtin_convertvector(words, Bits) << 16;
    std::memcpy(&to, &wide, sizeof(to));
}

// y (2 · LANES) = Σ factors_i · the row i of `count` rows of x, which are `stride` apart.
template <class A, class E>
ALWAYS void combine(const A* factors, const E* x, i64 count, i64 stride, float* y) {
    Floats sums[4] = {}, row[4];
    i64 i = 0;
    for (; i + 2 <= count; i += 2, x += 2 * stride) {
        load(x, row[0]), load(x + LANES, row[1]), load(x + stride, row[2]), load(x + stride + LANES, row[3]);
        const float even = widen(factors[i]), odd = widen(factors[i + 1]);
        sums[0] += row[0] * even, sums[1] += row[1] * even, sums[2] += row[2] * odd, sums[3] += row[3] * odd;
    }
    if (i < count) {
        load(x, row[0]), load(x + LANES, row[1]);
        sums[0] += row[0] * widen(factors[i]), sums[1] += row[1] * widen(factors[i]);
    }
    sums[0] += sums[2], sums[1] += sums[3];
    std::memcpy(y, sums, 2 * sizeof(Floats));
}

// Attention of one head to `length` tokens: keys (size, room), values (length, size); `scores` (room).
template <class E>
ALWAYS void attend(const E* query, const E* keys, const E* values, i64 length, i64 room, i64 size, float scaling, float* scores,
                   E* y) {
    constexpr i64 WIDTH = 2 * LANES;
    const i64 whole = (length + WIDTH - 1) / WIDTH * WIDTH;
    float lanes[LANES], sums[WIDTH], most = -INFINITY;
    for (i64 at = 0; at < whole; at += WIDTH) combine(query, keys + at, size, room, scores + at);
    std::fill(scores + length, scores + whole, -INFINITY);
    std::fill(lanes, lanes + LANES, -INFINITY);
    for (i64 at = 0; at < whole; at += LANES)
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] = scores[at + lane] > lanes[lane] ? scores[at + lane] : lanes[lane];
    for (float lane : lanes) most = std::max(most, lane);
    std::fill(lanes, lanes + LANES, 0.f);
    for (i64 at = 0; at < whole; at += LANES)
        for (int lane = 0; lane < LANES; ++lane) {
            scores[at + lane] = exponential((scores[at + lane] - most) * scaling);
            lanes[lane] += scores[at + lane];
        }
    const float inverse = 1 / total(lanes);
    for (i64 begin = 0; begin < size; begin += WIDTH) {
        const i64 width = std::min(WIDTH, size - begin);
        if (width == WIDTH) combine(scores, values + begin, length, size, sums);
        else
            for (i64 i = 0; i < width; ++i) {
                sums[i] = 0;
                for (i64 at = 0; at < length; ++at) sums[i] += scores[at] * widen(values[at * size + begin + i]);
            }
        for (i64 i = 0; i < width; ++i) put(sums[i] * inverse, y + begin + i);
    }
}

// ---- a block -----------------------------------------------------------------------------------------------------------

template <class E>
struct Attending {
    const E *queries, *keys, *values;
    i64 heads, groups, size, length, room;  // `groups` heads share keys and values
    float scaling, *scores;
    E* y;
};

template <class E>
void attend_part(void* data, i64 part, i64 parts) {
    auto& work = *static_cast<Attending<E>*>(data);
    widest([&]() __attribute__((always_inline)) {
        for (i64 head = work.heads * part / parts; head < work.heads * (part + 1) / parts; ++head) {
            const i64 at = head * work.size, begin = head / work.groups * work.room * work.size;
            attend(work.queries + at, work.keys + begin, work.values + begin, work.length, work.room, work.size, work.scaling,
                   work.scores + head * work.room, work.y + at);
        }
    });
}

// The vectors of a step, with room for the widest block.
template <class E>
struct Vectors {
    E *normal, *query, *key, *value, *mixed, *gate, *up;
    float* scores;

    Vectors(const Decoder& d, i64 room, std::vector<u8>& held) {
        i64 heads = 0, shared = 0, inner = 0;
        for (const Block* block = d.blocks; block < d.blocks + d.count; ++block) {
            heads = std::max(heads, block->heads(d.size));
            shared = std::max(shared, block->shared(d.size));
            inner = std::max(inner, block->inner());
        }
        const i64 all = d.width + 2 * (heads + shared) * d.size + 2 * inner;
        held.resize(all * sizeof(E) + heads * room * 4 + 16 * LINE);
        u8* next = held.data();
        auto take = [&](auto*& part, i64 count) {
            part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(next);
            next += lines(count * i64(sizeof(*part)));
        };
        take(normal, d.width), take(query, heads * d.size), take(key, shared * d.size), take(value, shared * d.size);
        take(mixed, heads * d.size), take(gate, inner), take(up, inner), take(scores, heads * room);
    }
};

template <class E>
void decode_block(const Decoder& d, const Block& block, E* hidden, const Position<E>& position, E* keys, E* values,
                  const Vectors<E>& v) {
    auto product = [&](const Layer* layers, int count, const E* x, std::initializer_list<E*> y) {
        multiply(layers, count, x, y.begin(), 1, position.threads, false);
    };
    widest([&]() __attribute__((always_inline)) { normalize(block.before_attention, hidden, d.width, v.normal); });
    product(block.inputs, 3, v.normal, {v.query, v.key, v.value});
    const i64 heads = block.heads(d.size), shared = block.shared(d.size), length = position.before + 1;
    const Position<E>* turns = block.rotates ? &position : nullptr;
    widest([&]() __attribute__((always_inline)) {
        for (i64 head = 0; head < heads; ++head) turn(block.queries, turns, v.query + head * d.size, d.size);
        for (i64 head = 0; head < shared; ++head) {
            const i64 begin = head * d.size;
            turn(block.keys, turns, v.key + begin, d.size);
            for (i64 i = 0; i < d.size; ++i) keys[(begin + i) * position.room + position.before] = v.key[begin + i];
            std::memcpy(values + begin * position.room + position.before * d.size, v.value + begin, d.size * sizeof(E));
        }
    });
    Attending<E> work{v.query, keys, values, heads, heads / shared, d.size, length, position.room, float(d.scaling),
                      v.scores, v.mixed};
    on_threads(attend_part<E>, &work, length * heads * d.size < 65536 ? 1 : position.threads);
    product(&block.output, 1, v.mixed, {v.normal});
    widest([&]() __attribute__((always_inline)) {
        add(hidden, v.normal, d.width);
        normalize(block.before_mlp, hidden, d.width, v.normal);
    });
    product(block.gate_up, 2, v.normal, {v.gate, v.up});
    widest([&]() __attribute__((always_inline)) { activate(v.gate, v.up, block.inner()); });
    product(&block.down, 1, v.gate, {v.normal});
    widest([&]() __attribute__((always_inline)) { add(hidden, v.normal, d.width); });
}

template <class E>
void decode(const Decoder& d, E* hidden, const Position<E>& position, E* const* caches) {
    thread_local std::vector<u8> held;
    const Vectors<E> vectors(d, position.room, held);
    for (i64 i = 0; i < d.count; ++i)
        decode_block(d, d.blocks[i], hidden, position, caches[2 * i], caches[2 * i + 1], vectors);
    widest([&]() __attribute__((always_inline)) { normalize(d.last, hidden, d.width, hidden); });
}

}  // namespace
