//! One case: its metadata, its tensors, and the comparison of what was computed with what is wanted.

use crate::config::Config;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[derive(Debug, PartialEq)]
pub enum Outcome {
    Passed,
    /// Left out, and why.
    Skipped(String),
}

#[derive(Clone, Debug)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

impl Array {
    pub fn f32(&self) -> Vec<f32> {
        self.values.iter().map(|x| *x as f32).collect()
    }

    pub fn i32(&self) -> Vec<i32> {
        self.values.iter().map(|x| *x as i32).collect()
    }

    /// The two dimensions of a matrix.
    pub fn matrix(&self) -> Result<[usize; 2], String> {
        self.shape
            .as_slice()
            .try_into()
            .map_err(|_| format!("shape {:?} where a matrix is wanted", self.shape))
    }
}

pub struct Case {
    pub op: String,
    pub config: Config,
    tensors: BTreeMap<String, Array>,
    read: BTreeSet<String>,
    relative: f64,
    absolute: f64,
    /// Errors are relative to the largest entry of a tensor.
    extreme: bool,
    nan_ok: Vec<String>,
}

impl Case {
    pub fn read(path: &Path) -> Result<Case, String> {
        let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| e.to_string())?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let field = |name: &str| {
            metadata.get(name).ok_or_else(|| format!("metadata field `{name}` is missing"))
        };
        for name in metadata.keys() {
            if !["op", "config", "source", "tolerance", "note"].contains(&name.as_str()) {
                return Err(format!("unknown metadata field `{name}`"));
            }
        }
        let mut config = Config::parse(field("config")?)?;
        let mut tolerance = Config::parse(field("tolerance")?)?;
        let (relative, absolute) = (tolerance.need("rtol")?, tolerance.need("atol")?);
        tolerance.finish()?;
        // How the inputs were drawn: of its values this one has a meaning.
        let extreme = config.text("kind")?.is_some_and(|kind| kind == "extreme");
        let nan_ok = config.texts("nan_ok")?.unwrap_or_default();
        let file = SafeTensors::deserialize(&bytes).map_err(|e| e.to_string())?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let values = decode(view.dtype(), view.data()).ok_or_else(|| {
                format!("tensor `{name}` has the unknown type {:?}", view.dtype())
            })?;
            tensors.insert(name.to_string(), Array { shape: view.shape().to_vec(), values });
        }
        let op = field("op")?.clone();
        let read = BTreeSet::new();
        Ok(Case { op, config, tensors, read, relative, absolute, extreme, nan_ok })
    }

    /// A tensor that may be absent.
    pub fn optional(&mut self, name: &str) -> Option<Array> {
        self.read.insert(name.to_string());
        self.tensors.get(name).cloned()
    }

    /// Says whether the tensor is there, without having used it.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn tensor(&mut self, name: &str) -> Result<Array, String> {
        self.optional(name).ok_or_else(|| format!("tensor `{name}` is missing"))
    }

    /// Compares `got` with the tensor `name`, if the case has it.
    pub fn compare<T: Copy + Into<f64>>(&mut self, name: &str, got: &[T]) -> Result<(), String> {
        let Some(want) = self.optional(name) else { return Ok(()) };
        if want.values.len() != got.len() {
            return Err(format!("{name} has {} values, not {}", want.values.len(), got.len()));
        }
        let largest = want.values.iter().fold(0f64, |max, x| max.max(x.abs()));
        let nan_is_free = self.nan_ok.iter().any(|free| free == name);
        for (i, (got, want)) in got.iter().zip(&want.values).enumerate() {
            let got: f64 = (*got).into();
            let scale = if self.extreme { largest } else { want.abs() };
            let near = (got - want).abs() <= self.absolute + self.relative * scale;
            let same = got == *want || (want.is_nan() && (got.is_nan() || nan_is_free));
            if !near && !same {
                return Err(format!("{name}[{i}] is {got:e}, wanted {want:e}"));
            }
        }
        Ok(())
    }

    /// Fails on a config field or tensor that was not used.
    pub fn finish(&self) -> Result<(), String> {
        self.config.finish()?;
        match self.tensors.keys().find(|name| !self.read.contains(*name)) {
            Some(name) => Err(format!("tensor `{name}` was not used")),
            None => Ok(()),
        }
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f64>> {
    fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
    }
    Some(match dtype {
        Dtype::F64 => each(bytes, f64::from_le_bytes),
        Dtype::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
        Dtype::U8 => each(bytes, |[b]| f64::from(b)),
        _ => return None,
    })
}
