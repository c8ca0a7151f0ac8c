//! What the two runs of a case read and write: exact allocations at places far from where a kernel counts from, and
//! reservations of address space, where a kernel wants several places that lie far apart.

use std::ffi::{c_int, c_long, c_void};

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        bytes: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: c_long,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, bytes: usize) -> c_int;
}

const READ_AND_WRITE: c_int = 1 | 2;
/// Private, of no file, and not counted before it is touched.
const FLAGS: c_int =
    if cfg!(target_os = "linux") { 0x2 | 0x20 | 0x4000 } else { 0x2 | 0x1000 | 0x40 };

/// Memory that a kernel is given.
pub enum Memory {
    /// An allocation of exactly this size: what lies beyond is found by the address build.
    Held(Vec<u8>),
    /// Address space full of zeros. Only pages that are written to exist.
    Reserved { start: *mut u8, bytes: usize },
}

impl Memory {
    pub fn held<T: Copy>(values: &[T]) -> Memory {
        let mut bytes = vec![0; size_of_val(values)];
        // SAFETY: both are of this size; plain data of any kind may be copied as bytes.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(values.as_ptr().cast(), bytes.len()) };
        assert!(
            bytes.as_ptr().addr().is_multiple_of(16) || bytes.len() < 16,
            "kernels read 16 bytes at once"
        );
        Memory::Held(bytes)
    }

    pub fn reserved(bytes: usize) -> Memory {
        // SAFETY: new address space, nobody's.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, READ_AND_WRITE, FLAGS, -1, 0) };
        assert!(
            start.addr() != usize::MAX,
            "no {bytes} bytes of address space (is overcommit off?)"
        );
        Memory::Reserved { start: start.cast(), bytes }
    }

    pub fn start(&mut self) -> *mut u8 {
        match self {
            Memory::Held(bytes) => bytes.as_mut_ptr(),
            Memory::Reserved { start, .. } => *start,
        }
    }

    /// The bytes from `from` on.
    pub fn bytes(&self, from: usize, count: usize) -> Vec<u8> {
        match self {
            Memory::Held(bytes) => bytes[from..from + count].to_vec(),
            Memory::Reserved { start, bytes } => {
                assert!(from + count <= *bytes);
                let mut copy = vec![0; count];
                // SAFETY: within the reservation, which can be read all over.
                unsafe { copy.as_mut_ptr().copy_from_nonoverlapping(start.add(from), count) };
                copy
            }
        }
    }

    pub fn write<T: Copy>(&mut self, from: usize, values: &[T]) {
        let count = size_of_val(values);
        match self {
            Memory::Held(bytes) => assert!(from + count <= bytes.len()),
            Memory::Reserved { bytes, .. } => assert!(from + count <= *bytes),
        }
        // SAFETY: within the memory, as was just seen.
        unsafe { self.start().add(from).copy_from_nonoverlapping(values.as_ptr().cast(), count) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Reserved { start, bytes } = *self {
            // SAFETY: the reservation made above; the launch that used it has returned.
            unsafe { munmap(start.cast(), bytes) };
        }
    }
}
