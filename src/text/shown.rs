//! Text as a terminal may show it.

/// A text that files or users wrote, fit for a terminal: characters that would move its cursor, recolour it,
/// talk to it, or turn the direction of writing are written as escapes. Line feeds and tabs stay.
pub fn shown(text: &str) -> String {
    let is_safe = |c: char| {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        matches!(c, '\n' | '\t') || !(c.is_control() || turns)
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_safe(c) { shown.push(c) } else { shown.extend(c.escape_default()) }
    }
    shown
}
