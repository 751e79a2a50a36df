// The C++ reference against selections worked out by hand.
#include <cmath>
#include <cstring>

#include "expect.h"
#include "stage.h"

namespace {

constexpr float kInf = INFINITY;

// One prompt of `text` text tokens, the visual ones, and one more text token where `end` says so; the hidden
// state of position p is p, as a float32.
std::vector<int64_t> kept(int64_t text, std::vector<float> score, std::vector<float> weight, int64_t count,
                          bool end = true) {
    Stage stage;
    const int64_t visual = static_cast<int64_t>(score.size());
    stage.sizes = {1, text + visual + end, visual, count, 1, 4};
    stage.score.assign(static_cast<size_t>(text), 9.0f);
    stage.score.insert(stage.score.end(), score.begin(), score.end());
    if (end)
        stage.score.push_back(9.0f);
    stage.weight = std::move(weight);
    for (int64_t token = 0; token < visual; ++token)
        stage.visual_index.push_back(text + token);
    std::vector<float> states(stage.score.size());
    std::iota(states.begin(), states.end(), 0.0f);
    stage.hidden_states.resize(states.size() * sizeof(float));
    std::memcpy(stage.hidden_states.data(), states.data(), stage.hidden_states.size());
    stage.clear_outputs();
    const edgeprune_check_buffers buffers = stage.buffers();
    EXPECT(edgeprune_check_reference(&stage.sizes, &buffers) == nullptr);
    for (size_t place = 0; place < stage.kept_index.size(); ++place) {
        float state;
        std::memcpy(&state, stage.pruned_states.data() + place * sizeof state, sizeof state);
        EXPECT(state == static_cast<float>(stage.kept_index[place]));
    }
    return stage.kept_index;
}

std::vector<float> ones(size_t count) {
    return std::vector<float>(count, 1.0f);
}

using Positions = std::vector<int64_t>;

void selections() {
    EXPECT((kept(1, {0.1f, 0.4f, 0.3f}, ones(3), 2) == Positions{0, 2, 3, 4}));
    // Ties go to the lower index, and -0 equals 0.
    EXPECT((kept(0, std::vector<float>(9, 0.25f), ones(9), 3) == Positions{0, 1, 2, 9}));
    EXPECT((kept(0, {-0.0f, 0.0f}, ones(2), 1) == Positions{0, 2}));
    EXPECT((kept(0, {-1e-45f, 0.0f}, ones(2), 1) == Positions{1, 2}));
    EXPECT((kept(0, {0.0f, 1e-45f}, ones(2), 1) == Positions{1, 2}));
    // Numbers beat NaN and -inf, which are equal to the lowest number; weight 0 comes last whatever the
    // score.
    const std::vector<float> mixed = {9.0f, NAN, 0.0f, kInf, -kInf};
    const std::vector<float> weight = {0, 1, 1, 1, 1};
    EXPECT((kept(0, mixed, weight, 1) == Positions{3, 5}));
    EXPECT((kept(0, mixed, weight, 2) == Positions{2, 3, 5}));
    EXPECT((kept(0, mixed, weight, 3) == Positions{1, 2, 3, 5}));
    EXPECT((kept(0, mixed, weight, 4) == Positions{1, 2, 3, 4, 5}));
    EXPECT((kept(0, {-kInf, -FLT_MAX, NAN}, ones(3), 1) == Positions{0, 3}));
    // +inf, of a score or of what overflows, equals the largest number.
    EXPECT((kept(0, {FLT_MAX, kInf}, ones(2), 1) == Positions{0, 2}));
    EXPECT((kept(0, {1.0f, FLT_MAX, kInf, 3e38f}, {1, 1, 1, 4}, 2) == Positions{1, 2, 4}));
    // None has a weight: the first ones. A weight of NaN is one, that of -0 is none.
    EXPECT((kept(0, {0.1f, NAN, 0.8f}, {0, 0, 0}, 2) == Positions{0, 1, 3}));
    EXPECT((kept(0, {0.9f, 0.1f}, {-0.0f, NAN}, 1) == Positions{1, 2}));
    EXPECT((kept(0, {kInf, 0.1f}, {0.0f, 1.0f}, 1) == Positions{1, 2}));
    // Weights count from the first visual token; what underflows still beats weight 0.
    EXPECT((kept(1, {0.5f, 0.6f}, {1, 0.5f}, 1) == Positions{0, 1, 3}));
    EXPECT((kept(0, {0.9f, 1e-45f}, {0, 0.25f}, 1) == Positions{1, 2}));
    // All, one and none.
    EXPECT((kept(1, {0.1f, 0.2f, 0.3f}, ones(3), 3) == Positions{0, 1, 2, 3, 4}));
    EXPECT((kept(1, {0.1f, 0.2f, 0.3f}, ones(3), 1) == Positions{0, 3, 4}));
    EXPECT((kept(1, {0.1f, 0.2f, 0.3f}, ones(3), 0) == Positions{0, 4}));
    EXPECT((kept(3, {}, {}, 0) == Positions{0, 1, 2, 3}));
}

void the_last_position() {
    // It beats every score, with and without a weight, but a place it needs as any other token.
    for (const float weight : {0.0f, 1.0f, NAN}) {
        EXPECT((kept(0, {kInf, FLT_MAX, NAN}, {1, 1, weight}, 1, false) == Positions{2}));
        EXPECT((kept(1, {kInf, FLT_MAX, -kInf}, {1, 1, weight}, 2, false) == Positions{0, 1, 3}));
    }
    EXPECT((kept(1, {1, 2}, ones(2), 0, false) == Positions{0}));
    EXPECT(kept(0, {1, 2}, ones(2), 0, false).empty());
}

void refusals() {
    const auto says = [](edgeprune_check_sizes sizes, const char* part) {
        const edgeprune_check_buffers none{};
        const char* of_reference = edgeprune_check_reference(&sizes, &none);
        const char* of_kernels = edgeprune_check_kernels(&sizes, &none);
        return of_reference != nullptr && std::strstr(of_reference, part) != nullptr &&
               of_kernels == of_reference;
    };
    EXPECT(says({1, 4, 5, 1, 1, 2}, "more visual tokens than positions"));
    EXPECT(says({1, 4, 3, 4, 1, 2}, "more visual tokens are to be kept than there are"));
    EXPECT(says({1, 4, 0, 1, 1, 2}, "more visual tokens are to be kept than there are"));
    EXPECT(says({1, 4, 3, 1, 1, 1}, "float16, bfloat16 or float32"));
    EXPECT(says({-1, 4, 3, 1, 1, 2}, "negative"));
    EXPECT(says({1, 4, 3, -1, 1, 2}, "negative"));
    EXPECT(says({1 << 16, 1 << 16, 3, 1, 1, 2}, "2^30 positions"));
}

} // namespace

int main() {
    selections();
    the_last_position();
    refusals();
    return finish("test_reference");
}
