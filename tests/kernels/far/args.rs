//! The argument structs of the CUDA kernels, as `kernels/args.h` has them: cases fill them by hand, no launch code does.
#![allow(dead_code, missing_docs)]

include!("../../../bindings/kernel_args.rs");
