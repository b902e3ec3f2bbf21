//! `trimtab devices` and `--device`: machines without a GPU, with a broken driver, and the emulator.

use std::fs;

use super::*;

/// Runs `devices` where libcuda, if there is one, comes from `folder` alone.
fn devices(folder: &Path) -> (String, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .arg("devices")
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

/// A C source with the functions of libcuda that our own source lists, each as `define`
/// says.
fn source(define: impl Fn(&str) -> String) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/cuda/gpus.rs");
    let text = fs::read_to_string(path).unwrap();
    let list = text.split("const FUNCTIONS").nth(1).unwrap().split("];").next().unwrap();
    let lines = list.lines().map(str::trim);
    lines.filter_map(|line| line.strip_prefix("c\"")?.strip_suffix("\",")).map(define).collect()
}

/// A libcuda.so made of `source`.
fn library(folder: &Path, source: &str) {
    let file = folder.join("libcuda.c");
    fs::write(&file, source).unwrap();
    let target = folder.join("libcuda.so");
    let status =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(target).arg(&file).status();
    assert!(status.unwrap().success());
}

/// Goal: a driver that is a stub, too old, or broken is told apart from none, and nothing panics.
#[test]
#[cfg(target_os = "linux")]
fn a_broken_driver_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    library(folder.path(), "int nothing(void) { return 0; }\n");
    let (text, fine) = devices(folder.path());
    assert!(fine && text.contains("libcuda has no cuInit: is it a stub, or too old?"), "{text}");

    // All functions are there, and each says CUDA_ERROR_STUB_LIBRARY.
    let stub = source(|name| format!("int {name}(void) {{ return 34; }}\n"));
    library(folder.path(), &stub);
    let (text, fine) = devices(folder.path());
    assert!(fine && text.contains("cuda      none"), "{text}");
    assert!(text.contains("cuInit: error 34: this libcuda is a stub for linking"), "{text}");
    assert!(
        text.contains("cpu ") && text.contains("emulator ") && text.contains("auto      cpu"),
        "{text}"
    );
}

/// Goal: what cannot be had is refused by name, with what to do.
#[test]
fn cuda_is_refused_where_there_is_none() {
    if trimtab::backend::cuda::CudaBackend::open().is_ok() {
        return;
    }
    let output = trimtab(&["search", "--device", "cuda", "--prompt", "x", "--base", "/nowhere"]);
    assert_refused(&output, "--device cuda cannot be used: ");
}

/// Goal: `--device auto` says why it leaves a GPU alone that is there.
#[test]
#[cfg(target_os = "linux")]
fn a_gpu_that_cannot_be_used_is_not_passed_over_in_silence() {
    // One GPU that is found and described, and whose context cannot be had.
    let folder = tempfile::tempdir().unwrap();
    let broken = source(|name| match name {
        "cuInit" | "cuDeviceGet" | "cuDeviceTotalMem_v2" => {
            format!("int {name}() {{ return 0; }}\n")
        }
        "cuDeviceGetCount" => "int cuDeviceGetCount(int *n) { *n = 1; return 0; }\n".into(),
        "cuDeviceGetName" => "int cuDeviceGetName(char *name) { *name = 'X'; return 0; }\n".into(),
        "cuDeviceGetAttribute" => {
            "int cuDeviceGetAttribute(int *value) { *value = 9; return 0; }\n".into()
        }
        _ => format!("int {name}() {{ return 34; }}\n"),
    });
    library(folder.path(), &broken);
    let output = Command::new(env!("CARGO_BIN_EXE_trimtab"))
        .args(["search", "--device", "auto", "--method", "sample", "--prompt", "x", "--base"])
        .args([&model("gpt2"), "--max-new-tokens", "2"])
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("trimtab: computing on the CPU: "), "{said}");
}
