//! The kernels that this binary carries: PTX of every family, and native code where nvcc was there when it was built.

/// The compiled kernels of one family.
#[derive(Debug)]
pub struct Image {
    /// The `.cu` file without its ending.
    pub family: &'static str,
    /// Text that the driver compiles for its GPU, ending with a zero; empty where it was never generated.
    ptx: &'static str,
    /// Machine code for [`native_archs`] in one container; may be empty.
    pub(super) native: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Every family, by name.
pub fn all() -> &'static [Image] {
    IMAGES
}

/// One family.
pub(super) fn of(family: &str) -> Option<&'static Image> {
    IMAGES.iter().find(|image| image.family == family)
}

/// The architectures that native code was built for, as nvcc names them: `80`, `90a`.
pub fn native_archs() -> &'static [&'static str] {
    NATIVE_ARCHS
}

/// The release of the nvcc that built the native code, or why there is none.
///
/// # Errors
/// The reason, in words.
pub fn native_compiler() -> Result<&'static str, &'static str> {
    NATIVE
}

impl Image {
    /// PTX for the driver, or `None` where it was never generated.
    pub(super) fn ptx(&self) -> Option<&'static str> {
        Some(self.ptx).filter(|text| !text.is_empty())
    }

    /// The version of the PTX language it is written in, `(9, 0)`.
    pub fn ptx_version(&self) -> Option<(u32, u32)> {
        let line = self.ptx.lines().find_map(|line| line.strip_prefix(".version "))?;
        let (major, minor) = line.trim().split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }

    /// True where native code was embedded that a GPU of this compute capability runs.
    pub fn runs_natively(&self, capability: (u32, u32)) -> bool {
        !self.native.is_empty() && NATIVE_ARCHS.iter().any(|arch| runs_on(arch, capability))
    }
}

/// Code for `arch` runs on later GPUs of the same major version; code for `90a` on 9.0 alone.
fn runs_on(arch: &str, (major, minor): (u32, u32)) -> bool {
    let digits = arch.trim_end_matches(['a', 'f']);
    let Ok(number) = digits.parse::<u32>() else { return false };
    let (built_major, built_minor) = (number / 10, number % 10);
    let exact = arch.ends_with('a');
    built_major == major && if exact { built_minor == minor } else { built_minor <= minor }
}

/// The CUDA version of the first driver that reads a version of PTX: 13000 for 9.0.
pub(super) fn driver_for_ptx((major, minor): (u32, u32)) -> u32 {
    match (major, minor) {
        (8, 6..) => 12_000 + 10 * (minor + 1),
        (8, _) => 12_000 + 10 * minor,
        _ => 1000 * (major + 4) + 10 * minor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_ptx_of_the_oldest_supported_architecture() {
        assert!(!all().is_empty());
        for image in all() {
            let ptx = image.ptx().unwrap_or_default();
            assert!(
                ptx.contains("\n.target sm_80\n") && ptx.ends_with('\0') && ptx.contains(".entry"),
                "{}: run bindings/ptx/generate",
                image.family
            );
            assert_eq!(image.ptx_version(), Some((9, 0)), "{}", image.family);
        }
    }

    #[test]
    fn native_code_runs_on_its_major_version() {
        assert!(runs_on("80", (8, 0)) && runs_on("80", (8, 9)) && !runs_on("86", (8, 0)));
        assert!(!runs_on("80", (9, 0)) && runs_on("90a", (9, 0)) && runs_on("100", (10, 3)));
        assert!(!runs_on("90a", (9, 1)) && !runs_on("x", (8, 0)));
    }

    #[test]
    fn ptx_versions_and_drivers() {
        for (ptx, driver) in [
            ((7, 8), 11_080),
            ((8, 0), 12_000),
            ((8, 5), 12_050),
            ((8, 7), 12_080),
            ((9, 0), 13_000),
            ((9, 1), 13_010),
        ] {
            assert_eq!(driver_for_ptx(ptx), driver, "{ptx:?}");
        }
    }
}
