//! Tensors to and from safetensors files. The format itself is [`files`](crate::files)'s.

use super::{Storage, Tensor};
use crate::device::Device;
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

/// Writes tensors to a file and waits until they are on the disk; device memory is copied to the host first.
///
/// # Errors
/// [`Error::is_io`] when it cannot be written (a full disk), and what a device reports.
pub fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let tensors: Vec<(&str, Tensor)> = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)))
        .collect::<Result<_>>()?;
    let tensors: Vec<TensorBytes<'_>> = tensors
        .iter()
        .map(|(name, tensor)| {
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            Ok(TensorBytes { name, dtype, shape, bytes: tensor.bytes()? })
        })
        .collect::<Result<_>>()?;
    safetensors::write(path, &tensors, metadata)
}
