// bench_prune [RUNS]: times the kernels on the first GPU and prints JSON. Needs a GPU.
//
// For each size: the median over RUNS (default 200) of one stage by CUDA events, after a warm-up, with the
// caches flushed before each run; both kernels together and the selection alone. moved_bytes counts each
// input and output byte that has to move once: kept hidden states read and written, scores, positions,
// weights, kept_index. bound_us is that over the bandwidth that the device's memory clock and bus give.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "prune.h"

namespace {

void must(cudaError_t error, const char* step) {
    if (error == cudaSuccess)
        return;
    std::fprintf(stderr, "bench_prune: %s failed: %s\n", step, cudaGetErrorString(error));
    std::exit(1);
}

void* device_memory(size_t bytes) {
    void* memory = nullptr;
    must(cudaMalloc(&memory, std::max<size_t>(bytes, 1)), "allocating device memory");
    return memory;
}

template <typename T>
void* on_device(const std::vector<T>& values) {
    void* memory = device_memory(values.size() * sizeof(T));
    must(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
         "copying inputs");
    return memory;
}

// The median microseconds of `stage`, with `flush` overwritten before each run.
template <typename Stage>
double median_us(int runs, cudaStream_t stream, void* flush, size_t flush_bytes, const Stage& stage) {
    cudaEvent_t begin, end;
    must(cudaEventCreate(&begin), "creating an event");
    must(cudaEventCreate(&end), "creating an event");
    std::vector<float> times;
    for (int run = -10; run < runs; ++run) {
        must(cudaMemsetAsync(flush, run & 0xff, flush_bytes, stream), "flushing the caches");
        must(cudaEventRecord(begin, stream), "recording an event");
        must(stage(), "launching the kernels");
        must(cudaEventRecord(end, stream), "recording an event");
        must(cudaEventSynchronize(end), "running the kernels");
        float milliseconds = 0;
        must(cudaEventElapsedTime(&milliseconds, begin, end), "reading the time");
        if (run >= 0)
            times.push_back(milliseconds * 1000.0f);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
    return times[static_cast<size_t>(runs / 2)];
}

} // namespace

int main(int count, char** words) {
    const int runs = count > 1 ? std::atoi(words[1]) : 200;
    if (runs < 1) {
        std::fprintf(stderr, "bench_prune: RUNS is '%s', expected a number above 0\n", words[1]);
        return 1;
    }
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::fprintf(stderr,
                     "bench_prune: no GPU that CUDA can use; run it on a machine with an NVIDIA GPU\n");
        return 77;
    }
    cudaDeviceProp device;
    must(cudaGetDeviceProperties(&device, 0), "reading the device's properties");
    int memory_khz = 0, bus_bits = 0;
    must(cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, 0), "reading the memory clock");
    must(cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, 0), "reading the memory bus");
    const double peak_gb_s = 2.0 * memory_khz * (bus_bits / 8.0) * 1e-6; // two transfers per clock
    cudaStream_t stream;
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    const size_t flush_bytes = 2 * static_cast<size_t>(std::max(device.l2CacheSize, 1 << 20));
    void* flush = device_memory(flush_bytes);

    std::printf("{\"device\": \"%s\", \"peak_gb_s\": %.0f, \"runs\": %d, "
                "\"dtype\": \"float16\", "
                "\"results\": [",
                device.name, peak_gb_s, runs);
    const char* separator = "";
    for (const int64_t visual : {576, 2304, 16384, 65536})
        for (const int64_t width : {2048, 4096}) {
            const int64_t text = 84;
            const edgeprune::PruneSizes sizes{1, visual + text, visual, (visual * 3 + 5) / 10, width, 2};
            std::vector<float> score(static_cast<size_t>(sizes.sequence)),
                ones(static_cast<size_t>(visual), 1.0f);
            for (size_t position = 0; position < score.size(); ++position)
                score[position] = static_cast<float>(position * 2654435761u % 1000003) * 1e-8f;
            std::vector<int64_t> index;
            for (int64_t token = 0; token < visual; ++token)
                index.push_back(token + 35);
            const size_t row_bytes = static_cast<size_t>(width) * 2;
            const size_t length = static_cast<size_t>(sizes.length());
            edgeprune::PruneBuffers buffers{};
            void* memory[] = {device_memory(static_cast<size_t>(sizes.sequence) * row_bytes),
                              on_device(score),
                              on_device(index),
                              on_device(ones),
                              device_memory(length * row_bytes),
                              device_memory(length * sizeof(int64_t)),
                              device_memory(edgeprune::workspace_bytes(1, visual))};
            buffers.hidden_states = memory[0];
            buffers.score = static_cast<float*>(memory[1]);
            buffers.visual_index = static_cast<int64_t*>(memory[2]);
            buffers.weight = static_cast<float*>(memory[3]);
            buffers.pruned_states = memory[4];
            buffers.kept_index = static_cast<int64_t*>(memory[5]);
            buffers.workspace = memory[6];
            must(cudaMemset(memory[0], 0, static_cast<size_t>(sizes.sequence) * row_bytes),
                 "clearing the inputs");
            must(cudaDeviceSynchronize(), "clearing the inputs");

            const double both = median_us(runs, stream, flush, flush_bytes,
                                          [&] { return edgeprune::prune(sizes, buffers, stream); });
            const double select = median_us(runs, stream, flush, flush_bytes,
                                            [&] { return edgeprune::launch_select(sizes, buffers, stream); });
            const double moved = static_cast<double>(2 * length * row_bytes + length * sizeof(int64_t)) +
                                 static_cast<double>(visual) * (sizeof(int64_t) + 2 * sizeof(float));
            std::printf("%s\n  {\"visual\": %lld, \"kept\": %lld, \"width\": %lld, \"us\": %.2f, "
                        "\"select_us\": %.2f, "
                        "\"moved_bytes\": %.0f, "
                        "\"gb_s\": %.1f, \"bound_us\": %.2f}",
                        separator, static_cast<long long>(visual), static_cast<long long>(sizes.kept),
                        static_cast<long long>(width), both, select, moved, moved / both * 1e-3,
                        moved / peak_gb_s * 1e-3);
            separator = ",";
            for (void* block : memory)
                must(cudaFree(block), "freeing device memory");
        }
    std::printf("\n]}\n");
    return 0;
}
