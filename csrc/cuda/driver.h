// The driver that a build needs. The statically linked CUDA runtime runs on any driver of its major
// version and on later ones ("minor version compatibility"; NVIDIA's table of CUDA releases and
// drivers).
#pragma once
#include <string>

namespace lsnn::cuda {

// The oldest driver, as in nvidia-smi, for a runtime such as 13000 (CUDA 13.0); null: unknown.
inline const char* oldest_driver(int runtime) {
  switch (runtime / 1000) {
    case 11: return "450";
    case 12: return "525";
    case 13: return "580";
    default: return nullptr;
  }
}
inline std::string cuda_version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}
// runtime: of the build; driver: newest CUDA version of the driver, 0 without a driver.
inline std::string driver_too_old(int runtime, int driver) {
  const char* oldest = oldest_driver(runtime);
  const std::string wanted =
      oldest ? std::string(oldest) + " or newer" : "one for CUDA " + cuda_version(runtime);
  const std::string got =
      driver ? "one for CUDA " + cuda_version(driver) + " at most" : std::string("none");
  return "driver: expected an NVIDIA driver " + wanted + " for this build (CUDA " +
         cuda_version(runtime) + "), got " + got +
         "; update the driver, or build lsnn_ext with an nvcc that it supports";
}

}  // namespace lsnn::cuda
