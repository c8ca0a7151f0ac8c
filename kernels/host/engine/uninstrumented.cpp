// uninstrumented.cpp: keeps ThreadSanitizer out of all that is not a kernel.
//
// Rust is not compiled with instrumentation, but its calls of malloc, free, memcpy and pthread_mutex_lock are
// intercepted all the same, while its own atomics and locks (futexes) are not seen. ThreadSanitizer would report the
// test harness's channels as races. Kernels run on fibers only, so every OS thread, from its first moment, is told
// to ignore its reads and writes; the fibers are not. (The option `ignore_interceptors_accesses` would do it too, and
// would also blind the kernels: clang turns the copy of a 16-byte struct into a call of memcpy.)
// The moment is pthread_create: the runtime defines it weakly in front of the C library's, so a definition here comes
// before both, and passes the call on to the runtime.
#if defined(GRADSTONE_HOST_TSAN)
#include <pthread.h>

extern "C" {

void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
int __interceptor_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
}

namespace {

// Reads stands for both: in the runtime it is one counter. A thread must not end with it up.
struct Ignoring {
  Ignoring() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~Ignoring() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

Ignoring main_thread;  // from before main to the exit of the process

struct Start {
  void* (*start)(void*);
  void* argument;
};

void* run(void* passed) {
  const Start start = *static_cast<Start*>(passed);
  delete static_cast<Start*>(passed);
  Ignoring ignoring;
  return start.start(start.argument);
}

}  // namespace

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                              void* argument) noexcept {
  Start* passed = new Start{start, argument};
  const int status = __interceptor_pthread_create(thread, attributes, run, passed);
  if (status != 0) delete passed;
  return status;
}
#endif
