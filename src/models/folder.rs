//! A model's folder: `config.json` and `*.safetensors`, single or sharded, in the layout of Hugging Face.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::files::safetensors::SafetensorsFile;
use crate::nn::Parameters;
use crate::ops;
use crate::tensor::Tensor;
use crate::tensor::file;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Reads a JSON file that holds an object.
///
/// # Errors
/// [`Error::is_io`] when it cannot be read, [`Error::is_format`] when it is no JSON object.
pub fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::io(format_args!("reading {}", path.display()), e))?;
    serde_json::from_str(&text).map_err(|e| Error::format(format!("{}: {e}", path.display())))
}

/// Which open file holds which tensor.
pub(super) struct Weights {
    files: Vec<SafetensorsFile>,
    place: HashMap<String, usize>,
}

impl Weights {
    pub(super) fn open(dir: &Path) -> Result<Weights> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let mut weights = Weights { files: Vec::new(), place: HashMap::new() };
        if single.exists() || !index.exists() {
            weights.add(&single)?;
            return Ok(weights);
        }
        let index_name = index.display();
        let Some(Value::Object(map)) = read_json(&index)?.remove("weight_map") else {
            return Err(Error::format(format!("{index_name}: weight_map is missing")));
        };
        let mut shards = Vec::new();
        for (name, shard) in &map {
            // A name with a separator could lead out of the folder.
            match shard.as_str() {
                Some(shard) if !shard.contains(['/', '\\']) && shard != ".." => shards.push(shard),
                _ => return Err(Error::format(format!("{index_name}: `{name}` is in {shard}"))),
            }
        }
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            weights.add(&dir.join(shard))?;
        }
        if let Some(name) = map.keys().find(|name| !weights.place.contains_key(*name)) {
            return Err(Error::format(format!("{index_name}: `{name}` is not in its shard")));
        }
        Ok(weights)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = SafetensorsFile::open(path)?;
        for name in file.entries().keys() {
            if self.place.insert(name.clone(), self.files.len()).is_some() {
                return Err(Error::format(format!(
                    "{}: `{name}` is in two shards",
                    path.display()
                )));
            }
        }
        self.files.push(file);
        Ok(())
    }

    /// The type of each tensor of floats, but for those that `ignorable` names.
    pub(super) fn float_types(&self, ignorable: impl Fn(&str) -> bool) -> Vec<DType> {
        let entries = self.files.iter().flat_map(|file| file.entries());
        let wanted = entries.filter(|(name, _)| !ignorable(name));
        wanted.filter_map(|(_, entry)| entry.dtype).filter(|dtype| dtype.is_float()).collect()
    }

    /// A tensor on `device`, in `dtype` or that of the file; it is not in the files' list after that.
    ///
    /// # Errors
    /// [`Error::is_format`] when it is not there, and what reading it and the device report.
    pub(super) fn take(
        &mut self,
        name: &str,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Tensor> {
        let Some(which) = self.place.remove(name) else {
            return Err(Error::format(format!("no tensor `{name}`")));
        };
        let tensor = file::read(&self.files[which], name)?;
        let tensor = match dtype {
            Some(dtype) if dtype != tensor.dtype() => ops::cast(&tensor, dtype)?,
            _ => tensor,
        };
        tensor.to_device(device)
    }

    /// Refuses tensors that nobody took and `ignorable` does not name.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] naming the first of them.
    pub(super) fn check_taken(&self, model: &str, ignorable: impl Fn(&str) -> bool) -> Result<()> {
        let mut left: Vec<&String> = self.place.keys().filter(|name| !ignorable(name)).collect();
        left.sort_unstable();
        match left.first() {
            Some(name) => Err(Error::unsupported(format!(
                "tensor `{name}` has no place in a {model} model ({} such tensors)",
                left.len()
            ))),
            None => Ok(()),
        }
    }
}

/// Writes `config.json` and `model.safetensors` into an existing folder, each parameter under its name there.
///
/// # Errors
/// [`Error::is_io`] when they cannot be written.
pub(super) fn write(
    dir: &Path,
    config: &Value,
    parameters: &Parameters,
    name: impl Fn(&str) -> Cow<'_, str>,
) -> Result<()> {
    let path: PathBuf = dir.join("config.json");
    std::fs::write(&path, format!("{config:#}\n"))
        .and_then(|()| std::fs::File::open(&path)?.sync_all())
        .map_err(|e| Error::io(format_args!("writing {}", path.display()), e))?;
    let names: Vec<_> = parameters.iter().map(|parameter| name(parameter.name())).collect();
    let tensors = names.iter().zip(parameters.iter()).map(|(n, p)| (&**n, p.value()));
    file::write(&dir.join("model.safetensors"), tensors, &[("format", "pt")])
}
