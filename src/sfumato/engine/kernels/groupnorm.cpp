// Group normalisation with an optional SiLU over channels-last images: x [N, P, C] (P pixels), statistics in float32.
//
//     v = x + add[n, c];   z = (v - mean) * rstd * gain[n or -, c] + bias[n or -, c];   y = silu(z) or z
//
// The affine pair may differ per sample (adaptive normalisation folds its scale and shift into it), and `add` is the
// per-sample vector that a residual block adds before its second norm: both cost nothing here and a pass over memory apart.
#include <cmath>
#include <vector>

#include "vector.h"

namespace {

// Sums over pixels of (x - shift) and (x - shift)^2 per channel. Shifting by the first pixel keeps float32 exact enough.
template <class T>
void channel_sums(const T* x, long P, long C, long c0, long c1, float* shift, float* sum, float* square) {
    for (long c = c0; c < c1; c += W) {
        store(shift + c, load(x + c));
        store(sum + c, vf{});
        store(square + c, vf{});
    }
    long p = 0;
    for (; p + 4 <= P; p += 4) {
        const T* r = x + p * C;
        for (long c = c0; c < c1; c += W) {
            vf m = load(shift + c);
            vf a = load(r + c) - m, b = load(r + C + c) - m, d = load(r + 2 * C + c) - m, e = load(r + 3 * C + c) - m;
            store(sum + c, load(sum + c) + ((a + b) + (d + e)));
            store(square + c, load(square + c) + ((a * a + b * b) + (d * d + e * e)));
        }
    }
    for (; p < P; p++)
        for (long c = c0; c < c1; c += W) {
            vf a = load(x + p * C + c) - load(shift + c);
            store(sum + c, load(sum + c) + a);
            store(square + c, load(square + c) + a * a);
        }
}

// Mean and 1 / standard deviation of one group from its channels' sums (Chan's parallel formula).
void group_moments(const float* shift, const float* sum, const float* square, const float* add, long P, long width,
                   float eps, float* mean, float* rstd) {
    double total = 0, within = 0;
    for (long c = 0; c < width; c++) total += (double)shift[c] + sum[c] / P + (add ? add[c] : 0.0f);
    double m = total / width;
    for (long c = 0; c < width; c++) {
        double cm = (double)shift[c] + sum[c] / P + (add ? add[c] : 0.0f);
        double spread = (double)square[c] - (double)sum[c] * sum[c] / P;
        within += (spread > 0 ? spread : 0) + P * (cm - m) * (cm - m);
    }
    *mean = (float)m;
    *rstd = (float)(1.0 / std::sqrt(within / ((double)P * width) + eps));
}

template <class T, bool SILU>
void apply(const T* x, T* y, long P, long C, long c0, long c1, const float* a, const float* b) {
    for (long p = 0; p < P; p++)
        for (long c = c0; c < c1; c += W) {
            vf z = load(x + p * C + c) * load(a + c) + load(b + c);
            store(y + p * C + c, SILU ? z * sigmoid(z) : z);
        }
}

template <class T, bool SILU>
inline vf gradient_of_z(const T* x, const T* dy, const float* a, const float* b) {
    vf g = load(dy);
    if (!SILU) return g;
    vf z = load(x) * load(a) + load(b);
    vf s = sigmoid(z);
    return g * (s + z * s * (1.0f - s));
}

// Per channel: sum of dz and sum of dz * x.
template <class T, bool SILU>
void gradient_sums(const T* x, const T* dy, long P, long C, long c0, long c1, const float* a, const float* b,
                   const float* centre, float* dz_sum, float* dzx_sum) {
    for (long c = c0; c < c1; c += W) {
        store(dz_sum + c, vf{});
        store(dzx_sum + c, vf{});
    }
    long p = 0;
    for (; p + 2 <= P; p += 2)
        for (long c = c0; c < c1; c += W) {
            long i = p * C + c, j = i + C;
            vf g = gradient_of_z<T, SILU>(x + i, dy + i, a + c, b + c);
            vf h = gradient_of_z<T, SILU>(x + j, dy + j, a + c, b + c);
            vf m = load(centre + c);
            store(dz_sum + c, load(dz_sum + c) + (g + h));
            store(dzx_sum + c, load(dzx_sum + c) + (g * (load(x + i) - m) + h * (load(x + j) - m)));
        }
    for (; p < P; p++)
        for (long c = c0; c < c1; c += W) {
            long i = p * C + c;
            vf g = gradient_of_z<T, SILU>(x + i, dy + i, a + c, b + c);
            store(dz_sum + c, load(dz_sum + c) + g);
            store(dzx_sum + c, load(dzx_sum + c) + g * (load(x + i) - load(centre + c)));
        }
}

// dx = dz * a + x * k + l per channel; its sum over pixels too, which is the gradient of `add`.
template <class T, bool SILU>
void input_gradient(const T* x, const T* dy, T* dx, long P, long C, long c0, long c1, const float* a, const float* b,
                    const float* k, const float* l, float* dx_sum) {
    if (dx_sum)
        for (long c = c0; c < c1; c += W) store(dx_sum + c, vf{});
    for (long p = 0; p < P; p++)
        for (long c = c0; c < c1; c += W) {
            long i = p * C + c;
            vf g = gradient_of_z<T, SILU>(x + i, dy + i, a + c, b + c);
            vf d = g * load(a + c) + (load(x + i) * load(k + c) + load(l + c));
            store(dx + i, d);
            if (dx_sum) store(dx_sum + c, load(dx_sum + c) + d);
        }
}

// One task is a sample, or a range of whole groups of it when there are fewer samples than threads.
long parts_of(long N, long C, long G, int threads) {
    long parts = 1, width = C / G;
    while (N * parts < threads && C % (parts * 2) == 0 && (C / (parts * 2)) % W == 0 && (C / (parts * 2)) % width == 0)
        parts *= 2;
    return parts;
}

struct Shape {
    long N, P, C, G;
    int per_sample, threads;
};

// z as an affine map of x: a = rstd * gain, b = bias + (add - mean) * a.
void affine(const Shape& s, long n, long c0, long c1, const float* gain, const float* bias, const float* add,
            const float* mean, const float* rstd, float* a, float* b) {
    long width = s.C / s.G, at = s.per_sample ? n * s.C : 0;
    for (long c = c0; c < c1; c++) {
        float m = mean[n * s.G + c / width], r = rstd[n * s.G + c / width];
        a[c] = gain[at + c] * r;
        b[c] = bias[at + c] + ((add ? add[n * s.C + c] : 0.0f) - m) * a[c];
    }
}

template <class T>
void forward(const T* x, T* y, const float* gain, const float* bias, const float* add, float* mean, float* rstd,
             Shape s, float eps, int silu) {
    long parts = parts_of(s.N, s.C, s.G, s.threads), width = s.C / s.G;
#pragma omp parallel for num_threads(s.threads) if (s.threads > 1) schedule(static)
    for (long task = 0; task < s.N * parts; task++) {
        long n = task / parts, c0 = task % parts * (s.C / parts), c1 = c0 + s.C / parts;
        std::vector<float> room(5 * s.C);
        float *shift = room.data(), *sum = shift + s.C, *square = sum + s.C, *a = square + s.C, *b = a + s.C;
        const T* xn = x + n * s.P * s.C;
        const float* extra = add ? add + n * s.C : nullptr;
        channel_sums(xn, s.P, s.C, c0, c1, shift, sum, square);
        for (long g = c0 / width; g < c1 / width; g++) {
            long c = g * width;
            group_moments(shift + c, sum + c, square + c, extra ? extra + c : nullptr, s.P, width, eps,
                          mean + n * s.G + g, rstd + n * s.G + g);
        }
        affine(s, n, c0, c1, gain, bias, add, mean, rstd, a, b);
        if (silu)
            apply<T, true>(xn, y + n * s.P * s.C, s.P, s.C, c0, c1, a, b);
        else
            apply<T, false>(xn, y + n * s.P * s.C, s.P, s.C, c0, c1, a, b);
    }
}

// gain_grad, bias_grad, add_grad are [N, C]: per sample, to be reduced by the caller.
template <class T, bool SILU>
void backward(const T* x, const T* dy, T* dx, const float* gain, const float* bias, const float* add, const float* mean,
              const float* rstd, float* gain_grad, float* bias_grad, float* add_grad, Shape s) {
    long parts = parts_of(s.N, s.C, s.G, s.threads), width = s.C / s.G;
#pragma omp parallel for num_threads(s.threads) if (s.threads > 1) schedule(static)
    for (long task = 0; task < s.N * parts; task++) {
        long n = task / parts, c0 = task % parts * (s.C / parts), c1 = c0 + s.C / parts;
        std::vector<float> room(5 * s.C);
        float *a = room.data(), *b = a + s.C, *centre = b + s.C, *k = centre + s.C, *l = k + s.C;
        const T *xn = x + n * s.P * s.C, *dyn = dy + n * s.P * s.C;
        const float* gains = gain + (s.per_sample ? n * s.C : 0);
        float *dz = bias_grad + n * s.C, *dzx = gain_grad + n * s.C;
        affine(s, n, c0, c1, gain, bias, add, mean, rstd, a, b);
        for (long c = c0; c < c1; c++) centre[c] = mean[n * s.G + c / width] - (add ? add[n * s.C + c] : 0.0f);
        gradient_sums<T, SILU>(xn, dyn, s.P, s.C, c0, c1, a, b, centre, dz, dzx);
        for (long g = c0 / width; g < c1 / width; g++) {
            double r = rstd[n * s.G + g], along = 0, mean_dz = 0;
            for (long c = g * width; c < (g + 1) * width; c++) {
                dzx[c] *= (float)r;  // sum of dz * normalised x: the gradient of the gain
                along += (double)gains[c] * dzx[c];
                mean_dz += (double)gains[c] * dz[c];
            }
            double count = (double)s.P * width;
            for (long c = g * width; c < (g + 1) * width; c++) {
                k[c] = (float)(-r * r * along / count);
                l[c] = (float)(-r * mean_dz / count) - k[c] * centre[c];
            }
        }
        input_gradient<T, SILU>(xn, dyn, dx + n * s.P * s.C, s.P, s.C, c0, c1, a, b, k, l,
                                add_grad ? add_grad + n * s.C : nullptr);
    }
}

}  // namespace

extern "C" {

int sfumato_vector_width() { return W; }

void sfumato_groupnorm(int is_bf16, const void* x, void* y, const float* gain, const float* bias, const float* add,
                       float* mean, float* rstd, long N, long P, long C, long G, int per_sample, float eps, int silu,
                       int threads) {
    Shape s{N, P, C, G, per_sample, threads};
    if (is_bf16)
        forward((const bf16*)x, (bf16*)y, gain, bias, add, mean, rstd, s, eps, silu);
    else
        forward((const float*)x, (float*)y, gain, bias, add, mean, rstd, s, eps, silu);
}

void sfumato_groupnorm_backward(int is_bf16, const void* x, const void* dy, void* dx, const float* gain,
                                const float* bias, const float* add, const float* mean, const float* rstd,
                                float* gain_grad, float* bias_grad, float* add_grad, long N, long P, long C, long G,
                                int per_sample, int silu, int threads) {
    Shape s{N, P, C, G, per_sample, threads};
#define SFUMATO_CALL(T, SILU)                                                                                      \
    backward<T, SILU>((const T*)x, (const T*)dy, (T*)dx, gain, bias, add, mean, rstd, gain_grad, bias_grad, add_grad, s)
    if (is_bf16)
        silu ? SFUMATO_CALL(bf16, true) : SFUMATO_CALL(bf16, false);
    else
        silu ? SFUMATO_CALL(float, true) : SFUMATO_CALL(float, false);
#undef SFUMATO_CALL
}
}
