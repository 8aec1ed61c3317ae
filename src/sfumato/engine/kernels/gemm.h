// Small matrix products C = A B in float32, with operands in float32 or bf16, for matrices that stay in cache.
//
// A unit is 32 bits of the depth: one float or two neighbouring bf16. A is row-major (its rows' units are broadcast), C is
// row-major float32. B is [depth in units, N], its rows vectors of units; N is a multiple of BLOCK. The columns of B lie in
// blocks, each [depth, BLOCK] for itself, `step` units apart: in a large matrix of plain rows (ld N, step BLOCK) the rows
// of a few columns would push one another out of the cache.
#pragma once
#include <type_traits>

#include "vector.h"

template <class T>
constexpr long PER_UNIT = 4 / sizeof(T);

static inline vf multiply_add(vf acc, vu a, vu b, float) { return (vf)a * (vf)b + acc; }

static inline vf multiply_add(vf acc, vu a, vu b, bf16) {
#if WIDE && defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#else
    acc = (vf)(a << 16) * (vf)(b << 16) + acc;
    return (vf)(a & 0xffff0000u) * (vf)(b & 0xffff0000u) + acc;
#endif
}

static inline vu load_units(const uint32_t* p) {
    vu v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
static inline uint32_t unit_at(const T* p) {
    uint32_t u;
    std::memcpy(&u, p, 4);
    return u;
}

constexpr long BLOCK = 16;

// AHEAD: rows of B asked for before they are needed, where B does not come from the nearest caches.
template <class T, int ROWS, int VECTORS, int AHEAD>
static inline void tile(const T* A, long lda, const uint32_t* B, long ldb, long step, float* C, long ldc, long depth,
                        bool add) {
    vf acc[ROWS][VECTORS];
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < VECTORS; n++) acc[m][n] = add ? load(C + m * ldc + n * W) : vf{};
    for (long k = 0; k < depth; k++) {
        vu b[VECTORS];
        if constexpr (AHEAD > 0) __builtin_prefetch(B + (k + AHEAD) * ldb);
        for (int n = 0; n < VECTORS; n++) b[n] = load_units(B + k * ldb + n * W / BLOCK * step + n * W % BLOCK);
        for (int m = 0; m < ROWS; m++) {
            vu a = unit_at(A + m * lda + k * PER_UNIT<T>) - vu{};
            for (int n = 0; n < VECTORS; n++) acc[m][n] = multiply_add(acc[m][n], a, b[n], T());
        }
    }
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < VECTORS; n++) store(C + m * ldc + n * W, acc[m][n]);
}

// VECTORS * W columns, all rows; the last ones in ever smaller tiles.
template <class T, int ROWS, int VECTORS, int AHEAD = 0>
static inline void panel(const T* A, long lda, const uint32_t* B, long ldb, long step, float* C, long ldc, long M,
                         long depth, bool add) {
    constexpr int FEWER = ROWS > 8 ? 8 : ROWS > 4 ? 4 : ROWS / 2;
    long m = 0;
    for (; m + ROWS <= M; m += ROWS)
        tile<T, ROWS, VECTORS, AHEAD>(A + m * lda, lda, B, ldb, step, C + m * ldc, ldc, depth, add);
    if constexpr (ROWS > 1)
        if (m < M)
            panel<T, FEWER, VECTORS, AHEAD>(A + m * lda, lda, B, ldb, step, C + m * ldc, ldc, M - m, depth, add);
}

// C [M, N] (+)= A [M, depth] B [depth, N]; depth in units.
template <class T>
static void gemm(const T* A, long lda, const uint32_t* B, long ldb, long step, float* C, long ldc, long M, long N,
                 long depth, bool add) {
    long n = 0;
    auto columns = [&](auto rows, auto vectors) {
        panel<T, rows(), vectors()>(A, lda, B + n / BLOCK * step, ldb, step, C + n, ldc, M, depth, add);
        n += vectors() * W;
    };
    using std::integral_constant;
    if constexpr (WIDE) {
        while (n + 3 * W <= N && (N - n) % (2 * W)) columns(integral_constant<int, 8>(), integral_constant<int, 3>());
        while (n + 2 * W <= N) columns(integral_constant<int, 8>(), integral_constant<int, 2>());
        while (n < N) columns(integral_constant<int, 8>(), integral_constant<int, 1>());
    } else {
        while (n < N) columns(integral_constant<int, 6>(), integral_constant<int, 2>());
    }
}

#if defined(__AVX__) && !WIDE
// 8 x 8 units, dst[j][i] = src[i][j].
static inline void transpose8(const uint32_t* src, long ls, uint32_t* dst, long ld) {
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps((const float*)(src + i * ls));
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps((float*)(dst + i * ld), _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
        _mm256_storeu_ps((float*)(dst + (4 + i) * ld), _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
    }
}
#endif

// 16 x 16 units, dst[j][i] = src[i][j].
static inline void transpose16(const uint32_t* src, long ls, uint32_t* dst, long ld) {
#if WIDE
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(src + i * ls);
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        __m512i c = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd), d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
        _mm512_storeu_si512(dst + i * ld, _mm512_shuffle_i32x4(a, b, 0x88));
        _mm512_storeu_si512(dst + (4 + i) * ld, _mm512_shuffle_i32x4(c, d, 0x88));
        _mm512_storeu_si512(dst + (8 + i) * ld, _mm512_shuffle_i32x4(a, b, 0xdd));
        _mm512_storeu_si512(dst + (12 + i) * ld, _mm512_shuffle_i32x4(c, d, 0xdd));
    }
#elif defined(__AVX__)
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 16; j += 8) transpose8(src + i * ls + j, ls, dst + j * ld + i, ld);
#else
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) dst[j * ld + i] = src[i * ls + j];
#endif
}

// W x W floats, dst[j][i] = src[i][j].
static inline void transpose_lanes(const float* src, long ls, float* dst, long ld) {
#if WIDE
    transpose16((const uint32_t*)src, ls, (uint32_t*)dst, ld);
#elif defined(__AVX__)
    transpose8((const uint32_t*)src, ls, (uint32_t*)dst, ld);
#else
    for (int i = 0; i < W; i++)
        for (int j = 0; j < W; j++) dst[j * ld + i] = src[i * ls + j];
#endif
}

// dst [cols, rows rounded up to 16] = src [rows, cols] transposed, the added columns zero.
static inline void transpose_units(const uint32_t* src, long ls, long rows, long cols, uint32_t* dst, long ld) {
    for (long i = 0; i < rows; i += 16)
        for (long j = 0; j < cols; j += 16) {
            long m = rows - i < 16 ? rows - i : 16, n = cols - j < 16 ? cols - j : 16;
            if (m == 16 && n == 16) {
                transpose16(src + i * ls + j, ls, dst + j * ld + i, ld);
                continue;
            }
            uint32_t in[256] = {}, out[256];
            for (long a = 0; a < m; a++) std::memcpy(in + a * 16, src + (i + a) * ls + j, n * 4);
            transpose16(in, 16, out, 16);
            for (long b = 0; b < n; b++) std::memcpy(dst + (j + b) * ld + i, out + b * 16, 64);
        }
}
