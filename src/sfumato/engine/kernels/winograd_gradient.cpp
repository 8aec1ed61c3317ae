// The gradient of the weights of winograd.h's convolution: for each point, inputs times gradients, summed over all tiles.
#include "winograd.h"

namespace {

constexpr long TILES = 48;  // at most, between two passes over the sums

// A tile's gradients at the points: D [PRODUCTS, ..., channels], products `stride` apart; zero outside of the image.
void transform_gradients(const float* dy, const Convolution& c, long tile, long first, long channels, float* D,
                         long stride) {
    const Place at(c, tile);
    const long height = std::min(OUT, c.out_h() - at.row), width = std::min(OUT, c.out_w() - at.column);
    const float* corner = dy + ((at.n * c.out_h() + at.row) * c.out_w() + at.column) * c.Cout + first;
    for (long o = 0; o < channels; o += W) {
        vf columns[POINTS * OUT] = {}, y[OUT], m[POINTS];
        for (long j = 0; j < width; j++) {
            for (long i = 0; i < OUT; i++) y[i] = i < height ? load(corner + (i * c.out_w() + j) * c.Cout + o) : vf{};
            outputs_to_points(y, columns + j, OUT);
        }
        for (int i = 0; i < POINTS; i++) {
            outputs_to_points(columns + i * OUT, m, 1);
            for (int j = 0; j < POINTS; j++) store(D + (i * POINTS + j) * stride + o, m[j]);
        }
    }
}

// S [rows, PANEL columns] (+)= A' B over `depth` rows of A and B.
template <int HEIGHT>
void accumulate(const float* A, long lda, const float* B, long ldb, float* S, long lds, long depth, bool add) {
    vf sum[HEIGHT][2];
    for (int m = 0; m < HEIGHT; m++)
        for (int n = 0; n < 2; n++) sum[m][n] = add ? load(S + m * lds + n * W) : vf{};
    for (long k = 0; k < depth; k++) {
        const vf b0 = load(B + k * ldb), b1 = load(B + k * ldb + W);
        for (int m = 0; m < HEIGHT; m++) {
            const vf a = splat(A[k * lda + m]);
            sum[m][0] = a * b0 + sum[m][0];
            sum[m][1] = a * b1 + sum[m][1];
        }
    }
    for (int m = 0; m < HEIGHT; m++)
        for (int n = 0; n < 2; n++) store(S + m * lds + n * W, sum[m][n]);
}

// All rows of a panel: Cin is a multiple of 8, so that what ROWS leaves over is a number of fours or twos.
void accumulate_panel(const float* A, long lda, const float* B, long ldb, float* S, long lds, long rows, long depth,
                      bool add) {
    long m = 0;
    for (; m + ROWS <= rows; m += ROWS) accumulate<ROWS>(A + m, lda, B, ldb, S + m * lds, lds, depth, add);
    for (; m + 4 <= rows; m += 4) accumulate<4>(A + m, lda, B, ldb, S + m * lds, lds, depth, add);
    for (; m < rows; m += 2) accumulate<2>(A + m, lda, B, ldb, S + m * lds, lds, depth, add);
}

// W input channels of dw [Cout, 3, 3, Cin], some output channels of it, from the sums S [PRODUCTS, Cin, channels].
void transform_sums(const float* S, long stride, long lds, const Convolution& c, long k, long first, long channels,
                    float* dw) {
    alignas(64) float block[KERNEL][W * W];
    for (long o = 0; o < channels; o += W) {
        for (long lane = 0; lane < W; lane++) {
            vf columns[TAPS * POINTS], u[POINTS], g[TAPS];
            for (int j = 0; j < POINTS; j++) {
                for (int i = 0; i < POINTS; i++) u[i] = load(S + (i * POINTS + j) * stride + (k + lane) * lds + o);
                points_to_weights(u, columns + j, POINTS);
            }
            for (int i = 0; i < TAPS; i++) {
                points_to_weights(columns + i * POINTS, g, 1);
                for (int j = 0; j < TAPS; j++) store(block[i * TAPS + j] + lane * W, g[j]);
            }
        }
        for (int t = 0; t < KERNEL; t++)
            transpose_lanes(block[t], W, dw + ((first + o) * KERNEL + t) * c.Cin + k, KERNEL * c.Cin);
    }
}

}  // namespace

extern "C" {

// dw [Cout, 3, 3, Cin] = the gradient for x and dy as in sfumato_winograd. Returns 0 without memory for it, else 1.
int sfumato_winograd_gradient(const float* x, const float* dy, float* dw, long B, long H, long W_in, long Cin,
                              long Cout, long pad_h, long pad_w, long scale, int threads) {
    const Convolution c{B, H, W_in, Cin, Cout, pad_h, pad_w, scale};
    const long chunk = c.chunk(), row = Cin + PAD, out_row = chunk + PAD;
    const long blocks = (c.tiles() + TILES - 1) / TILES, tiles = (c.tiles() + blocks - 1) / blocks;  // in equal parts
    const long V_stride = tiles * row + PAD, D_stride = tiles * out_row + PAD, S_stride = Cin * out_row + PAD;
    Buffer V = buffer(PRODUCTS * V_stride), D = buffer(PRODUCTS * D_stride), S = buffer(PRODUCTS * S_stride);
    Buffer zeros = zeroed(Cin);
    if (!V || !D || !S || !zeros) return 0;
    for (long first = 0; first < Cout; first += chunk) {
        const long channels = std::min(chunk, Cout - first);
        for (long begin = 0; begin < c.tiles(); begin += tiles) {
            const long count = std::min(tiles, c.tiles() - begin);
#pragma omp parallel num_threads(threads) if (threads > 1)
            {
#pragma omp for schedule(static)
                for (long t = 0; t < count; t++) {
                    transform_inputs(x, zeros.get(), c, begin + t, V.get() + t * row, V_stride);
                    transform_gradients(dy, c, begin + t, first, channels, D.get() + t * out_row, D_stride);
                }
#pragma omp for schedule(static)
                for (long i = 0; i < PRODUCTS; i++)
                    for (long o = 0; o < channels; o += PANEL)
                        accumulate_panel(V.get() + i * V_stride, row, D.get() + i * D_stride + o, out_row,
                                         S.get() + i * S_stride + o, out_row, Cin, count, begin > 0);
            }
        }
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (long k = 0; k < Cin; k += W) transform_sums(S.get(), S_stride, out_row, c, k, first, channels, dw);
    }
    return 1;
}
}
