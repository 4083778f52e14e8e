/* A libnvidia-ml.so.1 with two cards, for tests through the real bindings.
 * Card 0 answers everything; card 1 is like a card under WSL: power, energy, link and
 * processes are NOT_SUPPORTED. FAKE_NVML_INIT_FAILS makes the driver refuse to start. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define INSUFFICIENT_SIZE 7
#define DRIVER_NOT_LOADED 9

typedef struct { int index; } device_t;
static device_t devices[2] = {{0}, {1}};

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct {
  unsigned int pid;
  unsigned long long used_bytes;
  unsigned int gpu_instance, compute_instance;
} process_t;

static int full(device_t *device, unsigned int *out, unsigned int value) {
  if (device->index == 1) return NOT_SUPPORTED;
  *out = value;
  return SUCCESS;
}

int nvmlInitWithFlags(unsigned int flags) {
  (void)flags;
  return getenv("FAKE_NVML_INIT_FAILS") ? DRIVER_NOT_LOADED : SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake driver"; }
int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
  strncpy(text, "999.01", size);
  return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t **device) {
  if (index > 1) return INVALID_ARGUMENT;
  *device = &devices[index];
  return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **device) {
  int index = strcmp(uuid, "GPU-b") == 0;
  if (!index && strcmp(uuid, "GPU-a")) return INVALID_ARGUMENT;
  *device = &devices[index];
  return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(device_t *device, unsigned long long *millijoules) {
  static unsigned long long counted = 1000000;
  if (device->index == 1) return NOT_SUPPORTED;
  *millijoules = counted += 2500;
  return SUCCESS;
}
int nvmlDeviceGetName(device_t *device, char *text, unsigned int size) {
  strncpy(text, device->index ? "Fake Card B" : "Fake Card A", size);
  return SUCCESS;
}
int nvmlDeviceGetUUID(device_t *device, char *text, unsigned int size) {
  strncpy(text, device->index ? "GPU-b" : "GPU-a", size);
  return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(device_t *device, memory_t *memory) {
  memory->total = device->index ? 8000000000ULL : 24000000000ULL;
  memory->free = memory->total - 1000000000ULL;
  memory->used = 1000000000ULL;
  return SUCCESS;
}
int nvmlDeviceGetCurrPcieLinkGeneration(device_t *d, unsigned int *v) { return full(d, v, 4); }
int nvmlDeviceGetCurrPcieLinkWidth(device_t *d, unsigned int *v) { return full(d, v, 16); }
int nvmlDeviceGetPowerUsage(device_t *d, unsigned int *v) { return full(d, v, 75500); }
int nvmlDeviceGetEnforcedPowerLimit(device_t *d, unsigned int *v) { return full(d, v, 350000); }
int nvmlDeviceGetClockInfo(device_t *d, int type, unsigned int *v) {
  return full(d, v, type == 2 ? 9501 : 1980);
}
int nvmlDeviceGetComputeRunningProcesses_v3(device_t *d, unsigned int *count, process_t *out) {
  if (d->index == 1) return NOT_SUPPORTED;
  if (out == NULL || *count < 2) { *count = 2; return INSUFFICIENT_SIZE; }
  memset(out, 0, 2 * sizeof(process_t));
  out[0].pid = 1;
  out[0].used_bytes = 111;
  out[1].pid = (unsigned int)getpid();
  out[1].used_bytes = 123456789ULL;
  *count = 2;
  return SUCCESS;
}
