//! A decoder's folder: `config.json` and `*.safetensors`, single or sharded, in the layout of Hugging Face.

use super::config::{Architecture, DecoderConfig};
use super::decoder::Decoder;
use super::llada;
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
struct Weights {
    files: Vec<SafetensorsFile>,
    place: HashMap<String, usize>,
}

impl Weights {
    fn open(dir: &Path) -> Result<Weights> {
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

    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        match self.place.remove(name) {
            Some(which) => file::read(&self.files[which], name).map(Some),
            None => Ok(None),
        }
    }
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
        let config = DecoderConfig::from_json(read_json(&dir.join("config.json"))?)
            .map_err(|e| e.at(dir.display()))?;
        let mut weights = Weights::open(dir)?;
        let (tied, architecture) = (config.tied, config.architecture);
        let mut value = |name: &str, shape: &[usize]| {
            let name = &*published_name(architecture, name);
            let Some(tensor) = weights.take(name)? else {
                return Err(Error::format(format!("no tensor `{name}` {shape:?}")));
            };
            match dtype {
                Some(dtype) if dtype != tensor.dtype() => ops::cast(&tensor, dtype),
                _ => Ok(tensor),
            }
        };
        let decoder = Decoder::build(config, &mut value).map_err(|e| e.at(dir.display()))?;
        // A tied model may carry the head again, and old exports carry rotary buffers.
        let head = published_name(architecture, "lm_head.weight");
        let ignorable =
            |name: &str| (tied && name == head) || name.ends_with("rotary_emb.inv_freq");
        let mut left: Vec<&String> = weights.place.keys().filter(|name| !ignorable(name)).collect();
        left.sort_unstable();
        if let Some(name) = left.first() {
            return Err(Error::unsupported(format!(
                "{}: tensor `{name}` has no place in a {} model ({} such tensors)",
                dir.display(),
                decoder.config().architecture.model_type(),
                left.len()
            )));
        }
        let first = decoder.dtype();
        if let Some(other) = decoder.parameters().iter().find(|p| p.value().dtype() != first) {
            return Err(Error::unsupported(format!(
                "{}: weights of {first} and of {} (`{}`); choose one dtype for all",
                dir.display(),
                other.value().dtype(),
                other.name()
            )));
        }
        Ok(decoder)
    }

    /// Writes `config.json` and `model.safetensors` into an existing folder, in the layout that [`Decoder::load`] and
    /// Hugging Face read.
    ///
    /// # Errors
    /// [`Error::is_io`] when they cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path: PathBuf = dir.join("config.json");
        let text = format!("{:#}\n", self.config().to_json(self.dtype()));
        std::fs::write(&path, text)
            .and_then(|()| std::fs::File::open(&path)?.sync_all())
            .map_err(|e| Error::io(format_args!("writing {}", path.display()), e))?;
        let architecture = self.config().architecture;
        let names: Vec<_> =
            self.parameters().iter().map(|p| published_name(architecture, p.name())).collect();
        let tensors = names.iter().zip(self.parameters().iter()).map(|(n, p)| (&**n, p.value()));
        file::write(&dir.join("model.safetensors"), tensors, &[("format", "pt")])
    }
}
