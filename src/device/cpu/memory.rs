//! Memory that is handed round instead of returned to the operating system.
//!
//! A training step asks for the same sizes again and again, and fresh pages cost more than the arithmetic on them
//! (a page fault per 4 KiB). A dropped [`Buffer`] goes on a shelf by size class and the next request of that class
//! takes it. [`trim`] gives everything back.

use half::{bf16, f16};
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes below which the allocator is used directly.
const SMALLEST: usize = 4096;
/// Bytes kept on all shelves together; beyond that memory is freed.
const KEPT: usize = 1 << 30;

static SHELVED: AtomicUsize = AtomicUsize::new(0);

/// One list of free buffers per size class of one element type.
pub struct Shelf<T>(Mutex<Vec<(usize, Vec<Vec<T>>)>>);

/// A type that buffers hold.
pub trait Element: bytemuck::Pod + Send + Sync {
    #[doc(hidden)]
    fn shelf() -> &'static Shelf<Self>;
}

macro_rules! elements {
    ($($T:ty)*) => {
        $(impl Element for $T {
            fn shelf() -> &'static Shelf<$T> {
                static SHELF: Shelf<$T> = Shelf(Mutex::new(Vec::new()));
                &SHELF
            }
        })*
        /// Frees every shelved buffer.
        pub fn trim() {
            $(<$T>::shelf().clear();)*
        }
    };
}
elements!(f32 bf16 f16 i32 i64 u8);

impl<T: Element> Shelf<T> {
    fn take(&self, class: usize) -> Option<Vec<T>> {
        let mut lists = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = lists.iter_mut().find(|(size, _)| *size == class)?.1.pop()?;
        SHELVED.fetch_sub(found.len() * size_of::<T>(), Ordering::Relaxed);
        Some(found)
    }

    fn put(&self, memory: Vec<T>) {
        let bytes = memory.len() * size_of::<T>();
        if SHELVED.fetch_add(bytes, Ordering::Relaxed) + bytes > KEPT {
            SHELVED.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        let mut lists = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match lists.iter_mut().find(|(size, _)| *size == memory.len()) {
            Some((_, list)) => list.push(memory),
            None => lists.push((memory.len(), vec![memory])),
        }
    }

    fn clear(&self) {
        let mut lists = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for (size, list) in lists.drain(..) {
            SHELVED.fetch_sub(size * list.len() * size_of::<T>(), Ordering::Relaxed);
        }
    }
}

/// Eight classes per power of two: at most an eighth of a buffer is slack, and sizes that differ a little meet.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(1);
    len.div_ceil(step) * step
}

/// An owned run of elements; dereferences to a slice.
pub struct Buffer<T: Element> {
    /// Longer than `len` by the slack of its size class; every element is initialised.
    memory: Vec<T>,
    len: usize,
}

impl<T: Element> Buffer<T> {
    /// `len` elements with arbitrary (initialised) content: for outputs that are written whole.
    pub fn recycled(len: usize) -> Buffer<T> {
        if len * size_of::<T>() < SMALLEST {
            return Buffer { memory: vec![T::zeroed(); len], len };
        }
        let class = size_class(len);
        let memory = T::shelf().take(class).unwrap_or_else(|| vec![T::zeroed(); class]);
        Buffer { memory, len }
    }

    /// `len` zeros: for outputs that are added into.
    pub fn zeroed(len: usize) -> Buffer<T> {
        let mut buffer = Buffer::recycled(len);
        buffer.fill(T::zeroed());
        buffer
    }

    /// A copy of `values`.
    pub fn copy_of(values: &[T]) -> Buffer<T> {
        let mut buffer = Buffer::recycled(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

impl<T: Element> From<Vec<T>> for Buffer<T> {
    fn from(memory: Vec<T>) -> Buffer<T> {
        let len = memory.len();
        Buffer { memory, len }
    }
}

impl<T: Element> Clone for Buffer<T> {
    fn clone(&self) -> Buffer<T> {
        Buffer::copy_of(self)
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.memory[..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[..self.len]
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        // Only whole classes are shelved: a vector made elsewhere would never be found again.
        if memory.len() * size_of::<T>() >= SMALLEST && size_class(memory.len()) == memory.len() {
            T::shelf().put(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_comes_back_and_zeroed_is_zero() {
        let mut first = Buffer::<i64>::recycled(10_000);
        first.fill(7);
        let address = first.as_ptr();
        drop(first);
        let second = Buffer::<i64>::zeroed(9_990);
        assert_eq!(second.as_ptr(), address);
        assert!(second.iter().all(|x| *x == 0) && second.len() == 9_990);
    }

    #[test]
    fn classes_hold_their_length() {
        for len in (1..5000).chain([1 << 20, (1 << 20) + 1]) {
            let class = size_class(len);
            assert!(
                class >= len && class <= len + len / 7 + 1 && size_class(class) == class,
                "{len}"
            );
        }
    }
}
