//! A decoder's folder: `config.json` and `*.safetensors`, single or sharded, in the layout of Hugging Face.

use super::config::{Architecture, DecoderConfig};
use super::decoder::Decoder;
use super::llada;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::files::safetensors::SafetensorsFile;
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

/// What a tensor is called in the files of an architecture; here it has Llama's name.
fn published_name(architecture: Architecture, name: &str) -> Cow<'_, str> {
    match architecture {
        Architecture::Llada => llada::tensor_name(name),
        _ => name.into(),
    }
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

/// Writes `config.json` into an existing folder.
///
/// # Errors
/// [`Error::is_io`] when it cannot be written.
pub(super) fn write_config(dir: &Path, config: &Value) -> Result<()> {
    let path: PathBuf = dir.join("config.json");
    std::fs::write(&path, format!("{config:#}\n"))
        .and_then(|()| std::fs::File::open(&path)?.sync_all())
        .map_err(|e| Error::io(format_args!("writing {}", path.display()), e))
}

impl Decoder {
    /// Loads the folder of a published model.
    ///
    /// `dtype` is the type to hold the weights in; `None` keeps that of the file.
    ///
    /// # Errors
    /// [`Error::is_io`] for a missing file, [`Error::is_format`] for a broken one, [`Error::is_unsupported`] for a
    /// model that is not covered, [`Error::is_shape`] for a tensor that does not fit the config.
    pub fn load(dir: &Path, dtype: Option<DType>) -> Result<Decoder> {
        Decoder::load_on(dir, dtype, &Device::Cpu)
    }

    /// [`Decoder::load`] onto `device`, tensor by tensor.
    ///
    /// # Errors
    /// As [`Decoder::load`], and [`Error::is_state`] when the device has no memory.
    pub fn load_on(dir: &Path, dtype: Option<DType>, device: &Device) -> Result<Decoder> {
        let load = || {
            let config = DecoderConfig::from_json(read_json(&dir.join("config.json"))?)?;
            let mut weights = Weights::open(dir)?;
            let (tied, architecture) = (config.tied, config.architecture);
            let mut value = |name: &str, _: &[usize]| {
                weights.take(&published_name(architecture, name), dtype, device)
            };
            let decoder = Decoder::build(config, &mut value)?;
            // A tied model may carry the head again, and old exports carry rotary buffers.
            let head = published_name(architecture, "lm_head.weight");
            weights.check_taken(architecture.model_type(), |name| {
                (tied && name == head) || name.ends_with("rotary_emb.inv_freq")
            })?;
            let first = decoder.dtype();
            if let Some(other) = decoder.parameters().iter().find(|p| p.value().dtype() != first) {
                return Err(Error::unsupported(format!(
                    "weights of {first} and of {} (`{}`); choose one dtype for all",
                    other.value().dtype(),
                    other.name()
                )));
            }
            Ok(decoder)
        };
        load().map_err(|e: Error| e.at(dir.display()))
    }

    /// Writes `config.json` and `model.safetensors` into an existing folder, in the layout that [`Decoder::load`] and
    /// Hugging Face read.
    ///
    /// # Errors
    /// [`Error::is_io`] when they cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_config(dir, &self.config().to_json(self.dtype()))?;
        let architecture = self.config().architecture;
        let names: Vec<_> =
            self.parameters().iter().map(|p| published_name(architecture, p.name())).collect();
        let tensors = names.iter().zip(self.parameters().iter()).map(|(n, p)| (&**n, p.value()));
        file::write(&dir.join("model.safetensors"), tensors, &[("format", "pt")])
    }
}
