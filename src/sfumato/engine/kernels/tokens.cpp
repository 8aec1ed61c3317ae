// Row-wise operations of transformer blocks: layer normalisation and the gated GELU, forward and backward.
// Rows are contiguous, widths multiples of W; float32 or bf16 values, float32 arithmetic.
#include <cmath>

#include "vector.h"

namespace {

template <class T>
void layernorm(const T* x, T* y, const float* gain, const float* bias, float* mean, float* rstd, long R, long C,
               float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long r = 0; r < R; r++) {
        const T* from = x + r * C;
        vf sum{}, square{};
        for (long c = 0; c < C; c += W) sum += load(from + c);
        float m = hsum(sum) / C;
        for (long c = 0; c < C; c += W) {
            vf d = load(from + c) - m;
            square += d * d;
        }
        float s = 1.0f / std::sqrt(hsum(square) / C + eps);
        for (long c = 0; c < C; c += W)
            store(y + r * C + c, (load(from + c) - m) * s * load(gain + c) + load(bias + c));
        mean[r] = m;
        rstd[r] = s;
    }
}

// gain_grad and bias_grad are [threads, C]: one partial sum per share of the rows.
template <class T>
void layernorm_backward(const T* x, const T* dy, T* dx, const float* gain, const float* mean, const float* rstd,
                        float* gain_grad, float* bias_grad, long R, long C, int threads) {
    long share = (R + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long part = 0; part < threads; part++) {
        float *dg = gain_grad + part * C, *db = bias_grad + part * C;
        std::memset(dg, 0, C * 4);
        std::memset(db, 0, C * 4);
        long last = (part + 1) * share < R ? (part + 1) * share : R;
        for (long r = part * share; r < last; r++) {
            const T *from = x + r * C, *grad = dy + r * C;
            float m = mean[r], s = rstd[r];
            vf sum{}, along{};
            for (long c = 0; c < C; c += W) {
                vf n = (load(from + c) - m) * s, g = load(grad + c), z = g * load(gain + c);
                sum += z;
                along += z * n;
                store(dg + c, load(dg + c) + g * n);
                store(db + c, load(db + c) + g);
            }
            float a = hsum(sum) / C, b = hsum(along) / C;
            for (long c = 0; c < C; c += W) {
                vf n = (load(from + c) - m) * s, z = load(grad + c) * load(gain + c);
                store(dx + r * C + c, (z - a - n * b) * s);
            }
        }
    }
}

// The normal distribution's cumulative function and density: erf after Abramowitz & Stegun 7.1.26, error below 2e-7.
struct Normal {
    vf cumulative, density;
};

inline Normal normal(vf x) {
    vf bell = vexp(x * x * -0.5f);
    vf magnitude = vmax(x, -x) * 0.70710678118654752f;
    vf t = reciprocal(1.0f + 0.3275911f * magnitude);
    vf p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vf tail = p * t * bell * 0.5f;
    vf above = 1.0f - tail;
    return {x < 0.0f ? tail : above, bell * 0.3989422804014327f};
}

// y = value * gelu(gate), both halves of one row of x [R, 2 N].
template <class T>
void geglu(const T* x, T* y, long R, long N, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long r = 0; r < R; r++)
        for (long c = 0; c < N; c += W) {
            vf value = load(x + r * 2 * N + c), gate = load(x + r * 2 * N + N + c);
            store(y + r * N + c, value * gate * normal(gate).cumulative);
        }
}

template <class T>
void geglu_backward(const T* x, const T* dy, T* dx, long R, long N, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long r = 0; r < R; r++)
        for (long c = 0; c < N; c += W) {
            vf value = load(x + r * 2 * N + c), gate = load(x + r * 2 * N + N + c), g = load(dy + r * N + c);
            Normal n = normal(gate);
            store(dx + r * 2 * N + c, g * gate * n.cumulative);
            store(dx + r * 2 * N + N + c, g * value * (n.cumulative + gate * n.density));
        }
}

}  // namespace

extern "C" {

void sfumato_layernorm(int is_bf16, const void* x, void* y, const float* gain, const float* bias, float* mean,
                       float* rstd, long R, long C, float eps, int threads) {
    if (is_bf16)
        layernorm((const bf16*)x, (bf16*)y, gain, bias, mean, rstd, R, C, eps, threads);
    else
        layernorm((const float*)x, (float*)y, gain, bias, mean, rstd, R, C, eps, threads);
}

void sfumato_layernorm_backward(int is_bf16, const void* x, const void* dy, void* dx, const float* gain,
                                const float* mean, const float* rstd, float* gain_grad, float* bias_grad, long R,
                                long C, int threads) {
    if (is_bf16)
        layernorm_backward((const bf16*)x, (const bf16*)dy, (bf16*)dx, gain, mean, rstd, gain_grad, bias_grad, R, C,
                           threads);
    else
        layernorm_backward((const float*)x, (const float*)dy, (float*)dx, gain, mean, rstd, gain_grad, bias_grad, R, C,
                           threads);
}

void sfumato_geglu(int is_bf16, const void* x, void* y, long R, long N, int threads) {
    if (is_bf16)
        geglu((const bf16*)x, (bf16*)y, R, N, threads);
    else
        geglu((const float*)x, (float*)y, R, N, threads);
}

void sfumato_geglu_backward(int is_bf16, const void* x, const void* dy, void* dx, long R, long N, int threads) {
    if (is_bf16)
        geglu_backward((const bf16*)x, (const bf16*)dy, (bf16*)dx, R, N, threads);
    else
        geglu_backward((const float*)x, (const float*)dy, (float*)dx, R, N, threads);
}
}
