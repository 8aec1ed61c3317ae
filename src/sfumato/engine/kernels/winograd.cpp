// The convolution of winograd.h. Weights are taken to the points anew at every call, some output channels at a time: kept,
// they would take four times their memory, and for pictures that are worth all this it costs a few percent.
#include "winograd.h"

namespace {

constexpr int AHEAD = 24;

// Tiles that a thread works on at once: few enough for its cache, the more the less often weights are read.
long tiles_at_once(const Convolution& c) { return c.Cin > 256 ? 4 * ROWS : 2 * ROWS; }

inline void kernel_to_points(const vf* g, vf* u) {
    vf rows[POINTS * TAPS], column[TAPS];
    for (int j = 0; j < TAPS; j++) {
        for (int i = 0; i < TAPS; i++) column[i] = g[i * TAPS + j];
        weights_to_points(column, rows + j, TAPS);
    }
    for (int i = 0; i < POINTS; i++) weights_to_points(rows + i * TAPS, u + i * POINTS, 1);
}

// One panel of weights [Cout, 3, 3, Cin] at the points: U [PRODUCTS, Cin, PANEL], products `stride` apart.
void transform_weights(const float* weight, const Convolution& c, long first, float* U, long stride) {
    alignas(64) float block[PRODUCTS][W * W];
    for (long k = 0; k < c.Cin; k += W)
        for (long o = 0; o < PANEL; o += W) {
            for (long lane = 0; lane < W; lane++) {
                const float* kernel = weight + (first + o + lane) * KERNEL * c.Cin + k;
                vf g[KERNEL], u[PRODUCTS];
                for (int t = 0; t < KERNEL; t++) g[t] = load(kernel + t * c.Cin);
                kernel_to_points(g, u);
                for (int i = 0; i < PRODUCTS; i++) store(block[i] + lane * W, u[i]);
            }
            for (int i = 0; i < PRODUCTS; i++) transpose_lanes(block[i], W, U + i * stride + k * PANEL + o, PANEL);
        }
}

// The same of weights [Cin, 3, 3, Cout] turned by half a circle: the other convolution's, whose gradient this one is.
void transform_turned_weights(const float* weight, const Convolution& c, long first, float* U, long stride) {
    for (long k = 0; k < c.Cin; k++)
        for (long o = 0; o < PANEL; o += W) {
            const float* kernel = weight + k * KERNEL * c.Cout + first + o;
            vf g[KERNEL], u[PRODUCTS];
            for (int t = 0; t < KERNEL; t++) g[t] = load(kernel + (KERNEL - 1 - t) * c.Cout);
            kernel_to_points(g, u);
            for (int i = 0; i < PRODUCTS; i++) store(U + i * stride + k * PANEL + o, u[i]);
        }
}

// A tile's products M [PRODUCTS, ..., channels] as pixels, plus bias and residual; y may be the residual.
void transform_products(const float* M, long stride, const Convolution& c, long tile, long first, long channels,
                        const float* bias, const float* residual, float* y) {
    const Place at(c, tile);
    const long height = std::min(OUT, c.out_h() - at.row), width = std::min(OUT, c.out_w() - at.column);
    const long row = c.out_w() * c.Cout;
    const long corner = ((at.n * c.out_h() + at.row) * c.out_w() + at.column) * c.Cout + first;
    for (long o = 0; o < channels; o += W) {
        vf columns[OUT * POINTS], m[POINTS], out[OUT], offset = bias ? load(bias + first + o) : vf{};
        for (int j = 0; j < POINTS; j++) {
            for (int i = 0; i < POINTS; i++) m[i] = load(M + (i * POINTS + j) * stride + o);
            points_to_outputs(m, columns + j, POINTS);
        }
        for (long i = 0; i < height; i++) {
            points_to_outputs(columns + i * POINTS, out, 1);
            for (long j = 0; j < width; j++) {
                const long pixel = corner + i * row + j * c.Cout + o;
                const vf sum = out[j] + offset;
                store(y + pixel, residual ? sum + load(residual + pixel) : sum);
            }
        }
    }
}

}  // namespace

extern "C" {

// y = conv(x) + bias + residual, x [B, H, W, Cin], y [B, H', W', Cout], H' = scale * H + 2 * pad_h - 2. Cin is a multiple
// of W, Cout of PANEL; bias and residual may be null. Weights are [Cout, 3, 3, Cin], or, for the gradient of the input of
// a convolution from Cout to Cin channels, that one's, `turned`. Returns 0 without memory for it, else 1.
int sfumato_winograd(const float* x, const float* weight, const float* bias, const float* residual, float* y, long B,
                     long H, long W_in, long Cin, long Cout, long pad_h, long pad_w, long scale, int turned,
                     int threads) {
    const Convolution c{B, H, W_in, Cin, Cout, pad_h, pad_w, scale};
    const long tiles = tiles_at_once(c), chunk = c.chunk(), row = Cin + PAD, out_row = chunk + PAD;
    const long U_stride = Cin * chunk + PAD, V_stride = tiles * row + PAD, M_stride = tiles * out_row + PAD;
    const long own = PRODUCTS * (V_stride + M_stride);
    Buffer U = buffer(PRODUCTS * U_stride), scratch = buffer(threads * own), zeros = buffer(Cin);
    if (!U || !scratch || !zeros) return 0;
    std::fill_n(zeros.get(), Cin, 0.0f);
    const long blocks = (c.tiles() + tiles - 1) / tiles;
    for (long first = 0; first < Cout; first += chunk) {
        const long channels = std::min(chunk, Cout - first);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (long o = 0; o < channels; o += PANEL)
            (turned ? transform_turned_weights : transform_weights)(weight, c, first + o, U.get() + o * Cin, U_stride);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (long part = 0; part < threads; part++) {
            float *V = scratch.get() + part * own, *M = V + PRODUCTS * V_stride;
            for (long block = blocks * part / threads; block < blocks * (part + 1) / threads; block++) {
                const long begin = block * tiles, count = std::min(tiles, c.tiles() - begin);
                for (long t = 0; t < count; t++)
                    transform_inputs(x, zeros.get(), c, begin + t, V + t * row, V_stride);
                for (long i = 0; i < PRODUCTS; i++)
                    for (long o = 0; o < channels; o += PANEL)
                        panel<float, ROWS, 2, AHEAD>(V + i * V_stride, row,
                                                     (const uint32_t*)(U.get() + i * U_stride + o * Cin), PANEL, BLOCK,
                                                     M + i * M_stride + o, out_row, count, Cin, false);
                for (long t = 0; t < count; t++)
                    transform_products(M + t * out_row, M_stride, c, begin + t, first, channels, bias, residual, y);
            }
        }
    }
    return 1;
}
}
