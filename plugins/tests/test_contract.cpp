// test_contract LIBRARY VERSION: drives the compiled plugin library through TensorRT's interfaces in the
// order in which TensorRT does, without TensorRT: load, create, shapes, types, formats, configure, clone,
// serialise, create again, attach, run. Built twice: over the kernels on the CPU, where running always works,
// and over CUDA.
#include <cstring>
#include <memory>

#include <NvInferRuntime.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include "expect.h"
#include "exports.h"
#include "gather_reference.h"
#include "prune.h"
#include "select_reference.h"
#include "tensorrt_side.h"

namespace {

using namespace tensorrt_side;
using Plugin = std::unique_ptr<IPluginV3>;

Plugin create(IPluginCreatorV3One& creator, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    const PluginFieldCollection none{};
    return Plugin(creator.createPlugin("layer", &none, phase));
}

void check_creator(IPluginCreatorV3One& creator) {
    const InterfaceInfo info = creator.getInterfaceInfo();
    EXPECT(std::strcmp(info.kind, "PLUGIN CREATOR_V3ONE") == 0 && info.major == 1 && info.minor == 0);
    EXPECT(std::strcmp(creator.getPluginName(), "DebiasedTokenPrune") == 0);
    EXPECT(std::strcmp(creator.getPluginVersion(), "2") == 0);
    EXPECT(std::strcmp(creator.getPluginNamespace(), "") == 0);
    const PluginFieldCollection* names = creator.getFieldNames();
    EXPECT(names != nullptr && names->nbFields == 0);
    EXPECT(create(creator) != nullptr);
    EXPECT(Plugin(creator.createPlugin("layer", nullptr, TensorRTPhase::kBUILD)) != nullptr);
}

void check_capabilities(IPluginV3& plugin) {
    EXPECT(std::strcmp(plugin.getInterfaceInfo().kind, "PLUGIN") == 0);
    const Capabilities of(plugin);
    EXPECT(of.core != nullptr && std::strcmp(of.core->getInterfaceInfo().kind, "PLUGIN_V3ONE_CORE") == 0);
    EXPECT(of.build != nullptr && std::strcmp(of.build->getInterfaceInfo().kind, "PLUGIN_V3ONE_BUILD") == 0);
    EXPECT(of.runtime != nullptr &&
           std::strcmp(of.runtime->getInterfaceInfo().kind, "PLUGIN_V3ONE_RUNTIME") == 0);
    EXPECT(plugin.getCapabilityInterface(static_cast<PluginCapabilityType>(9)) == nullptr &&
           logged("capability 9"));
    EXPECT(std::strcmp(of.core->getPluginName(), "DebiasedTokenPrune") == 0);
    EXPECT(std::strcmp(of.core->getPluginVersion(), "2") == 0);
    EXPECT(std::strcmp(of.core->getPluginNamespace(), "") == 0);
    EXPECT(of.build->getNbOutputs() == 2);
    EXPECT(of.build->getNbTactics() == 0);
    EXPECT(of.runtime->setTactic(0) == 0);
}

void check_shapes(IPluginV3& plugin) {
    const Capabilities of(plugin);
    for (const int64_t visual : {0, 1, 2, 576, 65536})
        for (const int64_t kept : {int64_t{0}, int64_t{1}, visual / 3, visual})
            for (const int64_t text : {0, 1, 84}) {
                Builder builder;
                const auto unknown = [&](int64_t size) { return builder.evaluator.make(size, false); };
                const int64_t sizes[5][3] = {
                    {2, text + visual, 64}, {2, text + visual}, {2, visual}, {2, visual}, {1, kept}};
                DimsExprs in[5]{}, out[2]{};
                for (int32_t input = 0; input < 5; ++input) {
                    in[input].nbDims = input == 0 ? 3 : 2;
                    for (int32_t axis = 0; axis < in[input].nbDims; ++axis)
                        in[input].d[axis] = unknown(sizes[input][axis]);
                }
                EXPECT(of.build->getOutputShapes(in, 5, nullptr, 0, out, 2, builder) == 0);
                EXPECT(out[0].nbDims == 3 && out[1].nbDims == 2);
                EXPECT(out[0].d[0] == in[0].d[0] && out[0].d[2] == in[0].d[2] && out[1].d[0] == in[0].d[0]);
                EXPECT(value_of(out[0].d[1]) == text + kept && value_of(out[1].d[1]) == text + kept);
                EXPECT(!out[0].d[1]->isConstant());

                EXPECT(of.build->getOutputShapes(in, 4, nullptr, 0, out, 2, builder) != 0 &&
                       logged("found 4 inputs and 2 outputs, expected 5 and 2"));
                EXPECT(of.build->getOutputShapes(in, 5, in, 1, out, 2, builder) != 0 &&
                       logged("found 1 shape inputs, expected none"));
                builder.evaluator.refuses = true;
                EXPECT(of.build->getOutputShapes(in, 5, nullptr, 0, out, 2, builder) != 0 &&
                       logged("refused the expression"));
                in[4].nbDims = 1;
                EXPECT(of.build->getOutputShapes(in, 5, nullptr, 0, out, 2, builder) != 0 &&
                       logged("kept_slots has 1 dimensions, expected 2"));
            }
}

void check_types_and_formats(IPluginV3& plugin) {
    const Capabilities of(plugin);
    for (const DataType type :
         {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8, DataType::kFP8}) {
        const bool supported = type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
        auto all = dynamic(tensors(type, {1, 660, 576, 173, 64}));
        EXPECT(of.build->supportsFormatCombination(0, all.data(), 5, 2) == supported);
        for (int32_t position = 1; position < 7; ++position) {
            EXPECT(of.build->supportsFormatCombination(position, all.data(), 5, 2));
            const PluginTensorDesc right = all[position].desc;
            all[position].desc.format = TensorFormat::kCHW32;
            EXPECT(!of.build->supportsFormatCombination(position, all.data(), 5, 2));
            all[position].desc = right;
            all[position].desc.type = DataType::kINT32;
            EXPECT(!of.build->supportsFormatCombination(position, all.data(), 5, 2));
            all[position].desc = right;
        }
        EXPECT(!of.build->supportsFormatCombination(7, all.data(), 5, 2));
        EXPECT(!of.build->supportsFormatCombination(0, all.data(), 4, 2));
        const DataType in[] = {type, DataType::kFLOAT, DataType::kINT64, DataType::kFLOAT, DataType::kINT64};
        DataType out[] = {DataType::kBOOL, DataType::kBOOL};
        EXPECT(of.build->getOutputDataTypes(out, 2, in, 5) == 0);
        EXPECT(out[0] == type && out[1] == DataType::kINT64);
    }
}

void check_building(IPluginV3& plugin) {
    const Capabilities of(plugin);
    auto all = dynamic(tensors(DataType::kHALF, {4, 70000, 65536, 65536, 64}));
    EXPECT(of.build->configurePlugin(all.data(), 5, all.data() + 5, 2) == 0);
    const size_t workspace = of.build->getWorkspaceSize(all.data(), 5, all.data() + 5, 2);
    EXPECT(workspace == edgeprune::workspace_bytes(4, 65536) && workspace == size_t{4} * 65536 * 4);
    // A profile of decode steps, without visual tokens.
    all = dynamic(tensors(DataType::kHALF, {4, 1, 0, 0, 64}));
    EXPECT(of.build->configurePlugin(all.data(), 5, all.data() + 5, 2) == 0);
    all = dynamic(tensors(DataType::kHALF, {1, 660, 576, 173, 64}));
    EXPECT(of.build->getWorkspaceSize(all.data(), 5, all.data() + 5, 2) == 0);
    all[4].max.d[1] = 576;
    EXPECT(of.build->configurePlugin(all.data(), 5, all.data() + 5, 2) == 0);
    all[4].max.d[1] = 577;
    EXPECT(of.build->configurePlugin(all.data(), 5, all.data() + 5, 2) != 0 &&
           logged("kept_slots is up to 577 long for up to 576 visual tokens"));
    EXPECT(of.build->configurePlugin(all.data(), 4, all.data() + 5, 2) != 0 && logged("found 4 inputs"));
    EXPECT(std::strcmp(of.build->getMetadataString(), "version=2") == 0);
    EXPECT(std::strcmp(of.build->getTimingCacheID(), "version=2") == 0);
}

// A copy made as TensorRT makes it works on its own: the original is gone before it is asked.
void check_copies(IPluginCreatorV3One& creator) {
    Plugin original = create(creator);
    Plugin cloned(original->clone());
    EXPECT(cloned != nullptr && cloned.get() != original.get());
    original.reset();
    Plugin attached(Capabilities(*cloned).runtime->attachToContext(nullptr));
    EXPECT(attached != nullptr && attached.get() != cloned.get());
    cloned.reset();
    // The engine file holds no field, and the creator makes the same plugin without any.
    const PluginFieldCollection* fields = Capabilities(*attached).runtime->getFieldsToSerialize();
    EXPECT(fields != nullptr && fields->nbFields == 0);
    attached.reset();
    Plugin again = create(creator, TensorRTPhase::kRUNTIME);
    EXPECT(again != nullptr);
    EXPECT(std::strcmp(Capabilities(*again).build->getMetadataString(), "version=2") == 0);
}

void check_new_shapes(IPluginV3& plugin) {
    const Capabilities of(plugin);
    const auto taken = [&](const std::vector<PluginTensorDesc>& all) {
        return of.runtime->onShapeChange(all.data(), 5, all.data() + 5, 2) == 0;
    };
    const auto refused = [&](const std::vector<PluginTensorDesc>& all, const char* why) {
        return of.runtime->onShapeChange(all.data(), 5, all.data() + 5, 2) != 0 && logged(why);
    };
    constexpr DataType half = DataType::kHALF;
    EXPECT(taken(tensors(half, {2, 660, 576, 173, 64})));
    EXPECT(taken(tensors(half, {2, 660, 576, 173, 64, 2})));
    EXPECT(taken(tensors(half, {2, 660, 576, 576, 64}))); // K = V
    EXPECT(taken(tensors(half, {2, 660, 576, 0, 64})));   // K = 0
    EXPECT(taken(tensors(half, {2, 576, 576, 0, 64})));   // nothing is left
    EXPECT(taken(tensors(half, {2, 1, 0, 0, 64})));       // a decode step
    EXPECT(refused(tensors(half, {2, 660, 576, 577, 64}),
                   "kept_slots is 577 long for 576 visual tokens, expected at most as many; pass a shorter"));
    EXPECT(refused(tensors(half, {2, 1, 0, 1, 64}), "kept_slots is 1 long for 0 visual tokens"));
    EXPECT(refused(tensors(half, {3, 660, 576, 173, 64, 2}), "kept_slots has 2 rows, expected 1 or 3; pass"));
    EXPECT(refused(tensors(half, {3, 660, 576, 173, 64, 0}), "kept_slots has 0 rows"));
    EXPECT(refused(tensors(half, {2, 5, 6, 1, 64}), "more visual tokens than positions"));
    EXPECT(refused(tensors(DataType::kINT8, {2, 660, 576, 173, 64}), "float16, bfloat16 or float32"));
    auto all = tensors(half, {2, 660, 576, 173, 64});
    all[1].dims.d[1] = 659;
    EXPECT(refused(all, "score is [2, 659], expected [2, 660]"));
    all[1].dims = dims({2, 660, 1});
    EXPECT(refused(all, "score has 3 dimensions, expected 2"));
    all[1].dims = dims({2, 660});
    all[3].dims.d[0] = 1;
    EXPECT(refused(all, "weight is [1, 576], expected [2, 576]"));
    all[3].dims.d[0] = 2;
    all[4].dims = dims({173});
    EXPECT(refused(all, "kept_slots has 1 dimensions, expected 2"));
    all[4].dims = dims({1, 173});
    all[6].dims.d[1] += 1;
    EXPECT(refused(all, "do not have the shapes [2, 257, 64] and [2, 257]"));
    EXPECT(of.runtime->onShapeChange(all.data(), 4, all.data() + 5, 2) != 0 && logged("found 4 inputs"));
}

// Device memory for enqueue(), filled from the host.
struct Memory {
    Memory(const void* from, size_t bytes) {
        ready = cudaMalloc(&data, bytes + 1) == cudaSuccess &&
                (from == nullptr ||
                 cudaMemcpyAsync(data, from, bytes, cudaMemcpyHostToDevice, nullptr) == cudaSuccess);
    }
    ~Memory() { cudaFree(data); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    void* data = nullptr;
    bool ready = false;
};

void check_running(IPluginV3& plugin, DataType type, int64_t visual, int64_t kept_count, int64_t rows) {
    const Capabilities of(plugin);
    const int64_t batch = 2, text = 4, sequence = visual + text, width = 24;
    const size_t element = type == DataType::kFLOAT ? 4 : 2;
    const auto all = tensors(type, {batch, sequence, visual, kept_count, width, rows});
    const int64_t length = all[6].dims.d[1];
    std::vector<unsigned char> hidden(static_cast<size_t>(batch * sequence * width) * element);
    for (size_t byte = 0; byte < hidden.size(); ++byte)
        hidden[byte] = static_cast<unsigned char>(byte * 131 + byte / 251);
    std::vector<float> score(static_cast<size_t>(batch * sequence));
    for (size_t position = 0; position < score.size(); ++position)
        score[position] = static_cast<float>(position * 37 % 101);
    std::vector<int64_t> index;
    for (int64_t token = 0; token < batch * visual; ++token)
        index.push_back(token % std::max<int64_t>(visual, 1) + 4); // the last one ends the sequence
    std::vector<float> weight(static_cast<size_t>(batch * visual), 0.5f);
    for (size_t token = 0; token < weight.size(); token += 5)
        weight[token] = 0;

    const Memory device[] = {{hidden.data(), hidden.size()},
                             {score.data(), score.size() * sizeof(float)},
                             {index.data(), index.size() * sizeof(int64_t)},
                             {weight.data(), weight.size() * sizeof(float)}};
    const Memory pruned(nullptr, static_cast<size_t>(batch * length * width) * element);
    const Memory kept(nullptr, static_cast<size_t>(batch * length) * sizeof(int64_t));
    const Memory workspace(nullptr, edgeprune::workspace_bytes(batch, visual));
    // Nothing stands behind kept_slots: who reads it ends here.
    const void* inputs[] = {device[0].data, device[1].data, device[2].data, device[3].data, nullptr};
    void* outputs[] = {pruned.data, kept.data};
    cudaStream_t stream = nullptr;
    EXPECT(cudaStreamCreate(&stream) == cudaSuccess);
    EXPECT(of.runtime->onShapeChange(all.data(), 5, all.data() + 5, 2) == 0);
    EXPECT(of.runtime->enqueue(all.data(), all.data() + 5, inputs, outputs, workspace.data, stream) == 0);
    std::vector<int64_t> kept_index(static_cast<size_t>(batch * length)), expected_index(kept_index.size());
    std::vector<unsigned char> states(static_cast<size_t>(batch * length * width) * element),
        expected(states.size());
    EXPECT(cudaMemcpyAsync(kept_index.data(), kept.data, kept_index.size() * sizeof(int64_t),
                           cudaMemcpyDeviceToHost, stream) == cudaSuccess);
    EXPECT(cudaMemcpyAsync(states.data(), pruned.data, states.size(), cudaMemcpyDeviceToHost, stream) ==
           cudaSuccess);
    EXPECT(cudaStreamSynchronize(stream) == cudaSuccess);
    cudaStreamDestroy(stream);
    for (int64_t prompt = 0; prompt < batch; ++prompt) {
        int64_t* places = expected_index.data() + prompt * length;
        edgeprune::select_reference(sequence, visual, kept_count, score.data() + prompt * sequence,
                                    index.data() + prompt * visual, weight.data() + prompt * visual, places);
        const int64_t row = width * static_cast<int64_t>(element);
        edgeprune::gather_reference(length, row, hidden.data() + prompt * sequence * row, places,
                                    expected.data() + prompt * length * row);
    }
    EXPECT(kept_index == expected_index);
    EXPECT(states == expected);
}

// Refused before anything is launched, were onShapeChange() not asked.
void check_too_many(IPluginV3& plugin) {
    const auto all = tensors(DataType::kHALF, {1, 12, 6, 7, 4});
    const void* inputs[5] = {};
    void* outputs[2] = {};
    EXPECT(Capabilities(plugin).runtime->enqueue(all.data(), all.data() + 5, inputs, outputs, nullptr,
                                                 nullptr) != 0);
    EXPECT(logged("kept_slots is 7 long for 6 visual tokens"));
}

void check_running_without_gpu(IPluginV3& plugin) {
    const auto all = tensors(DataType::kHALF, {1, 12, 6, 2, 4});
    char memory[256] = {};
    const void* inputs[] = {memory, memory, memory, memory, memory};
    void* outputs[] = {memory, memory};
    EXPECT(Capabilities(plugin).runtime->enqueue(all.data(), all.data() + 5, inputs, outputs, memory,
                                                 nullptr) != 0);
    EXPECT(logged("launching the kernels failed: "));
}

} // namespace

int main(int count, char** words) {
    if (count < 3)
        return 2;
    void* library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::printf("%s\n", dlerror());
        return 1;
    }
    const auto set_logger_finder =
        reinterpret_cast<decltype(&setLoggerFinder)>(dlsym(library, "setLoggerFinder"));
    const auto get_creators = reinterpret_cast<decltype(&getCreators)>(dlsym(library, "getCreators"));
    const auto version = reinterpret_cast<decltype(&edgeprune_plugins_tensorrt_version)>(
        dlsym(library, "edgeprune_plugins_tensorrt_version"));
    EXPECT(set_logger_finder != nullptr && get_creators != nullptr && version != nullptr);
    if (failures != 0)
        return finish("test_contract");
    EXPECT(std::strcmp(version(), words[2]) == 0);
    set_logger_finder(&logger_finder);
    int32_t creators = 0;
    auto* creator = static_cast<IPluginCreatorV3One*>(get_creators(creators)[0]);
    EXPECT(creators == 1);

    check_creator(*creator);
    const Plugin plugin = create(*creator);
    check_capabilities(*plugin);
    check_shapes(*plugin);
    check_types_and_formats(*plugin);
    check_building(*plugin);
    check_copies(*creator);
    check_new_shapes(*plugin);
    check_too_many(*plugin);
    int devices = 0;
    if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) {
        for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16})
            for (const int64_t visual : {0, 1, 576, 5000})
                for (const int64_t kept : {int64_t{0}, visual * 3 / 10, visual})
                    for (const int64_t rows : {1, 2})
                        check_running(*plugin, type, visual, kept, rows);
    } else {
        std::printf("enqueue() was not compared with the reference: no GPU that CUDA can use\n");
        check_running_without_gpu(*plugin);
    }
    return finish("test_contract");
}
