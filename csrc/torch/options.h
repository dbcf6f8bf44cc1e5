// The options of a call: its own, or those of the environment.
#pragma once
#include "boundary.h"

namespace lsnn::binding {

// From a list in the order of LSNN_OPTIONS; empty: default_options(). Throws std::runtime_error for
// an invalid option.
Options read_options(const Ints& list);

// From environment variables such as LSNN_TEAM_SIZE, read once at first use. Throws
// std::runtime_error for an invalid variable.
const Options& default_options();

// As a list in the order of LSNN_OPTIONS.
Ints option_list(const Options& options);

}  // namespace lsnn::binding
