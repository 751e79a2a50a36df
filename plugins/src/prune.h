// DebiasedTokenPrune on the GPU: the sizes of one pruning stage and the call that runs it.
//
// Knows CUDA's runtime and nothing of TensorRT, so that it can be used, tested and timed without it.
// Dimensions: B batch, S sequence, V visual tokens, D width of a hidden state, K visual tokens kept,
// S' = S - V + K positions kept.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

namespace edgeprune {

struct PruneSizes {
    int64_t batch;         // B
    int64_t sequence;      // S
    int64_t visual;        // V, at most S
    int64_t kept;          // K, at most V
    int64_t width;         // D
    int32_t element_bytes; // of a hidden state's element: 2 or 4

    constexpr int64_t length() const { return sequence - visual + kept; }
};

// Device memory of one stage. Nothing may overlap.
struct PruneBuffers {
    const void* hidden_states;   // [B, S, D]
    const float* score;          // [B, S], attention that the scoring rows pay each position
    const int64_t* visual_index; // [B, V], ascending positions of the visual tokens
    const float* weight;         // [B, V], what each score is multiplied by; 0 stands behind all others
    void* pruned_states;         // out [B, S', D]
    int64_t* kept_index;         // out [B, S'], ascending
    void* workspace;             // workspace_bytes(batch, visual), aligned to 4 bytes
};

// Scratch memory that prune() needs; 0 where the scores of a prompt fit into a block's shared memory. Never
// less for a larger batch or more visual tokens.
size_t workspace_bytes(int64_t batch, int64_t visual);

// What is wrong with the sizes, as a sentence, or nullptr.
const char* sizes_problem(const PruneSizes& sizes);

// Queues one stage on the stream: at most two kernels, no allocation, no synchronisation; may be captured
// in a CUDA graph. Positions outside 0..S-1 in visual_index count as padding and are never followed.
// Returns cudaErrorInvalidValue where sizes_problem() has something to say, else what the launches return.
cudaError_t prune(const PruneSizes& sizes, const PruneBuffers& buffers, cudaStream_t stream);

// The two steps of prune(), each one kernel.
cudaError_t launch_select(const PruneSizes& sizes, const PruneBuffers& buffers, cudaStream_t stream);
cudaError_t launch_gather(const PruneSizes& sizes, const PruneBuffers& buffers, cudaStream_t stream);

} // namespace edgeprune
