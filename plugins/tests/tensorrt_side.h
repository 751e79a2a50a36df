// TensorRT's side of the contract, as far as a plugin sees it: a logger, the builder of dimensions'
// expressions, and the descriptions of a stage's tensors.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

namespace tensorrt_side {

using namespace nvinfer1;

inline class Logger final : public ILogger {
public:
    void log(Severity severity, AsciiChar const* message) noexcept override {
        last = message;
        last_severity = severity;
    }
    std::string last;
    Severity last_severity = Severity::kVERBOSE;
} logger;

inline class LoggerFinder final : public ILoggerFinder {
public:
    ILogger* findLogger() override { return &logger; }
} logger_finder;

// The last message holds `part`, came as an error, and names the plugin. Forgets it.
inline bool logged(const char* part) {
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

inline int64_t value_of(const IDimensionExpr* expression) {
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
        case DimensionOperation::kSUB:
            return make(left - right, is_constant);
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

inline Dims dims(const std::vector<int64_t>& sizes) {
    Dims made{};
    made.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t axis = 0; axis < sizes.size(); ++axis)
        made.d[axis] = sizes[axis];
    return made;
}

inline PluginTensorDesc tensor(DataType type, const std::vector<int64_t>& sizes) {
    PluginTensorDesc made{};
    made.dims = dims(sizes);
    made.type = type;
    made.format = TensorFormat::kLINEAR;
    return made;
}

// The sizes of a stage; `rows` is how many kept_slots has.
struct Sizes {
    int64_t batch, sequence, visual, kept, width, rows = 1;
};

// The five inputs and two outputs of a stage.
inline std::vector<PluginTensorDesc> tensors(DataType type, const Sizes& of) {
    const int64_t length = of.sequence - of.visual + of.kept;
    return {
        tensor(type, {of.batch, of.sequence, of.width}), tensor(DataType::kFLOAT, {of.batch, of.sequence}),
        tensor(DataType::kINT64, {of.batch, of.visual}), tensor(DataType::kFLOAT, {of.batch, of.visual}),
        tensor(DataType::kINT64, {of.rows, of.kept}),    tensor(type, {of.batch, length, of.width}),
        tensor(DataType::kINT64, {of.batch, length})};
}

// The same as TensorRT hands them out while it builds: dimensions unknown (-1), with bounds.
inline std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& bounds) {
    std::vector<DynamicPluginTensorDesc> made(bounds.size());
    for (size_t number = 0; number < bounds.size(); ++number) {
        made[number].desc = bounds[number];
        made[number].min = made[number].opt = made[number].max = bounds[number].dims;
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

} // namespace tensorrt_side
