// A pruning stage's inputs and outputs in ordinary memory, random or adversarial, for the tests.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"

struct Stage {
    edgeprune_check_sizes sizes{};
    std::vector<unsigned char> hidden_states;
    std::vector<float> score;
    std::vector<int64_t> visual_index;
    std::vector<float> visual_valid;
    std::vector<float> bias_curve;
    std::vector<unsigned char> pruned_states;
    std::vector<int64_t> kept_index;

    int64_t kept() const { return edgeprune_check_kept_count(sizes.visual, sizes.keep_per_10000); }
    int64_t length() const { return sizes.sequence - sizes.visual + kept(); }

    // Outputs start as what no right answer is.
    void clear_outputs() {
        kept_index.assign(static_cast<size_t>(sizes.batch * length()), -1);
        pruned_states.assign(static_cast<size_t>(sizes.batch * length() * sizes.width * sizes.element_bytes),
                             0xee);
    }
    edgeprune_check_buffers buffers() {
        return {hidden_states.data(), score.data(),         visual_index.data(), visual_valid.data(),
                bias_curve.data(),    pruned_states.data(), kept_index.data()};
    }
};

enum class Scores { distinct, few_values, equal, special, denormal, attention };

// A random stage; the scores are drawn as named, padded_share of the tokens are padding.
inline Stage make_stage(edgeprune_check_sizes sizes, Scores scores, double padded_share, uint32_t seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> unit(0.0f, 1.0f);
    const float inf = INFINITY;
    const std::vector<float> few = {0.0f, -0.0f, 0.25f, 0.5f, 1.0f};
    const std::vector<float> special = {NAN,     -NAN,    inf,      -inf,    0.0f, -0.0f, 1e-45f,
                                        -1e-45f, FLT_MAX, -FLT_MAX, FLT_MIN, 0.5f, -0.5f};
    const auto draw = [&]() -> float {
        switch (scores) {
        case Scores::distinct:
            return unit(random) * 2 - 1;
        case Scores::few_values:
            return few[random() % few.size()];
        case Scores::equal:
            return 0.25f;
        case Scores::special:
            return special[random() % special.size()];
        case Scores::denormal:
            return static_cast<float>(random() % 5) * 1e-45f;
        case Scores::attention: // softmax weights: few large, most within some powers of two of each other
            return std::exp(unit(random) * 6 - 12);
        }
        return 0;
    };
    Stage stage;
    stage.sizes = sizes;
    const size_t rows = static_cast<size_t>(sizes.batch);
    stage.hidden_states.resize(rows *
                               static_cast<size_t>(sizes.sequence * sizes.width * sizes.element_bytes));
    for (unsigned char& byte : stage.hidden_states)
        byte = static_cast<unsigned char>(random());
    stage.score.resize(rows * static_cast<size_t>(sizes.sequence));
    std::generate(stage.score.begin(), stage.score.end(), draw);
    stage.visual_valid.resize(rows * static_cast<size_t>(sizes.visual));
    // Masks and weights that no bundle holds but that show in which order the product is taken.
    const std::vector<float> odd = {1.0f, 0.5f, 1e30f, 1e-30f, NAN, -1.0f};
    for (float& valid : stage.visual_valid)
        if (unit(random) < padded_share)
            valid = random() % 2 == 0 ? 0.0f : -0.0f;
        else
            valid = scores == Scores::special ? odd[random() % odd.size()] : 1.0f;
    stage.bias_curve.resize(static_cast<size_t>(sizes.curve));
    for (size_t token = 0; token < stage.bias_curve.size(); ++token)
        if (scores == Scores::special)
            stage.bias_curve[token] = odd[random() % 4];
        else
            stage.bias_curve[token] = scores == Scores::equal || scores == Scores::denormal
                                          ? 1.0f
                                          : std::exp(-0.002f * static_cast<float>(token));
    for (size_t row = 0; row < rows; ++row) {
        std::vector<int64_t> positions(static_cast<size_t>(sizes.sequence));
        std::iota(positions.begin(), positions.end(), int64_t{0});
        std::vector<int64_t> chosen;
        std::sample(positions.begin(), positions.end(), std::back_inserter(chosen), sizes.visual, random);
        stage.visual_index.insert(stage.visual_index.end(), chosen.begin(), chosen.end());
    }
    stage.clear_outputs();
    return stage;
}
