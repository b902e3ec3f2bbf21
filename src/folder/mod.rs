//! Floor 1: the JSON files of a model's folder, and what trimtab does with each of their fields.
//!
//! A folder holds settings that change what a model computes. None of them may be ignored in silence, so
//! every file has a [`FieldTable`] that names each field once: trimtab obeys it, refuses values that would
//! change a result, or leaves it without effect for a reason. A field in no table becomes a warning.

mod diagnosis;
mod file;
mod json;
mod table;

pub use diagnosis::check_folder;
pub use file::{LFS_POINTER, exists, open_file, read_file};
pub use json::JsonFile;
pub use table::{Field, FieldTable, Rule, no_effect, obeyed, only};

/// Sentences about a model's folder for the person who uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Worth a line on stderr: something in the folder may not mean what its author meant.
    pub warnings: Vec<String>,
    /// Worth a line of `inspect`: how trimtab reads the folder where programs differ.
    pub remarks: Vec<String>,
}

impl Notes {
    /// Adds a warning.
    pub fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// Adds a remark.
    pub fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: Notes) {
        self.warnings.extend(other.warnings);
        self.remarks.extend(other.remarks);
    }
}
