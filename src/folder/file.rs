//! Files of a model's folder, read with a guard: a folder may be hostile, or half a download.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, Result};

/// How a file begins that git-lfs was to replace by the real one.
pub const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Whether the folder has an entry of this name. A link counts even if its target is gone, so that
/// opening it names the link.
pub fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(Error::io("open", path)(e)),
    }
}

/// A file's bytes; `None` if the folder has no entry of this name.
///
/// # Errors
/// [`Error::Checkpoint`] for a link whose target is gone, for anything but a file (opening a pipe would wait
/// forever), and for more than `max_bytes`.
pub fn read_file(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    if !exists(path)? {
        return Ok(None);
    }
    let refuse = |reason: String| Error::Checkpoint { path: path.into(), reason };
    let metadata = match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let target = fs::read_link(path).unwrap_or_default();
            return Err(refuse(format!(
                "is a link to {}, which is missing; download the file again",
                target.display()
            )));
        }
        other => other.map_err(Error::io("open", path))?,
    };
    if !metadata.is_file() {
        return Err(refuse("is not a file".into()));
    }
    if metadata.len() > max_bytes {
        return Err(refuse(format!(
            "has {} bytes; a file of this kind has at most {max_bytes}",
            metadata.len()
        )));
    }
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    if bytes.starts_with(LFS_POINTER) {
        return Err(refuse("is a git-lfs pointer in place of the file; run git lfs pull".into()));
    }
    Ok(Some(bytes))
}
