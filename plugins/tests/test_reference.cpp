// The C++ reference against selections worked out by hand.
#include <cmath>
#include <cstring>

#include "expect.h"
#include "stage.h"

namespace {

constexpr float kInf = INFINITY;

// One prompt whose positions before `text` are text; the hidden state of position p is p, as a float32.
std::vector<int64_t> kept(int64_t text, std::vector<float> score, std::vector<float> valid,
                          std::vector<float> curve, int32_t keep_per_10000) {
    Stage stage;
    const int64_t visual = static_cast<int64_t>(score.size());
    stage.sizes = {1, text + visual, visual, 1, static_cast<int64_t>(curve.size()), 4, keep_per_10000};
    stage.score.assign(static_cast<size_t>(text), 9.0f);
    stage.score.insert(stage.score.end(), score.begin(), score.end());
    stage.visual_valid = std::move(valid);
    stage.bias_curve = std::move(curve);
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
    EXPECT((kept(1, {0.1f, 0.4f, 0.3f}, ones(3), ones(3), 6667) == Positions{0, 2, 3}));
    // Ties go to the lower index, and -0 equals 0.
    EXPECT((kept(0, std::vector<float>(9, 0.25f), ones(9), ones(9), 3333) == Positions{0, 1, 2}));
    EXPECT((kept(0, {-0.0f, 0.0f}, ones(2), ones(2), 5000) == Positions{0}));
    EXPECT((kept(0, {-1e-45f, 0.0f}, ones(2), ones(2), 5000) == Positions{1}));
    EXPECT((kept(0, {0.0f, 1e-45f}, ones(2), ones(2), 5000) == Positions{1}));
    // Numbers beat NaN and -inf, which are equal to the lowest number; padding comes last whatever its score.
    const std::vector<float> mixed = {9.0f, NAN, 0.0f, kInf, -kInf};
    const std::vector<float> valid = {0, 1, 1, 1, 1};
    EXPECT((kept(0, mixed, valid, ones(5), 2000) == Positions{3}));
    EXPECT((kept(0, mixed, valid, ones(5), 4000) == Positions{2, 3}));
    EXPECT((kept(0, mixed, valid, ones(5), 6000) == Positions{1, 2, 3}));
    EXPECT((kept(0, mixed, valid, ones(5), 8000) == Positions{1, 2, 3, 4}));
    EXPECT((kept(0, {-kInf, -FLT_MAX, NAN}, ones(3), ones(3), 3333) == Positions{0}));
    // All padded: the first ones. A padding mask of NaN is not padding.
    EXPECT((kept(0, {0.1f, NAN, 0.8f}, {0, 0, 0}, ones(3), 6667) == Positions{0, 1}));
    EXPECT((kept(0, {0.9f, 0.1f}, {0.0f, NAN}, ones(2), 5000) == Positions{1}));
    // The curve is multiplied first, in float32: (s * w) * m overflows where s * (w * m) does not.
    EXPECT((kept(0, {kInf, FLT_MAX}, {1.0f, 0.5f}, {1, 2}, 5000) == Positions{0}));
    EXPECT((kept(0, {3e38f, 1.0f}, {0.5f, kInf}, {2, 1}, 5000) == Positions{0}));
    // The curve counts from the first visual token and may be longer than they are.
    EXPECT((kept(1, {0.5f, 0.6f}, ones(2), {1, 0.5f, 9}, 5000) == Positions{0, 1}));
    // All, one and none.
    EXPECT((kept(1, {0.1f, 0.2f, 0.3f}, ones(3), ones(3), 10000) == Positions{0, 1, 2, 3}));
    EXPECT((kept(1, {0.1f, 0.2f, 0.3f}, ones(3), ones(3), 1) == Positions{0, 3}));
    EXPECT((kept(3, {}, {}, {}, 3000) == Positions{0, 1, 2}));
}

void counts() {
    EXPECT(edgeprune_check_kept_count(576, 3000) == 173);
    EXPECT(edgeprune_check_kept_count(5, 5000) == 3); // half rounds up
    EXPECT(edgeprune_check_kept_count(576, 1) == 1);
    EXPECT(edgeprune_check_kept_count(0, 10000) == 0);
    EXPECT(edgeprune_check_kept_count(65536, 10000) == 65536);
}

void refusals() {
    const auto says = [](edgeprune_check_sizes sizes, const char* part) {
        const edgeprune_check_buffers none{};
        const char* of_reference = edgeprune_check_reference(&sizes, &none);
        const char* of_kernels = edgeprune_check_kernels(&sizes, &none);
        return of_reference != nullptr && std::strstr(of_reference, part) != nullptr &&
               of_kernels == of_reference;
    };
    EXPECT(says({1, 4, 5, 1, 5, 2, 3000}, "more visual tokens than positions"));
    EXPECT(says({1, 4, 3, 1, 2, 2, 3000}, "bias curve has fewer weights"));
    EXPECT(says({1, 4, 3, 1, 3, 1, 3000}, "float16, bfloat16 or float32"));
    EXPECT(says({1, 4, 3, 1, 3, 2, 0}, "from 1 to 10000"));
    EXPECT(says({1, 4, 3, 1, 3, 2, 10001}, "from 1 to 10000"));
    EXPECT(says({-1, 4, 3, 1, 3, 2, 3000}, "negative"));
    EXPECT(says({1 << 16, 1 << 16, 3, 1, 3, 2, 3000}, "2^30 positions"));
}

} // namespace

int main() {
    selections();
    counts();
    refusals();
    return finish("test_reference");
}
