//! Tensors in safetensors files, read one at a time and checked before they are believed.
//!
//! Reading seeks and copies instead of mapping: a file that is cut short while it is read gives an error, not a
//! signal, and no second copy of the file is ever in memory.

use super::{Storage, Tensor};
use crate::dtype::DType;
use crate::error::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensorError, View};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The format's own limit on the header.
const LARGEST_HEADER: u64 = 100_000_000;

struct Entry {
    dtype: DType,
    shape: Vec<usize>,
    start: u64,
}

/// An open safetensors file whose header has been checked.
pub struct TensorFile {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Entry>,
    metadata: HashMap<String, String>,
}

impl TensorFile {
    /// Opens a file and checks its header against its length.
    ///
    /// # Errors
    /// [`Error::is_io`] when it cannot be read, [`Error::is_format`] when it is truncated or no safetensors file,
    /// [`Error::is_unsupported`] for an element type that no tensor has.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let io = |e| Error::io(format_args!("reading {}", path.display()), e);
        let bad = |what: String| Error::format(format!("{}: {what}", path.display()));
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length < 8 {
            return Err(bad(format!("{length} bytes is too short for a safetensors file")));
        }
        let mut prefix = [0u8; 8];
        file.read_exact(&mut prefix).map_err(io)?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > LARGEST_HEADER || header_length > length - 8 {
            return Err(bad(format!(
                "its header claims {header_length} bytes of a file of {length}: truncated, or no safetensors file"
            )));
        }
        let mut header = vec![0u8; header_length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&header).map_err(|e| bad(format!("header: {e}")))?;
        let data = 8 + header_length;
        let mut entries = BTreeMap::new();
        let mut metadata = HashMap::new();
        let mut spans = Vec::new();
        for (name, value) in header {
            if name == "__metadata__" {
                metadata = serde_json::from_value(value)
                    .map_err(|e| bad(format!("header: __metadata__: {e}")))?;
                continue;
            }
            let (entry, end) =
                entry(&name, value, length - data).map_err(|e| e.at(path.display()))?;
            spans.push((entry.start, end));
            entries.insert(name, Entry { start: data + entry.start, ..entry });
        }
        spans.sort_unstable();
        let mut covered = 0;
        for (start, end) in spans {
            if start != covered {
                return Err(bad(format!("its tensors overlap or leave a hole at byte {covered}")));
            }
            covered = end;
        }
        if covered != length - data {
            return Err(bad(format!(
                "its tensors end at byte {covered} of {}: truncated, or padded",
                length - data
            )));
        }
        Ok(TensorFile { path: path.to_path_buf(), file, entries, metadata })
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The element type and shape of a tensor; `None` when there is none of that name.
    pub fn info(&self, name: &str) -> Option<(DType, &[usize])> {
        self.entries.get(name).map(|entry| (entry.dtype, &*entry.shape))
    }

    /// The file's own string metadata.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// [`Error::is_format`] when there is none of that name, [`Error::is_io`] when it cannot be read.
    pub fn read(&mut self, name: &str) -> Result<Tensor> {
        let Some(entry) = self.entries.get(name) else {
            return Err(Error::format(format!("{}: no tensor `{name}`", self.path.display())));
        };
        let mut storage = Storage::recycled(entry.dtype, entry.shape.iter().product());
        let io = |e| Error::io(format_args!("reading `{name}` of {}", self.path.display()), e);
        self.file.seek(SeekFrom::Start(entry.start)).map_err(io)?;
        self.file.read_exact(storage.bytes_mut()).map_err(io)?;
        Tensor::new(storage, &entry.shape)
    }
}

/// Checks one header entry against the `available` bytes of data; returns it with its end.
fn entry(name: &str, value: serde_json::Value, available: u64) -> Result<(Entry, u64)> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Info {
        dtype: String,
        shape: Vec<usize>,
        data_offsets: (u64, u64),
    }
    let info: Info = serde_json::from_value(value)
        .map_err(|e| Error::format(format!("header of tensor `{name}`: {e}")))?;
    let dtype = match info.dtype.as_str() {
        "F32" => DType::F32,
        "BF16" => DType::Bf16,
        "F16" => DType::F16,
        "I32" => DType::I32,
        "I64" => DType::I64,
        "U8" => DType::U8,
        other => {
            return Err(Error::unsupported(format!(
                "tensor `{name}` has element type {other} (F32, BF16, F16, I32, I64 and U8 are read)"
            )));
        }
    };
    let bytes = info
        .shape
        .iter()
        .try_fold(dtype.size() as u64, |bytes, d| bytes.checked_mul(*d as u64))
        .ok_or_else(|| {
            Error::format(format!("tensor `{name}`: shape {:?} overflows", info.shape))
        })?;
    let (start, end) = info.data_offsets;
    if start > end || end > available || end - start != bytes {
        return Err(Error::format(format!(
            "tensor `{name}`: bytes {start}..{end} of {available} for {:?} {dtype} ({bytes} bytes)",
            info.shape
        )));
    }
    Ok((Entry { dtype, shape: info.shape, start }, end))
}

struct Stored<'a>(&'a Tensor);

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.0.dtype() {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::I32 => Dtype::I32,
            DType::I64 => Dtype::I64,
            DType::U8 => Dtype::U8,
        }
    }
    fn shape(&self) -> &[usize] {
        self.0.shape()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.0.bytes())
    }
    fn data_len(&self) -> usize {
        self.0.bytes().len()
    }
}

/// Writes tensors to a safetensors file and waits until they are on the disk.
///
/// The file appears under its name at once, complete or not: write into a temporary folder and rename that.
///
/// # Errors
/// [`Error::is_io`] when it cannot be written (a full disk).
pub fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let doing = format!("writing {}", path.display());
    let views = tensors.into_iter().map(|(name, tensor)| (name, Stored(tensor)));
    let metadata = Some(metadata).filter(|m| !m.is_empty());
    safetensors::serialize_to_file(views, metadata, path).map_err(|e| match e {
        SafeTensorError::IoError(e) => Error::io(&doing, e),
        other => Error::format(format!("{doing}: {other}")),
    })?;
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| Error::io(doing, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_hostile_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let a = Tensor::from_f32(vec![1.0, 2.0, 3.0], &[3]).unwrap();
        let b = Tensor::zeros(&[2, 0], DType::Bf16).unwrap();
        write(&path, [("a", &a), ("b", &b)], HashMap::from([("format".into(), "pt".into())]))
            .unwrap();
        let mut file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(file.read("a").unwrap().f32s().unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(file.info("b").unwrap(), (DType::Bf16, &[2usize, 0][..]));
        assert!(file.read("c").unwrap_err().is_format());

        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(TensorFile::open(&path).is_err(), "cut at {cut}");
        }
        let hostile = |header: &str, data: usize| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes());
            bytes.extend(std::iter::repeat_n(0u8, data));
            std::fs::write(&path, bytes).unwrap();
            TensorFile::open(&path).map(|_| ()).unwrap_err()
        };
        assert!(
            hostile("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,8]}}", 8)
                .is_format()
        );
        assert!(
            hostile("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8)
                .is_format()
        );
        let huge = "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,2],\"data_offsets\":[0,8]}}";
        assert!(hostile(huge, 8).is_format());
        assert!(
            hostile("{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[8],\"data_offsets\":[0,8]}}", 8)
                .is_unsupported()
        );
        assert!(
            hostile("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8)
                .is_format()
        );
        assert!(hostile("not json", 0).is_format());
    }
}
