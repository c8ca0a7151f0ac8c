//! A model's folder: `config.json` and `*.safetensors`, single or sharded, in the layout of Hugging Face.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::files::safetensors::SafetensorsFile;
use crate::ops;
use crate::tensor::Tensor;
use crate::tensor::file;
use serde_json::{Map, Value};
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

/// Refuses a path that is no folder of a model in the layout that is read here, with what it is and what to do.
///
/// # Errors
/// [`Error::is_io`] when there is nothing, [`Error::is_unsupported`] for adapters and weights in another format.
pub fn check(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Err(absent(dir));
    }
    if dir.is_file() {
        return Err(Error::invalid(
            "this is a file; a model is a folder with config.json, tokenizer.json and *.safetensors",
        ));
    }
    let has = |name: &str| dir.join(name).exists();
    let any = |ending: &str| {
        std::fs::read_dir(dir).ok().and_then(|entries| {
            let mut names: Vec<String> =
                entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
            names.sort_unstable();
            names.into_iter().find(|name| name.ends_with(ending))
        })
    };
    if has("adapter_config.json") && !has("config.json") {
        let base = read_json(&dir.join("adapter_config.json")).ok();
        let base = base.as_ref().and_then(|fields| fields.get("base_model_name_or_path")?.as_str());
        return Err(Error::unsupported(format!(
            "this is an adapter of {}, no whole model: merge it into that model first (peft's merge_and_unload, then \
             save_pretrained) and give the folder of the result",
            base.unwrap_or("another model")
        )));
    }
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return Ok(());
    }
    let pickled =
        ["pytorch_model.bin", "pytorch_model.bin.index.json"].into_iter().find(|n| has(n));
    if let Some(name) = pickled.map(String::from).or_else(|| any(".pth")).or_else(|| any(".pt")) {
        return Err(Error::unsupported(format!(
            "its weights are in `{name}`, a pickle, which can run code when it is read and is not read here: load it with \
             transformers and save it again (save_pretrained writes model.safetensors)"
        )));
    }
    if let Some(name) = any(".gguf") {
        return Err(Error::unsupported(format!(
            "its weights are in `{name}`, in the format of llama.cpp, most of them quantized: take the folder that it was \
             made from, with config.json and *.safetensors"
        )));
    }
    if let Some(name) = any(".safetensors") {
        return Err(Error::unsupported(format!(
            "it has `{name}`, but neither model.safetensors nor model.safetensors.index.json: files under other names hold \
             tensors under other names. Take the folder as transformers saves it (save_pretrained)"
        )));
    }
    Ok(())
}

fn absent(dir: &Path) -> Error {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    // A program makes paths absolute, so the name of a model on a hub is the end of one, in a folder that is not there either.
    let owner = dir.parent().filter(|owner| !owner.as_os_str().is_empty() && !owner.exists());
    let name_of = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let names = owner.and_then(name_of).zip(name_of(dir));
    let says = match names.filter(|(owner, model)| plain(owner) && plain(model)) {
        Some((owner, model)) => format!(
            "there is no such folder; if {owner}/{model} is the name of a model on a hub, download it first (`hf download \
             {owner}/{model} --local-dir {model}`) and give the folder"
        ),
        None => "there is no such folder".to_owned(),
    };
    Error::io(says, std::io::ErrorKind::NotFound.into())
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

/// Writes `config.json` and `model.safetensors` into an existing folder.
///
/// # Errors
/// [`Error::is_io`] when they cannot be written.
pub(super) fn write<'a>(
    dir: &Path,
    config: &Value,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
) -> Result<()> {
    let path: PathBuf = dir.join("config.json");
    std::fs::write(&path, format!("{config:#}\n"))
        .and_then(|()| std::fs::File::open(&path)?.sync_all())
        .map_err(|e| Error::io(format_args!("writing {}", path.display()), e))?;
    file::write(&dir.join("model.safetensors"), tensors, &[("format", "pt")])
}
