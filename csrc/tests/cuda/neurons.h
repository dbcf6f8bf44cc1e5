// The kernels of generated neurons under the emulator, for test_kernels.cpp.
#pragma once
#include "../../options.h"

namespace lsnn::test {

// Two neurons against plain loops, for many kinds of calls: by `gather` in all orders of the
// threads, and by `step`; or by one design only, unless it is automatic. Returns the number of
// runs.
int64_t check_all_neurons(Design only);

}  // namespace lsnn::test
