// The kept hidden states, copied to their places. Reference: gather_reference.h.
//
// Moves bytes and never looks at them, so that every element type of a size is the same. Each row of threads
// copies one hidden state in the widest units that its length and the buffers' addresses allow, 16 bytes
// where they can, with several loads in flight per thread.
#include "prune.h"

namespace edgeprune {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarp = 32;
constexpr uint32_t kLoads = 4;

struct GatherArguments {
    const void* hidden_states;
    const int64_t* kept_index;
    void* pruned_states;
    uint32_t rows;     // B * S'
    uint32_t length;   // S'
    uint32_t sequence; // S
    uint32_t units;    // of a hidden state
};

template <typename Unit>
__global__ void __launch_bounds__(kThreads) gather_kernel(GatherArguments arguments) {
    const uint32_t row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= arguments.rows)
        return;
    const size_t prompt = row / arguments.length;
    const size_t source = prompt * arguments.sequence + static_cast<size_t>(arguments.kept_index[row]);
    const Unit* from = static_cast<const Unit*>(arguments.hidden_states) + source * arguments.units;
    Unit* to = static_cast<Unit*>(arguments.pruned_states) + static_cast<size_t>(row) * arguments.units;
    const uint32_t step = blockDim.x;
    uint32_t unit = threadIdx.x;
    for (; unit + (kLoads - 1) * step < arguments.units; unit += kLoads * step) {
        Unit held[kLoads];
#pragma unroll
        for (uint32_t load = 0; load < kLoads; ++load)
            held[load] = from[unit + load * step];
#pragma unroll
        for (uint32_t load = 0; load < kLoads; ++load)
            to[unit + load * step] = held[load];
    }
    for (; unit < arguments.units; unit += step)
        to[unit] = from[unit];
}

template <typename Unit>
cudaError_t launch(const PruneSizes& sizes, const PruneBuffers& buffers, cudaStream_t stream) {
    GatherArguments arguments{};
    arguments.hidden_states = buffers.hidden_states;
    arguments.kept_index = buffers.kept_index;
    arguments.pruned_states = buffers.pruned_states;
    arguments.rows = static_cast<uint32_t>(sizes.batch * sizes.length());
    arguments.length = static_cast<uint32_t>(sizes.length());
    arguments.sequence = static_cast<uint32_t>(sizes.sequence);
    arguments.units =
        static_cast<uint32_t>(sizes.width * sizes.element_bytes / static_cast<int64_t>(sizeof(Unit)));
    // As few threads to a row as give each several loads, the rest of the block on other rows.
    uint32_t across = kWarp;
    while (across < kThreads && across * kLoads < arguments.units)
        across *= 2;
    const uint32_t down = kThreads / across;
    void* parameters[] = {&arguments};
    return cudaLaunchKernel(gather_kernel<Unit>, dim3((arguments.rows + down - 1) / down), dim3(across, down),
                            parameters, 0, stream);
}

} // namespace

cudaError_t launch_gather(const PruneSizes& sizes, const PruneBuffers& buffers, cudaStream_t stream) {
    if (sizes.batch == 0 || sizes.length() == 0 || sizes.width == 0)
        return cudaSuccess;
    // The lowest set bit of all three is the widest unit that divides each.
    const uintptr_t mixed = reinterpret_cast<uintptr_t>(buffers.hidden_states) |
                            reinterpret_cast<uintptr_t>(buffers.pruned_states) |
                            static_cast<uintptr_t>(sizes.width * sizes.element_bytes);
    if (mixed % 16 == 0)
        return launch<uint4>(sizes, buffers, stream);
    if (mixed % 8 == 0)
        return launch<uint2>(sizes, buffers, stream);
    if (mixed % 4 == 0)
        return launch<uint32_t>(sizes, buffers, stream);
    return launch<uint16_t>(sizes, buffers, stream);
}

} // namespace edgeprune
