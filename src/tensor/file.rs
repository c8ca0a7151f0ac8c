//! Tensors to and from safetensors files. The format itself is [`files`](crate::files)'s.

use super::{Storage, Tensor};
use crate::error::{Error, Result};
use crate::files::safetensors::{self, SafetensorsFile, TensorBytes};
use std::path::Path;

/// Reads one tensor.
///
/// # Errors
/// [`Error::is_format`] when there is none of that name, [`Error::is_unsupported`] for an element type that no tensor
/// has, [`Error::is_io`] when it cannot be read.
pub fn read(file: &SafetensorsFile, name: &str) -> Result<Tensor> {
    let entry = file.entry(name)?;
    let Some(dtype) = entry.dtype else {
        return Err(Error::unsupported(format!(
            "{}: tensor `{name}` has element type {}",
            file.path().display(),
            entry.dtype_name
        )));
    };
    let mut storage = Storage::recycled(dtype, entry.shape.iter().product());
    file.read_into(name, storage.bytes_mut())?;
    Tensor::new(storage, &entry.shape)
}

/// Writes tensors to a file and waits until they are on the disk.
///
/// # Errors
/// [`Error::is_io`] when it cannot be written (a full disk).
pub fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let tensors: Vec<TensorBytes<'_>> = tensors
        .into_iter()
        .map(|(name, tensor)| TensorBytes {
            name,
            dtype: tensor.dtype(),
            shape: tensor.shape(),
            bytes: tensor.bytes(),
        })
        .collect();
    safetensors::write(path, &tensors, metadata)
}
