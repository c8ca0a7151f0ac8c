//! Embeds the kernels: the committed PTX always, and native code for named architectures where there is an nvcc.
//!
//! `NVCC` (else `CUDA_HOME`, `CUDA_PATH`, then `PATH`) says where nvcc is; `GRADSTONE_CUDA_ARCHS` for which architectures
//! it builds, `80,90,100,120` when unset, none when empty. Without nvcc, or where it fails, the binary has the PTX, which
//! the driver compiles. Nothing here asks for a GPU or a driver. The library is told the commit of its checkout.

use std::env;
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One cubin of an architecture runs on all later ones of its major version.
const DEFAULT_ARCHS: &str = "80,90,100,120";

/// What a kernel file with a body for Hopper alone asks for.
const HOPPER_BODY: &str = "__CUDA_ARCH_FEAT_SM90_ALL";

struct Family {
    name: String,
    source: PathBuf,
    /// The committed PTX, where it was generated.
    ptx: Option<PathBuf>,
}

/// Native code of every family, or why there is none.
enum Native {
    Built { images: Vec<PathBuf>, archs: Vec<String>, nvcc: String },
    Not(String),
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let (kernels, ptx) = (root.join("kernels"), root.join("bindings/ptx"));
    println!("cargo:rerun-if-changed=build.rs");
    // A new family shows as new PTX. The folder kernels/ is not watched whole: its tests are no part of this build.
    println!("cargo:rerun-if-changed={}", ptx.display());
    println!("cargo:rerun-if-changed={}", kernels.join("args").display());
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "GRADSTONE_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    commit(&root);
    let families = families(&kernels, &ptx)?;
    let native = native(&kernels, &families, &out)?;
    fs::write(out.join("images.rs"), table(&families, &native)?)?;
    Ok(())
}

/// Tells the library which commit it is built from. A package has none: the repository around it, if any, is another one.
fn commit(root: &Path) {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let own = git(&["rev-parse", "--show-toplevel"])
        .and_then(|top| Some(fs::canonicalize(top).ok()? == fs::canonicalize(root).ok()?));
    if own != Some(true) {
        return;
    }
    // Every commit and every checkout of another one adds a line to it.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]).map(|path| root.join(path));
    if let Some(log) = log.filter(|path| path.is_file()) {
        println!("cargo:rerun-if-changed={}", log.display());
    }
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo:rustc-env=GRADSTONE_COMMIT={commit}");
    }
}

fn families(kernels: &Path, ptx: &Path) -> Result<Vec<Family>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(kernels)? {
        let source = entry?.path();
        let extension = source.extension().unwrap_or_default().to_string_lossy().into_owned();
        if ["cu", "cuh", "h"].contains(&extension.as_str()) {
            println!("cargo:rerun-if-changed={}", source.display());
        }
        if extension != "cu" {
            continue;
        }
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let ptx = Some(ptx.join(format!("{name}.ptx"))).filter(|path| path.is_file());
        found.push(Family { name, source, ptx });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The toolkit's compiler: where it was said to be, else on the path.
fn find_nvcc() -> Option<PathBuf> {
    let name = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };
    let set = |variable| env::var_os(variable).filter(|value| !value.is_empty());
    if let Some(nvcc) = set("NVCC") {
        return Some(nvcc.into());
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set);
    let folders = homes.map(|home| PathBuf::from(home).join("bin"));
    let path = set("PATH").unwrap_or_default();
    folders
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

fn release(nvcc: &Path) -> Option<String> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let release = text.lines().find_map(|line| line.split_once("release "))?.1;
    Some(release.split(',').next()?.trim().to_owned())
}

fn native(kernels: &Path, families: &[Family], out: &Path) -> Result<Native, Box<dyn Error>> {
    let archs = env::var("GRADSTONE_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.to_owned());
    let archs: Vec<&str> =
        archs.split([',', ';', ' ']).map(str::trim).filter(|a| !a.is_empty()).collect();
    if let Some(wrong) = archs.iter().find(|arch| !is_arch(arch)) {
        return Err(format!(
            "GRADSTONE_CUDA_ARCHS: `{wrong}` is no architecture; say 80,90 or 90a"
        )
        .into());
    }
    if archs.is_empty() {
        return Ok(Native::Not("GRADSTONE_CUDA_ARCHS is empty".to_owned()));
    }
    let Some(nvcc) = find_nvcc() else {
        return Ok(Native::Not("no nvcc where it was built".to_owned()));
    };
    println!("cargo:rerun-if-changed={}", nvcc.display());
    let Some(version) = release(&nvcc) else {
        println!(
            "cargo:warning={} does not run: the kernels are embedded as PTX alone",
            nvcc.display()
        );
        return Ok(Native::Not("the nvcc where it was built did not run".to_owned()));
    };
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let next = AtomicUsize::new(0);
    let compile = || {
        let mut failed = Vec::new();
        while let Some(family) = families.get(next.fetch_add(1, Ordering::Relaxed)) {
            failed.extend(fatbin(&nvcc, kernels, family, &archs, out).err());
        }
        failed
    };
    let failed: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.clamp(1, 16)).map(|_| scope.spawn(compile)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    if let Some(first) = failed.first() {
        println!(
            "cargo:warning=nvcc {version} failed, so the kernels are embedded as PTX alone: {first}"
        );
        return Ok(Native::Not(format!("nvcc {version} failed where it was built")));
    }
    Ok(Native::Built {
        images: families.iter().map(|family| out.join(format!("{}.fatbin", family.name))).collect(),
        archs: archs.into_iter().map(str::to_owned).collect(),
        nvcc: version,
    })
}

fn is_arch(text: &str) -> bool {
    let digits = text.trim_end_matches(['a', 'f']);
    (2..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
}

fn fatbin(
    nvcc: &Path,
    kernels: &Path,
    family: &Family,
    archs: &[&str],
    out: &Path,
) -> Result<(), String> {
    let hopper = fs::read_to_string(&family.source).is_ok_and(|text| text.contains(HOPPER_BODY));
    let mut command = Command::new(nvcc);
    command.current_dir(kernels).args(["-fatbin", "-O3", "-std=c++17"]);
    for arch in archs {
        let arch = if hopper && *arch == "90" { "90a" } else { arch };
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    command.arg(format!("{}.cu", family.name)).arg("-o");
    command.arg(out.join(format!("{}.fatbin", family.name)));
    let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stderr, output.stdout].concat();
    let first = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned();
    Err(format!("{}.cu: {first}", family.name))
}

/// The Rust source that embeds the images.
fn table(families: &[Family], native: &Native) -> Result<String, std::fmt::Error> {
    let (images, archs, how) = match native {
        Native::Built { images, archs, nvcc } => {
            (images.as_slice(), archs.as_slice(), format!("Ok({nvcc:?})"))
        }
        Native::Not(why) => (&[][..], &[][..], format!("Err({why:?})")),
    };
    let mut text = format!(
        "pub(super) static NATIVE: Result<&str, &str> = {how};\n\
         pub(super) static NATIVE_ARCHS: &[&str] = &{archs:?};\n\
         pub(super) static IMAGES: &[Image] = &[\n"
    );
    for (at, family) in families.iter().enumerate() {
        let embed = |path: &PathBuf| format!("include_bytes!({:?})", path.display().to_string());
        // The driver reads PTX up to a zero.
        let ptx = match &family.ptx {
            Some(path) => {
                format!("concat!(include_str!({:?}), \"\\0\")", path.display().to_string())
            }
            None => "\"\"".to_owned(),
        };
        let native = images.get(at).map_or("&[]".to_owned(), embed);
        writeln!(text, "    Image {{ family: {:?}, ptx: {ptx}, native: {native} }},", family.name)?;
    }
    text.push_str("];\n");
    Ok(text)
}
