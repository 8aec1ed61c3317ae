// 3x3 convolutions of channels-last float32 images by minimal filtering, F(4x4, 3x3): a tile of 4x4 results takes 36
// products a pair of channels where the definition takes 144. (Winograd 1980; Lavin and Gray 2016, arXiv 1509.09308.)
//
// In each direction the 6 inputs d of a tile, its 3 weights g and its 4 results y obey y = A' (G g * B' d): values at six
// points, products, and back. Over channels the products are 36 small matrix products. The points are 0, +-P, +-Q and
// infinity: 3/4 and 3/2 have powers exact in float32, and lose two bits less than the usual 1 and 2.
//
// The gradient of the weights is the same identity read another way: G' (A dy * B' d), summed over the tiles.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "gemm.h"

constexpr long POINTS = 6, OUT = 4, TAPS = 3, KERNEL = TAPS * TAPS, PRODUCTS = POINTS * POINTS;
constexpr long PANEL = 2 * W;  // channels that a matrix product's inner loop holds in registers
constexpr int ROWS = WIDE ? 12 : 6;
constexpr long CHUNK = 128;  // output channels at a time, about: their part of the weights stays in the shared cache
constexpr long PAD = 16;     // floats that keep rows and matrices off each other's cache lines
constexpr float P = 0.75f, Q = 1.5f, PP = P * P, QQ = Q * Q;
constexpr float AT_ZERO = 1 / (PP * QQ), AT_P = 1 / (2 * PP * (PP - QQ)), AT_Q = 1 / (2 * QQ * (QQ - PP));

// `scale` 2: the convolution is of the image doubled by repetition.
struct Convolution {
    long B, H, W_in, Cin, Cout, pad_h, pad_w, scale;
    long out_h() const { return scale * H + 2 * pad_h - 2; }
    long out_w() const { return scale * W_in + 2 * pad_w - 2; }
    long tiles_h() const { return (out_h() + OUT - 1) / OUT; }
    long tiles_w() const { return (out_w() + OUT - 1) / OUT; }
    long tiles() const { return B * tiles_h() * tiles_w(); }
    // Output channels at a time: Cout in about equal parts.
    long chunk() const {
        long parts = (Cout + CHUNK - 1) / CHUNK;
        return (Cout / PANEL + parts - 1) / parts * PANEL;
    }
};

// Where a tile is in its images.
struct Place {
    long n, row, column;
    Place(const Convolution& c, long tile)
        : n(tile / (c.tiles_w() * c.tiles_h())), row(tile / c.tiles_w() % c.tiles_h() * OUT),
          column(tile % c.tiles_w() * OUT) {}
};

struct Free {
    void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float, Free>;

static inline Buffer buffer(long floats) { return Buffer((float*)std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64)); }

static inline Buffer zeroed(long floats) {
    Buffer made = buffer(floats);
    if (made) std::fill_n(made.get(), floats, 0.0f);
    return made;
}

// v = B' d, `to` apart. The identity's constants are all here: weights are many where tiles are few.
static inline void inputs_to_points(const vf* d, vf* v, long to) {
    vf even = AT_P * (d[4] - QQ * d[2]), odd = P * AT_P * (d[3] - QQ * d[1]);
    v[0] = d[0] + (AT_ZERO * d[4] - (1 / PP + 1 / QQ) * d[2]);
    v[to] = even + odd;
    v[2 * to] = even - odd;
    even = AT_Q * (d[4] - PP * d[2]), odd = Q * AT_Q * (d[3] - PP * d[1]);
    v[3 * to] = even + odd;
    v[4 * to] = even - odd;
    v[5 * to] = PP * QQ * d[1] + (d[5] - (PP + QQ) * d[3]);
}

// u = G g.
static inline void weights_to_points(const vf* g, vf* u, long to) {
    vf even = g[0] + PP * g[2], odd = P * g[1];
    u[0] = g[0];
    u[to] = even + odd;
    u[2 * to] = even - odd;
    even = g[0] + QQ * g[2], odd = Q * g[1];
    u[3 * to] = even + odd;
    u[4 * to] = even - odd;
    u[5 * to] = g[2];
}

// g = G' u.
static inline void points_to_weights(const vf* u, vf* g, long to) {
    vf even_p = u[1] + u[2], even_q = u[3] + u[4];
    g[0] = u[0] + (even_p + even_q);
    g[to] = P * (u[1] - u[2]) + Q * (u[3] - u[4]);
    g[2 * to] = PP * even_p + (QQ * even_q + u[5]);
}

// y = A' m.
static inline void points_to_outputs(const vf* m, vf* y, long to) {
    vf even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
    y[0] = m[0] + (even_p + even_q);
    y[to] = P * odd_p + Q * odd_q;
    y[2 * to] = PP * even_p + QQ * even_q;
    y[3 * to] = P * PP * odd_p + (Q * QQ * odd_q + m[5]);
}

// m = A y.
static inline void outputs_to_points(const vf* y, vf* m, long to) {
    vf even = y[0] + PP * y[2], odd = P * (y[1] + PP * y[3]);
    m[0] = y[0];
    m[to] = even + odd;
    m[2 * to] = even - odd;
    even = y[0] + QQ * y[2], odd = Q * (y[1] + QQ * y[3]);
    m[3 * to] = even + odd;
    m[4 * to] = even - odd;
    m[5 * to] = y[3];
}

// A tile's inputs at the points: V [PRODUCTS, ..., Cin], products `stride` apart; `zeros` stands in outside of the image.
static inline void transform_inputs(const float* x, const float* zeros, const Convolution& c, long tile, float* V,
                                    long stride) {
    const Place at(c, tile);
    const float* pixels[PRODUCTS];
    for (long i = 0; i < POINTS; i++)
        for (long j = 0; j < POINTS; j++) {
            long row = at.row + i - c.pad_h, column = at.column + j - c.pad_w;
            bool inside = row >= 0 && row < c.scale * c.H && column >= 0 && column < c.scale * c.W_in;
            long pixel = (at.n * c.H + row / c.scale) * c.W_in + column / c.scale;
            pixels[i * POINTS + j] = inside ? x + pixel * c.Cin : zeros;
        }
    for (long k = 0; k < c.Cin; k += W) {
        vf columns[PRODUCTS], d[POINTS], v[POINTS];
        for (int j = 0; j < POINTS; j++) {
            for (int i = 0; i < POINTS; i++) d[i] = load(pixels[i * POINTS + j] + k);
            inputs_to_points(d, columns + j, POINTS);
        }
        for (int i = 0; i < POINTS; i++) {
            inputs_to_points(columns + i * POINTS, v, 1);
            for (int j = 0; j < POINTS; j++) store(V + (i * POINTS + j) * stride + k, v[j]);
        }
    }
}
