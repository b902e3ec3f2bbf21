//! Ids and bytes.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};
use trimtab::error::Error;
use trimtab::folder::Notes;
use trimtab::text::{Bos, Tokenizer};

use crate::fixtures::*;

#[test]
fn byte_level_tokens_are_their_bytes() {
    let tokenizer = open(&byte_level());
    assert_eq!(tokenizer.len(), 261);
    for byte in 0..=255_u8 {
        assert_eq!(tokenizer.bytes(byte.into()), [byte], "GPT-2's alphabet");
    }
    assert_eq!(tokenizer.bytes(258), b" w");
    assert_eq!(tokenizer.name(258), Some("Ġw"));
    assert_eq!(tokenizer.id("Ġw"), Some(258));
    assert_eq!((tokenizer.bytes(259), tokenizer.is_special(259)), (&b""[..], true));
    assert_eq!((tokenizer.bytes(260), tokenizer.is_special(260)), ("<é  é>".as_bytes(), false));
    assert_eq!((tokenizer.bytes(261), tokenizer.name(261)), (&b""[..], None));
    assert_eq!((tokenizer.name(u32::MAX), tokenizer.is_special(u32::MAX)), (None, false));

    let ids = tokenizer.encode("hello w", Bos::Auto).unwrap();
    assert_eq!(ids, [257, u32::from(b'l'), u32::from(b'o'), 258]);
    let ids = tokenizer.encode("he<|end|>he<é  é>", Bos::Auto).unwrap();
    assert_eq!(ids, [256, 259, 256, 260], "marks in a text are recognised");
    assert_eq!(tokenizer.encode("", Bos::Auto).unwrap(), [0; 0]);
}

#[test]
fn sentence_piece_tokens_are_their_bytes() {
    let tokenizer = open(&sentence_piece());
    assert_eq!(tokenizer.bytes(3 + 0xe2), [0xe2]);
    assert_eq!(tokenizer.bytes(263), b" hi");
    assert_eq!(tokenizer.bytes(1), b"");
    let ids = tokenizer.encode("hi hi é", Bos::Never).unwrap();
    assert_eq!(ids, [263, 263, 259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(text_of(&tokenizer, &ids), " hi hi é".as_bytes());
}

#[test]
fn the_front_is_added_once_and_the_back_never() {
    let tokenizer = open(&sentence_piece());
    let encode = |text, bos| tokenizer.encode(text, bos).unwrap();
    assert_eq!(encode("hi", Bos::Auto), [1, 263], "no </s> behind a prompt");
    assert_eq!(encode("hi", Bos::Always), [1, 263]);
    assert_eq!(encode("hi", Bos::Never), [263]);
    assert_eq!(encode("", Bos::Auto), [1]);
    assert_eq!(encode("", Bos::Never), [0; 0]);
    for bos in [Bos::Auto, Bos::Always, Bos::Never] {
        assert_eq!(encode("<s>hi", bos), [1, 263], "{bos:?}");
    }
    assert_eq!(tokenizer.bos(), Some(1), "the front tells, where no side file does");
    assert_eq!(tokenizer.eos(), None);

    let tokenizer = open(&llama3());
    assert_eq!(tokenizer.encode("he", Bos::Auto).unwrap(), [259, 256]);
    assert_eq!(tokenizer.encode("<|end|>he", Bos::Auto).unwrap(), [259, 256]);
    assert_eq!(tokenizer.encode("he", Bos::Never).unwrap(), [256]);
}

#[test]
fn bos_always_needs_one() {
    let error = open(&byte_level()).encode("he", Bos::Always).unwrap_err();
    has_words(&error, &["--bos", "beginning-of-sequence"]);
    let config = json!({"bos_token": "<|end|>", "eos_token": {"content": "hel"}}).to_string();
    let tokenizer = open_with(&byte_level(), &[("tokenizer_config.json", &config)]).unwrap();
    assert_eq!(tokenizer.encode("he", Bos::Always).unwrap(), [259, 256]);
    assert_eq!(tokenizer.encode("he", Bos::Auto).unwrap(), [256]);
    // What the side file calls a mark is one.
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(259), Some(257)));
    assert!(tokenizer.is_special(257) && tokenizer.bytes(257).is_empty());
    assert_eq!(tokenizer.len(), 261);

    let map = json!({"bos_token": {"content": "<|end|>"}}).to_string();
    let config = json!({"bos_token": null}).to_string();
    let files = [("special_tokens_map.json", &*map), ("tokenizer_config.json", &config)];
    assert_eq!(open_with(&byte_level(), &files).unwrap().bos(), Some(259));
}

#[test]
fn cutting_and_padding_are_switched_off() {
    let mut json = byte_level();
    json["truncation"] = json!({"direction": "Right", "max_length": 2,
        "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    assert_eq!(open(&json).encode("xyz", Bos::Auto).unwrap().len(), 3);
}

#[test]
fn equal_sizes_are_not_equal_vocabularies() {
    let tokenizer = open(&byte_level());
    assert_eq!(tokenizer.same_vocabulary(&open(&llama3())), Ok(()), "only the front differs");
    let differs = |json: &Value, words: &[&str]| {
        let other = open(json);
        for reason in [tokenizer.same_vocabulary(&other), other.same_vocabulary(&tokenizer)] {
            let reason = reason.unwrap_err();
            for word in words {
                assert!(reason.contains(word), "no {word:?} in: {reason}");
            }
        }
    };
    let mut swapped = byte_level();
    swapped["model"]["vocab"]["he"] = 257.into();
    swapped["model"]["vocab"]["hel"] = 256.into();
    differs(&swapped, &["id 256", "\"he\"", "\"hel\"", "both have 261"]);

    let mut merges = byte_level();
    merges["model"]["merges"] = json!(["he l", "h e", "Ġ w"]);
    differs(&merges, &["merge 0"]);
    merges["model"]["merges"] = json!(["h e", "he l"]);
    differs(&merges, &["merge 2", "absent", "of them"]);
    merges["model"]["merges"] = json!([["h", "e"], ["he", "l"], ["Ġ", "w"]]);
    assert_eq!(tokenizer.same_vocabulary(&open(&merges)), Ok(()), "two notations of the same");
    differs(&sentence_piece(), &["id 0"]);
}

/// Goal: a named token that the vocabulary lacks is added behind it, as transformers does.
#[test]
fn a_named_token_that_is_missing_is_added() {
    let config = json!({"pad_token": "[PAD]", "bos_token": "<no>"}).to_string();
    let tokenizer = open_with(&byte_level(), &[("tokenizer_config.json", &config)]).unwrap();
    assert_eq!((tokenizer.len(), tokenizer.bos()), (263, Some(261)));
    assert_eq!(tokenizer.encode("he[PAD]", Bos::Never).unwrap(), [256, 262]);
    assert!(tokenizer.is_special(262));
}

/// Goal: what a user should know of a tokenizer is said.
#[test]
fn what_versions_read_otherwise_is_said() {
    let notes = |json: &Value, config: Value| {
        let files = [("tokenizer_config.json", &*config.to_string())];
        open_with(json, &files).unwrap().notes().clone()
    };
    let quiet = notes(&llama3(), json!({"bos_token": "<|end|>", "add_bos_token": true}));
    assert_eq!(quiet, Notes::default());
    let remarks = notes(&llama3(), json!({"bos_token": "<|end|>", "add_bos_token": false})).remarks;
    assert!(remarks.len() == 1 && remarks[0].contains("adds one"), "{remarks:?}");
    let remarks =
        notes(&byte_level(), json!({"bos_token": "<|end|>", "add_bos_token": true})).remarks;
    assert!(remarks.len() == 1 && remarks[0].contains("adds none"), "{remarks:?}");
    let mut dropout = byte_level();
    dropout["model"]["dropout"] = json!(0.5);
    assert!(notes(&dropout, json!({})).remarks[0].contains("dropout 0.5"));
    let tokenizer = open(&dropout);
    let same = |_| tokenizer.encode("hello hello hello", Bos::Never).unwrap();
    let runs: Vec<_> = (0..20).map(same).collect();
    assert!(runs.iter().all(|ids| *ids == open(&byte_level()).encode("hello hello hello", Bos::Never).unwrap()));

    // Classes that transformers 5 builds from the vocabulary alone.
    let class = |class: &str, legacy: bool| json!({"tokenizer_class": class, "legacy": legacy});
    let mut digits = byte_level();
    let parts = json!([{"type": "Digits", "individual_digits": true}, digits["pre_tokenizer"]]);
    digits["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": parts});
    for (json, config, said) in [
        (&byte_level(), class("GPT2Tokenizer", false), false),
        (&digits, class("PreTrainedTokenizerFast", false), false),
        (&digits, class("GPT2TokenizerFast", false), true),
        (&sentence_piece(), class("LlamaTokenizer", false), true),
        (&sentence_piece(), class("LlamaTokenizer", true), false),
    ] {
        let remarks = notes(json, config).remarks;
        let found = remarks.iter().any(|remark| remark.contains("vocabulary alone"));
        assert_eq!(found, said, "{remarks:?}");
    }

    let token = json!({"content": "<x>", "special": true});
    let warnings = notes(&byte_level(), json!({"added_tokens_decoder": {"300": token}})).warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("261") && warnings[0].contains("300"),
        "{warnings:?}"
    );
    let warnings = notes(&byte_level(), json!({"odd": 1})).warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("`odd`"), "{warnings:?}");
}

/// Goal: a flag of the config that tokenizer.json contradicts is refused where versions of transformers differ.
#[test]
fn a_prefix_space_that_two_files_see_differently_is_refused() {
    let with = |json: &Value, class: &str, asked: bool| {
        let config = json!({"tokenizer_class": class, "add_prefix_space": asked}).to_string();
        open_with(json, &[("tokenizer_config.json", &config)])
    };
    for (json, puts) in [(byte_level(), false), (sentence_piece(), true)] {
        assert!(with(&json, "PreTrainedTokenizerFast", puts).is_ok());
        let error = with(&json, "PreTrainedTokenizerFast", !puts).unwrap_err();
        has_words(&error, &["tokenizer_config.json", "add_prefix_space", "tokenizer.json"]);
    }
    let spaced = with(&byte_level(), "GPT2TokenizerFast", true).unwrap();
    assert_eq!(spaced.encode("w", Bos::Never).unwrap(), [258]);
}

/// Goal: a token that was added to one of two tokenizers makes no other vocabulary of it; two tokens under one id
/// do, and so do other merges and a piece that texts are merged into.
#[test]
fn an_added_token_makes_no_other_vocabulary() {
    let marked = |marks: &[(&str, bool)]| {
        let mut json = byte_level();
        for (id, &(token, special)) in (261..).zip(marks) {
            json["added_tokens"].as_array_mut().unwrap().push(added(id, token, special));
        }
        open(&json)
    };
    let (plain, pad) = (marked(&[]), marked(&[("[PAD]", true)]));
    let tool = marked(&[("[PAD]", true), ("<tool>", false)]);
    for (one, other) in [(&plain, &pad), (&plain, &tool), (&pad, &tool)] {
        assert_eq!(one.same_vocabulary(other), Ok(()));
        assert_eq!(other.same_vocabulary(one), Ok(()));
    }
    let reason = pad.same_vocabulary(&marked(&[("<|im_start|>", true)])).unwrap_err();
    for word in ["id 261", "\"[PAD]\"", "\"<|im_start|>\""] {
        assert!(reason.contains(word), "no {word:?} in: {reason}");
    }
    let mut merges = byte_level();
    merges["added_tokens"].as_array_mut().unwrap().push(added(261, "[PAD]", true));
    merges["model"]["merges"] = json!(["h e", "he l"]);
    assert!(plain.same_vocabulary(&open(&merges)).unwrap_err().contains("merge 2"));

    // One that was not added would be read from texts.
    let mut longer = sentence_piece();
    longer["model"]["vocab"]["hi"] = 264.into();
    let (short, longer) = (open(&sentence_piece()), open(&longer));
    for reason in [short.same_vocabulary(&longer), longer.same_vocabulary(&short)] {
        let reason = reason.unwrap_err();
        for word in ["id 264", "\"hi\"", "absent", "264", "265"] {
            assert!(reason.contains(word), "no {word:?} in: {reason}");
        }
    }

    // A unigram model's pieces are a list by id; a mark may stand in it, and beside it.
    let unigram = |pieces: Value, marks: Vec<Value>| {
        let model =
            json!({"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false});
        let decoder = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
            "split": true});
        open(&tokenizer_json(model, marks, decoder))
    };
    let pieces = |more: &[(&str, f64)]| {
        let all = [("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)];
        json!(all.iter().chain(more).collect::<Vec<_>>())
    };
    let short = unigram(pieces(&[]), vec![]);
    let marked = unigram(pieces(&[("<pad>", 0.0)]), vec![added(3, "<pad>", true)]);
    assert_eq!(short.same_vocabulary(&marked), Ok(()));
    assert_eq!(marked.same_vocabulary(&short), Ok(()));
    let longer = unigram(pieces(&[("ab", -3.0)]), vec![]);
    assert!(short.same_vocabulary(&longer).unwrap_err().contains("\"ab\""));
}

#[test]
fn bad_tokenizers_are_refused() {
    let refused = |json: &Value, words: &[&str]| {
        let error = open_with(json, &[]).unwrap_err();
        assert!(matches!(error, Error::Tokenizer { .. }), "{error:?}");
        has_words(&error, words);
        has_words(&error, &["tokenizer.json"]);
    };
    let empty = folder(&[]);
    has_words(&Tokenizer::open(empty.path()).unwrap_err(), &["tokenizer.json", "is missing"]);
    let sentence_piece = folder(&[("tokenizer.model", "")]);
    has_words(
        &Tokenizer::open(sentence_piece.path()).unwrap_err(),
        &["tokenizer.model is not read"],
    );
    let inside = folder(&[]);
    fs::create_dir(inside.path().join("tokenizer.json")).unwrap();
    has_words(&Tokenizer::open(inside.path()).unwrap_err(), &["tokenizer.json", "not a file"]);
    refused(&json!("no tokenizer"), &["not a JSON object"]);
    refused(&json!({"model": {}}), &["not a valid tokenizer"]);
    // The library itself panics on this one.
    let mut charsmap = byte_level();
    charsmap["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": 7});
    refused(&charsmap, &["not a valid tokenizer"]);
    let garbage = folder(&[("tokenizer.json", "{\"version\": ")]);
    has_words(&Tokenizer::open(garbage.path()).unwrap_err(), &["not a JSON object", "line 1"]);

    let mut json = byte_level();
    for (decoder, name) in [
        (json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), "WordPiece"),
        (json!({"type": "BPEDecoder", "suffix": "</w>"}), "BPEDecoder"),
        (json!({"type": "Fuse"}), "Sequence without"),
        (json!(null), "none"),
    ] {
        json["decoder"] = decoder;
        refused(&json, &[name, "not supported"]);
    }
    let mut strange = byte_level();
    strange["magic"] = json!({});
    refused(&strange, &["`magic`"]);
    let mut strange = byte_level();
    strange["model"]["temperature"] = json!(2);
    refused(&strange, &["`temperature`"]);
    let mut far = byte_level();
    far["model"]["vocab"]["zz"] = u32::MAX.into();
    refused(&far, &["4294967296"]);

    let with = |name, text| open_with(&byte_level(), &[(name, text)]).unwrap_err();
    has_words(&with("tokenizer_config.json", "{"), &["tokenizer_config.json", "not JSON"]);
    has_words(&with("tokenizer_config.json", "[]"), &["not a JSON object"]);
    has_words(&with("special_tokens_map.json", "1"), &["special_tokens_map.json"]);
    has_words(&with("tokenizer_config.json", "{\"chat_template\": 7}"), &["chat_template"]);
    let tools = "{\"chat_template\": [{\"name\": \"a\"}, {\"name\": \"b\"}]}";
    has_words(&with("tokenizer_config.json", tools), &["chat_template", "default"]);
}

proptest! {
    /// Any text comes back from its tokens, as the library's own decoder says.
    #[test]
    fn bytes_are_what_the_library_decodes(text in "([a-z éü€😀\n]|hi|hello| w|<é  é>){0,12}") {
        let tokenizer = open(&byte_level());
        let ids = tokenizer.encode(&text, Bos::Auto).unwrap();
        prop_assert_eq!(text_of(&tokenizer, &ids), text.as_bytes());

        let json = sentence_piece();
        let tokenizer = open(&json);
        let ids = tokenizer.encode(&text, Bos::Auto).unwrap();
        let bytes = text_of(&tokenizer, &ids);
        let library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        let decoded = library.decode(&ids, true).unwrap();
        let bytes = bytes.strip_prefix(b" ").unwrap_or(&bytes);
        prop_assert_eq!(String::from_utf8_lossy(bytes), &*decoded);
        prop_assert_eq!(decoded, text);
    }

    /// Damage to a tokenizer's file is refused or survived.
    #[test]
    fn damage_never_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..128), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        which in 0_usize..3,
    ) {
        let mut file = [byte_level, llama3, sentence_piece][which]().to_string().into_bytes();
        for (at, flip) in flips {
            let at = at.index(file.len());
            file[at] ^= flip;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len() + 1));
        }
        let folder = folder(&[]);
        fs::write(folder.path().join("tokenizer.json"), &file).unwrap();
        if let Ok(tokenizer) = Tokenizer::open(folder.path()) {
            let _ = tokenizer.encode("hello <s> é", Bos::Auto);
            let _ = tokenizer.same_vocabulary(&tokenizer);
        }
    }
}
