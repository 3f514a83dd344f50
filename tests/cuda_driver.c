// Stands in for libcuda.so.1 where no GPU is: an sm_86 device that does nothing but tell what it was asked to
// start. The call that the environment variable FAILS names fails.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int result(const char* call) {
  const char* fails = getenv("FAILS");
  return fails && strcmp(fails, call) == 0 ? 209 : 0;
}

int cuGetExportTable(const void** table, const void* id) {  // NVRTC asks for one, and works without it
  *table = NULL;
  return 500;
}
int cuInit(unsigned flags) { return result(__func__); }
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return result(__func__);
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 6 : attribute == 16 ? 84 : -1;
  return result(__func__);
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  static char contexts[8];
  *context = &contexts[device];
  return result(__func__);
}
int cuCtxGetCurrent(void** context) {
  *context = NULL;
  return result(__func__);
}
int cuCtxPushCurrent_v2(void* context) {
  puts("push");
  return result(__func__);
}
int cuCtxPopCurrent_v2(void** context) {
  puts("pop");
  return result(__func__);
}
int cuModuleLoadData(void** module, const void* image) {
  printf("load %s\n", (const char*)image);
  *module = (void*)image;
  return result(__func__);
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = strdup(name);
  return result(__func__);
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  printf("attribute %d of %s = %d\n", attribute, (const char*)function, value);
  return result(__func__);
}
int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** parameters,
                   void** extra) {
  printf("launch %s grid %u %u %u block %u %u %u shared %u stream %zx first %zx\n", (const char*)function,
         grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, (size_t)stream, *(size_t*)parameters[0]);
  return result(__func__);
}
int cuLaunchCooperativeKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                              unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                              void* stream, void** parameters) {
  printf("cooperative ");
  return cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters,
                        NULL);
}
int cuGetErrorName(int error, const char** text) {
  *text = error == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "?";
  return 0;
}
int cuGetErrorString(int error, const char** text) {
  *text = error == 209 ? "a failure on purpose" : "?";
  return 0;
}
