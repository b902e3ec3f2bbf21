//! Files of a model's folder, read with a guard: a folder may be hostile, or half a download.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
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

/// A file, open for reading, and its length in bytes; `None` if the folder has no entry of this name.
///
/// # Errors
/// [`Error::Checkpoint`] for a link whose target is gone, and for anything but a file: a pipe would be
/// waited for without an end.
pub fn open_file(path: &Path) -> Result<Option<(File, u64)>> {
    if !exists(path)? {
        return Ok(None);
    }
    let refuse = |reason: String| Error::Checkpoint { path: path.into(), reason };
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => {
            let target = fs::read_link(path).unwrap_or_default();
            refuse(format!(
                "is a link to {}, which is missing; download the file again",
                target.display()
            ))
        }
        _ => Error::io("open", path)(error),
    };
    // Before it is opened: to open a device may already do something.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(refuse("is not a file".into()));
    }
    // And again, of what was opened: another entry may have taken the name meanwhile. Opening a pipe
    // with this flag waits for no writer.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(Error::io("open", path))?;
    if !metadata.is_file() {
        return Err(refuse("is not a file".into()));
    }
    Ok(Some((file, metadata.len())))
}

/// A file's bytes; `None` if the folder has no entry of this name.
///
/// # Errors
/// As [`open_file`]; [`Error::Checkpoint`] for more than `max_bytes`, also where the file has no length, as
/// in `/proc`, or grows while it is read.
pub fn read_file(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    let Some((file, len)) = open_file(path)? else {
        return Ok(None);
    };
    let refuse = |reason: String| Error::Checkpoint { path: path.into(), reason };
    let too_large = |len: String| {
        refuse(format!("has {len} bytes; a file of this kind has at most {max_bytes}"))
    };
    if len > max_bytes {
        return Err(too_large(len.to_string()));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large(format!("more than {max_bytes}")));
    }
    if bytes.starts_with(LFS_POINTER) {
        return Err(refuse("is a git-lfs pointer in place of the file; run git lfs pull".into()));
    }
    Ok(Some(bytes))
}
