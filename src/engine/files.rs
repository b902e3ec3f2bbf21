//! A model's folder, opened: what `config.json` describes, held against the tensors that are there.

use std::path::Path;

use super::config::Config;
use super::families::Family;
use super::model::Names;
use crate::error::{Error, Result};
use crate::folder::{Notes, check_folder};
use crate::weights::Checkpoint;

/// What programs put in front of all names when they save a model that another one wraps: torch.compile,
/// multimodal models around their text part, and distributed training.
const WRAPPERS: [&str; 4] = ["", "_orig_mod.", "language_model.", "module."];

/// A model's folder, opened. Nothing is loaded yet.
pub struct ModelFiles {
    /// What the model is.
    pub config: Config,
    /// What its user should know.
    pub notes: Notes,
    pub(super) checkpoint: Checkpoint,
    pub(super) places: Places,
}

/// Where a checkpoint has its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    /// In front of every name but the head's.
    pub prefix: String,
    /// The embedding table, in full.
    pub embedding: String,
    /// The head, in full.
    pub head: String,
}

impl Places {
    /// Those of a family's checkpoints as transformers writes them.
    pub fn usual(names: &Names) -> Self {
        Self::wrapped(names, "", names.prefix)
    }

    fn wrapped(names: &Names, wrapper: &str, prefix: &str) -> Self {
        Self {
            prefix: format!("{wrapper}{prefix}"),
            embedding: format!("{wrapper}{prefix}{}", names.embedding),
            head: format!("{wrapper}{}", names.head),
        }
    }

    /// A tensor's full name.
    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl ModelFiles {
    /// Opens a folder. Weights stay on disk.
    ///
    /// # Errors
    /// As [`Config::open`] and [`Checkpoint::open`]; [`Error::Checkpoint`] if there is no embedding table.
    pub fn open(folder: &Path) -> Result<Self> {
        check_folder(folder)?;
        let (mut config, mut notes) = Config::open(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let names = Family::named(config.architecture).names;
        let found = find(&checkpoint, names);
        notes.warnings.extend(unused(&checkpoint, names, &found));
        let places = tie(&mut config, found, &checkpoint, &mut notes)?;
        Ok(Self { config, notes, checkpoint, places })
    }

    /// The tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

/// Where the tensors are; where they usually are, if they are nowhere.
fn find(checkpoint: &Checkpoint, names: &Names) -> Places {
    let candidates: Vec<Places> = WRAPPERS
        .iter()
        .flat_map(|wrapper| {
            [names.prefix, ""].map(|prefix| Places::wrapped(names, wrapper, prefix))
        })
        .collect();
    let first_norm = |places: &Places| {
        places.full(&format!("{}.0.{}.weight", names.layers, names.attention_norm))
    };
    let by_embedding = candidates.iter().find(|places| checkpoint.contains(&places.embedding));
    // A tied model may have its one table under the head's name.
    let by_layer = || candidates.iter().find(|places| checkpoint.contains(&first_norm(places)));
    by_embedding.or_else(by_layer).cloned().unwrap_or_else(|| Places::usual(names))
}

/// Finds out whether head and embedding are one matrix, which `tie_word_embeddings` does not always say:
/// a model that was trained with a head of its own may still carry the flag of the one it grew from.
fn tie(
    config: &mut Config,
    mut places: Places,
    checkpoint: &Checkpoint,
    notes: &mut Notes,
) -> Result<Places> {
    if !config.tied_head {
        return Ok(places);
    }
    let shape = [config.vocab, config.width];
    match (checkpoint.contains(&places.embedding), checkpoint.contains(&places.head)) {
        (true, false) => places.head = places.embedding.clone(),
        (false, true) => places.embedding = places.head.clone(),
        (true, true) => {
            let embedding = checkpoint.tensor(&places.embedding, &shape)?;
            if embedding.same_bytes(&checkpoint.tensor(&places.head, &shape)?)? {
                places.head = places.embedding.clone();
            } else {
                config.tied_head = false;
                notes.warn(format!(
                    "{}: tie_word_embeddings is true, but the files have another {:?}; trimtab takes that, \
                     as transformers does",
                    checkpoint.folder().display(),
                    places.head
                ));
            }
        }
        // Loading says that the embedding is missing.
        (false, false) => {}
    }
    Ok(places)
}

/// A warning about tensors outside the layers that no part of the model reads. Inside the layers, loading
/// refuses them.
fn unused(checkpoint: &Checkpoint, names: &Names, places: &Places) -> Option<String> {
    let layers = places.full(&format!("{}.", names.layers));
    let known = [
        places.embedding.clone(),
        places.head.clone(),
        places.full(names.positions),
        places.full(&format!("{}.weight", names.final_norm)),
        places.full(&format!("{}.bias", names.final_norm)),
    ];
    let needless = |name: &str| names.needless.iter().any(|needless| name.ends_with(needless));
    let others: Vec<&str> = checkpoint
        .names()
        .filter(|name| {
            !name.starts_with(&layers)
                && !known.iter().any(|known| known == name)
                && !needless(name)
        })
        .collect();
    let shown =
        others.iter().take(3).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    let more = match others.len() {
        0 => return None,
        1..=3 => String::new(),
        count => format!(" and {} more", count - 3),
    };
    Some(format!(
        "{}: trimtab does not use the tensors {shown}{more}",
        checkpoint.folder().display()
    ))
}

/// An error about a folder's tensors.
pub(super) fn damaged(checkpoint: &Checkpoint, reason: String) -> Error {
    Error::Checkpoint { path: checkpoint.folder().into(), reason }
}
