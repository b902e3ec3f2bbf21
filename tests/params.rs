//! src/backend/cuda/params.rs is what bindgen makes of kernels/params.h.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Goal: Rust and the kernels agree on every parameter. Where libclang is missing (see
/// tools/toolchain.sh) nothing can be compared, and the test says so.
///
/// `TRIMTAB_UPDATE=1 cargo test --release --test params` writes the copy anew.
#[test]
fn the_committed_parameters_are_what_the_header_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let local = root.join(".toolchain/libclang.so");
    if env::var_os("LIBCLANG_PATH").is_none() && local.exists() {
        let folder: PathBuf = fs::canonicalize(local).unwrap().parent().unwrap().into();
        // SAFETY: no other thread of this test program reads or writes the environment.
        unsafe { env::set_var("LIBCLANG_PATH", folder) };
    }
    let header = root.join("kernels/params.h");
    let generate = || {
        bindgen::Builder::default()
            .header(header.to_str().unwrap())
            .blocklist_type("bf16")
            .raw_line("//! Made from kernels/params.h by bindgen: see tests/params.rs.")
            .raw_line("#![allow(dead_code)]")
            .raw_line("")
            .raw_line("use crate::tensor::bf16;")
            .disable_header_comment()
            .derive_partialeq(true)
            .layout_tests(false)
            .formatter(bindgen::Formatter::Prettyplease)
            .generate()
            .unwrap()
            .to_string()
    };
    // bindgen panics where it finds no libclang.
    let Ok(made) = std::panic::catch_unwind(generate) else {
        assert!(env::var_os("CI").is_none(), "CI has no libclang: run tools/toolchain.sh first");
        println!("no libclang: nothing was compared; tools/toolchain.sh gets it");
        return;
    };
    let path = root.join("src/backend/cuda/params.rs");
    if env::var_os("TRIMTAB_UPDATE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap();
    assert!(made == committed, "params.rs is stale: TRIMTAB_UPDATE=1 cargo test --test params");
}
