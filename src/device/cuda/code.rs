//! What the driver's and cuBLASLt's numbers mean. Own tables: text never needs a library that may be missing.

use std::fmt;

/// A failure, as the library numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

/// Names and meanings of the driver's codes that are met in practice.
const DRIVER: [(u32, &str, &str); 27] = [
    (1, "CUDA_ERROR_INVALID_VALUE", "an argument out of range"),
    (2, "CUDA_ERROR_OUT_OF_MEMORY", "the device has no more memory"),
    (3, "CUDA_ERROR_NOT_INITIALIZED", "the driver was not initialised"),
    (4, "CUDA_ERROR_DEINITIALIZED", "the driver is shutting down with the process"),
    (34, "CUDA_ERROR_STUB_LIBRARY", "the toolkit's stub was loaded instead of the driver"),
    (46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "another process holds the device exclusively"),
    (100, "CUDA_ERROR_NO_DEVICE", "the driver sees no GPU"),
    (101, "CUDA_ERROR_INVALID_DEVICE", "no GPU of this number"),
    (200, "CUDA_ERROR_INVALID_IMAGE", "the kernel image cannot be read"),
    (201, "CUDA_ERROR_INVALID_CONTEXT", "the context is gone"),
    (209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "the image has no code for this GPU"),
    (218, "CUDA_ERROR_INVALID_PTX", "the driver's compiler refused the PTX"),
    (221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "the driver's PTX compiler is missing"),
    (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX is newer than the driver"),
    (400, "CUDA_ERROR_INVALID_HANDLE", "a handle that is not valid here"),
    (500, "CUDA_ERROR_NOT_FOUND", "no function of this name in the image"),
    (700, "CUDA_ERROR_ILLEGAL_ADDRESS", "a kernel touched memory that is not its own"),
    (701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many registers or threads for one block"),
    (702, "CUDA_ERROR_LAUNCH_TIMEOUT", "a kernel ran longer than the display allows"),
    (710, "CUDA_ERROR_ASSERT", "an assertion in a kernel failed"),
    (715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "a kernel met an illegal instruction"),
    (716, "CUDA_ERROR_MISALIGNED_ADDRESS", "a kernel made a misaligned access"),
    (719, "CUDA_ERROR_LAUNCH_FAILED", "a kernel failed"),
    (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "libcuda and the kernel module differ in version"),
    (804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "forward compatibility is for server GPUs"),
    (900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "not possible while the stream is captured"),
    (999, "CUDA_ERROR_UNKNOWN", "the driver does not say; a restart after a driver update helps"),
];

/// cuBLAS's status codes.
const CUBLAS: [(u32, &str); 9] = [
    (1, "CUBLAS_STATUS_NOT_INITIALIZED"),
    (3, "CUBLAS_STATUS_ALLOC_FAILED"),
    (7, "CUBLAS_STATUS_INVALID_VALUE"),
    (8, "CUBLAS_STATUS_ARCH_MISMATCH"),
    (11, "CUBLAS_STATUS_MAPPING_ERROR"),
    (13, "CUBLAS_STATUS_EXECUTION_FAILED"),
    (14, "CUBLAS_STATUS_INTERNAL_ERROR"),
    (15, "CUBLAS_STATUS_NOT_SUPPORTED"),
    (16, "CUBLAS_STATUS_LICENSE_ERROR"),
];

impl Code {
    pub(super) const OUT_OF_MEMORY: Code = Code(2);
    pub(super) const NO_DEVICE: Code = Code(100);
    pub(super) const NO_BINARY_FOR_GPU: Code = Code(209);
    pub(super) const UNSUPPORTED_PTX_VERSION: Code = Code(222);
    pub(super) const NOT_FOUND: Code = Code(500);

    /// The driver's failures after which every call in the process's context fails the same way.
    pub(super) fn loses_the_context(self) -> bool {
        matches!(self.0, 4 | 201 | 214 | 700 | 702 | 710 | 714..=719 | 721)
    }

    /// The same number as cuBLASLt means it.
    pub(super) fn of_cublas(self) -> String {
        match CUBLAS.iter().find(|(code, _)| *code == self.0) {
            Some((code, name)) => format!("{name} ({code})"),
            None => format!("cuBLASLt status {}", self.0),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DRIVER.iter().find(|(code, _, _)| *code == self.0) {
            Some((code, name, meaning)) => write!(f, "{name} ({code}: {meaning})"),
            None => write!(f, "CUDA error {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown_codes_have_text() {
        assert_eq!(
            Code(222).to_string(),
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222: the PTX is newer than the driver)"
        );
        assert_eq!(Code(31_337).to_string(), "CUDA error 31337");
        assert_eq!(Code(15).of_cublas(), "CUBLAS_STATUS_NOT_SUPPORTED (15)");
        assert!(Code(700).loses_the_context() && !Code(2).loses_the_context());
    }

    #[test]
    fn names_are_those_of_the_bindings() {
        use cudarc::driver::sys::CUresult;
        let known = |code: CUresult| (code as u32, format!("{code:?}"));
        for (number, name) in [
            known(CUresult::CUDA_ERROR_STUB_LIBRARY),
            known(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU),
            known(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION),
            known(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
            known(CUresult::CUDA_ERROR_LAUNCH_FAILED),
            known(CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH),
            known(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
        ] {
            assert!(DRIVER.iter().any(|entry| entry.0 == number && entry.1 == name), "{name}");
        }
    }
}
