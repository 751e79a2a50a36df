// The stand-in for CUDA itself: warp functions, barriers, and that a missing barrier shows.
#include <vector>

#include <cuda_runtime.h>

#include "expect.h"

namespace {

struct Arguments {
    uint32_t* out;
    uint32_t threads;
};

__global__ void warp_functions(Arguments arguments) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t lower = __shfl_up_sync(0xffffffffu, threadIdx.x, 3);
    const uint32_t alike = __match_any_sync(0xffffffffu, threadIdx.x % 5);
    bool right = lower == (lane >= 3 ? threadIdx.x - 3 : threadIdx.x);
    const uint32_t first = threadIdx.x - lane;
    for (uint32_t other = 0; other < 32; ++other)
        right = right && (alike >> other & 1) == ((first + other) % 5 == threadIdx.x % 5 ? 1u : 0u);
    arguments.out[threadIdx.x] = right ? 1 : 0;
}

__global__ void reversed(Arguments arguments) {
    __shared__ uint32_t shared[1024];
    shared[threadIdx.x] = threadIdx.x;
    __syncthreads();
    arguments.out[threadIdx.x] = shared[arguments.threads - 1 - threadIdx.x];
}

__global__ void reversed_without_barrier(Arguments arguments) {
    __shared__ uint32_t shared[1024];
    shared[threadIdx.x] = threadIdx.x;
    arguments.out[threadIdx.x] = shared[arguments.threads - 1 - threadIdx.x];
    shared[threadIdx.x] = 0;
}

bool is_reversed(void (*kernel)(Arguments), uint32_t order, uint32_t threads) {
    std::vector<uint32_t> out(threads);
    Arguments arguments{out.data(), threads};
    void* parameters[] = {&arguments};
    simt_set_order(order);
    cudaLaunchKernel(kernel, dim3(2), dim3(threads), parameters, 0, nullptr);
    for (uint32_t thread = 0; thread < threads; ++thread)
        if (out[thread] != threads - 1 - thread)
            return false;
    return true;
}

} // namespace

int main() {
    for (const uint32_t order : {0u, 1u, 2u, 77u}) {
        std::vector<uint32_t> out(128);
        Arguments arguments{out.data(), 128};
        void* parameters[] = {&arguments};
        simt_set_order(order);
        EXPECT(cudaLaunchKernel(warp_functions, dim3(1), dim3(128), parameters, 0, nullptr) == cudaSuccess);
        for (const uint32_t right : out)
            EXPECT(right == 1);
        EXPECT(is_reversed(reversed, order, 1024));
        EXPECT(is_reversed(reversed, order, 50));
        EXPECT(!is_reversed(reversed_without_barrier, order, 64));
    }
    return finish("test_simt");
}
