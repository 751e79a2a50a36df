// The device side of the stand-in for CUDA: the words of a kernel, as ordinary C++.
//
// Each thread of a block is a fiber; a barrier or a warp function switches fibers, and so does nothing else.
// The order in which fibers run is chosen by simt_set_order(): a kernel whose result depends on it lacks a
// barrier. Stops the program with a message where threads wait for each other in vain or call different warp
// functions. Limits: a block is whole warps where warp functions are used, every lane takes part, one block
// runs at a time.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#define __global__ [[maybe_unused]] static
#define __device__ [[maybe_unused]]
#define __shared__ static
#define __launch_bounds__(threads)

struct uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct dim3 {
    uint32_t x, y, z;
    constexpr dim3(uint32_t columns = 1, uint32_t rows = 1, uint32_t layers = 1)
        : x(columns), y(rows), z(layers) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

// 0: threads in their order; 1: backwards; any other number: shuffled by it, anew at every switch.
void simt_set_order(uint32_t order);

void simt_run(dim3 grid, dim3 block, const std::function<void()>& kernel);
void simt_block_barrier();
// Lets the warp's lanes show each other a value; tag tells the warp functions apart.
const uint32_t* simt_warp_exchange(int tag, uint32_t mask, uint32_t value);

template <typename Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments), dim3 grid, dim3 block, void** parameters, size_t,
                             cudaStream_t) {
    const Arguments arguments = *static_cast<const Arguments*>(parameters[0]);
    simt_run(grid, block, [&] { kernel(arguments); });
    return cudaSuccess;
}

inline void __syncthreads() {
    simt_block_barrier();
}

inline uint32_t __shfl_up_sync(uint32_t mask, uint32_t value, uint32_t offset) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t* values = simt_warp_exchange(1, mask, value);
    return lane >= offset ? values[lane - offset] : value;
}
inline uint32_t __match_any_sync(uint32_t mask, uint32_t value) {
    const uint32_t* values = simt_warp_exchange(2, mask, value);
    uint32_t alike = 0;
    for (uint32_t lane = 0; lane < 32; ++lane)
        alike |= static_cast<uint32_t>(values[lane] == value) << lane;
    return alike;
}
inline int __ffs(int bits) {
    return __builtin_ffs(bits);
}
inline int __popc(uint32_t bits) {
    return __builtin_popcount(bits);
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline uint32_t atomicAdd(uint32_t* to, uint32_t value) {
    const uint32_t old = *to;
    *to += value;
    return old;
}
inline uint32_t atomicOr(uint32_t* to, uint32_t value) {
    const uint32_t old = *to;
    *to |= value;
    return old;
}
constexpr uint32_t min(uint32_t left, uint32_t right) {
    return left < right ? left : right;
}
