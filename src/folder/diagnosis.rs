//! What people point at in place of a model's folder, and what to do about it.

use std::fs;
use std::path::{Path, PathBuf};

use super::file::exists;
use crate::error::{Error, Result};

const CONFIG: &str = "config.json";
const ADAPTER: &str = "adapter_config.json";

/// Refuses a folder that is not a whole model, with a cure where the mistake is a known one.
///
/// # Errors
/// [`Error::Checkpoint`] for a repository in the hub's cache, a LoRA adapter (with or without a model's files
/// beside it), GGUF files, and weights in the format of their authors; [`Error::Io`] if there is no
/// `config.json` for any other reason.
pub fn check_folder(folder: &Path) -> Result<()> {
    let refuse = |reason: String| Err(Error::Checkpoint { path: folder.into(), reason });
    let has = |name: &str| exists(&folder.join(name));
    let config = has(CONFIG)?;
    if has(ADAPTER)? {
        return refuse(
            if config && (has("model.safetensors")? || has("model.safetensors.index.json")?) {
                format!(
                    "holds a model and, in {ADAPTER}, a LoRA adapter: it is not clear which is meant; move \
                 {ADAPTER} away if the adapter has been merged into the weights"
                )
            } else {
                format!(
                    "is a LoRA adapter ({ADAPTER}), which trimtab does not merge; merge it in Python: \
                 AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(other)"
                )
            },
        );
    }
    if config {
        return Ok(());
    }
    if has("snapshots")? {
        let snapshots = entries(&folder.join("snapshots"));
        return refuse(match &snapshots[..] {
            [] => {
                "is a repository in the hub's cache without any snapshot; download the model".into()
            }
            [first, ..] => format!(
                "is a repository in the hub's cache; give a snapshot in it: {}",
                folder.join("snapshots").join(first).display()
            ),
        });
    }
    let names = entries(folder);
    let ends_with =
        |ending: &str| names.iter().any(|name| name.to_string_lossy().ends_with(ending));
    if ends_with(".gguf") {
        return refuse(
            "holds GGUF files, which trimtab does not read; download the model's safetensors"
                .into(),
        );
    }
    if names.iter().any(|name| name.to_string_lossy().starts_with("consolidated.")) {
        return refuse(
            "holds weights in the format of their authors (consolidated.…); download the files in Hugging \
             Face's format, with config.json, or convert them"
                .into(),
        );
    }
    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
    Err(Error::io("read", folder.join(CONFIG))(missing))
}

/// The names in a folder, sorted; none if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<PathBuf> =
        read.filter_map(|entry| Some(PathBuf::from(entry.ok()?.file_name()))).collect();
    names.sort();
    names
}
