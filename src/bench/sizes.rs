//! The sizes and types that a family is measured in: its own, or those that were asked for.

use crate::DType;
use crate::error::{Error, Result};

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Sizes {
    /// Tiny sizes of its own.
    pub(super) quick: bool,
    /// In place of its own; none: its own.
    pub(super) shapes: Vec<Vec<usize>>,
    /// In place of its own; none: its own.
    pub(super) dtypes: Vec<DType>,
}

/// What may be asked of a family.
pub(super) struct Freedom {
    /// What the numbers of a shape are.
    pub(super) dims: &'static [&'static str],
    pub(super) dtypes: &'static [DType],
}

/// The element types of tensors.
pub(super) const FLOATS: &[DType] = &[DType::F32, DType::Bf16, DType::F16];

impl Sizes {
    /// Own shapes or types were asked for.
    pub(super) fn asked(&self) -> bool {
        !self.shapes.is_empty() || !self.dtypes.is_empty()
    }

    /// The shapes to measure.
    pub(super) fn shapes<const N: usize>(&self, own: &[[usize; N]]) -> Vec<[usize; N]> {
        let asked: Vec<[usize; N]> =
            self.shapes.iter().filter_map(|shape| shape[..].try_into().ok()).collect();
        if asked.is_empty() { own.to_vec() } else { asked }
    }

    /// The types to measure.
    pub(super) fn dtypes(&self, own: &[DType]) -> Vec<DType> {
        if self.dtypes.is_empty() { own.to_vec() } else { self.dtypes.clone() }
    }

    /// Checks that a family can be measured so.
    ///
    /// # Errors
    /// [`Error::is_invalid`] with what it takes.
    pub(super) fn check(&self, name: &str, freedom: Option<&Freedom>, free: &[&str]) -> Result<()> {
        if !self.asked() {
            return Ok(());
        }
        let Some(Freedom { dims, dtypes }) = freedom else {
            let free = free.join(", ");
            return Err(Error::invalid(format!(
                "bench: {name} is measured in sizes and types of its own\n--shapes and --dtype are for {free}"
            )));
        };
        if let Some(dtype) = self.dtypes.iter().find(|dtype| !dtypes.contains(dtype)) {
            let known: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
            let known = known.join(", ");
            return Err(Error::invalid(format!(
                "bench: {name} is not for {dtype}; it takes {known}"
            )));
        }
        for shape in &self.shapes {
            let elements = shape.iter().try_fold(1usize, |n, len| n.checked_mul(*len));
            let fits = elements.is_some_and(|n| n > 0 && n < 1 << 40)
                && shape.iter().all(|len| i32::try_from(*len).is_ok());
            if shape.len() != dims.len() || !fits {
                let (given, dims) = (text(shape), dims.join("x"));
                return Err(Error::invalid(format!(
                    "bench: {name} has no shape {given}; say {dims}"
                )));
            }
        }
        Ok(())
    }
}

/// `512x1000`
pub(super) fn text(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// Reads `512x1000`.
///
/// # Errors
/// What is wrong with it.
pub fn shape(text: &str) -> std::result::Result<Vec<usize>, String> {
    let number = |part: &str| part.parse().map_err(|_| format!("`{text}` is not like 512x1000"));
    text.split('x').map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_checked() {
        let freedom = Freedom { dims: &["rows", "width"], dtypes: &[DType::F32] };
        let says = |shapes: &[&[usize]], dtypes: &[DType], freedom| {
            let shapes = shapes.iter().map(|shape| shape.to_vec()).collect();
            let sizes = Sizes { quick: true, shapes, dtypes: dtypes.to_vec() };
            let checked = sizes.check("rope", freedom, &["logprob"]);
            checked.map_or_else(|error| error.to_string(), |()| String::new())
        };
        assert_eq!(says(&[], &[], None), "");
        assert!(says(&[&[2, 3]], &[], None).contains("are for logprob"));
        assert_eq!(says(&[&[2, 3], &[7, 1]], &[DType::F32], Some(&freedom)), "");
        assert!(says(&[], &[DType::Bf16], Some(&freedom)).contains("it takes f32"));
        for wrong in [&[2][..], &[2, 0], &[2, 3, 4], &[usize::MAX, 3], &[1 << 31, 1]] {
            assert!(says(&[wrong], &[], Some(&freedom)).contains("say rowsxwidth"), "{wrong:?}");
        }
        assert_eq!(shape("512x1000"), Ok(vec![512, 1000]));
        for wrong in ["", "x", "1x", "1,2", "-1x2", "ax2"] {
            assert!(shape(wrong).is_err(), "{wrong}");
        }
    }
}
