//! A decoder's folder: published names, its own type for all weights, and nothing that has no place in the model.

use super::config::DecoderConfig;
use super::decoder::Decoder;
use super::folder::{self, Weights, read_json};
use super::stacked::{Unstacking, stack_of, stacked};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::path::Path;

impl Decoder {
    /// Loads the folder of a published model.
    ///
    /// `dtype` is the type to hold the weights in; `None` keeps that of the file. Where the file has several (matrices in bf16
    /// and norms in f32), it is the one that `config.json` names, as in `transformers`, and without a name the widest.
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
            folder::check(dir)?;
            let config = DecoderConfig::from_json(read_json(&dir.join("config.json"))?)?;
            let mut weights = Weights::open(dir)?;
            let (tied, architecture) = (config.tied, config.architecture);
            // A tied model may carry the head again, and old exports carry rotary buffers.
            let head = architecture.tensor_name("lm_head.weight");
            let ignorable =
                |name: &str| (tied && name == head) || name.ends_with("rotary_emb.inv_freq");
            let dtype = match (dtype, &weights.float_types(ignorable)[..]) {
                (None, [first, others @ ..]) if others.iter().any(|other| other != first) => {
                    // As transformers does: all in the type that the config names; f32 holds every value of the others.
                    Some(config.dtype.filter(|dtype| dtype.is_float()).unwrap_or(DType::F32))
                }
                (dtype, _) => dtype,
            };
            let mut stacks = Unstacking::default();
            let mut value = |name: &str, shape: &[usize]| match stack_of(architecture.stacked, name)
            {
                Some(stack) => {
                    stacks.take(stack, shape, |tensor| weights.take(tensor, dtype, device))
                }
                None => weights.take(&architecture.tensor_name(name), dtype, device),
            };
            let decoder = Decoder::build(config, &mut value)?;
            weights.check_taken(architecture.model_type, ignorable)?;
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
        let architecture = self.config().architecture;
        let config = self.config().to_json(self.dtype());
        let own = self.parameters().iter().map(|p| (p.name(), p.value()));
        let tensors =
            stacked(architecture.stacked, own, |name| architecture.tensor_name(name).into_owned())?;
        folder::write(dir, &config, tensors.iter().map(|(name, value)| (&**name, value)))
    }
}
