// Between the four phases of an upsampled image and the image: phases [B, H + 1, W + 1, 2, 2, C], image
// [B, 2 H, 2 W, C]. Pixel (2 i + a, 2 j + b) is phase (a, b) at (i + a, j + b). `bytes` is the size of C values.
#include <cstring>

namespace {

template <bool SPREAD>
void move(char* phases, char* image, long B, long H, long W, long bytes, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long row = 0; row < B * 2 * H; row++) {
        long n = row / (2 * H), y = row % (2 * H), i = y / 2, a = y % 2;
        char* to = image + row * 2 * W * bytes;
        char* from = phases + ((n * (H + 1) + i + a) * (W + 1) * 4 + a * 2) * bytes;
        for (long x = 0; x < 2 * W; x++) {
            char* at = from + ((x / 2 + x % 2) * 4 + x % 2) * bytes;
            if (SPREAD)
                std::memcpy(to + x * bytes, at, bytes);
            else
                std::memcpy(at, to + x * bytes, bytes);
        }
    }
}

}  // namespace

extern "C" {

void sfumato_interleave(void* phases, void* image, long B, long H, long W, long bytes, int threads) {
    move<true>((char*)phases, (char*)image, B, H, W, bytes, threads);
}

// The transpose: phases that no pixel reads are left as they are.
void sfumato_interleave_backward(void* phases, void* image, long B, long H, long W, long bytes, int threads) {
    move<false>((char*)phases, (char*)image, B, H, W, bytes, threads);
}
}
