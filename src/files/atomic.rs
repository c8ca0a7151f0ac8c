//! Files and folders that appear whole or not at all.
//!
//! Everything is written under a temporary name beside its target, synced, renamed, and the folder that holds the
//! name is synced too. A crash or a full disk at any moment leaves what was there before.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::path::Path;

/// The beginning of every temporary name; a leftover of a killed process may be deleted.
pub const TEMPORARY: &str = ".tmp-";

/// Writes a file, replacing what is there.
///
/// # Errors
/// [`Error::is_io`]; the old file is then still there.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let (parent, name) = split(path)?;
    let draft = parent.join(format!("{TEMPORARY}{}-{name}", std::process::id()));
    let write = || {
        fs::write(&draft, bytes)?;
        File::open(&draft)?.sync_all()?;
        fs::rename(&draft, path)?;
        sync_folder(parent)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&draft);
        Error::io(format!("writing {}", path.display()), e)
    })
}

/// Fills a folder through `fill`, which gets the path of a temporary one, then syncs every file and renames it.
///
/// A folder that is already there is replaced; it goes away only after the new one is complete.
///
/// # Errors
/// What `fill` returns, or [`Error::is_io`]; the old folder is then still there and the temporary one is gone.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (parent, name) = split(path)?;
    let draft = parent.join(format!("{TEMPORARY}{}-{name}", std::process::id()));
    let io = |doing: &str, path: &Path, e| Error::io(format!("{doing} {}", path.display()), e);
    let write = || {
        if draft.exists() {
            fs::remove_dir_all(&draft).map_err(|e| io("removing", &draft, e))?;
        }
        fs::create_dir_all(&draft).map_err(|e| io("making", &draft, e))?;
        fill(&draft)?;
        sync_tree(&draft).map_err(|e| io("syncing", &draft, e))?;
        let replaced = parent.join(format!("{TEMPORARY}{}-old-{name}", std::process::id()));
        let had_one = path.exists();
        if had_one {
            fs::rename(path, &replaced).map_err(|e| io("replacing", path, e))?;
        }
        fs::rename(&draft, path).map_err(|e| {
            if had_one {
                let _ = fs::rename(&replaced, path);
            }
            io("renaming to", path, e)
        })?;
        sync_folder(parent).map_err(|e| io("syncing", parent, e))?;
        if had_one {
            fs::remove_dir_all(&replaced).map_err(|e| io("removing", &replaced, e))?;
        }
        Ok(())
    };
    write().inspect_err(|_| {
        let _ = fs::remove_dir_all(&draft);
    })
}

/// Deletes what killed processes left under temporary names in a folder.
pub fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
}

fn split(path: &Path) -> Result<(&Path, std::borrow::Cow<'_, str>)> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(Error::invalid(format!("`{}` cannot be written to", path.display()))),
    };
    match path.file_name() {
        Some(name) => Ok((parent, name.to_string_lossy())),
        None => Err(Error::invalid(format!("`{}` cannot be written to", path.display()))),
    }
}

fn sync_tree(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Makes renames in a folder durable. Only Unix can open a folder for this; elsewhere it does nothing.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["a"]);
        assert!(write_file(&folder.path().join("no/such"), b"").unwrap_err().is_io());
        assert!(write_file(Path::new("/"), b"").unwrap_err().is_invalid());
    }

    #[test]
    fn a_folder_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step-1");
        let put = |text: &'static str| {
            move |draft: &Path| {
                fs::create_dir(draft.join("inner")).unwrap();
                fs::write(draft.join("inner/x"), text).map_err(|e| Error::io("x", e))
            }
        };
        write_folder(&path, put("one")).unwrap();
        let error = write_folder(&path, |draft| {
            put("half")(draft)?;
            Err(Error::invalid("stop"))
        });
        assert!(error.unwrap_err().is_invalid());
        assert_eq!(fs::read(path.join("inner/x")).unwrap(), b"one");
        write_folder(&path, put("two")).unwrap();
        assert_eq!(fs::read(path.join("inner/x")).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["step-1"]);
    }

    #[test]
    fn leftovers_go() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".tmp-1-step-000002")).unwrap();
        fs::write(folder.path().join(".tmp-1-step-000002/x"), "x").unwrap();
        fs::write(folder.path().join(".tmp-2-metrics.jsonl"), "x").unwrap();
        fs::write(folder.path().join("kept"), "x").unwrap();
        remove_leftovers(folder.path());
        assert_eq!(names(folder.path()), ["kept"]);
    }
}
