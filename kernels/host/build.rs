//! Compiles the kernels and the engine that runs them, plain or with a sanitizer.
//!
//! `GRADSTONE_HOST_SANITIZER=address|thread` instruments the kernels, and only them: what the engine does on behalf of
//! many CUDA threads would look like races. Both are libraries of their own for that reason, and because the kernels
//! have to be linked whole (nothing refers to the table entries by which a launch finds them).

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let host = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let kernels = host.parent().ok_or("the crate lies in kernels/")?.to_path_buf();
    println!("cargo:rerun-if-env-changed=GRADSTONE_HOST_SANITIZER");
    println!("cargo:rerun-if-changed={}", host.join("build.rs").display());
    // A directory is watched with all below it; of kernels/ only the files that are compiled.
    for part in ["cuda", "engine", "planted", "probes", "cuda_on_host.h"] {
        println!("cargo:rerun-if-changed={}", host.join(part).display());
    }
    for entry in fs::read_dir(&kernels)? {
        let path = entry?.path();
        if path != host {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }

    let sanitizer = match env::var("GRADSTONE_HOST_SANITIZER").unwrap_or_default().as_str() {
        "" | "none" => None,
        "address" => Some(("GRADSTONE_HOST_ASAN", "-fsanitize=address,undefined")),
        "thread" => Some(("GRADSTONE_HOST_TSAN", "-fsanitize=thread")),
        other => {
            return Err(format!(
                "GRADSTONE_HOST_SANITIZER is `{other}`: address, thread or nothing"
            )
            .into());
        }
    };
    if sanitizer.is_some() && Command::new("clang++").arg("--version").output().is_err() {
        return Err("GRADSTONE_HOST_SANITIZER needs clang++ and its sanitizer runtimes: \
                    apt-get install clang libclang-rt-14-dev (Debian 12), or your system's clang and compiler-rt"
            .into());
    }

    let build = || {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").warnings(true).extra_warnings(true);
        build.flag("-Werror").flag("-Wno-unknown-pragmas");
        if let Some((define, _)) = sanitizer {
            build.compiler("clang++").define(define, None);
        }
        build
    };

    let mut kernel_build = build();
    kernel_build
        .include(&kernels)
        .include(&host)
        // Messages say kernels/logprob.cu:12, wherever the checkout lies.
        .flag(format!("-fmacro-prefix-map={}/=", kernels.parent().unwrap_or(&kernels).display()))
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        // A constant that only __launch_bounds__ reads is unused here.
        .flag("-Wno-unused-const-variable")
        .flag("-fno-exceptions")
        .flag("-x")
        .flag("c++");
    match sanitizer {
        None => {
            // The checks that cost little stay on: engine/misuse.cpp makes errors of a launch of them.
            kernel_build.opt_level(1).debug(false);
            kernel_build.flag("-fsanitize=alignment,bounds,null").flag("-fno-sanitize-recover=all");
        }
        Some((define, flag)) => {
            // Unrolled and then instrumented, the attention kernels take a compiler over ten minutes. ThreadSanitizer needs
            // optimised code all the same: without, every argument struct is copied to the fibers' stacks, which are
            // used again, and that looks like a race.
            if define == "GRADSTONE_HOST_TSAN" {
                kernel_build.opt_level(1).flag("-Wno-pass-failed");
                for limit in
                    ["unroll-threshold", "pragma-unroll-threshold", "unroll-full-max-count"]
                {
                    kernel_build.flag("-mllvm").flag(format!("-{limit}=0"));
                }
            } else {
                kernel_build.opt_level(0);
            }
            kernel_build.debug(true).flag("-fno-omit-frame-pointer");
            kernel_build.flag(flag).flag("-fno-sanitize-recover=all").flag("-fno-sanitize=vptr");
        }
    }
    let mut files = Vec::new();
    for folder in [kernels.as_path(), &host.join("planted"), &host.join("probes")] {
        files.extend(sources(folder, "cu")?);
    }
    let flavour = sanitizer.map_or("plain", |(define, _)| define);
    build()
        .objects(objects(&kernel_build, &files, &[&kernels, &host], flavour)?)
        .link_lib_modifier("+whole-archive")
        .try_compile("gradstone_host_kernels")?;

    build()
        .opt_level(2)
        .debug(true)
        .files(sources(&host.join("engine"), "cpp")?)
        // Whole too: the kernels refer to it, and rustc may put it before them.
        .link_lib_modifier("+whole-archive")
        .try_compile("gradstone_host_engine")?;
    Ok(())
}

/// The files of `folder` with this ending, sorted, so that the link order is the same everywhere.
fn sources(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// One object a file, compiled only where it, what it includes, or how it is compiled has changed since the last time: a
/// change of one kernel does not wait for all of them.
fn objects(
    build: &cc::Build,
    files: &[PathBuf],
    folders: &[&Path],
    flavour: &str,
) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let kept = PathBuf::from(env::var("OUT_DIR")?).join("kept");
    fs::create_dir_all(&kept)?;
    let this = fs::read(Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("build.rs"))?;
    let (mut all, mut missing, mut stale) = (Vec::new(), build.clone(), Vec::new());
    for file in files {
        let mut seen = BTreeSet::new();
        included(file, folders, &mut seen)?;
        let mut hasher = DefaultHasher::new();
        (flavour, &this).hash(&mut hasher);
        for path in &seen {
            fs::read(path)?.hash(&mut hasher);
        }
        let name = file.file_stem().ok_or("a kernel without a name")?.to_string_lossy();
        let object = kept.join(format!("{name}-{:016x}.o", hasher.finish()));
        if !object.exists() {
            missing.file(file);
            stale.push(object.clone());
        }
        all.push(object);
    }
    if !stale.is_empty() {
        for (made, object) in missing.try_compile_intermediates()?.iter().zip(&stale) {
            fs::rename(made, object)?;
        }
    }
    Ok(all)
}

/// `file` and all that it includes from `folders`.
fn included(
    file: &Path,
    folders: &[&Path],
    seen: &mut BTreeSet<PathBuf>,
) -> Result<(), Box<dyn Error>> {
    if !seen.insert(file.to_path_buf()) {
        return Ok(());
    }
    for line in fs::read_to_string(file)?.lines() {
        let Some(name) = line.trim().strip_prefix("#include \"") else { continue };
        let name = name.split('"').next().unwrap_or_default();
        let beside = file.parent().map(|folder| folder.join(name));
        let found = beside.into_iter().chain(folders.iter().map(|folder| folder.join(name)));
        if let Some(path) = found.into_iter().find(|path| path.exists()) {
            included(&path, folders, seen)?;
        }
    }
    Ok(())
}
