#include <prune.h>

int main() {
    const edgeprune::PruneSizes sizes{1, 660, 576, 173, 64, 2};
    const bool right = sizes.length() == 660 - 576 + 173 && edgeprune::sizes_problem(sizes) == nullptr &&
                       edgeprune::workspace_bytes(1, 65536) == 65536 * 4;
    return right ? 0 : 1;
}
