// test_contract LIBRARY VERSION: drives the compiled plugin library through TensorRT's interfaces in the
// order in which TensorRT does, without TensorRT: load, create, shapes, types, formats, configure, clone,
// serialise, create again, attach, run. Built twice: over the kernels on the CPU, where running always works,
// and over CUDA.
#include <cstring>
#include <memory>
#include <string>

#include <NvInferRuntime.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include "expect.h"
#include "exports.h"
#include "gather_reference.h"
#include "prune.h"
#include "select_reference.h"

namespace {

using namespace nvinfer1;

// --- TensorRT's side
// ------------------------------------------------------------------------------------------------

class Logger final : public ILogger {
public:
    void log(Severity severity, AsciiChar const* message) noexcept override {
        last = message;
        last_severity = severity;
    }
    std::string last;
    Severity last_severity = Severity::kVERBOSE;
} logger;

class LoggerFinder final : public ILoggerFinder {
public:
    ILogger* findLogger() override { return &logger; }
} logger_finder;

// The last message holds `part`, came as an error, and names the plugin. Forgets it.
bool logged(const char* part) {
    const bool found = logger.last.find(part) != std::string::npos &&
                       logger.last.find("DebiasedTokenPrune: ") == 0 &&
                       logger.last_severity == ILogger::Severity::kERROR;
    if (!found)
        std::printf("expected a message with '%s', found '%s'\n", part, logger.last.c_str());
    logger.last.clear();
    return found;
}

class Value final : public apiv::VDimensionExpr {
public:
    bool isConstant() const override { return constant; }
    int64_t getConstantValue() const override { return constant ? value : INT64_MIN; }
    bool isSizeTensor() const override { return false; }
    int64_t value = 0;
    bool constant = false;
};

class Expression final : public IDimensionExpr {
public:
    Expression(int64_t number, bool constant) {
        value.value = number;
        value.constant = constant;
        mImpl = &value;
    }
    Value value;
};

int64_t value_of(const IDimensionExpr* expression) {
    return static_cast<const Expression*>(expression)->value.value;
}

// Computes each expression at once from the dimensions given; refuses operations where told to.
class Evaluator final : public apiv::VExprBuilder {
public:
    const IDimensionExpr* make(int64_t number, bool is_constant) {
        made.push_back(std::make_unique<Expression>(number, is_constant));
        return made.back().get();
    }
    const IDimensionExpr* constant(int64_t number) override { return make(number, true); }
    const IDimensionExpr* operation(DimensionOperation what, const IDimensionExpr& first,
                                    const IDimensionExpr& second) override {
        const int64_t left = value_of(&first), right = value_of(&second);
        const bool is_constant = first.isConstant() && second.isConstant();
        if (refuses)
            return nullptr;
        switch (what) {
        case DimensionOperation::kSUM:
            return make(left + right, is_constant);
        case DimensionOperation::kPROD:
            return make(left * right, is_constant);
        case DimensionOperation::kMAX:
            return make(left > right ? left : right, is_constant);
        case DimensionOperation::kMIN:
            return make(left < right ? left : right, is_constant);
        case DimensionOperation::kSUB:
            return make(left - right, is_constant);
        case DimensionOperation::kFLOOR_DIV:
            return make(left / right, is_constant);
        default:
            return nullptr;
        }
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
        return nullptr; // every size follows from the shapes
    }
    bool refuses = false;
    std::vector<std::unique_ptr<Expression>> made;
};

class Builder final : public IExprBuilder {
public:
    Builder() { mImpl = &evaluator; }
    Evaluator evaluator;
};

Dims dims(const std::vector<int64_t>& sizes) {
    Dims made{};
    made.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t axis = 0; axis < sizes.size(); ++axis)
        made.d[axis] = sizes[axis];
    return made;
}

PluginTensorDesc tensor(DataType type, const std::vector<int64_t>& sizes) {
    PluginTensorDesc made{};
    made.dims = dims(sizes);
    made.type = type;
    made.format = TensorFormat::kLINEAR;
    return made;
}

// The five inputs and two outputs of a stage.
std::vector<PluginTensorDesc> tensors(DataType type, int64_t b, int64_t s, int64_t v, int64_t d,
                                      int64_t curve, int64_t keep) {
    const int64_t length = s - v + edgeprune::kept_count(v, keep);
    return {tensor(type, {b, s, d}),
            tensor(DataType::kFLOAT, {b, s}),
            tensor(DataType::kINT64, {b, v}),
            tensor(DataType::kFLOAT, {b, v}),
            tensor(DataType::kFLOAT, {curve}),
            tensor(type, {b, length, d}),
            tensor(DataType::kINT64, {b, length})};
}

// The same as TensorRT hands them out while it builds: dimensions unknown (-1), with bounds.
std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& bounds) {
    std::vector<DynamicPluginTensorDesc> made(bounds.size());
    for (size_t number = 0; number < bounds.size(); ++number) {
        made[number].desc = bounds[number];
        made[number].min = made[number].opt = made[number].max = bounds[number].dims;
        if (number != 4) // the curve is a constant of the graph
            for (int32_t axis = 0; axis < bounds[number].dims.nbDims; ++axis)
                made[number].desc.dims.d[axis] = -1;
    }
    return made;
}

struct Capabilities {
    explicit Capabilities(IPluginV3& plugin)
        : core(static_cast<IPluginV3OneCore*>(plugin.getCapabilityInterface(PluginCapabilityType::kCORE))),
          build(static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD))),
          runtime(static_cast<IPluginV3OneRuntime*>(
              plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME))) {}
    IPluginV3OneCore* core;
    IPluginV3OneBuild* build;
    IPluginV3OneRuntime* runtime;
};

using Plugin = std::unique_ptr<IPluginV3>;

// --- What is expected of the plugin
// ---------------------------------------------------------------------------------

Plugin create(IPluginCreatorV3One& creator, PluginField field, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    const PluginFieldCollection fields{1, &field};
    return Plugin(creator.createPlugin("layer", &fields, phase));
}

Plugin create(IPluginCreatorV3One& creator, int32_t keep) {
    return create(creator, PluginField("keep_per_10000", &keep, PluginFieldType::kINT32, 1));
}

void check_creator(IPluginCreatorV3One& creator) {
    const InterfaceInfo info = creator.getInterfaceInfo();
    EXPECT(std::strcmp(info.kind, "PLUGIN CREATOR_V3ONE") == 0 && info.major == 1 && info.minor == 0);
    EXPECT(std::strcmp(creator.getPluginName(), "DebiasedTokenPrune") == 0);
    EXPECT(std::strcmp(creator.getPluginVersion(), "1") == 0);
    EXPECT(std::strcmp(creator.getPluginNamespace(), "") == 0);
    const PluginFieldCollection* names = creator.getFieldNames();
    EXPECT(names != nullptr && names->nbFields == 1);
    EXPECT(std::strcmp(names->fields[0].name, "keep_per_10000") == 0);
    EXPECT(names->fields[0].type == PluginFieldType::kINT32 && names->fields[0].length == 1);

    EXPECT(create(creator, 3000) != nullptr);
    const int64_t wide = 3000;
    EXPECT(create(creator, PluginField("keep_per_10000", &wide, PluginFieldType::kINT64, 1)) != nullptr);
    EXPECT(create(creator, 1) != nullptr && create(creator, 10000) != nullptr);
    EXPECT(create(creator, 0) == nullptr && logged("is 0, expected 1 to 10000"));
    EXPECT(create(creator, 10001) == nullptr && logged("is 10001, expected 1 to 10000"));
    const int64_t far = (int64_t{1} << 32) + 3000;
    EXPECT(create(creator, PluginField("keep_per_10000", &far, PluginFieldType::kINT64, 1)) == nullptr &&
           logged("is 4294970296"));
    const float share = 0.3f;
    EXPECT(create(creator, PluginField("keep_per_10000", &share, PluginFieldType::kFLOAT32, 1)) == nullptr &&
           logged("expected one integer"));
    const int32_t pair[] = {3000, 3000};
    EXPECT(create(creator, PluginField("keep_per_10000", pair, PluginFieldType::kINT32, 2)) == nullptr &&
           logged("length 2, expected one integer"));
    EXPECT(create(creator, PluginField("keep", pair, PluginFieldType::kINT32, 1)) == nullptr &&
           logged("the field keep_per_10000 is missing"));
    EXPECT(create(creator, PluginField("keep_per_10000", nullptr, PluginFieldType::kINT32, 1)) == nullptr &&
           logged("is missing"));
    EXPECT(creator.createPlugin("layer", nullptr, TensorRTPhase::kBUILD) == nullptr && logged("is missing"));
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
    EXPECT(std::strcmp(of.core->getPluginVersion(), "1") == 0);
    EXPECT(std::strcmp(of.core->getPluginNamespace(), "") == 0);
    EXPECT(of.build->getNbOutputs() == 2);
    EXPECT(of.build->getNbTactics() == 0);
    EXPECT(of.runtime->setTactic(0) == 0);
}

void check_shapes(IPluginCreatorV3One& creator) {
    for (const int32_t keep : {1, 3000, 3333, 5000, 9999, 10000}) {
        const Plugin plugin = create(creator, keep);
        const Capabilities of(*plugin);
        for (const int64_t visual : {0, 1, 2, 3, 5, 576, 2304, 16384, 65536})
            for (const int64_t text : {0, 1, 84}) {
                Builder builder;
                const auto unknown = [&](int64_t size) { return builder.evaluator.make(size, false); };
                const int64_t sizes[5][3] = {
                    {2, text + visual, 64}, {2, text + visual}, {2, visual}, {2, visual}, {70000}};
                DimsExprs in[5]{}, out[2]{};
                for (int32_t input = 0; input < 5; ++input) {
                    in[input].nbDims = input == 0 ? 3 : input == 4 ? 1 : 2;
                    for (int32_t axis = 0; axis < in[input].nbDims; ++axis)
                        in[input].d[axis] = unknown(sizes[input][axis]);
                }
                EXPECT(of.build->getOutputShapes(in, 5, nullptr, 0, out, 2, builder) == 0);
                // The formula of edgeprune/debias/selection.py, written in its own words: round half up, at least
                // one.
                const int64_t share = visual * keep;
                int64_t kept = share / 10000 + (share % 10000 >= 5000 ? 1 : 0);
                kept = visual > 0 && kept == 0 ? 1 : kept;
                EXPECT(out[0].nbDims == 3 && out[1].nbDims == 2);
                EXPECT(out[0].d[0] == in[0].d[0] && out[0].d[2] == in[0].d[2] && out[1].d[0] == in[0].d[0]);
                EXPECT(value_of(out[0].d[1]) == text + kept && value_of(out[1].d[1]) == text + kept);
                EXPECT(!out[0].d[1]->isConstant());

                EXPECT(of.build->getOutputShapes(in, 4, nullptr, 0, out, 2, builder) != 0 &&
                       logged("found 4 inputs and 2 outputs, expected 5 and 2"));
                EXPECT(of.build->getOutputShapes(in, 5, in, 1, out, 2, builder) != 0 &&
                       logged("no shape inputs"));
                builder.evaluator.refuses = true;
                EXPECT(of.build->getOutputShapes(in, 5, nullptr, 0, out, 2, builder) != 0 &&
                       logged("refused the expression"));
            }
    }
}

void check_types_and_formats(IPluginV3& plugin) {
    const Capabilities of(plugin);
    for (const DataType type :
         {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8, DataType::kFP8}) {
        const bool supported = type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
        auto all = dynamic(tensors(type, 1, 660, 576, 64, 576, 3000));
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
        const DataType in[] = {type, DataType::kFLOAT, DataType::kINT64, DataType::kFLOAT, DataType::kFLOAT};
        DataType out[] = {DataType::kBOOL, DataType::kBOOL};
        EXPECT(of.build->getOutputDataTypes(out, 2, in, 5) == 0);
        EXPECT(out[0] == type && out[1] == DataType::kINT64);
    }
}

void check_building(IPluginV3& plugin) {
    const Capabilities of(plugin);
    auto all = dynamic(tensors(DataType::kHALF, 4, 70000, 65536, 64, 65536, 3000));
    EXPECT(of.build->configurePlugin(all.data(), 5, all.data() + 5, 2) == 0);
    const size_t workspace = of.build->getWorkspaceSize(all.data(), 5, all.data() + 5, 2);
    EXPECT(workspace == edgeprune::workspace_bytes(4, 65536) && workspace == size_t{4} * 65536 * 4);
    all = dynamic(tensors(DataType::kHALF, 1, 660, 576, 64, 576, 3000));
    EXPECT(of.build->getWorkspaceSize(all.data(), 5, all.data() + 5, 2) == 0);
    all[2].max.d[1] = 577;
    EXPECT(of.build->configurePlugin(all.data(), 5, all.data() + 5, 2) != 0 &&
           logged("bias_curve has 576 weights for up to 577 visual tokens"));
    EXPECT(std::strcmp(of.build->getMetadataString(), "keep_per_10000=3000") == 0);
    EXPECT(std::strcmp(of.build->getTimingCacheID(), "keep_per_10000=3000") == 0);
}

// A copy made as TensorRT makes it works on its own: the original is gone before it is asked.
void check_copies(IPluginCreatorV3One& creator) {
    Plugin original = create(creator, 4321);
    Plugin cloned(original->clone());
    EXPECT(cloned != nullptr && cloned.get() != original.get());
    original.reset();
    Plugin attached(Capabilities(*cloned).runtime->attachToContext(nullptr));
    EXPECT(attached != nullptr && attached.get() != cloned.get());
    cloned.reset();
    const PluginFieldCollection* fields = Capabilities(*attached).runtime->getFieldsToSerialize();
    EXPECT(fields != nullptr && fields->nbFields == 1);
    // The engine file holds the fields' bytes, and the creator gets them back from there.
    int32_t stored = 0;
    EXPECT(fields->fields[0].type == PluginFieldType::kINT32 && fields->fields[0].length == 1);
    std::memcpy(&stored, fields->fields[0].data, sizeof stored);
    EXPECT(stored == 4321);
    const std::string name = fields->fields[0].name;
    attached.reset();
    Plugin again = create(creator, PluginField(name.c_str(), &stored, PluginFieldType::kINT32, 1),
                          TensorRTPhase::kRUNTIME);
    EXPECT(again != nullptr);
    EXPECT(std::strcmp(Capabilities(*again).build->getMetadataString(), "keep_per_10000=4321") == 0);
}

void check_new_shapes(IPluginV3& plugin) {
    const Capabilities of(plugin);
    const auto refused = [&](const std::vector<PluginTensorDesc>& all, const char* why) {
        return of.runtime->onShapeChange(all.data(), 5, all.data() + 5, 2) != 0 && logged(why);
    };
    auto all = tensors(DataType::kHALF, 2, 660, 576, 64, 600, 3000);
    EXPECT(of.runtime->onShapeChange(all.data(), 5, all.data() + 5, 2) == 0);
    const auto decode = tensors(DataType::kHALF, 2, 1, 0, 64, 600, 3000);
    EXPECT(of.runtime->onShapeChange(decode.data(), 5, decode.data() + 5, 2) == 0);
    EXPECT(
        refused(tensors(DataType::kHALF, 2, 660, 576, 64, 575, 3000), "bias_curve has 575 weights for 576"));
    EXPECT(refused(tensors(DataType::kHALF, 2, 5, 6, 64, 6, 3000), "more visual tokens than positions"));
    EXPECT(refused(tensors(DataType::kINT8, 2, 660, 576, 64, 576, 3000), "float16, bfloat16 or float32"));
    all[1].dims.d[1] = 659;
    EXPECT(refused(all, "score is [2, 659], expected [2, 660]"));
    all[1].dims = dims({2, 660, 1});
    EXPECT(refused(all, "score has 3 dimensions, expected 2"));
    all[1].dims = dims({2, 660});
    all[3].dims.d[0] = 1;
    EXPECT(refused(all, "visual_valid is [1, 576], expected [2, 576]"));
    all[3].dims.d[0] = 2;
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

void check_running(IPluginV3& plugin, DataType type, int64_t visual) {
    const Capabilities of(plugin);
    const int64_t batch = 2, text = 9, sequence = visual + text, width = 24;
    const size_t element = type == DataType::kFLOAT ? 4 : 2;
    const auto all = tensors(type, batch, sequence, visual, width, visual + 3, 3000);
    const int64_t length = all[6].dims.d[1];
    std::vector<unsigned char> hidden(static_cast<size_t>(batch * sequence * width) * element);
    for (size_t byte = 0; byte < hidden.size(); ++byte)
        hidden[byte] = static_cast<unsigned char>(byte * 131 + byte / 251);
    std::vector<float> score(static_cast<size_t>(batch * sequence));
    for (size_t position = 0; position < score.size(); ++position)
        score[position] = static_cast<float>(position * 37 % 101);
    std::vector<int64_t> index;
    for (int64_t token = 0; token < batch * visual; ++token)
        index.push_back(token % std::max<int64_t>(visual, 1) + 4);
    std::vector<float> valid(static_cast<size_t>(batch * visual), 1.0f),
        curve(static_cast<size_t>(visual + 3), 0.5f);
    for (size_t token = 0; token < valid.size(); token += 5)
        valid[token] = 0;

    const Memory device[] = {{hidden.data(), hidden.size()},
                             {score.data(), score.size() * sizeof(float)},
                             {index.data(), index.size() * sizeof(int64_t)},
                             {valid.data(), valid.size() * sizeof(float)},
                             {curve.data(), curve.size() * sizeof(float)}};
    const Memory pruned(nullptr, static_cast<size_t>(batch * length * width) * element);
    const Memory kept(nullptr, static_cast<size_t>(batch * length) * sizeof(int64_t));
    const Memory workspace(nullptr, edgeprune::workspace_bytes(batch, visual));
    const void* inputs[] = {device[0].data, device[1].data, device[2].data, device[3].data, device[4].data};
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
        edgeprune::select_reference(sequence, visual, edgeprune::kept_count(visual, 3000),
                                    score.data() + prompt * sequence, index.data() + prompt * visual,
                                    valid.data() + prompt * visual, curve.data(), places);
        const int64_t row = width * static_cast<int64_t>(element);
        edgeprune::gather_reference(length, row, hidden.data() + prompt * sequence * row, places,
                                    expected.data() + prompt * length * row);
    }
    EXPECT(kept_index == expected_index);
    EXPECT(states == expected);
}

void check_running_without_gpu(IPluginV3& plugin) {
    const auto all = tensors(DataType::kHALF, 1, 12, 6, 4, 6, 3000);
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
    const Plugin plugin = create(*creator, 3000);
    check_capabilities(*plugin);
    check_shapes(*creator);
    check_types_and_formats(*plugin);
    check_building(*plugin);
    check_copies(*creator);
    check_new_shapes(*plugin);
    int devices = 0;
    if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) {
        for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16})
            for (const int64_t visual : {0, 1, 576, 5000})
                check_running(*plugin, type, visual);
    } else {
        std::printf("enqueue() was not compared with the reference: no GPU that CUDA can use\n");
        check_running_without_gpu(*plugin);
    }
    return finish("test_contract");
}
