#include "prune.h"

namespace edgeprune {

const char* sizes_problem(const PruneSizes& sizes) {
    // The kernels count positions in 32 bits; the rows of all prompts are the blocks of one grid.
    constexpr int64_t most = INT32_MAX / 2;
    if (sizes.batch < 0 || sizes.sequence < 0 || sizes.visual < 0 || sizes.kept < 0 || sizes.width < 0)
        return "a dimension is negative";
    if (sizes.visual > sizes.sequence)
        return "there are more visual tokens than positions; visual_index must hold positions of the "
               "sequence";
    if (sizes.kept > sizes.visual)
        return "more visual tokens are to be kept than there are; pass kept_slots no longer than "
               "visual_index";
    if (sizes.sequence > most || sizes.batch > most ||
        (sizes.sequence > 0 && sizes.batch > most / sizes.sequence))
        return "batch times sequence is above 2^30 positions; use a smaller batch";
    if (sizes.width > most)
        return "a hidden state has above 2^30 elements";
    if (sizes.element_bytes != 2 && sizes.element_bytes != 4)
        return "hidden states must be float16, bfloat16 or float32";
    return nullptr;
}

cudaError_t prune(const PruneSizes& sizes, const PruneBuffers& buffers, cudaStream_t stream) {
    if (sizes_problem(sizes) != nullptr)
        return cudaErrorInvalidValue;
    const cudaError_t selected = launch_select(sizes, buffers, stream);
    return selected == cudaSuccess ? launch_gather(sizes, buffers, stream) : selected;
}

} // namespace edgeprune
