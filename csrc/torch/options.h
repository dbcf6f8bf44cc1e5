// The options of a call: those it brings along, or else those of the environment.
#pragma once
#include "boundary.h"

namespace lsnn::binding {

// From a list in the order of LSNN_OPTIONS; of none: default_options(). Throws std::runtime_error
// with the name of the option.
Options read_options(const Ints& list);

// Those that the environment names, by variables LSNN_ and the name of the option in capitals:
// LSNN_TEAM_SIZE, for instance. Read when they are first needed, and never again. Throws
// std::runtime_error with the name of the variable.
const Options& default_options();

// As a list in the order of LSNN_OPTIONS.
Ints option_list(const Options& options);

}  // namespace lsnn::binding
