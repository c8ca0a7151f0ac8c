//! The argument structs of the CUDA kernels, as `kernels/args.h` has them.
#![allow(dead_code)]

include!("../../bindings/kernel_args.rs");
