// Portable vectors: GCC/Clang vector extensions for the arithmetic, intrinsics only where the compiler finds no good code.
// A bf16 value is the upper half of a float32; all arithmetic here is float32.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define WIDE 1
constexpr int W = 16;
#else
#define WIDE 0
constexpr int W = 8;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

struct bf16 {
    uint16_t bits;
};

static inline vf splat(float a) { return a - (vf){}; }

static inline vf load(const float* p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline vf load(const bf16* p) {
#if WIDE
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
#else
    vh h;
    std::memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

static inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// Round to nearest even, in the low half of each lane.
static inline vu round_bf16(vf v) {
    vu u = (vu)v;
    return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}

static inline void store(bf16* p, vf v) {
#if WIDE && defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
#elif WIDE
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)round_bf16(v)));
#else
    vh h = __builtin_convertvector(round_bf16(v), vh);
    std::memcpy(p, &h, sizeof h);
#endif
}

static inline float scalar(float a) { return a; }
static inline float scalar(bf16 a) {
    uint32_t u = (uint32_t)a.bits << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

static inline vf vmax(vf a, vf b) {
#if WIDE
    return _mm512_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

static inline vf vmin(vf a, vf b) {
#if WIDE
    return _mm512_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

// 1 / a for a in [1, 2^120]: an estimate and two Newton steps where the processor has one.
static inline vf reciprocal(vf a) {
#if WIDE
    vf r = _mm512_rcp14_ps(a);
    r = r * (2.0f - a * r);
    return r * (2.0f - a * r);
#else
    return 1.0f / a;
#endif
}

// 2^y by a minimax polynomial on [-1/2, 1/2]: relative error 1e-7 at degree 5, 4e-6 at degree 4 (for results kept as bf16).
// Underflows to (almost) zero; a NaN stays one.
template <int DEGREE = 5>
static inline vf vexp2(vf y) {
#if WIDE
    vf n = _mm512_roundscale_ps(y, 8);
#else
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    y = vmin(splat(127.0f), vmax(splat(-126.0f), y));
    vf t = y + magic, n = t - magic;
#endif
    vf f = y - n, p;
    if (DEGREE == 5) {
        p = splat(0.0013390863314270973f);
        p = p * f + 0.009676031768321991f;
        p = p * f + 0.055503569543361664f;
        p = p * f + 0.2402210682630539f;
        p = p * f + 0.6931471824645996f;
        p = p * f + 1.0000001192092896f;
    } else {
        p = splat(0.00966636836528778f);
        p = p * f + 0.055921975523233414f;
        p = p * f + 0.2402234971523285f;
        p = p * f + 0.6931210160255432f;
        p = p * f + 1.0f;
    }
#if WIDE
    return _mm512_scalef_ps(p, n);
#else
    vi e = ((vi)t - 0x4B400000 + 127) << 23;  // 0x4B400000 is the bit pattern of magic
    return p * (vf)e;
#endif
}

constexpr float LOG2E = 1.44269504088896341f;

static inline vf vexp(vf x) { return vexp2(x * LOG2E); }

// 1 / (1 + e^-z); the order of the clamp's operands lets a NaN through.
static inline vf sigmoid(vf z) { return reciprocal(1.0f + vexp(-vmax(splat(-87.0f), z))); }

static inline float hsum(vf v) {
#if WIDE
    return _mm512_reduce_add_ps(v);
#else
    float s = 0;
    for (int i = 0; i < W; i++) s += v[i];
    return s;
#endif
}

static inline float hmax(vf v) {
#if WIDE
    return _mm512_reduce_max_ps(v);
#else
    float s = v[0];
    for (int i = 1; i < W; i++) s = v[i] > s ? v[i] : s;
    return s;
#endif
}
