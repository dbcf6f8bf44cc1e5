// The choices of a model of the recurrence in alif.h, and the table of models. The table is made of
// lsnn_ext/models.py while the package is built, by csrc/model_table.py: a model is added there.
#pragma once
#include <model_table.h>

#include <cstddef>
#include <string_view>

namespace lsnn {

// clang-format off
// Each choice: its values, and the words by which models.py knows them.
// (7) n = v' | u
#define LSNN_TEST(X) X(old_v, "old") X(new_u, "new")
// (7) s = width | width A
#define LSNN_SCALE(X) X(width, "1") X(width_A, "A")
// (6), (8) what a spike does to y or u
#define LSNN_RESET(X) X(minus_A, "A") X(minus_R, "R") X(to_R, "to")
// by the spike of the step before (6), or by that of the same step (8)
#define LSNN_WHEN(X) X(next, "next") X(now, "now")
// (3) e' = z' | [v' over A'] | [v' over theta]
#define LSNN_DRIVE(X) X(spike, "spike") X(cross, "cross") X(above, "above")
// clang-format on
// No gradient through z in (1), e' in (3), z in (6) and (8), A in (7).
enum Detach : unsigned {
  detach_none = 0,
  detach_rec = 1,
  detach_adapt = 2,
  detach_reset = 4,
  detach_thr = 8
};
// from the lowest bit on
inline constexpr const char* detach_words[] = {"rec", "adapt", "reset", "thr"};

#define LSNN_VALUE(name, word) name,
#define LSNN_WORD(name, word) word,
enum class Test { LSNN_TEST(LSNN_VALUE) };
enum class Scale { LSNN_SCALE(LSNN_VALUE) };
enum class Reset { LSNN_RESET(LSNN_VALUE) };
enum class When { LSNN_WHEN(LSNN_VALUE) };
enum class Drive { LSNN_DRIVE(LSNN_VALUE) };
inline constexpr const char* test_words[] = {LSNN_TEST(LSNN_WORD)};
inline constexpr const char* scale_words[] = {LSNN_SCALE(LSNN_WORD)};
inline constexpr const char* reset_words[] = {LSNN_RESET(LSNN_WORD)};
inline constexpr const char* when_words[] = {LSNN_WHEN(LSNN_WORD)};
inline constexpr const char* drive_words[] = {LSNN_DRIVE(LSNN_WORD)};

#define LSNN_SURROGATE(name) name,
#define LSNN_SURROGATE_NAME(name) #name,
enum class Surrogate { LSNN_SURROGATES(LSNN_SURROGATE) };
inline constexpr const char* surrogate_names[] = {LSNN_SURROGATES(LSNN_SURROGATE_NAME)};
inline constexpr int n_surrogates = sizeof(surrogate_names) / sizeof(surrogate_names[0]);

struct Choices {
  Test test;
  bool ge;  // [m >= 0] instead of [m > 0]
  Scale scale;
  Reset reset;
  When when;
  Drive drive;
  unsigned detach;
};
struct Model : Choices {
  const char* name;
  Surrogate surrogate;  // unless the caller names one
};

// The index of a word among those of a choice. An unknown word of models.py does not compile.
template <size_t n> consteval int place(const char* const (&words)[n], std::string_view word) {
  for (size_t i = 0; i < n; i++)
    if (words[i] == word) return (int)i;
  throw "models.py has a word that the choices of dynamics.h lack";
}
// The bits of some words with a blank between them.
consteval unsigned detach_bits(std::string_view words) {
  unsigned bits = 0;
  while (!words.empty()) {
    const size_t end = words.find(' ') < words.size() ? words.find(' ') : words.size();
    bits |= 1u << place(detach_words, words.substr(0, end));
    words.remove_prefix(end < words.size() ? end + 1 : end);
  }
  return bits;
}

#define LSNN_MODEL(name, test, ge, scale, reset, when, drive, detach, surrogate) \
  {{Test(place(test_words, test)), ge, Scale(place(scale_words, scale)),         \
    Reset(place(reset_words, reset)), When(place(when_words, when)),             \
    Drive(place(drive_words, drive)), detach_bits(detach)},                      \
   name,                                                                         \
   Surrogate(place(surrogate_names, surrogate))},
inline constexpr Model models[] = {LSNN_MODELS(LSNN_MODEL)};
inline constexpr int n_models = sizeof(models) / sizeof(models[0]);

}  // namespace lsnn
