//! The CPU: threads ([`pool`]), instruction sets ([`simd`]), vectorised functions ([`math`]), memory ([`memory`]),
//! conversion of element types and matrix products ([`gemm`]).
//!
//! One rule holds everywhere: the number of threads decides who computes a block, never which blocks there are or in
//! which order their results are added. So results are bit-equal for any thread count.

pub(crate) mod convert;
pub mod gemm;
pub mod math;
pub mod memory;
pub mod pool;
pub mod simd;
