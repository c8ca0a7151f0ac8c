//! What memory and launches are, per device.
//!
//! [`cpu`] is the only device so far: a private thread pool, run-time SIMD dispatch, recycled memory and matrix
//! products. Kernels stand on it; nothing here knows a tensor or an operation by name.

pub mod cpu;
