//! Reading and writing the safetensors format.
//!
//! A file is 8 bytes of header length, a JSON header, and the tensors' bytes. Everything a header claims is checked
//! against the file before a tensor is read: its length, every dtype, every shape times its element size, offsets in
//! order without holes or overlaps to the last byte. Tensors are read one at a time into the caller's memory.

use crate::dtype::DType;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Headers above this are hostile; the format's reference implementation refuses them too.
const LARGEST_HEADER: u64 = 100_000_000;

/// A tensor to be written: little-endian, row-major.
#[derive(Clone, Copy, Debug)]
pub struct TensorBytes<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Its dimensions; none for a scalar.
    pub shape: &'a [usize],
    /// Exactly `dtype.size()` times the product of `shape` bytes.
    pub bytes: &'a [u8],
}

/// What a file says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// The dtype as written in the file (`F32`, `BF16`, …).
    pub dtype_name: String,
    /// The same as a [`DType`]; `None` for one that this library does not compute with.
    pub dtype: Option<DType>,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<usize>,
    start: u64,
    bytes: usize,
}

/// An open file with a checked header.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    entries: BTreeMap<String, TensorEntry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl SafetensorsFile {
    /// Opens a file and checks all that its header claims.
    ///
    /// # Errors
    /// [`Error::is_io`] when it cannot be read, [`Error::is_format`] when it is not what it says it is.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        let io = |e| Error::io(format!("reading {}", path.display()), e);
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let bad = |what: String| Error::format(format!("{}: {what}", path.display()));
        let mut size = [0u8; 8];
        if length < 8 {
            return Err(bad(format!("{length} bytes are not a safetensors file")));
        }
        file.read_exact(&mut size).map_err(io)?;
        let size = u64::from_le_bytes(size);
        if size > LARGEST_HEADER || size > length - 8 {
            return Err(bad(format!(
                "not a safetensors file, or cut off: a header of {size} bytes in a file of {length}"
            )));
        }
        let mut header = vec![0u8; size as usize];
        file.read_exact(&mut header).map_err(io)?;
        let (entries, metadata) =
            parse(&header, length - 8 - size).map_err(|e| e.at(path.display()))?;
        let entries = entries
            .into_iter()
            .map(|(name, entry)| (name, TensorEntry { start: entry.start + 8 + size, ..entry }))
            .collect();
        Ok(SafetensorsFile { path: path.to_path_buf(), file: Mutex::new(file), entries, metadata })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor, by name.
    pub fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    /// The header's free text.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What the file says of one tensor.
    ///
    /// # Errors
    /// [`Error::is_format`] naming the tensor and the file when it is not there.
    pub fn entry(&self, name: &str) -> Result<&TensorEntry> {
        self.entries.get(name).ok_or_else(|| {
            let (path, count) = (self.path.display(), self.entries.len());
            Error::format(format!("{path}: no tensor `{name}` (it has {count})"))
        })
    }

    /// Reads one tensor's bytes (little-endian, row-major).
    ///
    /// # Errors
    /// [`Error::is_format`] when it is not there, [`Error::is_dtype`] when its dtype is none of [`DType`],
    /// [`Error::is_io`] when the file has changed since it was opened.
    pub fn read(&self, name: &str) -> Result<(DType, Vec<usize>, Vec<u8>)> {
        let entry = self.entry(name)?;
        let mut bytes = vec![0u8; entry.bytes];
        let dtype = self.read_into(name, &mut bytes)?;
        Ok((dtype, entry.shape.clone(), bytes))
    }

    /// Reads one tensor's bytes into memory of exactly its size, and tells its dtype.
    ///
    /// # Errors
    /// As [`SafetensorsFile::read`], and [`Error::is_shape`] when `out` has another size.
    pub fn read_into(&self, name: &str, out: &mut [u8]) -> Result<DType> {
        let entry = self.entry(name)?;
        let place = || format!("{}: tensor `{name}`", self.path.display());
        let Some(dtype) = entry.dtype else {
            return Err(Error::dtype(format!(
                "{}: dtype {} is not supported",
                place(),
                entry.dtype_name
            )));
        };
        if out.len() != entry.bytes {
            let (place, have, want) = (place(), entry.bytes, out.len());
            return Err(Error::shape(format!("{place} has {have} bytes, {want} are wanted")));
        }
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut read = || {
            file.seek(SeekFrom::Start(entry.start))?;
            file.read_exact(out)
        };
        read().map_err(|e| Error::io(format!("reading {}", place()), e))?;
        Ok(dtype)
    }
}

type Header = (BTreeMap<String, TensorEntry>, BTreeMap<String, String>);

fn parse(header: &[u8], data: u64) -> Result<Header> {
    let bad =
        |e: serde_json::Error| Error::format(format!("the safetensors header is damaged: {e}"));
    let fields: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(bad)?;
    let (mut entries, mut metadata) = (BTreeMap::new(), BTreeMap::new());
    for (name, value) in fields {
        if name == "__metadata__" {
            metadata = serde_json::from_value(value).map_err(bad)?;
            continue;
        }
        let place = |what: String| Error::format(format!("tensor `{name}`: {what}"));
        let info: Info = serde_json::from_value(value).map_err(|e| place(e.to_string()))?;
        let Info { dtype: dtype_name, shape, data_offsets: (start, end) } = info;
        let (bits, dtype) =
            element(&dtype_name).ok_or_else(|| place(format!("unknown dtype {dtype_name}")))?;
        let expected = shape
            .iter()
            .try_fold(bits, |bits, n| bits.checked_mul(*n as u64))
            .filter(|bits| bits % 8 == 0)
            .map(|bits| bits / 8)
            .ok_or_else(|| place(format!("no such size: {shape:?} of {dtype_name}")))?;
        if start > end || end > data || end - start != expected {
            return Err(place(format!(
                "{shape:?} {dtype_name} needs {expected} bytes, but its offsets are {start}..{end} of {data}: the file is \
                 cut off or damaged"
            )));
        }
        let bytes = usize::try_from(expected).map_err(|e| place(e.to_string()))?;
        entries.insert(name, TensorEntry { dtype_name, dtype, shape, start, bytes });
    }
    let mut ranges: Vec<(u64, u64)> =
        entries.values().map(|e| (e.start, e.start + e.bytes as u64)).collect();
    ranges.sort_unstable();
    let end = ranges.iter().try_fold(0, |at, (start, end)| (*start == at).then_some(*end));
    if end != Some(data) {
        return Err(Error::format(
            "tensors overlap or leave holes: the file is cut off or damaged",
        ));
    }
    Ok((entries, metadata))
}

/// Bits of an element and the [`DType`] where there is one.
fn element(name: &str) -> Option<(u64, Option<DType>)> {
    Some(match name {
        "F32" => (32, Some(DType::F32)),
        "BF16" => (16, Some(DType::Bf16)),
        "F16" => (16, Some(DType::F16)),
        "I32" => (32, Some(DType::I32)),
        "I64" => (64, Some(DType::I64)),
        "U8" => (8, Some(DType::U8)),
        "F64" | "U64" | "C64" => (64, None),
        "U32" => (32, None),
        "I16" | "U16" => (16, None),
        "I8" | "BOOL" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => {
            (8, None)
        }
        "F4" => (4, None),
        "F6_E2M3" | "F6_E3M2" => (6, None),
        _ => return None,
    })
}

fn element_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::Bf16 => "BF16",
        DType::F16 => "F16",
        DType::I32 => "I32",
        DType::I64 => "I64",
        DType::U8 => "U8",
    }
}

/// Writes tensors to a file, in the order given, with `metadata` as the header's free text.
///
/// Not atomic by itself: write into the folder of [`super::atomic::write_folder`].
///
/// # Errors
/// [`Error::is_shape`] when bytes and shape disagree, [`Error::is_invalid`] for two tensors of one name,
/// [`Error::is_io`] when the disk does not take it.
pub fn write(path: &Path, tensors: &[TensorBytes<'_>], metadata: &[(&str, &str)]) -> Result<()> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let text: serde_json::Map<_, _> =
            metadata.iter().map(|(key, value)| ((*key).to_string(), (*value).into())).collect();
        header.insert("__metadata__".into(), text.into());
    }
    let mut at = 0;
    for TensorBytes { name, dtype, shape, bytes } in tensors {
        let expected = shape.iter().try_fold(dtype.size(), |size, n| size.checked_mul(*n));
        if expected != Some(bytes.len()) {
            let have = bytes.len();
            return Err(Error::shape(format!(
                "writing `{name}`: {shape:?} {dtype} is not {have} bytes"
            )));
        }
        let entry = serde_json::json!({
            "dtype": element_name(*dtype), "shape": shape, "data_offsets": [at, at + bytes.len()]
        });
        if *name == "__metadata__" || header.insert((*name).to_string(), entry).is_some() {
            return Err(Error::invalid(format!(
                "writing {}: two tensors named `{name}`",
                path.display()
            )));
        }
        at += bytes.len();
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // Tensors start at a multiple of 8 so that a reader may map them.
    header.resize(header.len().next_multiple_of(8), b' ');
    let put = || {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for tensor in tensors {
            file.write_all(tensor.bytes)?;
        }
        file.flush()?;
        file.get_ref().sync_all().or_else(|e| {
            // A pipe or a device cannot be synced; what it took is written.
            if e.kind() == std::io::ErrorKind::InvalidInput { Ok(()) } else { Err(e) }
        })
    };
    put().map_err(|e| Error::io(format!("writing {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let floats: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let tensors = [
            TensorBytes { name: "b", dtype: DType::F32, shape: &[2, 3], bytes: &floats },
            TensorBytes { name: "a", dtype: DType::Bf16, shape: &[], bytes: &[1, 2] },
            TensorBytes { name: "empty", dtype: DType::I64, shape: &[0, 4], bytes: &[] },
        ];
        write(&path, &tensors, &[("format", "pt")]).unwrap();
        std::fs::read(path).unwrap()
    }

    fn open(bytes: &[u8]) -> Result<SafetensorsFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, bytes).unwrap();
        SafetensorsFile::open(&path)
    }

    fn with_header(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn what_is_written_is_read_here_and_by_the_reference_crate() {
        let bytes = example();
        let file = open(&bytes).unwrap();
        let (dtype, shape, read) = file.read("b").unwrap();
        assert_eq!((dtype, shape.as_slice()), (DType::F32, &[2, 3][..]));
        assert_eq!(read[20..], 5f32.to_le_bytes());
        assert_eq!(file.read("a").unwrap(), (DType::Bf16, vec![], vec![1, 2]));
        assert_eq!(file.metadata()["format"], "pt");
        let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for name in ["a", "b", "empty"] {
            assert_eq!(reference.tensor(name).unwrap().data(), file.read(name).unwrap().2);
            assert_eq!(reference.tensor(name).unwrap().shape(), file.read(name).unwrap().1);
        }
        let view = |d| {
            ::safetensors::tensor::TensorView::new(::safetensors::Dtype::F64, vec![1], d).unwrap()
        };
        let theirs = ::safetensors::serialize([("z", view(&[0; 8]))], None).unwrap();
        let file = open(&theirs).unwrap();
        assert_eq!(file.entry("z").unwrap().dtype_name, "F64");
        assert!(file.read("z").unwrap_err().is_dtype());
    }

    #[test]
    fn wrong_requests_are_errors() {
        let file = open(&example()).unwrap();
        assert!(file.read("c").unwrap_err().to_string().contains("no tensor `c`"));
        assert!(file.read_into("a", &mut [0; 3]).unwrap_err().is_shape());
        let path = Path::new("/nonexistent/x");
        assert!(write(path, &[], &[]).unwrap_err().is_io());
        let one = TensorBytes { name: "a", dtype: DType::U8, shape: &[1], bytes: &[0] };
        assert!(write(path, &[one, one], &[]).unwrap_err().is_invalid());
        assert!(write(path, &[TensorBytes { shape: &[2], ..one }], &[]).unwrap_err().is_shape());
        assert!(
            write(path, &[TensorBytes { shape: &[usize::MAX, 2], ..one }], &[])
                .unwrap_err()
                .is_shape()
        );
        assert!(SafetensorsFile::open(path).unwrap_err().is_io());
    }

    #[test]
    fn hostile_headers_are_format_errors() {
        let tensor = |dtype: &str, shape: &str, range: &str| {
            with_header(
                &format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{range}}}}}"#),
                8,
            )
        };
        assert!(open(&tensor("F32", "[2]", "[0,8]")).is_ok());
        for (bytes, says) in [
            (vec![], "0 bytes"),
            (vec![1, 2, 3], "3 bytes"),
            (u64::MAX.to_le_bytes().to_vec(), "cut off"),
            (200u64.to_le_bytes().to_vec(), "cut off"),
            (with_header("", 0), "damaged"),
            (with_header("[]", 0), "damaged"),
            (with_header("{\"a\": 1}", 0), "tensor `a`"),
            (with_header("\u{7f}{}", 0), "damaged"),
            (with_header("{}", 4), "holes"),
            (tensor("F99", "[2]", "[0,8]"), "unknown dtype F99"),
            (tensor("F32", "[3]", "[0,8]"), "needs 12 bytes"),
            (tensor("F32", "[2]", "[8,0]"), "offsets are 8..0"),
            (tensor("F32", "[2]", "[4,12]"), "of 8"),
            (tensor("F32", "[1]", "[4,8]"), "holes"),
            (tensor("F32", "[-1]", "[0,8]"), "tensor `a`"),
            (tensor("F32", "[18446744073709551615,18446744073709551615]", "[0,8]"), "no such size"),
            (tensor("F4", "[3]", "[0,8]"), "no such size"),
            (tensor("F32", "[2]", "[0,8],\"more\":1"), "unknown field"),
            (tensor("F32", "[2]", "[0,1e99]"), "tensor `a`"),
            (
                with_header(
                    r#"{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}}"#,
                    8,
                ),
                "overlap",
            ),
            (with_header(r#"{"__metadata__":{"a":1}}"#, 0), "damaged"),
        ] {
            let error = open(&bytes).unwrap_err();
            assert!(error.is_format() && error.to_string().contains(says), "{error} / {says}");
        }
    }

    #[test]
    fn every_cut_is_an_error() {
        let whole = example();
        for length in 0..whole.len() {
            assert!(open(&whole[..length]).unwrap_err().is_format(), "{length} of {}", whole.len());
        }
    }

    #[test]
    fn a_full_disk_is_an_error() {
        if !Path::new("/dev/full").exists() {
            eprintln!("SKIPPED: no /dev/full here");
            return;
        }
        let bytes = vec![0; 1 << 21];
        let tensor = TensorBytes { name: "a", dtype: DType::U8, shape: &[1 << 21], bytes: &bytes };
        assert!(write(Path::new("/dev/full"), &[tensor], &[]).unwrap_err().is_io());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_flipped_byte_never_panics(at in 0usize..400, value: u8) {
            let mut bytes = example();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(file) = open(&bytes) {
                for name in file.entries().keys() {
                    let _ = file.read(name);
                }
            }
        }
    }
}
