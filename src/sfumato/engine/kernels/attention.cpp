// softmax(scale * q k^T) v and its gradient, one head at a time, everything of a head in cache.
//
// Tensors are addressed by strides in elements with the head's width contiguous, so [B, T, H, D] projections, also slices of
// one packed projection, need no copy. Operands float32 or bf16; scores, softmax and all sums are float32, exponentials and logarithms to base 2. `allowed` [B, S]
// bytes (or null) says which keys may be attended; a query without any gets zero.
#include <cmath>
#include <cstdlib>

#include "gemm.h"

namespace {

constexpr long TILE = 64;            // queries at a time, a multiple of two BLOCKs
constexpr long PAD = BLOCK;          // units that keep rows of scores off each other's cache lines
constexpr float FORBIDDEN = -1e30f;  // score of a key that may not be attended

long round_up(long a, long b) { return (a + b - 1) / b * b; }

// A thread's scratch memory: kept and grown, handed out in pieces.
struct Room {
    char* base = nullptr;
    size_t size = 0, used = 0;
    ~Room() { std::free(base); }
    void reserve(size_t bytes) {
        used = 0;
        if (bytes <= size) return;
        std::free(base);
        size = round_up(bytes, 4096);
        base = (char*)std::aligned_alloc(64, size);
    }
    template <class T>
    T* take(long count) {
        T* p = (T*)(base + used);
        used += round_up(count * sizeof(T), 64);
        return p;
    }
};
thread_local Room room;

struct View {  // one head: rows of contiguous width
    long batch, head, row;
};

struct Problem {
    long B, H, T, S, D;
    float scale;
    int threads;
    View q, k, v, o;
    long Sp() const { return round_up(S, BLOCK); }
    long Dp() const { return round_up(D, BLOCK); }
    long ld() const { return Sp() + PAD; }  // of scores
};

template <class T>
T* at(T* p, const View& v, long b, long h) {
    return p + b * v.batch + h * v.head;
}

// [Sp / BLOCK, depth, BLOCK] units: the B operand of a product over the head's width. Zero beyond the rows.
template <class T>
void pack_transposed(const T* x, long row, long rows, long depth, uint32_t* out) {
    constexpr long per = PER_UNIT<T>;
    for (long i = 0; i < rows; i += BLOCK, out += depth * BLOCK) {
        const long count = rows - i < BLOCK ? rows - i : BLOCK;
        const T* from = x + i * row;
        if (row % per == 0)
            transpose_units((const uint32_t*)from, row / per, count, depth, out, BLOCK);
        else
            for (long j = 0; j < depth; j++)
                for (long n = 0; n < BLOCK; n++) out[j * BLOCK + n] = n < count ? unit_at(from + n * row + j * per) : 0;
    }
}

// Units along the rows, [padded rows / per unit, Dp], in blocks of columns `step` apart: the B operand of a product over
// rows. Zero beyond the rows and the width.
template <class T>
void pack_rows(const T* x, long row, long rows, long padded_rows, long D, uint32_t* out, long ld, long step) {
    constexpr long per = PER_UNIT<T>;
    for (long r = 0; r < padded_rows; r += per)
        for (long d = 0; d < D; d += BLOCK) {
            uint32_t* to = out + d / BLOCK * step + r / per * ld;
            const T* from = x + r * row + d;
            const long n = r >= rows ? 0 : D - d < BLOCK ? D - d : BLOCK;
            if constexpr (per == 1)
                std::memcpy(to, from, n * 4);
            else
                for (long c = 0; c < n; c++)
                    to[c] = from[c].bits | (r + 1 < rows ? (uint32_t)from[row + c].bits << 16 : 0);
            std::memset(to + n, 0, (BLOCK - n) * 4);
        }
}

template <class T>
float dot(const T* a, const T* b, long D) {
    vf sum{};
    long d = 0;
    for (; d + W <= D; d += W) sum += load(a + d) * load(b + d);
    float total = hsum(sum);
    for (; d < D; d++) total += scalar(a[d]) * scalar(b[d]);
    return total;
}

// What is added to a padded row of scores; null if nothing is.
float* mask_row(const uint8_t* allowed, long S, long Sp, float* bias) {
    if (!allowed && S == Sp) return nullptr;
    for (long s = 0; s < Sp; s++) bias[s] = s < S && (!allowed || allowed[s]) ? 0.0f : FORBIDDEN;
    return bias;
}

// Two rows of values as units along the rows: the B operand of a product over queries.
template <class T>
inline void store_pair(uint32_t* to, vf a, vf b) {
    static_assert(PER_UNIT<T> == 2);
#if WIDE && defined(__AVX512BF16__)
    // Both vectors rounded by the processor, then the halves of each lane brought together.
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
#else
    vu u = round_bf16(a) | (round_bf16(b) << 16);
    std::memcpy(to, &u, sizeof u);
#endif
}

template <class T>
void write_row(T* to, const float* from, long D, float factor) {
    long d = 0;
    for (; d + W <= D; d += W) store(to + d, load(from + d) * factor);
    if (d < D) {
        T last[W];
        store(last, load(from + d) * factor);
        std::memcpy(to + d, last, (D - d) * sizeof(T));
    }
}

// bf16 results do not need float32's last digits.
template <class T>
constexpr int DEGREE = PER_UNIT<T> == 2 ? 4 : 5;

// One row of scores to 2^(scale * (s - max)), as T in p; returns the sum and sets the largest score. `bias` is null where
// every key of the padded row may be attended.
template <class T>
float exponentials(const float* s, const float* bias, long Sp, float scale, T* p, float* largest) {
    vf top = splat(FORBIDDEN), sum{};
    if (bias)
        for (long j = 0; j < Sp; j += W) top = vmax(top, load(s + j) + load(bias + j));
    else
        for (long j = 0; j < Sp; j += W) top = vmax(top, load(s + j));
    *largest = hmax(top);
    float m = *largest > 0.5f * FORBIDDEN ? *largest : 0.0f;  // no key at all: every weight underflows to 0
    for (long j = 0; j < Sp; j += W) {
        vf x = bias ? load(s + j) + load(bias + j) : load(s + j);
        vf e = vexp2<DEGREE<T>>(x * scale - m * scale);
        sum += e;
        store(p + j, e);
    }
    return hsum(sum);
}

template <class T>
void forward_head(const Problem& p, const T* q, const T* k, const T* v, T* o, float* lse, const uint8_t* allowed,
                  long first, long last) {
    constexpr long per = PER_UNIT<T>;
    const long Sp = p.Sp(), Dp = p.Dp(), ld = p.ld(), depth = p.D / per, units = Sp / per;
    room.reserve((depth * Sp + units * Dp + Sp + 2 * TILE * ld + TILE * Dp) * 4 + 4096);
    uint32_t *kt = room.take<uint32_t>(depth * Sp), *vr = room.take<uint32_t>(units * Dp);
    float *bias = room.take<float>(Sp), *scores = room.take<float>(TILE * ld), *out = room.take<float>(TILE * Dp);
    T* weights = per == 1 ? (T*)scores : room.take<T>(TILE * ld);
    const float log_scale = p.scale * LOG2E;
    pack_transposed(k, p.k.row, p.S, depth, kt);
    pack_rows(v, p.v.row, p.S, Sp, p.D, vr, BLOCK, units * BLOCK);
    bias = mask_row(allowed, p.S, Sp, bias);
    for (long t = first; t < last; t += TILE) {
        long M = last - t < TILE ? last - t : TILE;
        float factor[TILE];
        gemm(q + t * p.q.row, p.q.row, kt, BLOCK, depth * BLOCK, scores, ld, M, Sp, depth, false);
        for (long m = 0; m < M; m++) {
            float top, sum = exponentials(scores + m * ld, bias, Sp, log_scale, weights + m * ld, &top);
            bool none = top <= 0.5f * FORBIDDEN;
            factor[m] = none ? 0.0f : 1.0f / sum;
            if (lse) lse[t + m] = none ? -FORBIDDEN : top * log_scale + std::log2(sum);
        }
        gemm(weights, ld, vr, BLOCK, units * BLOCK, out, Dp, M, Dp, units, false);
        for (long m = 0; m < M; m++) write_row(o + (t + m) * p.o.row, out + m * Dp, p.D, factor[m]);
    }
}

struct Gradients {
    View q, k, v, o;  // strides of dq, dk, dv and of the incoming gradient
};

// Columns of a transposed float32 matrix [D, ld] back to rows of T.
template <class T>
void write_transposed(T* to, long row, const float* from, long ld, long rows, long D) {
    for (long i = 0; i < rows; i += 16)
        for (long j = 0; j < D; j += 16) {
            long m = rows - i < 16 ? rows - i : 16, n = D - j < 16 ? D - j : 16;
            float block[256];
            transpose16((const uint32_t*)from + j * ld + i, ld, (uint32_t*)block, 16);
            for (long a = 0; a < m; a++) write_row(to + (i + a) * row + j, block + a * 16, n, 1.0f);
        }
}

// A tile's rows [M, D] as the A operand of a product over them: [D, TILE] values.
template <class T>
void pack_columns(const T* x, long row, long M, long D, long Dp, uint32_t* rows, T* out) {
    constexpr long per = PER_UNIT<T>;
    pack_rows(x, row, M, TILE, D, rows, Dp, BLOCK);
    transpose_units(rows, Dp, TILE / per, Dp, (uint32_t*)out, TILE / per);
}

// From scores and weight gradients of rows m (and m + 1 where units hold two): weights and score gradients, in the layouts
// that the three products need.
template <class T>
void softmax_gradient(const float* s, const float* dw, const float* bias, long Sp, long ld, float scale,
                      const float* lse, const float* delta, T* ds, uint32_t* w_units, uint32_t* ds_units) {
    auto score = [&](const float* row, long j) { return bias ? load(row + j) + load(bias + j) : load(row + j); };
    const float log_scale = scale * LOG2E;
    for (long j = 0; j < Sp; j += W) {
        vf w = vexp2<DEGREE<T>>(score(s, j) * log_scale - lse[0]);
        vf g = w * (load(dw + j) - delta[0]) * scale;
        store(ds + j, g);
        if constexpr (PER_UNIT<T> == 1) {
            store((float*)w_units + j, w);
        } else {
            vf w2 = vexp2<DEGREE<T>>(score(s + ld, j) * log_scale - lse[1]);
            vf g2 = w2 * (load(dw + ld + j) - delta[1]) * scale;
            store(ds + ld + j, g2);
            store_pair<T>(w_units + j, w, w2);
            store_pair<T>(ds_units + j, g, g2);
        }
    }
}

template <class T>
void backward_head(const Problem& p, const Gradients& g, const T* q, const T* k, const T* v, const T* o, const T* grad,
                   const float* lse, const uint8_t* allowed, T* dq, T* dk, T* dv) {
    constexpr long per = PER_UNIT<T>;
    const long Sp = p.Sp(), Dp = p.Dp(), ld = p.ld(), depth = p.D / per, units = Sp / per;
    room.reserve((2 * depth * Sp + units * Dp + Sp + 2 * Dp * ld + 5 * TILE * ld + 4 * TILE * Dp) * 4 + 8192);
    uint32_t *kt = room.take<uint32_t>(depth * Sp), *vt = room.take<uint32_t>(depth * Sp);
    uint32_t *kr = room.take<uint32_t>(units * Dp), *rows = room.take<uint32_t>(TILE / per * Dp);
    float *bias = room.take<float>(Sp), *dkt = room.take<float>(Dp * ld), *dvt = room.take<float>(Dp * ld);
    float *scores = room.take<float>(TILE * ld), *dw = room.take<float>(TILE * ld), *out = room.take<float>(TILE * Dp);
    T *ds = room.take<T>(TILE * ld), *columns = room.take<T>(Dp * TILE);
    uint32_t* w_units = room.take<uint32_t>(TILE / per * ld);
    uint32_t* ds_units = per == 1 ? (uint32_t*)ds : room.take<uint32_t>(TILE / per * ld);
    pack_transposed(k, p.k.row, p.S, depth, kt);
    pack_transposed(v, p.v.row, p.S, depth, vt);
    pack_rows(k, p.k.row, p.S, Sp, p.D, kr, BLOCK, units * BLOCK);
    bias = mask_row(allowed, p.S, Sp, bias);
    for (long t = 0; t < p.T; t += TILE) {
        long M = p.T - t < TILE ? p.T - t : TILE, Mp = round_up(M, per);
        float delta[TILE + 1] = {}, norm[TILE + 1];
        const T *qt = q + t * p.q.row, *gt = grad + t * g.o.row;
        gemm(qt, p.q.row, kt, BLOCK, depth * BLOCK, scores, ld, M, Sp, depth, false);
        gemm(gt, g.o.row, vt, BLOCK, depth * BLOCK, dw, ld, M, Sp, depth, false);
        for (long m = 0; m < M; m++) {
            const T *a = gt + m * g.o.row, *b = o + (t + m) * p.o.row;
            delta[m] = dot(a, b, p.D);
            norm[m] = lse[t + m];
        }
        if (Mp > M) {  // an odd last row of bf16 units: a row of zeros beside it
            std::memset(scores + M * ld, 0, Sp * 4);
            std::memset(dw + M * ld, 0, Sp * 4);
            norm[M] = -FORBIDDEN;
        }
        for (long m = 0; m < Mp; m += per)
            softmax_gradient<T>(scores + m * ld, dw + m * ld, bias, Sp, ld, p.scale, norm + m, delta + m, ds + m * ld,
                                w_units + m / per * ld, ds_units + m / per * ld);
        gemm(ds, ld, kr, BLOCK, units * BLOCK, out, Dp, M, Dp, units, false);
        for (long m = 0; m < M; m++) write_row(dq + (t + m) * g.q.row, out + m * Dp, p.D, 1.0f);
        pack_columns(gt, g.o.row, M, p.D, Dp, rows, columns);
        gemm(columns, TILE, w_units, ld, BLOCK, dvt, ld, Dp, Sp, Mp / per, t > 0);
        pack_columns(qt, p.q.row, M, p.D, Dp, rows, columns);
        gemm(columns, TILE, ds_units, ld, BLOCK, dkt, ld, Dp, Sp, Mp / per, t > 0);
    }
    write_transposed(dk, g.k.row, dkt, ld, p.S, p.D);
    write_transposed(dv, g.v.row, dvt, ld, p.S, p.D);
}

template <class T>
void forward(const Problem& p, const T* q, const T* k, const T* v, T* o, float* lse, const uint8_t* allowed) {
    long heads = p.B * p.H, parts = 1;
    while (heads * parts < p.threads && p.T / (parts * 2) >= TILE) parts *= 2;
    long share = round_up((p.T + parts - 1) / parts, TILE);
#pragma omp parallel for num_threads(p.threads) if (p.threads > 1) schedule(static)
    for (long task = 0; task < heads * parts; task++) {
        long i = task / parts, b = i / p.H, h = i % p.H, first = task % parts * share;
        long last = first + share < p.T ? first + share : p.T;
        forward_head(p, at(q, p.q, b, h), at(k, p.k, b, h), at(v, p.v, b, h), at(o, p.o, b, h),
                     lse ? lse + i * p.T : nullptr, allowed ? allowed + b * p.S : nullptr, first, last);
    }
}

template <class T>
void backward(const Problem& p, const Gradients& g, const T* q, const T* k, const T* v, const T* o, const T* grad,
              const float* lse, const uint8_t* allowed, T* dq, T* dk, T* dv) {
#pragma omp parallel for num_threads(p.threads) if (p.threads > 1) schedule(static)
    for (long i = 0; i < p.B * p.H; i++) {
        long b = i / p.H, h = i % p.H;
        backward_head(p, g, at(q, p.q, b, h), at(k, p.k, b, h), at(v, p.v, b, h), at(o, p.o, b, h), at(grad, g.o, b, h),
                      lse + i * p.T, allowed ? allowed + b * p.S : nullptr, at(dq, g.q, b, h), at(dk, g.k, b, h),
                      at(dv, g.v, b, h));
    }
}

View view(const long* s) { return {s[0], s[1], s[2]}; }

}  // namespace

extern "C" {

// sizes: B, H, T, S, D; strides: (batch, head, row) of q, k, v, o.
void sfumato_attention(int is_bf16, const void* q, const void* k, const void* v, void* o, float* lse,
                       const uint8_t* allowed, const long* sizes, const long* strides, float scale, int threads) {
    Problem p{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], scale, threads,
              view(strides), view(strides + 3), view(strides + 6), view(strides + 9)};
    if (is_bf16)
        forward(p, (const bf16*)q, (const bf16*)k, (const bf16*)v, (bf16*)o, lse, allowed);
    else
        forward(p, (const float*)q, (const float*)k, (const float*)v, (float*)o, lse, allowed);
}

// strides: of q, k, v, o, then dq, dk, dv, the incoming gradient.
void sfumato_attention_backward(int is_bf16, const void* q, const void* k, const void* v, const void* o,
                                const void* grad, const float* lse, const uint8_t* allowed, void* dq, void* dk,
                                void* dv, const long* sizes, const long* strides, float scale, int threads) {
    Problem p{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], scale, threads,
              view(strides), view(strides + 3), view(strides + 6), view(strides + 9)};
    Gradients g{view(strides + 12), view(strides + 15), view(strides + 18), view(strides + 21)};
#define SFUMATO_CALL(T)                                                                                              \
    backward(p, g, (const T*)q, (const T*)k, (const T*)v, (const T*)o, (const T*)grad, lse, allowed, (T*)dq, (T*)dk, \
             (T*)dv)
    if (is_bf16)
        SFUMATO_CALL(bf16);
    else
        SFUMATO_CALL(float);
#undef SFUMATO_CALL
}
}
