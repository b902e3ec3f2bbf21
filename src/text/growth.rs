//! How many tokens a text can become.

use tokenizers::normalizers::NormalizerWrapper;

/// Bytes by which a text of `bytes` counts when a normaliser is through with it, at most. A token
/// stands for at least one of them.
///
/// `is_token` says whether a mark that replaces something, such as `▁`, is one token; then it
/// counts as one byte. Unicode's forms grow by the factors of UAX #15; what is not known counts
/// as the worst of them.
pub(super) fn normalized(
    normalizer: &NormalizerWrapper,
    bytes: usize,
    is_token: &dyn Fn(&str) -> bool,
) -> usize {
    let mark = |text: &str| if is_token(text) { 1 } else { text.len().max(1) };
    match normalizer {
        NormalizerWrapper::Sequence(parts) => {
            parts.as_ref().iter().fold(bytes, |bytes, part| normalized(part, bytes, is_token))
        }
        NormalizerWrapper::Prepend(front) => bytes.saturating_add(mark(&front.prepend)),
        NormalizerWrapper::Replace(replace) => bytes.saturating_mul(mark(&replace.content)),
        NormalizerWrapper::ByteLevel(_)
        | NormalizerWrapper::StripNormalizer(_)
        | NormalizerWrapper::StripAccents(_)
        | NormalizerWrapper::Nmt(_) => bytes,
        NormalizerWrapper::Lowercase(_) => bytes.saturating_mul(2),
        NormalizerWrapper::NFC(_) | NormalizerWrapper::NFD(_) => bytes.saturating_mul(3),
        NormalizerWrapper::NFKC(_)
        | NormalizerWrapper::NFKD(_)
        | NormalizerWrapper::Precompiled(_)
        | NormalizerWrapper::BertNormalizer(_) => bytes.saturating_mul(11),
    }
}
