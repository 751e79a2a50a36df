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
    std::vector<float> weight;
    std::vector<unsigned char> pruned_states;
    std::vector<int64_t> kept_index;

    int64_t length() const { return sizes.sequence - sizes.visual + sizes.kept; }

    // Outputs start as what no right answer is.
    void clear_outputs() {
        kept_index.assign(static_cast<size_t>(sizes.batch * length()), -1);
        pruned_states.assign(static_cast<size_t>(sizes.batch * length() * sizes.width * sizes.element_bytes),
                             0xee);
    }
    edgeprune_check_buffers buffers() {
        return {hidden_states.data(), score.data(),         visual_index.data(),
                weight.data(),        pruned_states.data(), kept_index.data()};
    }
};

enum class Scores { distinct, few_values, equal, special, denormal, overflowing, attention };

// A random stage; the scores are drawn as named, weightless_share of the tokens have weight 0.
inline Stage make_stage(edgeprune_check_sizes sizes, Scores scores, double weightless_share, uint32_t seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> unit(0.0f, 1.0f);
    const float inf = INFINITY;
    const std::vector<float> few = {0.0f, -0.0f, 0.25f, 0.5f, 1.0f};
    const std::vector<float> special = {NAN,     -NAN,    inf,      -inf,    0.0f, -0.0f, 1e-45f,
                                        -1e-45f, FLT_MAX, -FLT_MAX, FLT_MIN, 0.5f, -0.5f};
    const std::vector<float> large = {FLT_MAX, inf, 3e38f, 1.0f};
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
        case Scores::overflowing: // the largest number, +inf, and what its weight makes of 3e38
            return large[random() % large.size()];
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
    // Weights that no bundle makes, but that an engine's builder may find in memory.
    const std::vector<float> odd = {1.0f, 0.5f, 1e30f, 1e-30f, NAN, -1.0f, inf, -inf, 1e-45f};
    stage.weight.resize(rows * static_cast<size_t>(sizes.visual));
    for (size_t number = 0; number < stage.weight.size(); ++number) {
        const size_t token = number % static_cast<size_t>(sizes.visual);
        if (unit(random) < weightless_share)
            stage.weight[number] = random() % 2 == 0 ? 0.0f : -0.0f;
        else if (scores == Scores::special)
            stage.weight[number] = odd[random() % odd.size()];
        else if (scores == Scores::overflowing)
            stage.weight[number] = random() % 2 == 0 ? 1.0f : 4.0f;
        else
            stage.weight[number] = scores == Scores::equal || scores == Scores::denormal
                                       ? 1.0f
                                       : std::exp(-0.002f * static_cast<float>(token));
    }
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
