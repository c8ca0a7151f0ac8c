/* A libcuda for tests without a GPU: device memory is host memory, launches are written to a log instead of run.
 * It refuses what the driver refuses: calls without a current context, unknown kernels, wrong sizes.
 * Behaviour by environment: STUB_INIT, STUB_COUNT, STUB_VERSION, STUB_CAPABILITY (90), STUB_POOLS, STUB_MEMORY (bytes that
 * can be allocated), STUB_LAUNCH (code of the first launch), STUB_SYNC (code of waits after a launch), STUB_LOG (file),
 * STUB_WAITS (waits are logged too). Uploads are made as late as a device may: when something waits for them or reads them.
 * Between stub_capture(1) and stub_capture(0) it refuses what a stream that is being captured in a graph refuses, and
 * uploads: their host memory is another's by the time a graph is replayed.
 * Compiled with STUB_OLD it lacks a function. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Code;
typedef struct Allocation { struct Allocation* next; char* memory; size_t bytes; int pooled; } Allocation;
typedef struct { char name[128]; size_t parameter_bytes; int shared; } Function;

static __thread void* current;
static char context, stream_context;
static Allocation* allocations;
static size_t live_bytes;
static int launches, streams, events, pinned, pools, modules, retained;

static long setting(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text && *text ? strtol(text, NULL, 10) : otherwise;
}

static void note(const char* text) {
  const char* path = getenv("STUB_LOG");
  FILE* file = path ? fopen(path, "a") : NULL;
  if (file) fprintf(file, "%s\n", text), fclose(file);
}

static void note_wait(const char* text) {
  if (setting("STUB_WAITS", 0)) note(text);
}

typedef struct { void* to; const void* from; size_t bytes; } Upload;
static Upload late[4096];
static int late_count;

void make_uploads(void) {
  for (int i = 0; i < late_count; i++) memcpy(late[i].to, late[i].from, late[i].bytes);
  late_count = 0;
}

static int capturing;
void stub_capture(int on) { capturing = on; }
#define NO_CAPTURE if (capturing) return 900

#define NEEDS_CONTEXT if (current != &context) return 201
#define NEEDS_STREAM if (stream != &stream_context) return 400

Code cuInit(unsigned flags) { return flags ? 1 : (Code)setting("STUB_INIT", 0); }
Code cuDriverGetVersion(int* version) { *version = (int)setting("STUB_VERSION", 13000); return 0; }
Code cuDeviceGetCount(int* count) { *count = (int)setting("STUB_COUNT", 1); return 0; }
Code cuDeviceGet(int* device, int ordinal) { *device = ordinal + 40; return 0; }
Code cuDeviceGetName(char* name, int len, int device) { snprintf(name, (size_t)len, "Stub %d", device); return 0; }
Code cuDeviceTotalMem_v2(size_t* bytes, int device) { (void)device; *bytes = 8ull << 30; return 0; }
Code cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case 75: *value = (int)setting("STUB_CAPABILITY", 90) / 10; return 0;
    case 76: *value = (int)setting("STUB_CAPABILITY", 90) % 10; return 0;
    case 16: *value = 3; return 0;
    case 97: *value = 232448; return 0;
    case 115: *value = (int)setting("STUB_POOLS", 1); return 0;
    default: return 1;
  }
}
Code cuDevicePrimaryCtxRetain(void** made, int device) {
  if (device < 40) return 101;
  retained++;
  *made = &context;
  return 0;
}
Code cuDevicePrimaryCtxRelease_v2(int device) {
  if (device < 40 || --retained < 0) return 101;
  char text[200];
  snprintf(text, sizeof text, "released: %zu bytes, %d streams, %d events, %d pinned, %d pools, %d modules left", live_bytes,
           streams, events, pinned, pools, modules);
  note(text);
  return 0;
}
Code cuCtxGetCurrent(void** now) { *now = current; return 0; }
Code cuCtxPushCurrent_v2(void* pushed) { current = pushed; return 0; }
Code cuCtxPopCurrent_v2(void** popped) { *popped = current; current = NULL; return 0; }
Code cuStreamCreate(void** stream, unsigned flags) { NEEDS_CONTEXT; streams++; *stream = &stream_context; return flags == 1 ? 0 : 1; }
Code cuStreamDestroy_v2(void* stream) { NEEDS_CONTEXT; NEEDS_STREAM; streams--; return 0; }
Code cuStreamSynchronize(void* stream) {
  NEEDS_CONTEXT; NEEDS_STREAM; NO_CAPTURE;
  note_wait("waited for the stream");
  make_uploads();
  return launches ? (Code)setting("STUB_SYNC", 0) : 0;
}
#ifndef STUB_OLD
Code cuStreamGetCtx(void* stream, void** of) { *of = stream == &stream_context ? &context : NULL; return 0; }
#endif

static Code allocate(uint64_t* address, size_t bytes, int pooled) {
  if (live_bytes + bytes > (size_t)setting("STUB_MEMORY", 1l << 40)) return 2;
  Allocation* made = malloc(sizeof *made);
  *made = (Allocation){allocations, aligned_alloc(512, (bytes + 511) / 512 * 512), bytes, pooled};
  allocations = made;
  live_bytes += bytes;
  *address = (uint64_t)(uintptr_t)made->memory;
  return 0;
}
static Code release(uint64_t address, int pooled) {
  make_uploads();
  for (Allocation** at = &allocations; *at; at = &(*at)->next) {
    Allocation* found = *at;
    if ((uint64_t)(uintptr_t)found->memory != address || found->pooled != pooled) continue;
    *at = found->next;
    live_bytes -= found->bytes;
    free(found->memory);
    free(found);
    return 0;
  }
  return 1;
}
static int inside(uint64_t address, size_t bytes) {
  for (Allocation* at = allocations; at; at = at->next) {
    uint64_t start = (uint64_t)(uintptr_t)at->memory;
    if (address >= start && address + bytes <= start + at->bytes) return 1;
  }
  return 0;
}
Code cuMemAlloc_v2(uint64_t* address, size_t bytes) { NEEDS_CONTEXT; NO_CAPTURE; return allocate(address, bytes, 0); }
Code cuMemFree_v2(uint64_t address) { NEEDS_CONTEXT; NO_CAPTURE; return release(address, 0); }
Code cuMemPoolCreate(void** pool, const unsigned* properties) {
  NEEDS_CONTEXT;
  if (properties[0] != 1 || properties[2] != 1 || properties[3] >= setting("STUB_COUNT", 1)) return 1;
  pools++;
  *pool = &pools;
  return 0;
}
Code cuMemPoolDestroy(void* pool) { pools--; return pool == &pools ? 0 : 1; }
Code cuMemPoolSetAttribute(void* pool, int attribute, uint64_t* value) {
  return pool == &pools && attribute == 4 && *value == UINT64_MAX ? 0 : 1;
}
Code cuMemAllocFromPoolAsync(uint64_t* address, size_t bytes, void* pool, void* stream) {
  NEEDS_CONTEXT; NEEDS_STREAM;
  return pool == &pools ? allocate(address, bytes, 1) : 1;
}
Code cuMemFreeAsync(uint64_t address, void* stream) { NEEDS_CONTEXT; NEEDS_STREAM; return release(address, 1); }
Code cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) { NEEDS_CONTEXT; NO_CAPTURE; pinned++; *memory = malloc(bytes); return flags ? 1 : 0; }
Code cuMemFreeHost(void* memory) { NEEDS_CONTEXT; pinned--; free(memory); return 0; }
Code cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
  NEEDS_CONTEXT; NEEDS_STREAM; NO_CAPTURE;
  if (!inside(to, bytes)) return 1;
  if (late_count == 4096) make_uploads();
  late[late_count++] = (Upload){(void*)(uintptr_t)to, from, bytes};
  return 0;
}
Code cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
  NEEDS_CONTEXT; NEEDS_STREAM; NO_CAPTURE;
  if (!inside(from, bytes)) return 1;
  make_uploads();
  memcpy(to, (void*)(uintptr_t)from, bytes);
  return 0;
}
Code cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
  NEEDS_CONTEXT; NEEDS_STREAM;
  if (!inside(to, bytes) || !inside(from, bytes)) return 1;
  make_uploads();
  memcpy((void*)(uintptr_t)to, (void*)(uintptr_t)from, bytes);
  return 0;
}
Code cuMemsetD8Async(uint64_t address, unsigned char byte, size_t bytes, void* stream) {
  NEEDS_CONTEXT; NEEDS_STREAM;
  if (!inside(address, bytes)) return 1;
  make_uploads();
  memset((void*)(uintptr_t)address, byte, bytes);
  return 0;
}
Code cuEventCreate(void** event, unsigned flags) { NEEDS_CONTEXT; events++; *event = malloc(1); return flags == 2 ? 0 : 1; }
Code cuEventDestroy_v2(void* event) { NEEDS_CONTEXT; events--; free(event); return 0; }
Code cuEventRecord(void* event, void* stream) { NEEDS_CONTEXT; NEEDS_STREAM; return event ? 0 : 400; }
Code cuEventSynchronize(void* event) {
  NEEDS_CONTEXT; NO_CAPTURE;
  note_wait("waited for an event");
  make_uploads();
  return event ? 0 : 400;
}

/* An image is PTX, whose kernels and their parameters are found by name; native code is for another GPU than this. */
Code cuModuleLoadDataEx(void** module, const char* image, unsigned count, int* options, void** values) {
  NEEDS_CONTEXT; NO_CAPTURE;
  if (memcmp(image, "\x50\xed\x55\xba", 4) == 0) return 209;
  if (!strstr(image, ".version ")) return 200;
  if (count == 2 && options[0] == 5 && options[1] == 6)
    snprintf(values[0], (size_t)(uintptr_t)values[1], "ptxas application ptx input: a log");
  if (setting("STUB_REFUSES_PTX", 0)) return (Code)setting("STUB_REFUSES_PTX", 0);
  modules++;
  *module = (void*)(uintptr_t)image;
  return 0;
}
Code cuModuleUnload(void* module) { NEEDS_CONTEXT; modules--; return module ? 0 : 400; }
Code cuModuleGetFunction(void** function, void* module, const char* name) {
  NEEDS_CONTEXT;
  char entry[160];
  snprintf(entry, sizeof entry, ".entry %s(", name);
  const char* found = strstr(module, entry);
  if (!found) return 500;
  Function* made = calloc(1, sizeof *made);
  snprintf(made->name, sizeof made->name, "%s", name);
  const char* bytes = strstr(found, "_param_0[");
  made->parameter_bytes = bytes ? strtoul(bytes + 9, NULL, 10) : 0;
  *function = made;
  return 0;
}
Code cuFuncGetParamInfo(Function* function, size_t index, size_t* offset, size_t* size) {
  if (index) return 1;
  *offset = 0;
  *size = function->parameter_bytes;
  return 0;
}
Code cuFuncSetAttribute(Function* function, int attribute, int value) {
  NEEDS_CONTEXT;
  if (attribute != 8) return 1;
  function->shared = value;
  return 0;
}
Code cuLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                    unsigned shared, void* stream, void** parameters, void** extra) {
  NEEDS_CONTEXT; NEEDS_STREAM;
  if (extra || bx * by * bz > 1024 || (shared > 48 << 10 && (int)shared > function->shared)) return 1;
  if (++launches == 1 && setting("STUB_LAUNCH", 0)) return (Code)setting("STUB_LAUNCH", 0);
  char text[1200];
  int at = snprintf(text, sizeof text, "%s %u %u %u x %u %u %u + %u:", function->name, x, y, z, bx, by, bz, shared);
  for (size_t i = 0; i < function->parameter_bytes; i++)
    at += snprintf(text + at, sizeof text - (size_t)at, "%02x", ((unsigned char*)parameters[0])[i]);
  note(text);
  return 0;
}
