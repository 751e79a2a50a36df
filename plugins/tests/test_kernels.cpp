// The kernels against the reference: the same positions, the same bytes, whatever the scores and the shapes.
#include <cstring>
#include <string>

#include "expect.h"
#include "stage.h"

namespace {

int compared = 0;

void compare(Stage stage, const std::string& what) {
    Stage reference = stage;
    const edgeprune_check_buffers expected = reference.buffers();
    const edgeprune_check_buffers found = stage.buffers();
    const char* reference_error = edgeprune_check_reference(&reference.sizes, &expected);
    const char* error = edgeprune_check_kernels(&stage.sizes, &found);
    ++compared;
    if (reference_error == nullptr && error == nullptr && stage.kept_index == reference.kept_index &&
        stage.pruned_states == reference.pruned_states)
        return;
    ++failures;
    size_t place = 0;
    while (place < stage.kept_index.size() && stage.kept_index[place] == reference.kept_index[place])
        ++place;
    const edgeprune_check_sizes& sizes = stage.sizes;
    std::printf("%s: B=%lld S=%lld V=%lld K=%lld D=%lld bytes=%d: %s, %s, first difference at %zu of %zu\n",
                what.c_str(), static_cast<long long>(sizes.batch), static_cast<long long>(sizes.sequence),
                static_cast<long long>(sizes.visual), static_cast<long long>(sizes.kept),
                static_cast<long long>(sizes.width), sizes.element_bytes,
                reference_error == nullptr ? "reference ran" : reference_error,
                error == nullptr ? "kernels ran" : error, place, stage.kept_index.size());
}

const std::vector<Scores> kScores = {Scores::distinct, Scores::few_values,  Scores::equal,    Scores::special,
                                     Scores::denormal, Scores::overflowing, Scores::attention};

void every_kind_of_score() {
    uint32_t seed = 0;
    for (const int64_t visual : {1, 2, 33, 256, 257, 600})
        for (const Scores scores : kScores)
            for (const double weightless : {0.0, 0.4, 1.0})
                for (const int64_t kept : {int64_t{0}, int64_t{1}, visual * 3 / 10, visual - 1, visual}) {
                    edgeprune_check_thread_order(seed % 5);
                    compare(make_stage({2, visual + 7, visual, kept, 2, 2}, scores, weightless, ++seed),
                            "scores");
                }
}

// The last position is a visual token that nothing else speaks for: it stays all the same, unless none may.
void the_last_position() {
    uint32_t seed = 500;
    for (const int64_t visual : {1, 2, 40, 300, 5000})
        for (const int64_t kept : {int64_t{0}, int64_t{1}, visual / 2, visual - 1})
            for (const float weight : {0.0f, 1.0f, static_cast<float>(NAN)}) {
                Stage stage = make_stage({1, visual, visual, kept, 2, 2}, Scores::special, 0.2, ++seed);
                stage.weight.back() = weight;
                stage.score.back() = -INFINITY;
                compare(stage, "last position");
            }
}

void every_shape() {
    uint32_t seed = 1000;
    // Around the limits of shared memory (4,096 keys), of a block's threads and of the bitmap (65,536
    // positions).
    const std::vector<std::pair<int64_t, int64_t>> shapes = {
        {0, 0},       {1, 0},       {1, 1},       {2049, 0},     {2048, 2048},   {2049, 2049},   {4100, 4096},
        {4097, 4097}, {9000, 5000}, {65536, 100}, {65537, 1000}, {70000, 65536}, {140000, 70000}};
    for (const auto& [sequence, visual] : shapes)
        for (const Scores scores : {Scores::attention, Scores::few_values}) {
            edgeprune_check_thread_order(seed % 3);
            for (const int64_t kept : {int64_t{0}, visual * 3 / 10})
                compare(
                    make_stage({sequence > 5000 ? 1 : 3, sequence, visual, kept, 1, 2}, scores, 0.1, ++seed),
                    "shape");
        }
    compare(make_stage({0, 5, 3, 1, 4, 2}, Scores::distinct, 0, ++seed), "no prompt");
    compare(make_stage({2, 5, 3, 1, 0, 2}, Scores::distinct, 0, ++seed), "no width");
}

void every_width() {
    // Rows of 2 to 16 byte units, with none, one and several rounds of loads per thread.
    uint32_t seed = 2000;
    for (const int32_t element_bytes : {2, 4})
        for (const int64_t width : {1, 2, 3, 4, 8, 24, 63, 64, 127, 1024, 2048, 2056, 4096, 5000, 9000})
            compare(make_stage({2, 21, 13, 5, width, element_bytes}, Scores::distinct, 0.2, ++seed), "width");
}

void index_that_breaks_the_rules() {
    // An engine builder times a plugin on memory that holds anything: nothing may be followed out of bounds.
    std::mt19937 random(3000);
    for (int round = 0; round < 40; ++round) {
        const int64_t visual = round % 2 == 0 ? 300 : 5000;
        const int64_t kept = round % 7 == 0 ? 0 : visual * 3 / 10;
        Stage stage = make_stage({1, visual + 11, visual, kept, 2, 2}, Scores::distinct, 0.2, 3001u + round);
        for (int64_t& position : stage.visual_index)
            switch (round % 5) {
            case 0:
                position = static_cast<int64_t>(uint64_t{random()} << 32 | random());
                break;
            case 1:
                position = static_cast<int64_t>(random() % 9) - 4;
                break;
            case 2:
                position = INT64_MAX - (random() % 2);
                break;
            case 3:
                position = visual + 10; // all the last one
                break;
            default:
                position = 5;
            }
        compare(std::move(stage), "broken index");
    }
}

} // namespace

int main() {
    if (edgeprune_check_devices() == 0) {
        std::printf("skipped: no GPU that CUDA can use; the same tests ran on the CPU as test_kernels\n");
        return kSkipped;
    }
    every_kind_of_score();
    the_last_position();
    every_shape();
    every_width();
    index_that_breaks_the_rules();
    std::printf("%d stages compared\n", compared);
    return finish("test_kernels");
}
