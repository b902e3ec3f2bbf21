//! Whether two models mean the same by their tokens.

use serde_json::Value;

use super::Tokenizer;

impl Tokenizer {
    /// Whether tokens are the same in both: [`Tokenizer::same_ids`], and texts are merged alike. The error says
    /// where they first differ.
    pub fn same_vocabulary(&self, other: &Tokenizer) -> Result<(), String> {
        self.same_ids(other)?;
        self.same_rules(other)
    }

    /// Whether ids mean the same in both: an id that both have is the same token with the same bytes, one that only
    /// one of them has is a token that was added to it (`[PAD]`, a chat's mark). The error says where they
    /// first differ.
    pub fn same_ids(&self, other: &Tokenizer) -> Result<(), String> {
        let (len, other_len) = (self.len(), other.len());
        let sizes = || {
            if len == other_len {
                format!("both have {len} ids")
            } else {
                format!("one has {len} ids, the other {other_len}")
            }
        };
        let shown =
            |name: Option<&str>| name.map_or("absent".to_owned(), |name| format!("{name:?}"));
        let added = [self, other].map(|tokenizer| tokenizer.inner.get_added_tokens_decoder());
        for id in 0..len.max(other_len) as u32 {
            let (name, other_name) = (self.name(id), other.name(id));
            let alone = match (name, other_name) {
                (Some(_), None) => added[0].contains_key(&id),
                (None, Some(_)) => added[1].contains_key(&id),
                _ => false,
            };
            if alone {
                continue;
            }
            if name != other_name {
                return Err(format!(
                    "id {id} is {} in one and {} in the other; {}",
                    shown(name),
                    shown(other_name),
                    sizes()
                ));
            }
            // A mark in one may be plain text in the other; the id is still the same token.
            let both_text = !self.is_special(id) && !other.is_special(id);
            if both_text && self.bytes(id) != other.bytes(id) {
                return Err(format!(
                    "id {id}, {}, stands for other bytes in one than in the other",
                    shown(name)
                ));
            }
        }
        Ok(())
    }

    fn same_rules(&self, other: &Tokenizer) -> Result<(), String> {
        let (rules, other_rules) = (self.rules(), other.rules());
        if rules.kind != other_rules.kind {
            return Err(format!("one is {}, the other {}", rules.kind, other_rules.kind));
        }
        // A piece's place is its id, and `same_ids` looks at those that only one of them has.
        let pieces = rules.pieces.len().min(other_rules.pieces.len());
        for (what, list, other_list, count) in [
            ("merge", &rules.merges, &other_rules.merges, usize::MAX),
            ("scored piece", &rules.pieces, &other_rules.pieces, pieces),
        ] {
            let differs = (0..list.len().max(other_list.len()).min(count))
                .find(|&index| list.get(index) != other_list.get(index));
            if let Some(index) = differs {
                let shown = |value: Option<&Value>| value.map_or("absent".into(), Value::to_string);
                return Err(format!(
                    "{what} {index} is {} in one and {} in the other ({} and {} of them)",
                    shown(list.get(index)),
                    shown(other_list.get(index)),
                    list.len(),
                    other_list.len()
                ));
            }
        }
        Ok(())
    }

    /// The model's rules. The library shows them only as JSON, in one form whatever the file's.
    fn rules(&self) -> Rules {
        let mut model = serde_json::to_value(self.inner.get_model()).unwrap_or_default();
        let kind = model["type"].as_str().unwrap_or("unknown").to_owned();
        let mut list = |key: &str| match model.get_mut(key).map(Value::take) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        // Only a unigram model's vocabulary is a list: of pieces with their scores.
        Rules { kind, merges: list("merges"), pieces: list("vocab") }
    }
}

/// The rules that texts are merged by.
struct Rules {
    kind: String,
    merges: Vec<Value>,
    pieces: Vec<Value>,
}
