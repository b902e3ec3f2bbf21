//! Incomplete characters and stop strings.

use proptest::prelude::*;
use trimtab::text::{StopMatch, StopStrings, complete_utf8};

use crate::fixtures::has_words;

#[test]
fn incomplete_characters_are_held_back() {
    let text = "aé€😀";
    for end in 0..=text.len() {
        let complete = (0..=end).rev().find(|&at| text.is_char_boundary(at)).unwrap();
        let bytes = &text.as_bytes()[..end];
        assert_eq!(complete_utf8(bytes), (text[..complete].into(), end - complete), "{end}");
    }
    // What can never become a character is not waited for.
    for bytes in [&b"a\xff"[..], b"a\x80", b"a\xc0\x80", b"\xed\xa0", b"\xf5", b"\x80\x80\x80\x80"]
    {
        assert_eq!(complete_utf8(bytes), (String::from_utf8_lossy(bytes), 0), "{bytes:x?}");
    }
    assert_eq!(complete_utf8(b"\xff\xf0\x9f\x98"), ("\u{fffd}".into(), 3));
}

#[test]
fn stop_strings_are_found_across_edges() {
    let stop = |strings: &[&str]| {
        StopStrings::new(strings.iter().map(|s| (*s).to_owned()).collect()).unwrap()
    };
    let found = |start, end| Some(StopMatch { start, end });
    let stops = stop(&["\n\n", "###", "##", "é"]);
    assert_eq!(stops.find(b"abc", 0), None);
    assert_eq!(stops.find(b"ab###\n\n", 0), found(2, 5), "the first, and of those the longest");
    assert_eq!(stops.find(b"a#b##", 0), found(3, 5));
    assert_eq!(stops.find("aé".as_bytes(), 2), found(1, 3), "between a character's bytes");
    for searched in 0..=4 {
        assert_eq!(stops.find(b"ab\n\nc", searched.min(3)), found(2, 4));
    }
    assert_eq!(stops.find(b"##abcdef", 6), None, "what was searched is not searched again");
    let begun = |text: &str| stops.begun(text.as_bytes());
    assert_eq!((begun("ab"), begun("ab\n"), begun("ab#"), begun("a\n#")), (0, 1, 1, 1));
    assert_eq!(begun("x##"), 2, "the longest beginning, though ## is one in itself");
    assert_eq!(stops.begun(&"aé".as_bytes()[..2]), 1, "half a character");
    assert_eq!(stop(&[]).begun(b"ab"), 0);
    assert_eq!(stops.find(b"a", 99), None);
    assert_eq!(stops.find(b"", 0), None);
    assert!(StopStrings::default().is_empty() && !stops.is_empty());
    assert_eq!(StopStrings::default().find(b"abc", 0), None);
    has_words(
        &StopStrings::new(vec!["a".into(), String::new()]).unwrap_err(),
        &["--stop", "empty"],
    );
}

proptest! {
    /// Chunk by chunk or at once, the same stop is found.
    #[test]
    fn stops_do_not_depend_on_chunks(
        text in "[ab]{0,24}",
        stops in prop::collection::vec("[ab]{1,4}", 0..3),
        chunk in 1_usize..5,
    ) {
        let stops = StopStrings::new(stops.clone()).unwrap();
        let bytes = text.as_bytes();
        let whole = stops.find(bytes, 0);
        let mut searched = 0;
        let mut by_chunks = None;
        while searched < bytes.len() && by_chunks.is_none() {
            let end = (searched + chunk).min(bytes.len());
            by_chunks = stops.find(&bytes[..end], searched);
            searched = end;
        }
        // A chunk's edge can end a text inside a longer stop, never move the stop's place before
        // the one that was complete first.
        prop_assert_eq!(whole.is_some(), by_chunks.is_some());
        if let (Some(whole), Some(by_chunks)) = (whole, by_chunks) {
            prop_assert!(whole.start <= by_chunks.start);
            prop_assert!(by_chunks.start < whole.end);
        }
    }

    /// Held back or written, no byte is lost, and chunks add up to the whole text.
    #[test]
    fn characters_add_up(bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80_u8..0xc0], 0..12)) {
        let (mut written, mut from) = (String::new(), 0);
        for end in 0..=bytes.len() {
            let (text, held_back) = complete_utf8(&bytes[from..end]);
            written += &text;
            from = end - held_back;
        }
        written += &String::from_utf8_lossy(&bytes[from..]);
        prop_assert_eq!(written, String::from_utf8_lossy(&bytes));
    }
}
