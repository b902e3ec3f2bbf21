//! A file that a run writes: its own from the first byte to the last, and on the disk when the run ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::resume;
use crate::error::{Error, Result};

/// More than any settings have.
const MAX_SETTINGS_BYTES: u64 = 16 << 20;

/// A file that is open for writing. One that this process has made is removed again, unless it is kept.
pub struct Written {
    pub path: PathBuf,
    pub file: File,
    /// Its device and its number there, which tell it from another file of its name.
    identity: (u64, u64),
    /// Its length, as far as this process knows.
    bytes: u64,
    /// Made by this process, and not kept yet.
    new: bool,
}

impl Drop for Written {
    fn drop(&mut self) {
        // Not a file that has taken its name since: that is another program's.
        if self.new && self.has_its_name().unwrap_or(false) {
            // Where it cannot be removed, the next run says that it exists.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Written {
    /// Opens a file that must be new unless `resume`, and locks it against a second process; `advice` is
    /// for a user who has one of this name.
    pub fn open(path: &Path, resume: bool, advice: &str) -> Result<Self> {
        let refuse = |action, reason: &str| Error::io(action, path)(io::Error::other(reason));
        let there = fs::metadata(path);
        if there.as_ref().is_ok_and(fs::Metadata::is_dir) {
            return Err(refuse("create", "it is a folder; name a file"));
        }
        let mut written = match there {
            Ok(there) if resume && !there.is_file() => {
                return Err(refuse("go on with", "it is not a file"));
            }
            Ok(_) if resume => Self::of(path, open_old(path), false)?,
            _ => Self::of(path, create(path), true).map_err(|error| match error {
                Error::Io { source, .. } if source.kind() == ErrorKind::AlreadyExists => {
                    refuse("create", &format!("it exists; {advice}"))
                }
                error => error,
            })?,
        };
        if let Err(TryLockError::WouldBlock) = written.file.try_lock() {
            // It is the other's now, also if this process has made it.
            written.keep();
            return Err(refuse("write to", "another process is writing to it"));
        }
        Ok(written)
    }

    /// Writes the settings beside a new output: in place of an earlier run's, never of anything else.
    pub fn settings(path: &Path, text: &str) -> Result<Self> {
        let foreign = || {
            let reason = "it exists and holds no settings of trimtab; name another --output, or move it away";
            Error::io("write to", path)(io::Error::other(reason))
        };
        let mut written = match create(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !fs::metadata(path).is_ok_and(|there| there.is_file()) {
                    return Err(foreign());
                }
                let mut written = Self::of(path, open_old(path), false)?;
                let mut before = Vec::new();
                let read = (&mut written.file).take(MAX_SETTINGS_BYTES).read_to_end(&mut before);
                read.map_err(Error::io("read", path))?;
                if !before.is_empty() && !resume::are_settings(&before) {
                    return Err(foreign());
                }
                written
            }
            created => Self::of(path, created, true)?,
        };
        written.cut(0)?;
        written.write(text.as_bytes())?;
        Ok(written)
    }

    fn of(path: &Path, file: io::Result<File>, new: bool) -> Result<Self> {
        let file = file.map_err(Error::io("create", path))?;
        let metadata = file.metadata().map_err(Error::io("create", path))?;
        if !metadata.is_file() {
            return Err(Error::io("write to", path)(io::Error::other("it is not a file")));
        }
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { path: path.to_owned(), file, identity, bytes: metadata.len(), new })
    }

    /// Throws away what follows the first `bytes`, behind which writing goes on.
    pub fn cut(&mut self, bytes: u64) -> Result<()> {
        let cut = io::Seek::seek(&mut self.file, io::SeekFrom::Start(bytes));
        let cut = cut.and_then(|_| self.file.set_len(bytes));
        cut.map_err(Error::io("write to", &self.path))?;
        self.bytes = bytes;
        Ok(())
    }

    /// Writes whole lines at once, so that a kill cannot leave half a line but at a page's edge, which
    /// `--resume` mends.
    pub fn write(&mut self, lines: &[u8]) -> Result<()> {
        self.check()?;
        self.file.write_all(lines).map_err(Error::io("write to", &self.path))?;
        self.bytes += lines.len() as u64;
        Ok(())
    }

    /// From now on the file stays, whatever happens.
    pub fn keep(&mut self) {
        self.new = false;
    }

    /// Keeps the file, and waits until the disk has it: its bytes and its name.
    pub fn finish(mut self) -> Result<()> {
        self.check()?;
        self.keep();
        self.file.sync_all().map_err(Error::io("write to", &self.path))?;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        match File::open(folder).and_then(|folder| folder.sync_all()) {
            // Not every file system can do so, and not every folder may be read.
            Err(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::InvalidInput | ErrorKind::PermissionDenied
                ) =>
            {
                Err(Error::io("write to", folder)(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether its name still leads to it.
    fn has_its_name(&self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == self.identity),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// An error if it was removed, or if another program has changed it.
    fn check(&self) -> Result<()> {
        let failed = |error| Error::io("write to", &self.path)(error);
        if !self.has_its_name().map_err(failed)? {
            let reason = "it was removed or replaced during the run; begin again";
            return Err(failed(io::Error::other(reason)));
        }
        let len = self.file.metadata().map_err(failed)?.len();
        if len != self.bytes {
            return Err(failed(io::Error::other(format!(
                "it has {len} bytes where the run had written {}: another program has changed it; go on \
                 with --resume",
                self.bytes
            ))));
        }
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// Opens a file that is there; where a pipe has taken its name, opening it does not wait.
fn open_old(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)
}
