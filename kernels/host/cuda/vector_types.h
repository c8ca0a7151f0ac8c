// vector_types.h: CUDA's small vectors, with the size and alignment they have on the device.
//
// The alignment is the point: a float4 behind a pointer that is not a multiple of 16 is a fault on the GPU, so the
// compiler must know the promise here too, for the alignment check of every build to find who breaks it.
// Only the widths that a 16-byte load can use are given; float3 and its kin have no vector load and are left out.
#pragma once

#define GRADSTONE_VECTOR2(Name, Element, bytes)        \
  struct __attribute__((aligned(bytes))) Name {        \
    Element x, y;                                      \
  };                                                   \
  inline Name make_##Name(Element x, Element y) {      \
    Name v;                                            \
    v.x = x;                                           \
    v.y = y;                                           \
    return v;                                          \
  }

#define GRADSTONE_VECTOR4(Name, Element, bytes)                              \
  struct __attribute__((aligned(bytes))) Name {                              \
    Element x, y, z, w;                                                      \
  };                                                                         \
  inline Name make_##Name(Element x, Element y, Element z, Element w) {      \
    Name v;                                                                  \
    v.x = x;                                                                 \
    v.y = y;                                                                 \
    v.z = z;                                                                 \
    v.w = w;                                                                 \
    return v;                                                                \
  }

GRADSTONE_VECTOR2(char2, signed char, 2)
GRADSTONE_VECTOR4(char4, signed char, 4)
GRADSTONE_VECTOR2(uchar2, unsigned char, 2)
GRADSTONE_VECTOR4(uchar4, unsigned char, 4)
GRADSTONE_VECTOR2(short2, short, 4)
GRADSTONE_VECTOR4(short4, short, 8)
GRADSTONE_VECTOR2(ushort2, unsigned short, 4)
GRADSTONE_VECTOR4(ushort4, unsigned short, 8)
GRADSTONE_VECTOR2(int2, int, 8)
GRADSTONE_VECTOR4(int4, int, 16)
GRADSTONE_VECTOR2(uint2, unsigned, 8)
GRADSTONE_VECTOR4(uint4, unsigned, 16)
GRADSTONE_VECTOR2(longlong2, long long, 16)
GRADSTONE_VECTOR2(ulonglong2, unsigned long long, 16)
GRADSTONE_VECTOR2(float2, float, 8)
GRADSTONE_VECTOR4(float4, float, 16)
GRADSTONE_VECTOR2(double2, double, 16)

#undef GRADSTONE_VECTOR2
#undef GRADSTONE_VECTOR4

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
