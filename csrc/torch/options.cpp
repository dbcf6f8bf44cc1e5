#include "options.h"

#include <cctype>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <string>

namespace lsnn::binding {
namespace {

// Values of an option other than 0: indices into names, or integers.
struct Allowed {
  const char* const* names;
  int64_t least;
  int64_t most;
};
constexpr Allowed allowed[] = {{product_names, 1, n_products - 1},
                               {nullptr, 1, 1024},
                               {nullptr, 1024, int64_t(1) << 40},
                               {design_names, 1, n_designs - 1},
                               {kernels_names, 1, n_kernels - 1}};
static_assert(std::size(allowed) == std::size(option_names));

// "block, gather, cluster or step"; "1 to 1024".
std::string wanted(const Allowed& a) {
  if (!a.names) return std::to_string(a.least) + " to " + std::to_string(a.most);
  std::string text = a.names[a.least];
  for (int64_t k = a.least + 1; k <= a.most; k++)
    text += std::string(k < a.most ? ", " : " or ") + a.names[k];
  return text;
}

Options from_list(const Ints& list) {
  Options options;
  size_t i = 0;
#define LSNN_READ_OPTION(name) options.name = (decltype(options.name))list[i++];
  LSNN_OPTIONS(LSNN_READ_OPTION)
  return options;
}

// The value of an option from text, or -1 if invalid.
int64_t value_of(const char* text, const Allowed& a) {
  if (a.names) {
    for (int64_t k = a.least; k <= a.most; k++)
      if (!std::strcmp(text, a.names[k])) return k;
    return -1;
  }
  int64_t value = -1;
  const char* end = text + std::strlen(text);
  const auto read = std::from_chars(text, end, value);
  const bool is_number = read.ec == std::errc() && read.ptr == end;
  return is_number && value >= a.least && value <= a.most ? value : -1;
}

Options from_environment() {
  Ints list;
  for (size_t i = 0; i < std::size(allowed); i++) {
    std::string variable = "LSNN_";
    for (const char* c = option_names[i]; *c; c++)
      variable += (char)std::toupper((unsigned char)*c);
    const char* text = std::getenv(variable.c_str());
    const bool is_given = text && *text;
    list.push_back(is_given ? value_of(text, allowed[i]) : 0);
    LSNN_EXPECT(list.back() >= 0, variable, ": expected ", wanted(allowed[i]), ", got '", text,
                "'");
  }
  return from_list(list);
}

}  // namespace

const Options& default_options() {
  static const Options found = from_environment();
  return found;
}

Options read_options(const Ints& list) {
  if (list.empty()) return default_options();
  constexpr size_t n = std::size(option_names);
  LSNN_EXPECT(list.size() == n, "options: expected none, or ", n, " integers, got ", list.size());
  for (size_t i = 0; i < n; i++) {
    const Allowed& a = allowed[i];
    const bool is_allowed = list[i] == 0 || (list[i] >= a.least && list[i] <= a.most);
    const std::string first = std::to_string(a.least), last = std::to_string(a.most),
                      numbers = !a.names        ? ""
                                : first == last ? first + " for "
                                                : first + " to " + last + " for ";
    LSNN_EXPECT(is_allowed, option_names[i], ": expected 0, or ", numbers, wanted(a), ", got ",
                list[i]);
  }
  return from_list(list);
}

Ints option_list(const Options& options) {
#define LSNN_LIST_OPTION(name) (int64_t)options.name,
  return {LSNN_OPTIONS(LSNN_LIST_OPTION)};
}

}  // namespace lsnn::binding
