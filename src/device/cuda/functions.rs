//! Tables of a shared library's functions, found at run time.
//!
//! A library that is not there, or lacks a function, is a value that names it. The argument types of each entry are
//! compared with cudarc's bindings when this is compiled. Results stay numbers: a newer library may return a code that
//! no enum of today has.

use super::code::Code;
use libloading::Library;
use std::path::{Path, PathBuf};

/// Why a table could not be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// No library under these names.
    Library {
        /// What was tried.
        tried: Vec<PathBuf>,
    },
    /// The library has no such function.
    Function {
        /// Its name.
        name: &'static str,
        /// Where it was looked for.
        library: PathBuf,
    },
}

/// The first of some libraries that can be loaded.
pub(super) fn open_first(names: &[PathBuf]) -> Result<(Library, PathBuf), Missing> {
    for name in names {
        // SAFETY: NVIDIA's libraries have no initialisers that matter to this process.
        if let Ok(library) = unsafe { Library::new(name) } {
            return Ok((library, name.clone()));
        }
    }
    Err(Missing::Library { tried: names.to_vec() })
}

/// A function of a library.
///
/// # Safety
/// `F` is its type.
pub(super) unsafe fn find<F: Copy>(
    library: &Library,
    path: &Path,
    name: &'static str,
) -> Result<F, Missing> {
    // SAFETY: the caller's promise.
    let symbol = unsafe { library.get::<F>(name) };
    symbol
        .map(|symbol| *symbol)
        .map_err(|_| Missing::Function { name, library: path.to_path_buf() })
}

/// What a call returned, as a result.
pub(super) fn done(code: u32) -> Result<(), Code> {
    if code == 0 { Ok(()) } else { Err(Code(code)) }
}

/// A struct of function pointers with a method for each, filled by `load`. Optional functions may be missing; their
/// methods then return `None`.
macro_rules! function_table {
    (
        $(#[$doc:meta])*
        $table:ident from $sys:ident, returning $status:ident;
        required { $( $name:ident($($arg:ident: $type:ty),* $(,)?); )* }
        optional { $( $extra:ident($($extra_arg:ident: $extra_type:ty),* $(,)?); )* }
    ) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(super) struct $table {
            $( $name: unsafe extern "C" fn($($type),*) -> u32, )*
            $( $extra: Option<unsafe extern "C" fn($($extra_type),*) -> u32>, )*
            /// Where the library was found.
            pub(super) path: ::std::path::PathBuf,
            /// Kept loaded as long as its functions are.
            _library: ::libloading::Library,
        }

        // The types are those of the bindings.
        $( const _: unsafe fn($($type),*) -> $sys::$status = $sys::$name; )*
        $( const _: unsafe fn($($extra_type),*) -> $sys::$status = $sys::$extra; )*

        #[allow(non_snake_case)]
        impl $table {
            /// Finds every function in the first of the libraries that can be loaded.
            pub(super) fn load(
                names: &[::std::path::PathBuf],
            ) -> Result<$table, $crate::device::cuda::functions::Missing> {
                use $crate::device::cuda::functions::{find, open_first};
                let (library, path) = open_first(names)?;
                Ok($table {
                    // SAFETY: the types were compared with the bindings above.
                    $( $name: unsafe { find(&library, &path, stringify!($name))? }, )*
                    // SAFETY: as above.
                    $( $extra: unsafe { find(&library, &path, stringify!($extra)).ok() }, )*
                    path,
                    _library: library,
                })
            }

            $(
                /// # Safety
                /// As the library's documentation says.
                pub(super) unsafe fn $name(
                    &self, $($arg: $type),*
                ) -> Result<(), $crate::device::cuda::code::Code> {
                    // SAFETY: the caller's promise.
                    $crate::device::cuda::functions::done(unsafe { (self.$name)($($arg),*) })
                }
            )*
            $(
                /// # Safety
                /// As the library's documentation says.
                pub(super) unsafe fn $extra(
                    &self, $($extra_arg: $extra_type),*
                ) -> Option<Result<(), $crate::device::cuda::code::Code>> {
                    // SAFETY: the caller's promise.
                    let code = unsafe { (self.$extra?)($($extra_arg),*) };
                    Some($crate::device::cuda::functions::done(code))
                }
            )*
        }
    };
}
pub(super) use function_table;
