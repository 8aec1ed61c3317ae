// The convolution of winograd.h. Weights are taken to the points anew at every call, some at a time: kept, they would take
// four times their memory, and reading that takes as long. Of a large image it costs a few percent, of a small one half.
#include "winograd.h"

namespace {

constexpr int AHEAD = 24, AHEAD_OF_WEIGHTS = 8;
enum Order { PLAIN, TURNED, PANELS };
constexpr long FEW = 64;     // tiles, up to which all are held at the points
constexpr long DEPTH = 128;  // input channels of a panel of weights that stays in a thread's cache then

// Tiles that a thread works on at once: few enough for its cache, the more the less often weights are read.
long tiles_at_once(const Convolution& c) { return c.Cin > 256 ? 4 * ROWS : 2 * ROWS; }

// A kernel's products, `stride` apart.
inline void kernel_to_points(const vf* g, float* U, long stride) {
    vf rows[POINTS * TAPS], column[TAPS], u[POINTS];
    for (int j = 0; j < TAPS; j++) {
        for (int i = 0; i < TAPS; i++) column[i] = g[i * TAPS + j];
        weights_to_points(column, rows + j, TAPS);
    }
    for (int i = 0; i < POINTS; i++) {
        weights_to_points(rows + i * TAPS, u, 1);
        for (int j = 0; j < POINTS; j++) store(U + (i * POINTS + j) * stride, u[j]);
    }
}

// Some input channels of one panel of weights [Cout, 3, 3, Cin] at the points: U [PRODUCTS, count, PANEL], products `stride`
// apart.
void transform_weights(const float* weight, const Convolution& c, long first, long begin, long count, float* U,
                       long stride) {
    alignas(64) float taps[KERNEL][W * W];
    for (long k = 0; k < count; k += W)
        for (long o = 0; o < PANEL; o += W) {
            const float* corner = weight + (first + o) * KERNEL * c.Cin + begin + k;
            for (int t = 0; t < KERNEL; t++) transpose_lanes(corner + t * c.Cin, KERNEL * c.Cin, taps[t], W);
            for (long lane = 0; lane < W; lane++) {
                vf g[KERNEL];
                for (int t = 0; t < KERNEL; t++) g[t] = load(taps[t] + lane * W);
                kernel_to_points(g, U + (k + lane) * PANEL + o, stride);
            }
        }
}

// The same of weights [Cin, 3, 3, Cout] turned by half a circle: the other convolution's, whose gradient this one is.
void transform_turned_weights(const float* weight, const Convolution& c, long first, long begin, long count, float* U,
                              long stride) {
    for (long k = 0; k < count; k++)
        for (long o = 0; o < PANEL; o += W) {
            const float* kernel = weight + (begin + k) * KERNEL * c.Cout + first + o;
            vf g[KERNEL];
            for (int t = 0; t < KERNEL; t++) g[t] = load(kernel + (KERNEL - 1 - t) * c.Cout);
            kernel_to_points(g, U + k * PANEL + o, stride);
        }
}

// The same of weights laid out for it: [Cout / PANEL, Cin, 3, 3, PANEL].
void transform_panels(const float* weight, const Convolution& c, long first, long begin, long count, float* U,
                      long stride) {
    const float* kernel = weight + (first * c.Cin + begin * PANEL) * KERNEL;
    for (long k = 0; k < count; k++, kernel += KERNEL * PANEL)
        for (long o = 0; o < PANEL; o += W) {
            vf g[KERNEL];
            for (int t = 0; t < KERNEL; t++) {
                g[t] = load(kernel + t * PANEL + o);
                __builtin_prefetch(kernel + t * PANEL + o + AHEAD_OF_WEIGHTS * KERNEL * PANEL);
            }
            kernel_to_points(g, U + k * PANEL + o, stride);
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

struct Operands {
    const float *x, *weight, *bias, *residual;
    float* y;
    int order, threads;
    void weights(const Convolution& c, long first, long begin, long count, float* U, long stride) const {
        const auto transform = order == PANELS ? transform_panels
                               : order == TURNED ? transform_turned_weights
                                                 : transform_weights;
        transform(weight, c, first, begin, count, U, stride);
    }
};

// Weights are taken to the points once for some output channels, and tiles a few at a time.
bool many_tiles(const Convolution& c, const Operands& t) {
    const long tiles = tiles_at_once(c), chunk = c.chunk(), row = c.Cin + PAD, out_row = chunk + PAD;
    const long U_stride = c.Cin * chunk + PAD, V_stride = tiles * row + PAD, M_stride = tiles * out_row + PAD;
    const long own = PRODUCTS * (V_stride + M_stride);
    Buffer U = buffer(PRODUCTS * U_stride), scratch = buffer(t.threads * own), zeros = zeroed(c.Cin);
    if (!U || !scratch || !zeros) return false;
    const long blocks = (c.tiles() + tiles - 1) / tiles;
    for (long first = 0; first < c.Cout; first += chunk) {
        const long channels = std::min(chunk, c.Cout - first);
#pragma omp parallel for num_threads(t.threads) if (t.threads > 1) schedule(static)
        for (long o = 0; o < channels; o += PANEL) t.weights(c, first + o, 0, c.Cin, U.get() + o * c.Cin, U_stride);
#pragma omp parallel for num_threads(t.threads) if (t.threads > 1) schedule(static)
        for (long part = 0; part < t.threads; part++) {
            float *V = scratch.get() + part * own, *M = V + PRODUCTS * V_stride;
            for (long block = blocks * part / t.threads; block < blocks * (part + 1) / t.threads; block++) {
                const long begin = block * tiles, count = std::min(tiles, c.tiles() - begin);
                for (long n = 0; n < count; n++)
                    transform_inputs(t.x, zeros.get(), c, begin + n, V + n * row, V_stride);
                for (long i = 0; i < PRODUCTS; i++)
                    for (long o = 0; o < channels; o += PANEL)
                        panel<float, ROWS, 2, AHEAD>(V + i * V_stride, row,
                                                     (const uint32_t*)(U.get() + i * U_stride + o * c.Cin), PANEL, BLOCK,
                                                     M + i * M_stride + o, out_row, count, c.Cin, false);
                for (long n = 0; n < count; n++)
                    transform_products(M + n * out_row, M_stride, c, begin + n, first, channels, t.bias, t.residual,
                                       t.y);
            }
        }
    }
    return true;
}

// All tiles are taken to the points at once, and weights a few at a time, used before they leave the nearest caches.
bool few_tiles(const Convolution& c, const Operands& t) {
    const long tiles = c.tiles(), row = c.Cin + PAD, out_row = PANEL + PAD;
    const long V_stride = tiles * row + PAD, U_stride = DEPTH * PANEL + PAD, M_stride = tiles * out_row + PAD;
    const long own = PRODUCTS * (U_stride + M_stride);
    Buffer V = buffer(PRODUCTS * V_stride), scratch = buffer(t.threads * own), zeros = zeroed(c.Cin);
    if (!V || !scratch || !zeros) return false;
#pragma omp parallel for num_threads(t.threads) if (t.threads > 1) schedule(static)
    for (long n = 0; n < tiles; n++) transform_inputs(t.x, zeros.get(), c, n, V.get() + n * row, V_stride);
    const long panels = c.Cout / PANEL;
#pragma omp parallel for num_threads(t.threads) if (t.threads > 1) schedule(static)
    for (long part = 0; part < t.threads; part++) {
        float *U = scratch.get() + part * own, *M = U + PRODUCTS * U_stride;
        for (long p = panels * part / t.threads; p < panels * (part + 1) / t.threads; p++) {
            for (long begin = 0; begin < c.Cin; begin += DEPTH) {
                const long count = std::min(DEPTH, c.Cin - begin);
                t.weights(c, p * PANEL, begin, count, U, U_stride);
                for (long i = 0; i < PRODUCTS; i++)
                    panel<float, ROWS, 2>(V.get() + i * V_stride + begin, row, (const uint32_t*)(U + i * U_stride),
                                          PANEL, BLOCK, M + i * M_stride, out_row, tiles, count, begin > 0);
            }
            for (long n = 0; n < tiles; n++)
                transform_products(M + n * out_row, M_stride, c, n, p * PANEL, PANEL, t.bias, t.residual, t.y);
        }
    }
    return true;
}

}  // namespace

extern "C" {

// y = conv(x) + bias + residual, x [B, H, W, Cin], y [B, H', W', Cout], H' = scale * H + 2 * pad_h - 2. Cin is a multiple
// of W, Cout of PANEL; bias and residual may be null. Weights lie in one of three orders: 0 [Cout, 3, 3, Cin]; 1, for the
// gradient of the input of a convolution from Cout to Cin channels, that one's; 2 [Cout / PANEL, Cin, 3, 3, PANEL].
// Returns 0 without memory for it, else 1.
int sfumato_winograd(const float* x, const float* weight, const float* bias, const float* residual, float* y, long B,
                     long H, long W_in, long Cin, long Cout, long pad_h, long pad_w, long scale, int order,
                     int threads) {
    const Convolution c{B, H, W_in, Cin, Cout, pad_h, pad_w, scale};
    const Operands t{x, weight, bias, residual, y, order, threads};
    return c.tiles() <= FEW ? few_tiles(c, t) : many_tiles(c, t);
}
}
