//! Checkpoints on disk: what is right reads back exactly, what is wrong gets a sentence.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use half::f16;
use proptest::prelude::*;
use tempfile::TempDir;
use trimtab::error::Error;
use trimtab::tensor::bf16;
use trimtab::weights::Checkpoint;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A file of any header over any data.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A valid file: tensors (name, dtype, shape, bytes) one after the other.
fn valid(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    for (name, dtype, shape, bytes) in tensors {
        let range = [data.len(), data.len() + bytes.len()];
        let info = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": range});
        header.insert((*name).into(), info);
        data.extend_from_slice(bytes);
    }
    raw(&serde_json::Value::Object(header).to_string(), &data)
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn f32_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn index(map: &[(&str, &str)]) -> Vec<u8> {
    let map: serde_json::Map<_, _> =
        map.iter().map(|(name, file)| ((*name).into(), (*file).into())).collect();
    serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string().into()
}

/// Opening must fail, as a checkpoint's fault, with all of these words.
fn refused(folder: &Path, words: &[&str]) {
    let error = Checkpoint::open(folder).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
    assert!(text.contains(&folder.display().to_string()), "names no file: {text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// A folder with this as its only weights must be refused.
fn single_refused(file: &[u8], words: &[&str]) {
    let folder = folder(&[(SINGLE, file)]);
    refused(folder.path(), words);
    refused(folder.path(), &[SINGLE]);
}

#[test]
fn numbers_read_back_in_all_dtypes() {
    // Ties to even on both sides, a subnormal f16, infinities, the largest numbers.
    let numbers = [
        0.0,
        -0.0,
        1.0,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        -2.5,
        65504.0,
        5.9604645e-8,
        f32::INFINITY,
    ];
    let shape = [3, 3];
    let halves = numbers.map(f16::from_f32);
    let brains = numbers.map(bf16::from_f32);
    let file = valid(&[
        ("full", "F32", &shape, &f32_bytes(&numbers)),
        ("half", "F16", &shape, &halves.map(f16::to_le_bytes).concat()),
        ("brain", "BF16", &shape, &brains.map(bf16::to_le_bytes).concat()),
    ]);
    let folder = folder(&[(SINGLE, &file)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();

    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["brain", "full", "half"]);
    assert_eq!(checkpoint.parameters(), 27);
    assert_eq!(checkpoint.bytes(), 9 * 4 + 9 * 2 + 9 * 2);
    let dtypes = [("BF16", 1), ("F16", 1), ("F32", 1)].map(|(name, n)| (name.to_owned(), n));
    assert_eq!(checkpoint.dtypes(), dtypes);
    assert_eq!(checkpoint.folder(), folder.path());
    assert!(checkpoint.contains("half") && !checkpoint.contains("quarter"));

    let read = |name| checkpoint.tensor(name, &shape).unwrap();
    assert_eq!(read("full").shape(), shape);
    assert_eq!(read("full").to_f32().unwrap(), numbers);
    assert_eq!(read("half").to_f32().unwrap(), halves.map(f16::to_f32));
    assert_eq!(read("brain").to_f32().unwrap(), brains.map(bf16::to_f32));
    let bits = |x: &[bf16]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&read("full").to_bf16().unwrap()), bits(&brains));
    assert_eq!(bits(&read("brain").to_bf16().unwrap()), bits(&brains));
    assert_eq!(
        bits(&read("half").to_bf16().unwrap()),
        bits(&halves.map(|x| bf16::from_f32(x.to_f32()))),
        "two roundings, the second to even"
    );
    // 1 + 2^-8 is halfway between 1 and 1 + 2^-7 and goes to the even one below; 1 + 3·2^-8 goes up.
    assert_eq!(read("full").to_bf16().unwrap()[3].to_f32(), 1.0);
    assert_eq!(read("full").to_bf16().unwrap()[4].to_f32(), 1.015625);
}

#[test]
fn data_need_not_be_aligned() {
    let tensor = f32_bytes(&[1.5, -2.5]);
    for odd in 1..8 {
        let file = valid(&[("odd", "U8", &[odd], &vec![7; odd]), ("x", "F32", &[2], &tensor)]);
        let folder = folder(&[(SINGLE, &file)]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.tensor("x", &[2]).unwrap().to_f32().unwrap(), [1.5, -2.5]);
    }
}

#[test]
fn shards_are_one_checkpoint() {
    let (a, b) = (f32_bytes(&[1.0, 2.0]), f32_bytes(&[3.0]));
    let first = valid(&[("a", "F32", &[2, 1], &a)]);
    let second = valid(&[("b", "F32", &[1], &b), ("c", "F32", &[], &b)]);
    let map =
        index(&[("a", "one.safetensors"), ("b", "two.safetensors"), ("c", "two.safetensors")]);
    let folder =
        folder(&[("one.safetensors", &first), ("two.safetensors", &second), (INDEX, &map)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.tensor("a", &[2, 1]).unwrap().to_f32().unwrap(), [1.0, 2.0]);
    assert_eq!(checkpoint.tensor("c", &[]).unwrap().to_f32().unwrap(), [3.0]);
    assert_eq!(checkpoint.parameters(), 4);

    let text = checkpoint.tensor("d", &[4]).unwrap_err().to_string();
    assert!(text.contains(INDEX) && text.contains("\"d\"") && text.contains("[4]"), "{text}");
    let text = checkpoint.tensor("b", &[2]).unwrap_err().to_string();
    assert!(text.contains("two.safetensors"), "{text}");
}

#[test]
fn the_single_file_counts_when_both_are_there() {
    let file = valid(&[("a", "F32", &[1], &f32_bytes(&[1.0]))]);
    let folder = folder(&[(SINGLE, &file), (INDEX, b"not read")]);
    assert!(Checkpoint::open(folder.path()).unwrap().contains("a"));
}

#[test]
fn same_bytes_means_dtype_shape_and_bytes() {
    let (x, y) = (f32_bytes(&[1.0, 2.0]), f32_bytes(&[1.0, 2.5]));
    let file = valid(&[
        ("x", "F32", &[2], &x),
        ("same", "F32", &[2], &x),
        ("other", "F32", &[2], &y),
        ("column", "F32", &[2, 1], &x),
        ("halves", "F16", &[4], &x),
        ("brains", "BF16", &[4], &x),
    ]);
    let folder = folder(&[(SINGLE, &file)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let read = |name, shape: &[usize]| checkpoint.tensor(name, shape).unwrap();
    assert!(read("x", &[2]).same_bytes(&read("same", &[2])).unwrap());
    assert!(!read("x", &[2]).same_bytes(&read("other", &[2])).unwrap());
    assert!(!read("x", &[2]).same_bytes(&read("column", &[2, 1])).unwrap());
    assert!(!read("halves", &[4]).same_bytes(&read("brains", &[4])).unwrap());
}

#[test]
fn a_wrong_wish_is_answered_with_what_there_is() {
    let file = valid(&[
        ("w", "F32", &[2, 3], &f32_bytes(&[0.0; 6])),
        ("mask", "BOOL", &[2], &[0, 1]),
        ("long", "I64", &[1], &[0; 8]),
    ]);
    let folder = folder(&[(SINGLE, &file)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for (name, shape, words) in [
        ("w", &[3, 2][..], &["\"w\"", "[2, 3]", "[3, 2]", SINGLE][..]),
        ("w", &[6], &["[2, 3]", "[6]"]),
        ("gone", &[1], &["\"gone\"", "missing", SINGLE]),
        ("mask", &[2], &["\"mask\"", "BOOL", "BF16"]),
        ("long", &[1], &["I64", "not supported"]),
    ] {
        let text = checkpoint.tensor(name, shape).unwrap_err().to_string();
        for word in words {
            assert!(text.contains(word), "no {word:?} in: {text}");
        }
    }
}

/// Goal: a wide number is rounded once: by way of f32 this one would become 1.
#[test]
fn float64_is_rounded_to_bf16_at_once() {
    let (tie, little, step) = (1.0 + 2f64.powi(-8), 2f64.powi(-40), 2f32.powi(-7));
    let numbers = [tie + little, -tie - little, tie, tie - little, 3.0 * tie, 0.1, 1e300, f64::NAN];
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let file = valid(&[("w", "F64", &[8], &bytes)]);
    let folder = folder(&[(SINGLE, &file)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tensor = checkpoint.tensor("w", &[8]).unwrap();
    let halves: Vec<f32> = tensor.to_bf16().unwrap().iter().map(|half| half.to_f32()).collect();
    assert_eq!(halves[..5], [1.0 + step, -1.0 - step, 1.0, 1.0, 3.015625]);
    assert_eq!(halves[5], bf16::from_f32(0.1).to_f32());
    assert!(halves[6].is_infinite() && halves[7].is_nan());
    assert_eq!(tensor.to_f32().unwrap()[..3], [tie as f32, -tie as f32, tie as f32]);
}

#[test]
fn hostile_headers_are_refused() {
    single_refused(b"", &["empty"]);
    single_refused(b"1234567", &["truncated", "7 bytes"]);
    single_refused(&u64::MAX.to_le_bytes(), &["18446744073709551615"]);
    single_refused(&[&100_000_001_u64.to_le_bytes()[..], b"{}"].concat(), &["100000001"]);
    single_refused(&[&50_u64.to_le_bytes()[..], b"{}"].concat(), &["truncated", "50 bytes"]);
    for header in ["", "no", "[]", "{", "{\"a\": 1}", "{\"a\": {\"dtype\": \"F32\"}}", "\u{fffd}"] {
        single_refused(&raw(header, b""), &["header is not valid"]);
    }
    single_refused(&[&2_u64.to_le_bytes()[..], b"\xff\xfe"].concat(), &["header is not valid"]);
    let nested = "[".repeat(100_000);
    single_refused(&raw(&format!("{{\"a\": {nested}"), b""), &["header is not valid"]);
    single_refused(&raw("{}", b""), &["no tensors"]);
    single_refused(&raw("{}", b"spare"), &["0..5", "no tensor's"]);
}

#[test]
fn hostile_tensors_are_refused() {
    let with = |entries: &[(&str, &str, &str, &str)], data: &[u8]| {
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, dtype, shape, range)| {
                format!(
                    "{name:?}:{{\"dtype\":{dtype:?},\"shape\":{shape},\"data_offsets\":{range}}}"
                )
            })
            .collect();
        raw(&format!("{{{}}}", entries.join(",")), data)
    };
    let refused = |entries: &[(&str, &str, &str, &str)], words: &[&str]| {
        single_refused(&with(entries, &[0; 16]), words);
    };
    refused(&[("a", "F32", "[5]", "[0,20]")], &["\"a\"", "0..20", "16 bytes"]);
    refused(&[("a", "F32", "[4]", "[16,0]")], &["backwards"]);
    refused(&[("a", "F32", "[3]", "[0,16]")], &["\"a\"", "[3]", "F32", "16 bytes"]);
    refused(&[("a", "F32", "[2]", "[0,8]")], &["8..16", "at the end"]);
    refused(&[("a", "F32", "[2]", "[8,16]")], &["0..8", "before"]);
    refused(&[("a", "F32", "[3]", "[0,12]"), ("b", "F32", "[2]", "[8,16]")], &["overlaps"]);
    refused(&[("a", "F32", "[1]", "[0,4]"), ("b", "F32", "[2]", "[8,16]")], &["4..8"]);
    refused(&[("a", "F32", "[4]", "[0,16]"), ("b", "F32", "[4]", "[0,16]")], &["overlaps"]);
    refused(&[("a", "F32", "[4]", "[0,16]"), ("a", "F32", "[4]", "[0,16]")], &["listed twice"]);
    refused(&[("a", "F99", "[4]", "[0,16]")], &["F99"]);
    refused(&[("a", "F32", "[-4]", "[0,16]")], &["header is not valid"]);
    refused(&[("a", "F32", "[4]", "[0,99999999999999999999]")], &["header is not valid"]);
    // Products that leave 64 bits, one of which would come back to 16 bytes.
    refused(&[("a", "F32", "[4294967296,4294967296,4]", "[0,16]")], &["cannot have"]);
    refused(
        &[("a", "F32", "[18446744073709551615,18446744073709551615]", "[0,16]")],
        &["cannot have"],
    );
    refused(&[("a", "F4", "[3]", "[0,1]")], &["cannot have"]);
    // Sums that leave 64 bits.
    let (most, shape) = (u64::MAX / 8, format!("[{}]", u64::MAX / 8));
    let ranges: Vec<_> = (0..8).map(|i| format!("[{},{}]", i * most, (i + 1) * most)).collect();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let entries: Vec<_> =
        names.iter().zip(&ranges).map(|(name, range)| (*name, "U8", &*shape, &**range)).collect();
    refused(&entries, &["16 bytes of data"]);
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let file = valid(&[("a", "F32", &[2], &f32_bytes(&[1.0, 2.0]))]);
    for len in 0..file.len() {
        single_refused(&file[..len], &[]);
    }
    let longer = [&file[..], b"x"].concat();
    single_refused(&longer, &["no tensor's"]);
}

#[test]
fn indexes_are_held_to_their_shards() {
    let a = valid(&[("a", "F32", &[1], &f32_bytes(&[1.0]))]);
    let check = |files: &[(&str, &[u8])], words: &[&str]| refused(folder(files).path(), words);

    for outside in ["../x.safetensors", "/etc/passwd", "sub/../../x", ".", "./../x", ""] {
        let map = index(&[("a", outside)]);
        check(&[(INDEX, &map)], &["outside the folder", "\"a\"", INDEX]);
    }
    let map = index(&[("a", "one"), ("b", "two")]);
    check(&[(INDEX, &map), ("one", &a)], &["\"two\"", "missing", "\"b\""]);
    let map = index(&[("a", "one"), ("b", "one")]);
    check(&[(INDEX, &map), ("one", &a)], &["one", "\"b\"", "does not hold"]);
    let both = valid(&[("a", "F32", &[0], &[]), ("b", "F32", &[0], &[])]);
    let map = index(&[("a", "one"), ("b", "two")]);
    check(&[(INDEX, &map), ("one", &a), ("two", &both)], &["\"a\"", "is also in", "one", "two"]);
    // The tensor is there, but in a shard opened for another one.
    let c = valid(&[("c", "F32", &[0], &[])]);
    let map = index(&[("a", "one"), ("c", "two"), ("d", "one")]);
    let d_in_two = valid(&[("c", "F32", &[0], &[]), ("d", "F32", &[0], &[])]);
    check(&[(INDEX, &map), ("one", &a), ("two", &d_in_two)], &["\"d\"", "does not hold"]);
    check(
        &[(INDEX, &index(&[("a", "one"), ("c", "two")])), ("one", b"bad"), ("two", &c)],
        &["one"],
    );

    check(&[(INDEX, b"")], &[INDEX, "not a valid shard index"]);
    check(&[(INDEX, b"[]")], &["not a valid shard index"]);
    check(&[(INDEX, b"{\"weight_map\": {\"a\": 1}}")], &["not a valid shard index"]);
    check(&[(INDEX, b"{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}")], &["listed twice"]);
    check(&[(INDEX, b"{\"weight_map\": {}}")], &["no tensors"]);
}

#[test]
fn folders_without_weights_say_what_to_do() {
    let empty = folder(&[]);
    refused(empty.path(), &[SINGLE, INDEX, "no weights"]);
    let old = folder(&[("pytorch_model.bin", b"pickle")]);
    refused(old.path(), &["pytorch_model.bin", "save_pretrained"]);
    let file = folder(&[(SINGLE, b"x")]);
    refused(&file.path().join(SINGLE), &["not a folder"]);

    let gone = Checkpoint::open(&empty.path().join("gone")).unwrap_err();
    assert!(matches!(gone, Error::Io { .. }), "{gone:?}");
    assert!(gone.to_string().contains("gone"));

    for name in [SINGLE, INDEX] {
        let folder = folder(&[]);
        fs::create_dir(folder.path().join(name)).unwrap();
        refused(folder.path(), &[name, "not a file"]);
    }
    let map = index(&[("a", "sub")]);
    let folder = folder(&[(INDEX, &map)]);
    fs::create_dir(folder.path().join("sub")).unwrap();
    refused(folder.path(), &["sub", "not a file"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_dangling_ones_named() {
    use std::os::unix::fs::symlink;
    let file = valid(&[("a", "F32", &[1], &f32_bytes(&[1.0]))]);
    let store = folder(&[("blob", &file)]);
    let linked = folder(&[(INDEX, &index(&[("a", "shard")]))]);
    symlink(store.path().join("blob"), linked.path().join("shard")).unwrap();
    assert!(Checkpoint::open(linked.path()).unwrap().contains("a"));

    let dangling = folder(&[]);
    symlink(store.path().join("gone"), dangling.path().join(SINGLE)).unwrap();
    let error = Checkpoint::open(dangling.path()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(SINGLE) && text.contains("gone, which is missing"), "{text}");
}

/// Goal: a file that another program cuts while a model is loaded is an error that names it, and not the
/// end of the process.
#[test]
fn a_file_that_is_cut_meanwhile_is_named() {
    // More than is read at once.
    let numbers = f32_bytes(&vec![1.0; 1 << 17]);
    let file = valid(&[("a", "F32", &[1 << 17], &numbers), ("b", "F32", &[1 << 17], &numbers)]);
    for left in [file.len() - 1, file.len() / 2, 8, 0] {
        let folder = folder(&[(SINGLE, &file)]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let tensor = |name| checkpoint.tensor(name, &[1 << 17]).unwrap();
        assert!(tensor("a").same_bytes(&tensor("b")).unwrap());
        let path = folder.path().join(SINGLE);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(left as u64).unwrap();
        for error in [
            tensor("b").to_bf16().unwrap_err(),
            tensor("b").to_f32().unwrap_err(),
            tensor("a").same_bytes(&tensor("b")).unwrap_err(),
            checkpoint.fingerprint().unwrap_err(),
        ] {
            let text = error.to_string();
            let lens = format!("it had {} bytes and has {left};", file.len());
            assert!(text.contains(SINGLE) && text.contains(&lens), "{text}");
        }
    }
}

/// Goal: a limit holds for what is read, and not for what a file says of its length: files of the system say 0.
#[cfg(target_os = "linux")]
#[test]
fn a_file_without_a_length_has_a_limit_too() {
    let status = Path::new("/proc/self/status");
    let read = |max| trimtab::folder::read_file(status, max);
    assert!(read(1 << 20).unwrap().unwrap().len() > 10);
    let text = read(10).unwrap_err().to_string();
    assert!(text.contains("/proc/self/status: has more than 10 bytes"), "{text}");
}

/// Goal: an index that is no file is refused and not waited for.
#[test]
fn an_index_that_is_a_pipe_is_refused() {
    let folder = folder(&[]);
    let made = std::process::Command::new("mkfifo").arg(folder.path().join(INDEX)).status();
    assert!(made.unwrap().success());
    refused(folder.path(), &[INDEX, "is not a file"]);
}

proptest! {
    /// Whatever happens to a file, it opens or is refused, and what opens can be read.
    #[test]
    fn damage_never_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        sharded: bool,
    ) {
        let numbers = f32_bytes(&[1.0, 2.0, 3.0, 4.0]);
        let mut file = valid(&[
            ("a", "F32", &[2, 2], &numbers),
            ("b", "BF16", &[8], &numbers),
            ("c", "F16", &[2, 4], &numbers),
        ]);
        for (at, flip) in flips {
            let at = at.index(file.len());
            file[at] ^= flip;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len() + 1));
        }
        let map = index(&[("a", "shard"), ("b", "shard"), ("c", "shard")]);
        let folder = if sharded {
            folder(&[("shard", &file), (INDEX, &map)])
        } else {
            folder(&[(SINGLE, &file)])
        };
        match Checkpoint::open(folder.path()) {
            Ok(checkpoint) => for name in checkpoint.names() {
                for shape in [&[2, 2][..], &[8], &[2, 4]] {
                    if let Ok(view) = checkpoint.tensor(name, shape) {
                        let floats = view.to_f32().unwrap();
                        prop_assert_eq!(floats.len(), view.to_bf16().unwrap().len());
                    }
                }
            },
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    /// Nor does a damaged index.
    #[test]
    fn a_damaged_index_never_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
    ) {
        let mut map = index(&[("a", "shard")]);
        for (at, flip) in flips {
            let at = at.index(map.len());
            map[at] ^= flip;
        }
        let file = valid(&[("a", "F32", &[1], &f32_bytes(&[1.0]))]);
        let folder = folder(&[("shard", &file), (INDEX, &map)]);
        let _ = Checkpoint::open(folder.path());
    }
}
