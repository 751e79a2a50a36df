#include "check.h"

#include <cstring>
#include <limits>
#include <vector>

#include "gather_reference.h"
#include "prune.h"
#include "select_reference.h"

#ifdef EDGEPRUNE_SIMT
void simt_set_order(uint32_t order);
#endif

namespace {

constexpr size_t kGuard = 256; // bytes on either side of an output, so that its alignment stays
constexpr unsigned char kMark = 0xa5;

const char* problem(const edgeprune_check_sizes& given, edgeprune::PruneSizes& sizes) {
    sizes = {given.batch, given.sequence, given.visual, given.kept, given.width, given.element_bytes};
    return edgeprune::sizes_problem(sizes);
}

// Device memory with marked bytes around it, given back at the end of its scope.
class DeviceMemory {
public:
    ~DeviceMemory() { cudaFree(memory_); }

    cudaError_t make(size_t bytes) {
        bytes_ = bytes;
        host_.assign(bytes + 2 * kGuard, kMark);
        const cudaError_t error = cudaMalloc(&memory_, host_.size());
        return error == cudaSuccess
                   ? cudaMemcpyAsync(memory_, host_.data(), host_.size(), cudaMemcpyHostToDevice, 0)
                   : error;
    }
    cudaError_t make(const void* data, size_t bytes) {
        const cudaError_t error = make(bytes);
        return error == cudaSuccess ? cudaMemcpyAsync(data_pointer(), data, bytes, cudaMemcpyHostToDevice, 0)
                                    : error;
    }
    cudaError_t fetch(bool& untouched) {
        const cudaError_t error =
            cudaMemcpyAsync(host_.data(), memory_, host_.size(), cudaMemcpyDeviceToHost, 0);
        if (error != cudaSuccess)
            return error;
        if (const cudaError_t finished = cudaStreamSynchronize(0); finished != cudaSuccess)
            return finished;
        for (size_t byte = 0; byte < kGuard; ++byte)
            untouched = untouched && host_[byte] == kMark && host_[kGuard + bytes_ + byte] == kMark;
        return cudaSuccess;
    }
    const unsigned char* host() const { return host_.data() + kGuard; }
    unsigned char* data_pointer() const { return static_cast<unsigned char*>(memory_) + kGuard; }
    template <typename T>
    T* as() const {
        return reinterpret_cast<T*>(data_pointer());
    }

private:
    void* memory_ = nullptr;
    size_t bytes_ = 0;
    std::vector<unsigned char> host_;
};

void copy(void* to, const DeviceMemory& from, size_t bytes) {
    if (bytes != 0)
        std::memcpy(to, from.host(), bytes);
}

const char* run_kernels(const edgeprune::PruneSizes& sizes, const edgeprune_check_buffers& buffers) {
    const size_t positions = static_cast<size_t>(sizes.batch * sizes.sequence);
    const size_t tokens = static_cast<size_t>(sizes.batch * sizes.visual);
    const size_t places = static_cast<size_t>(sizes.batch * sizes.length());
    const size_t row_bytes = static_cast<size_t>(sizes.width * sizes.element_bytes);
    DeviceMemory hidden, score, index, weight, pruned, kept, workspace;
    cudaError_t error = cudaSuccess;
    const auto then = [&](cudaError_t next) { error = error == cudaSuccess ? next : error; };
    then(hidden.make(buffers.hidden_states, positions * row_bytes));
    then(score.make(buffers.score, positions * sizeof(float)));
    then(index.make(buffers.visual_index, tokens * sizeof(int64_t)));
    then(weight.make(buffers.weight, tokens * sizeof(float)));
    then(pruned.make(places * row_bytes));
    then(kept.make(places * sizeof(int64_t)));
    then(workspace.make(edgeprune::workspace_bytes(sizes.batch, sizes.visual)));
    // The copies above are done, or ordered before everything on the default stream.
    then(cudaStreamSynchronize(0));
    cudaStream_t stream = nullptr;
    then(cudaStreamCreate(&stream));
    if (error != cudaSuccess)
        return cudaGetErrorString(error);
    then(edgeprune::prune(sizes,
                          {hidden.data_pointer(), score.as<float>(), index.as<int64_t>(), weight.as<float>(),
                           pruned.data_pointer(), kept.as<int64_t>(), workspace.data_pointer()},
                          stream));
    then(cudaStreamSynchronize(stream));
    cudaStreamDestroy(stream);
    bool untouched = true;
    then(pruned.fetch(untouched));
    then(kept.fetch(untouched));
    then(workspace.fetch(untouched));
    if (error != cudaSuccess)
        return cudaGetErrorString(error);
    if (!untouched)
        return "a kernel wrote outside its outputs and its workspace";
    copy(buffers.pruned_states, pruned, places * row_bytes);
    copy(buffers.kept_index, kept, places * sizeof(int64_t));
    return nullptr;
}

} // namespace

const char* edgeprune_check_reference(const edgeprune_check_sizes* sizes,
                                      const edgeprune_check_buffers* buffers) {
    edgeprune::PruneSizes stage;
    if (const char* wrong = problem(*sizes, stage))
        return wrong;
    const int64_t length = stage.length();
    const int64_t row_bytes = stage.width * stage.element_bytes;
    for (int64_t prompt = 0; prompt < stage.batch; ++prompt) {
        int64_t* kept_index = buffers->kept_index + prompt * length;
        edgeprune::select_reference(stage.sequence, stage.visual, stage.kept,
                                    buffers->score + prompt * stage.sequence,
                                    buffers->visual_index + prompt * stage.visual,
                                    buffers->weight + prompt * stage.visual, kept_index);
        edgeprune::gather_reference(
            length, row_bytes,
            static_cast<const char*>(buffers->hidden_states) + prompt * stage.sequence * row_bytes,
            kept_index, static_cast<char*>(buffers->pruned_states) + prompt * length * row_bytes);
    }
    return nullptr;
}

const char* edgeprune_check_kernels(const edgeprune_check_sizes* sizes,
                                    const edgeprune_check_buffers* buffers) {
    edgeprune::PruneSizes stage;
    if (const char* wrong = problem(*sizes, stage))
        return wrong;
    return run_kernels(stage, *buffers);
}

void edgeprune_check_thread_order([[maybe_unused]] uint32_t order) {
#ifdef EDGEPRUNE_SIMT
    simt_set_order(order);
#endif
}

int edgeprune_check_devices(void) {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
