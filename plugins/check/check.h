// A C interface to the reference and the kernels, for tests from any language. All memory is the host's.
//
// One library is made of it per way of running the kernels: edgeprune_check runs them on the CPU (simt/),
// edgeprune_check_cuda on the first GPU. Both contain the same reference.
#pragma once

#include <stdint.h>

#define EDGEPRUNE_CHECK_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// The sizes of one pruning stage; `kept` is how many of its visual tokens stay, kept_slots' length.
typedef struct {
    int64_t batch, sequence, visual, kept, width;
    int32_t element_bytes; // of a hidden state's element: 2 or 4
} edgeprune_check_sizes;

// Inputs and outputs of one pruning stage, contiguous, with the shapes of the operator; kept_slots, of which
// nothing but the length is read, is not among them.
typedef struct {
    const void* hidden_states;
    const float* score;
    const int64_t* visual_index;
    const float* weight;
    void* pruned_states;
    int64_t* kept_index;
} edgeprune_check_buffers;

// Each returns nullptr, or a sentence that says what went wrong; it stays valid.
EDGEPRUNE_CHECK_API const char* edgeprune_check_reference(const edgeprune_check_sizes* sizes,
                                                          const edgeprune_check_buffers* buffers);
// Also looks for writes outside the outputs and the workspace.
EDGEPRUNE_CHECK_API const char* edgeprune_check_kernels(const edgeprune_check_sizes* sizes,
                                                        const edgeprune_check_buffers* buffers);

// The order in which the CPU runs a block's threads: 0 as they are numbered, 1 backwards, else shuffled by
// it. On a GPU it does nothing.
EDGEPRUNE_CHECK_API void edgeprune_check_thread_order(uint32_t order);

// The number of devices the kernels can run on: 1 on the CPU, 0 on a machine without a usable GPU.
EDGEPRUNE_CHECK_API int edgeprune_check_devices(void);

#ifdef __cplusplus
}
#endif
