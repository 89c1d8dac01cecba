/* Independent fused multiply-adds on registers: the most fp32 work one core can do. */
#include <stdint.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float vec __attribute__((vector_size(BYTES)));

/* 12 chains hide a latency of 4 to 6 cycles behind two units. Returns the flops done. */
#define CHAINS 12

double fma_peak(int64_t rounds, float *sink) {
    vec acc[CHAINS], scale, shift;
    for (int lane = 0; lane < BYTES / 4; ++lane) {
        scale[lane] = 0.999f;
        shift[lane] = 0.001f;
    }
    for (int chain = 0; chain < CHAINS; ++chain)
        for (int lane = 0; lane < BYTES / 4; ++lane) acc[chain][lane] = 0.1f * (float)(chain + lane);
    for (int64_t round = 0; round < rounds; ++round)
        for (int repeat = 0; repeat < 8; ++repeat)
            for (int chain = 0; chain < CHAINS; ++chain) acc[chain] = acc[chain] * scale + shift;
    for (int chain = 0; chain < CHAINS; ++chain)
        for (int lane = 0; lane < BYTES / 4; ++lane) *sink += acc[chain][lane];
    return 2.0 * (double)rounds * 8.0 * CHAINS * (BYTES / 4);
}
