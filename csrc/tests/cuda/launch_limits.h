// Registers of the emulated kernels, so that the emulator refuses blocks that a GPU refuses: the
// most of all architectures in budget.csv. nm translates the address of a kernel into its name.
#pragma once
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <string>

#include "../../cuda/device.h"
#include "../check.h"

namespace lsnn::test {

// By the names of machine_code.py.
inline std::map<std::string, unsigned> read_budget() {
  const std::string here = __FILE__;
  std::ifstream file(here.substr(0, here.rfind('/') + 1) + "budget.csv");
  std::map<std::string, unsigned> registers;
  for (std::string line; std::getline(file, line);) {
    const size_t end = line.rfind("\","), arch = end + 2, number = line.find(',', arch) + 1;
    if (line.empty() || line[0] != '"' || end == line.npos) continue;
    unsigned& most = registers[line.substr(1, end - 1)];
    most = std::max(most, (unsigned)std::stoul(line.substr(number)));
  }
  return registers;
}

inline std::map<const void*, unsigned> find_registers() {
  uintptr_t base = 0;  // the program's own, which is the first
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        *static_cast<uintptr_t*>(to) = info->dlpi_addr;
        return 1;
      },
      &base);
  const std::map<std::string, unsigned> budget = read_budget();
  std::map<const void*, unsigned> found;
  const std::string command = "nm -C /proc/" + std::to_string(getpid()) + "/exe";
  FILE* symbols = popen(command.c_str(), "r");
  char* line = nullptr;
  for (size_t size = 0; symbols && getline(&line, &size, symbols) > 0;) {
    std::string name = line;
    const size_t first = name.find(" void lsnn::cuda::"), last = name.rfind('(');
    if (first == name.npos || last == name.npos) continue;
    name = name.substr(first + 6, last - first - 6);
    for (const char* scope : {"lsnn::cuda::", "lsnn::"})
      for (size_t at; (at = name.find(scope)) != name.npos;) name.erase(at, std::strlen(scope));
    if (const auto of = budget.find(name); of != budget.end())
      found[reinterpret_cast<const void*>(base + std::stoull(line, nullptr, 16))] = of->second;
  }
  std::free(line);
  if (symbols) pclose(symbols);
  return found;
}

inline void use_launch_limits() {
  static const std::map<const void*, unsigned> registers = find_registers();
  at_hand = "launch limits";
  check(!registers.empty(), "expected nm, and budget.csv with the kernels of this program");
  cuda::registers_of = [](const void* kernel) {
    const auto found = registers.find(kernel);
    return found == registers.end() ? 0 : found->second;
  };
}

}  // namespace lsnn::test
