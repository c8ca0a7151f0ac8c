/* A libcublasLt for tests: column-major products of f32 and bf16 on "device" memory that is host memory, as
 * cublasLtMatmul defines them, summed in double. STUB_NO_ALGORITHM: the heuristic finds none. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int compute, scale, transposed[2]; } Desc;
typedef struct { int type; uint64_t rows, cols; int64_t ld, stride; int32_t batch; } Layout;
typedef struct { uint64_t workspace; uint32_t alignment[4]; } Preference;
typedef struct { uint64_t data[8]; } Algorithm;
typedef struct { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; } Suggestion;

enum { OK = 0, INVALID = 7, UNSUPPORTED = 15 };
static int asked;

int cublasLtCreate(void** handle) { *handle = &asked; return OK; }
int cublasLtDestroy(void* handle) { return handle == &asked ? OK : INVALID; }
int cublasLtMatmulDescCreate(Desc** desc, int compute, int scale) {
  *desc = calloc(1, sizeof **desc);
  (*desc)->compute = compute;
  return (compute == 68 || compute == 77) && scale == 0 ? OK : UNSUPPORTED;
}
int cublasLtMatmulDescDestroy(Desc* desc) { free(desc); return OK; }
int cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* value, size_t bytes) {
  if ((attribute != 3 && attribute != 4) || bytes != 4) return INVALID;
  memcpy(&desc->transposed[attribute - 3], value, 4);
  return OK;
}
int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  *layout = malloc(sizeof **layout);
  **layout = (Layout){type, rows, cols, ld, 0, 1};
  return ld >= (int64_t)rows ? OK : INVALID;
}
int cublasLtMatrixLayoutDestroy(Layout* layout) { free(layout); return OK; }
int cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
  if (attribute == 5 && bytes == 4) return memcpy(&layout->batch, value, 4), OK;
  if (attribute == 6 && bytes == 8) return memcpy(&layout->stride, value, 8), OK;
  return INVALID;
}
int cublasLtMatmulPreferenceCreate(Preference** preference) { *preference = calloc(1, sizeof **preference); return OK; }
int cublasLtMatmulPreferenceDestroy(Preference* preference) { free(preference); return OK; }
int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
  if (attribute == 1 && bytes == 8) return memcpy(&preference->workspace, value, 8), OK;
  if (attribute >= 5 && attribute <= 8 && bytes == 4) return memcpy(&preference->alignment[attribute - 5], value, 4), OK;
  return INVALID;
}
int cublasLtMatmulAlgoGetHeuristic(void* handle, Desc* desc, Layout* a, Layout* b, Layout* c, Layout* d,
                                   Preference* preference, int wanted, Suggestion* results, int* found) {
  if (handle != &asked || !desc || !a || !b || c != d || wanted != 1 || preference->workspace < 1 << 20) return INVALID;
  *found = getenv("STUB_NO_ALGORITHM") ? 0 : 1;
  /* The alignment that the algorithm relies on, checked when it is used; how often one was asked for. */
  memset(results, 0, sizeof *results);
  for (int i = 0; i < 4; i++) results->algorithm.data[i] = preference->alignment[i];
  results->algorithm.data[7] = (uint64_t)++asked;
  return OK;
}

static float read_element(const void* at, int type, int64_t i) {
  if (type == 0) return ((const float*)at)[i];
  uint32_t bits = (uint32_t)((const uint16_t*)at)[i] << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static void write_element(void* at, int type, int64_t i, float value) {
  if (type == 0) { ((float*)at)[i] = value; return; }
  uint32_t bits;
  memcpy(&bits, &value, 4);
  ((uint16_t*)at)[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* The driver's stub keeps uploads back until somebody reads. */
static void make_uploads(void) {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  void (*make)(void) = driver ? (void (*)(void))dlsym(driver, "make_uploads") : NULL;
  if (make) make();
}

int cublasLtMatmul(void* handle, Desc* desc, const float* alpha, const void* a, Layout* la, const void* b, Layout* lb,
                   const float* beta, const void* c, Layout* lc, void* d, Layout* ld, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream) {
  make_uploads();
  const void* addresses[4] = {a, b, c, d};
  for (int i = 0; i < 4; i++)
    if ((uintptr_t)addresses[i] % algorithm->data[i]) return INVALID;
  if (handle != &asked || !stream || !workspace || workspace_bytes < 1 << 20 || lc != ld) return INVALID;
  if (la->batch != ld->batch || lb->batch != ld->batch || la->type != lb->type || (ld->type != 0 && ld->type != la->type))
    return UNSUPPORTED;
  int ta = desc->transposed[0], tb = desc->transposed[1];
  uint64_t m = ta ? la->cols : la->rows, k = ta ? la->rows : la->cols, n = tb ? lb->rows : lb->cols;
  if ((tb ? lb->cols : lb->rows) != k || ld->rows != m || ld->cols != n) return INVALID;
  for (int entry = 0; entry < ld->batch; entry++)
    for (uint64_t i = 0; i < m; i++)
      for (uint64_t j = 0; j < n; j++) {
        double sum = 0;
        for (uint64_t l = 0; l < k; l++) {
          int64_t at_a = (int64_t)(ta ? l + i * (uint64_t)la->ld : i + l * (uint64_t)la->ld) + entry * la->stride;
          int64_t at_b = (int64_t)(tb ? j + l * (uint64_t)lb->ld : l + j * (uint64_t)lb->ld) + entry * lb->stride;
          sum += (double)read_element(a, la->type, at_a) * read_element(b, lb->type, at_b);
        }
        int64_t at = (int64_t)(i + j * (uint64_t)ld->ld) + entry * ld->stride;
        double before = *beta == 0 ? 0 : *beta * read_element(c, lc->type, at);
        write_element(d, ld->type, at, (float)(*alpha * sum + before));
      }
  return OK;
}
