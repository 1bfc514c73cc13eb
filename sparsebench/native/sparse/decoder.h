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
    i64 before, room;  // tokens in the cache, and for which it has room
    int threads;
};

// ---- the steps between products ----------------------------------------------------------------------------------------

// eˣ within two units in the last place, and without branches; x is held between -87 and 88.
ALWAYS float exponential(float x) {
    x = std::min(std::max(x, -87.f), 88.f);
    const float whole = (x * 1.44269504f + 12582912.f) - 12582912.f;  // to the nearest, by adding 1.5 · 2²³
    const float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    for (float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        sum = sum * rest + factor;
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
    for (; i < size; ++i) lanes[i % LANES] += widen(a[i]) * widen(b[i]);
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

// A head's norm and rotation by the position.
template <class E>
ALWAYS void turn(const Norm& norm, const Position<E>* position, E* x, i64 size, E* y) {
    if (norm.weight) normalize(norm, x, size, x);
    const i64 half = size / 2;
    for (i64 i = 0; i < half; ++i) {
        const float low = widen(x[i]), high = widen(x[half + i]);
        if (position) {
            put(low * widen(position->cos[i]) - high * widen(position->sin[i]), y + i);
            put(high * widen(position->cos[half + i]) + low * widen(position->sin[half + i]), y + half + i);
        } else {
            put(low, y + i), put(high, y + half + i);
        }
    }
}

// Attention of one head to `length` tokens; `scores` has room for as many.
template <class E>
ALWAYS void attend(const E* query, const E* keys, const E* values, i64 length, i64 size, float scaling, float* scores, E* y) {
    float most = -INFINITY, lanes[LANES] = {};
    for (i64 at = 0; at < length; ++at) {
        scores[at] = dot(query, keys + at * size, size) * scaling;
        most = std::max(most, scores[at]);
    }
    for (i64 at = 0; at < length; ++at) scores[at] = exponential(scores[at] - most);
    i64 at = 0;
    for (; at + LANES <= length; at += LANES)
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] += scores[at + lane];
    for (; at < length; ++at) lanes[0] += scores[at];
    const float inverse = 1 / total(lanes);
    for (i64 begin = 0; begin < size; begin += 2 * LANES) {
        float sums[2 * LANES] = {};
        const i64 width = std::min<i64>(2 * LANES, size - begin);
        for (i64 at = 0; at < length; ++at) {
            const E* value = values + at * size + begin;
            if (width == 2 * LANES)
                for (int i = 0; i < 2 * LANES; ++i) sums[i] += scores[at] * widen(value[i]);
            else
                for (i64 i = 0; i < width; ++i) sums[i] += scores[at] * widen(value[i]);
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
            attend(work.queries + at, work.keys + begin, work.values + begin, work.length, work.size, work.scaling,
                   work.scores + head * work.length, work.y + at);
        }
    });
}

// The vectors of a step, with room for the widest block.
template <class E>
struct Vectors {
    E *normal, *query, *key, *value, *mixed, *gate, *up;
    float* scores;

    Vectors(const Decoder& d, i64 length, std::vector<u8>& held) {
        i64 heads = 0, shared = 0, inner = 0;
        for (const Block* block = d.blocks; block < d.blocks + d.count; ++block) {
            heads = std::max(heads, block->heads(d.size));
            shared = std::max(shared, block->shared(d.size));
            inner = std::max(inner, block->inner());
        }
        const i64 all = d.width + 2 * (heads + shared) * d.size + 2 * inner;
        held.resize(all * sizeof(E) + heads * length * 4 + 16 * LINE);
        u8* next = held.data();
        auto take = [&](auto*& part, i64 count) {
            part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(next);
            next += lines(count * i64(sizeof(*part)));
        };
        take(normal, d.width), take(query, heads * d.size), take(key, shared * d.size), take(value, shared * d.size);
        take(mixed, heads * d.size), take(gate, inner), take(up, inner), take(scores, heads * length);
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
        for (i64 head = 0; head < heads; ++head) {
            E* query = v.query + head * d.size;
            turn(block.queries, turns, query, d.size, query);
        }
        for (i64 head = 0; head < shared; ++head) {
            const i64 at = (head * position.room + position.before) * d.size;
            turn(block.keys, turns, v.key + head * d.size, d.size, keys + at);
            std::memcpy(values + at, v.value + head * d.size, d.size * sizeof(E));
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
    const Vectors<E> vectors(d, position.before + 1, held);
    for (i64 i = 0; i < d.count; ++i)
        decode_block(d, d.blocks[i], hidden, position, caches[2 * i], caches[2 * i + 1], vectors);
    widest([&]() __attribute__((always_inline)) { normalize(d.last, hidden, d.width, hidden); });
}

}  // namespace
