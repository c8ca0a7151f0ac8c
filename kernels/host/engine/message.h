// message.h: printf into a string. A message is cut at 1 KiB, so no name of a template can make it unreadable.
#pragma once
#include <stdarg.h>
#include <stdio.h>

#include <string>

namespace gradstone_host {

inline std::string message_from(const char* format, va_list values) {
  char text[1024];
  vsnprintf(text, sizeof text, format, values);
  return text;
}

__attribute__((format(printf, 1, 2))) inline std::string message(const char* format, ...) {
  va_list values;
  va_start(values, format);
  std::string text = message_from(format, values);
  va_end(values);
  return text;
}

}  // namespace gradstone_host
