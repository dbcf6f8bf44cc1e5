// Stands in for libcuda.so.1: "machine code" is the path of a shared object with the kernels of a
// neuron, compiled for the emulator, and a launch calls them thread by thread.
#include <dlfcn.h>
#include <stdint.h>

#include <cstdlib>
#include <cstring>

#include "../../../lsnn_ext/codegen/cuda_job.h"

using lsnn::neuron::Block;

namespace {
int context = 0;
void* current = nullptr;
bool fails(const char* name) {
  const char* asked = std::getenv("FAKE_DRIVER_FAILS");
  return asked && !std::strcmp(asked, name);
}
}  // namespace

extern "C" {
int cuLibraryLoadData(void** library, const void* code, int*, void**, unsigned n_options, int*,
                      void**, unsigned n_library_options) {
  if (fails("cuLibraryLoadData") || n_options || n_library_options) return 200;
  *library = dlopen((const char*)code, RTLD_NOW);
  return *library ? 0 : 200;
}
int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
  *kernel = dlsym(library, name);
  return *kernel ? 0 : 500;
}
int cuLaunchKernel(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                   void* stream, void** arguments, void** extra) {
  if (fails("memory")) return 2;
  if (fails("cuLaunchKernel") || current != &context) return 201;
  if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || shared || extra ||
      stream != (void*)8)
    return 1;
  for (unsigned block = 0; block < grid_x; block++)
    for (unsigned thread = 0; thread < block_x; thread++)
      ((void (*)(const void*, const Block&))kernel)(
          arguments[0], {block, (int)thread, (int)block_x, nullptr, nullptr, nullptr});
  return 0;
}
int cuGetErrorString(int status, const char** text) {
  *text = status == 200 ? "device kernel image is invalid"
          : status == 2 ? "out of memory"
                        : "another error";
  return 0;
}
int cuCtxGetCurrent(void** found) {
  *found = current;
  return 0;
}
int cuCtxSetCurrent(void* wanted) {
  current = wanted;
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = 40 + ordinal;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** found, int device) {
  *found = device == 43 ? &context : nullptr;
  return *found ? 0 : 101;
}
}
