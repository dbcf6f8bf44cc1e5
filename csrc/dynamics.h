// The table of models: one constexpr row per model of the recurrence in alif.h. Adding a model is adding a row.
#pragma once

namespace lsnn {

enum class Test { old_v, new_u };                  // (7) n = v' | u
enum class Scale { width, width_A };               // (7) s = width | width A
enum class Reset { minus_A, minus_R, to_R };       // (6), (8) what a spike does to y or u
enum class When { next, now };                     // by the spike of the step before (6), or at once (8)
enum class Drive { spike, cross, above };          // (3) e' = z' | [v' over A'] | [v' over theta]
// No gradient through z in (1), e' in (3), z in (6) and (8), A in (7).
enum Stop : unsigned { stop_none = 0, stop_rec = 1, stop_adapt = 2, stop_reset = 4, stop_thr = 8 };

enum class Surrogate { triangle, boxcar, fast_sigmoid, arctan, sigmoid, exponential, gaussian, multi_gaussian };
inline constexpr const char* surrogate_names[] = {"triangle", "boxcar",      "fast_sigmoid", "arctan",
                                                  "sigmoid",  "exponential", "gaussian",     "multi_gaussian"};
inline constexpr int n_surrogates = sizeof(surrogate_names) / sizeof(surrogate_names[0]);

struct Row {
  const char* name;
  Test test;
  bool ge;  // [m >= 0] instead of [m > 0]
  Scale scale;
  Reset reset;
  When when;
  Drive drive;
  unsigned stop;
};

// clang-format off
inline constexpr Row rows[] = {
    // name              test         ge     scale           reset           when        drive          stop
    {"lsnn",             Test::old_v, false, Scale::width_A, Reset::minus_A, When::next, Drive::spike, stop_none},
    {"eprop",            Test::new_u, false, Scale::width_A, Reset::minus_R, When::next, Drive::spike, stop_none},
    {"eprop_stop",       Test::new_u, false, Scale::width_A, Reset::minus_R, When::next, Drive::spike, stop_rec | stop_reset},
    {"eprop_elig",       Test::new_u, false, Scale::width,   Reset::minus_R, When::next, Drive::spike, stop_none},
    {"eprop_elig_stop",  Test::new_u, false, Scale::width,   Reset::minus_R, When::next, Drive::spike, stop_rec | stop_reset},
    {"eprop_timit",      Test::new_u, false, Scale::width,   Reset::minus_R, When::next, Drive::cross, stop_none},
    {"eprop_timit_stop", Test::new_u, false, Scale::width,   Reset::minus_R, When::next, Drive::cross, stop_rec | stop_reset},
    {"srnn",             Test::new_u, false, Scale::width,   Reset::minus_A, When::next, Drive::spike, stop_none},
    {"norse_lsnn",       Test::new_u, false, Scale::width,   Reset::to_R,    When::now,  Drive::spike, stop_reset | stop_adapt},
    {"norse_lif",        Test::new_u, false, Scale::width,   Reset::to_R,    When::now,  Drive::spike, stop_reset},
    {"snntorch_sub",     Test::new_u, false, Scale::width,   Reset::minus_R, When::next, Drive::spike, stop_reset},
    {"snntorch_zero",    Test::new_u, false, Scale::width,   Reset::to_R,    When::next, Drive::spike, stop_reset},
    {"snntorch_zero_now",Test::new_u, false, Scale::width,   Reset::to_R,    When::now,  Drive::spike, stop_none},
    {"snntorch_sub_now", Test::new_u, false, Scale::width,   Reset::minus_R, When::now,  Drive::above, stop_none},
    {"sinabs_sub",       Test::new_u, true,  Scale::width_A, Reset::minus_A, When::now,  Drive::spike, stop_thr},
    {"sinabs_zero",      Test::new_u, true,  Scale::width_A, Reset::to_R,    When::now,  Drive::spike, stop_thr | stop_reset},
    {"sj_soft",          Test::new_u, true,  Scale::width,   Reset::minus_R, When::now,  Drive::spike, stop_none},
    {"sj_hard",          Test::new_u, true,  Scale::width,   Reset::to_R,    When::now,  Drive::spike, stop_none},
    {"sj_soft_det",      Test::new_u, true,  Scale::width,   Reset::minus_R, When::now,  Drive::spike, stop_reset},
    {"sj_hard_det",      Test::new_u, true,  Scale::width,   Reset::to_R,    When::now,  Drive::spike, stop_reset},
    {"adlif",            Test::new_u, false, Scale::width,   Reset::minus_R, When::next, Drive::spike, stop_none},
    {"se_adlif",         Test::new_u, false, Scale::width,   Reset::to_R,    When::now,  Drive::spike, stop_reset},
};
// clang-format on
inline constexpr int n_rows = sizeof(rows) / sizeof(rows[0]);

}  // namespace lsnn
