//! The rules of the house, enforced: floors, file sizes, one name per op.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which module stands on which floor; imports go only downwards, except that what is on one
/// floor under one name may see itself. ARCHITECTURE.md has the picture.
const FLOORS: [(&str, u8); 18] = [
    ("error", 0),
    ("folder", 1),
    ("tensor", 1),
    ("hash", 1),
    ("json", 1),
    ("philox", 1),
    ("backend", 2),
    ("kv_cache", 2),
    ("weights", 2),
    ("text", 2),
    ("engine", 3),
    ("proposer", 4),
    ("guide", 4),
    ("search", 5),
    ("scheduler", 6),
    ("server", 7),
    ("cli", 8),
    ("main", 8),
];

/// A guide scores a proposer's response, so it sees that type: the one sideways import.
const ALLOWED: [(&str, &str); 1] = [("guide", "proposer")];

/// What a module must not know, whatever its floor.
const FORBIDDEN: [(&str, &[&str]); 4] = [
    ("server", &["backend", "tensor", "weights", "engine", "kv_cache"]),
    ("search", &["backend", "tensor", "text", "weights", "engine", "kv_cache"]),
    ("scheduler", &["backend", "tensor", "text", "weights", "engine", "kv_cache"]),
    ("kv_cache", &["backend"]),
];

const MAX_LINES: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` that end in `extension`.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The top-level module that a source file belongs to.
fn module(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Every `crate::name` in code (not in comments): the modules that a file knows.
fn imports(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>())
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .filter(|name: &String| !name.is_empty())
        .collect()
}

/// Goal: imports go only downwards, and never sideways.
#[test]
fn imports_go_only_downwards() {
    let floors: BTreeMap<&str, u8> = FLOORS.into();
    let mut complaints = Vec::new();
    for path in files(&root().join("src"), "rs") {
        let here = module(&path);
        if here == "lib" {
            continue;
        }
        let floor = *floors.get(here.as_str()).unwrap_or_else(|| panic!("{here} has no floor"));
        for import in imports(&fs::read_to_string(&path).unwrap()) {
            let there = *floors
                .get(import.as_str())
                .unwrap_or_else(|| panic!("{} imports crate::{import}", path.display()));
            let allowed = ALLOWED.contains(&(here.as_str(), import.as_str()));
            if import != here && there >= floor && !allowed {
                complaints.push(format!("{}: {here} sees {import}", path.display()));
            }
            let forbidden = FORBIDDEN.iter().find(|(name, _)| *name == here);
            if forbidden.is_some_and(|(_, names)| names.contains(&import.as_str())) {
                complaints.push(format!("{}: {here} must not know {import}", path.display()));
            }
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// Goal: every file can be read in one sitting.
#[test]
fn no_file_is_longer_than_500_lines() {
    let folders = [("src", "rs"), ("tests", "rs"), ("benches", "rs"), ("tools", "py")];
    for path in folders.iter().flat_map(|(folder, ending)| files(&root().join(folder), ending)) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines", path.display());
    }
}

/// The ops of `Backend`: its methods from `embed` on.
fn ops() -> Vec<String> {
    let text = fs::read_to_string(root().join("src/backend/mod.rs")).unwrap();
    let body = text.split("pub trait Backend").nth(1).unwrap();
    let names = body.split("\n    fn ").skip(1);
    let names = names.map(|rest| {
        rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    });
    names.skip_while(|name| name != "embed").collect()
}

/// Goal: an op's whole life is found under one name: its kernel, its test and its bench row.
#[test]
fn every_op_has_its_kernel_its_test_and_its_bench() {
    let ops = ops();
    assert!(ops.len() >= 18, "the ops were not found: {ops:?}");
    let benches = fs::read_to_string(root().join("benches/kernels.rs")).unwrap();
    for op in &ops {
        let test = root().join(format!("tests/kernels/{op}.rs"));
        assert!(test.is_file(), "{} is missing", test.display());
        let kernel = root().join(format!("kernels/{op}.cu"));
        assert!(kernel.is_file(), "{} is missing", kernel.display());
        assert!(benches.contains(&format!("\"{op}")), "benches/kernels.rs has no row {op}");
    }
    for path in files(&root().join("tests/kernels"), "rs") {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let helper = ["main", "harness", "early"].contains(&name.as_str());
        assert!(helper || ops.contains(&name), "{} tests no op", path.display());
    }
}

/// Goal: device code is unsafe only where it must be.
#[test]
fn unsafe_stays_where_it_belongs() {
    let allowed = ["backend/cpu/", "backend/cuda/", "main.rs"];
    for path in files(&root().join("src"), "rs") {
        let code = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
        let is_unsafe = code
            .lines()
            .any(|line| !line.trim_start().starts_with("//") && line.contains("unsafe "));
        let expected = allowed.iter().any(|place| name.starts_with(place));
        assert!(!is_unsafe || expected, "{name} has unsafe code");
    }
}
