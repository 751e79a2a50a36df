// A stage captured in a CUDA graph and replayed on changed inputs. Needs a GPU.
#include <cstdint>
#include <vector>

#include "expect.h"
#include "prune.h"
#include "select_reference.h"

#define EXPECT_CUDA(call) EXPECT((call) == cudaSuccess)

int main() {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::printf("skipped: no GPU that CUDA can use\n");
        return kSkipped;
    }
    // V is above what fits into shared memory, so that the workspace takes part.
    edgeprune::PruneSizes sizes{1, 6000, 5000, 1500, 64, 2};
    const size_t sequence = 6000, visual = 5000, length = static_cast<size_t>(sizes.length());
    std::vector<float> score(sequence), ones(visual, 1.0f);
    std::vector<int64_t> index(visual), kept(length), expected(length);
    for (size_t token = 0; token < visual; ++token)
        index[token] = static_cast<int64_t>(token + 300);
    void *hidden, *device_score, *device_index, *weight, *pruned, *device_kept, *workspace;
    EXPECT_CUDA(cudaMalloc(&hidden, sequence * 128));
    EXPECT_CUDA(cudaMalloc(&device_score, sequence * sizeof(float)));
    EXPECT_CUDA(cudaMalloc(&device_index, visual * sizeof(int64_t)));
    EXPECT_CUDA(cudaMalloc(&weight, visual * sizeof(float)));
    EXPECT_CUDA(cudaMalloc(&pruned, length * 128));
    EXPECT_CUDA(cudaMalloc(&device_kept, length * sizeof(int64_t)));
    EXPECT_CUDA(cudaMalloc(&workspace, edgeprune::workspace_bytes(1, sizes.visual)));
    EXPECT_CUDA(cudaMemcpy(device_index, index.data(), visual * sizeof(int64_t), cudaMemcpyHostToDevice));
    EXPECT_CUDA(cudaMemcpy(weight, ones.data(), visual * sizeof(float), cudaMemcpyHostToDevice));
    EXPECT_CUDA(cudaMemset(hidden, 0, sequence * 128));

    cudaStream_t stream;
    EXPECT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    EXPECT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    EXPECT_CUDA(
        edgeprune::prune(sizes,
                         {hidden, static_cast<float*>(device_score), static_cast<int64_t*>(device_index),
                          static_cast<float*>(weight), pruned, static_cast<int64_t*>(device_kept), workspace},
                         stream));
    EXPECT_CUDA(cudaStreamEndCapture(stream, &graph));
    size_t nodes = 0;
    EXPECT_CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
    EXPECT(nodes == 2);
    EXPECT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    for (uint32_t replay = 1; replay <= 3; ++replay) {
        for (size_t position = 0; position < sequence; ++position)
            score[position] = static_cast<float>(position * 7919 * replay % 1009); // many ties
        EXPECT_CUDA(cudaMemcpyAsync(device_score, score.data(), sequence * sizeof(float),
                                    cudaMemcpyHostToDevice, stream));
        EXPECT_CUDA(cudaGraphLaunch(executable, stream));
        EXPECT_CUDA(cudaMemcpyAsync(kept.data(), device_kept, length * sizeof(int64_t),
                                    cudaMemcpyDeviceToHost, stream));
        EXPECT_CUDA(cudaStreamSynchronize(stream));
        edgeprune::select_reference(6000, 5000, sizes.kept, score.data(), index.data(), ones.data(),
                                    expected.data());
        EXPECT(kept == expected);
    }
    return finish("test_graph_cuda");
}
