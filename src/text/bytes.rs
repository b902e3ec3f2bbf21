//! What each token adds to a text, as bytes.

use std::borrow::Cow;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::{AddedToken, Decoder};

/// The text of all complete characters, and how many bytes at the end are held back because they
/// begin a character that is not complete yet (0 to 3).
///
/// Bytes that cannot be UTF-8 whatever follows become U+FFFD as in [`String::from_utf8_lossy`].
pub fn complete_utf8(bytes: &[u8]) -> (Cow<'_, str>, usize) {
    let held_back = (1..=bytes.len().min(3))
        .find(|&count| {
            std::str::from_utf8(&bytes[bytes.len() - count..])
                .is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .unwrap_or(0);
    (String::from_utf8_lossy(&bytes[..bytes.len() - held_back]), held_back)
}

/// How a vocabulary's tokens are written.
pub(super) enum Spelling<'a> {
    /// GPT-2's: every byte is one printable character.
    ByteLevel,
    /// SentencePiece's: `▁` is a space, `<0xNN>` may be a byte.
    SentencePiece {
        /// Steps of the decoder that act on one token.
        steps: Vec<Step<'a>>,
    },
}

/// A decoder's step that acts on one token.
pub(super) enum Step<'a> {
    /// Any replacement.
    Replace(&'a DecoderWrapper),
    /// `<0xNN>` is a byte.
    ByteFallback,
    /// This character is a space.
    Space(char),
}

impl<'a> Spelling<'a> {
    /// The spelling that a decoder undoes. The error is the name of a decoder that is not known.
    pub fn of(decoder: Option<&'a DecoderWrapper>) -> Result<Self, String> {
        let parts = match decoder {
            None => return Err("none".into()),
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(one) => std::slice::from_ref(one),
        };
        let mut steps = Vec::new();
        let mut byte_level = false;
        for part in parts {
            match part {
                DecoderWrapper::ByteLevel(_) => byte_level = true,
                DecoderWrapper::Replace(_) => steps.push(Step::Replace(part)),
                DecoderWrapper::ByteFallback(_) => steps.push(Step::ByteFallback),
                DecoderWrapper::Metaspace(m) => steps.push(Step::Space(m.get_replacement())),
                // These act on the whole text: joining is what concatenation does anyway, and the
                // space at the very beginning, which a strip takes away, is not running text's.
                DecoderWrapper::Fuse(_) | DecoderWrapper::Strip(_) => {}
                DecoderWrapper::BPE(_) => return Err("BPEDecoder".into()),
                DecoderWrapper::WordPiece(_) => return Err("WordPiece".into()),
                DecoderWrapper::CTC(_) => return Err("CTC".into()),
                DecoderWrapper::Sequence(_) => return Err("Sequence inside a Sequence".into()),
            }
        }
        match (byte_level, steps.is_empty()) {
            (true, _) => Ok(Self::ByteLevel),
            (false, false) => Ok(Self::SentencePiece { steps }),
            (false, true) => Err("Sequence without ByteLevel, Replace or Metaspace".into()),
        }
    }

    /// What a token adds to running text. `added` where it is not the model's but was added to the
    /// vocabulary; a special one adds nothing.
    pub fn bytes(&self, token: &str, added: Option<&AddedToken>) -> Vec<u8> {
        if added.is_some_and(|added| added.special) {
            return Vec::new();
        }
        match self {
            // Added tokens are written plainly, and so is anything with a foreign character.
            Self::ByteLevel if added.is_some() => token.as_bytes().to_vec(),
            Self::ByteLevel => token
                .chars()
                .map(byte_of)
                .collect::<Option<_>>()
                .unwrap_or_else(|| token.as_bytes().to_vec()),
            Self::SentencePiece { steps } => {
                let mut text = token.to_owned();
                for step in steps {
                    match step {
                        Step::Space(mark) => text = text.replace(*mark, " "),
                        Step::ByteFallback => {
                            if let Some(byte) = byte_token(&text) {
                                return vec![byte];
                            }
                        }
                        Step::Replace(decoder) => {
                            // A replacement that fails leaves the token as it is.
                            if let Ok(replaced) = decoder.decode_chain(vec![text.clone()]) {
                                text = replaced.concat();
                            }
                        }
                    }
                }
                text.into_bytes()
            }
        }
    }
}

/// The byte behind a character of GPT-2's alphabet: printable Latin-1 stands for itself, the other
/// bytes follow, in order, from U+0100.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Byte strings back to back, one allocation for a whole vocabulary.
#[derive(Clone, Debug, Default)]
pub(super) struct ByteTable {
    bytes: Vec<u8>,
    /// Where each string ends.
    ends: Vec<usize>,
}

impl ByteTable {
    pub fn push(&mut self, string: &[u8]) {
        self.bytes.extend_from_slice(string);
        self.ends.push(self.bytes.len());
    }

    /// Empty past the end.
    pub fn get(&self, index: usize) -> &[u8] {
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..end]
    }
}
