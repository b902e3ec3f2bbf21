//! Compiles kernels/ twice: for the emulator always, for GPUs when nvcc is found.
//!
//! nvcc is looked for in NVCC, CUDA_HOME, PATH and .toolchain (see tools/toolchain.sh); one that is too old
//! is passed over. Without it the program builds all the same, and `--device cuda` says what is missing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Real machine code for the A100's and the H100's generation, and PTX for all that come after.
const TARGETS: [&str; 3] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_80,code=compute_80",
];

/// The first release of nvcc that knows them.
const OLDEST_NVCC: u32 = 12;
/// Where tools/toolchain.sh puts nvcc; it touches this file, so that a build looks again.
const OWN_NVCC: &str = ".toolchain/nvcc";

fn main() {
    let kernels = Path::new("kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(has_cuda_kernels)");
    let files = sources(kernels);
    emulator(kernels, &files, &out);
    gpu(kernels, &files, &out);
}

/// All .cu files, sorted.
fn sources(kernels: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(kernels).expect("kernels/ is there");
    let paths = entries.map(|entry| entry.expect("kernels/ can be listed").path());
    let mut files: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "cu")).collect();
    files.sort();
    files
}

struct Entry {
    name: String,
    params: String,
    early: bool,
}

/// Every `extern "C" __global__ void … name(const Params p)`, and every one with `EARLY` before
/// `__global__`, which may start before the kernel in front of it is done.
fn entries(file: &Path) -> Vec<Entry> {
    let text = fs::read_to_string(file).expect("a kernel file can be read");
    let heads = text.split("extern \"C\" ").skip(1);
    let entries = heads.map(|head| {
        let (early, head) = match head.strip_prefix("EARLY ") {
            Some(head) => (true, head),
            None => (false, head),
        };
        let head = head.strip_prefix("__global__ void").expect("a kernel is a __global__ void");
        let (before, after) = head.split_once("(const ").expect("a kernel takes (const Params p)");
        let name = before.split_whitespace().last().expect("a kernel has a name");
        let params = after.split_whitespace().next().expect("a kernel takes (const Params p)");
        Entry { name: name.to_owned(), params: params.to_owned(), early }
    });
    entries.collect()
}

/// One file that includes all kernels.
fn includes(kernels: &Path, files: &[PathBuf]) -> String {
    let root = env::current_dir().expect("there is a current folder");
    let mut text = String::new();
    for file in files {
        writeln!(text, "#include \"{}\"", root.join(file).display()).expect("a string grows");
    }
    assert!(kernels.is_relative());
    text
}

/// The kernels as C++, with a table of them, and the emulator that runs them.
fn emulator(kernels: &Path, files: &[PathBuf], out: &Path) {
    let mut text = includes(kernels, files);
    text.push_str(
        "struct Kernel { const char *name; void (*run)(const void *); size_t params; bool early; };\n",
    );
    text.push_str("extern \"C\" const Kernel trimtab_emulator_kernels[] = {\n");
    let mut names = String::from("&[\n");
    for Entry { name, params, early } in files.iter().flat_map(|file| entries(file)) {
        writeln!(
            text,
            "  {{\"{name}\", [](const void *p) {{ {name}(*static_cast<const {params} *>(p)); }}, \
             sizeof({params}), {early}}},"
        )
        .expect("a string grows");
        writeln!(names, "    Kernel {{ name: \"{name}\", early: {early} }},")
            .expect("a string grows");
    }
    text.push_str("  {nullptr, nullptr, 0, false}};\n");
    names.push(']');
    let table = out.join("emulated_kernels.cpp");
    fs::write(&table, text).expect("OUT_DIR can be written");
    fs::write(out.join("kernels.rs"), names).expect("OUT_DIR can be written");
    let mut build = cc::Build::new();
    println!("cargo::rerun-if-env-changed=TRIMTAB_SANITIZE");
    // tools/sanitize.sh; rustc links with -nodefaultlibs, so the runtime has to be named.
    if env::var_os("TRIMTAB_SANITIZE").is_some_and(|which| which == "address") {
        build.flag("-fsanitize=address").flag("-g");
        println!("cargo::rustc-link-arg=-lasan");
    }
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .define("TRIMTAB_EMULATOR", None)
        .include(kernels)
        .flag_if_supported("-Wno-unknown-pragmas")
        // Sums must not depend on which of them the compiler fuses.
        .flag_if_supported("-ffp-contract=off")
        .file(table)
        .file(kernels.join("emulator/emulator.cpp"))
        .file(kernels.join("emulator/hopper.cpp"))
        .file(kernels.join("emulator/matrix.cpp"))
        .compile("trimtab_emulator");
}

/// The kernels for GPUs, as one fat binary.
fn gpu(kernels: &Path, files: &[PathBuf], out: &Path) {
    for name in ["NVCC", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    // A file that is not there counts as changed, at every build.
    if Path::new(OWN_NVCC).exists() {
        println!("cargo::rerun-if-changed={OWN_NVCC}");
    }
    let Some(nvcc) = find_nvcc() else {
        println!(
            "cargo::warning=nvcc was not found: no GPU kernels are built (tools/toolchain.sh gets it)"
        );
        return;
    };
    let source = out.join("kernels.cu");
    fs::write(&source, includes(kernels, files)).expect("OUT_DIR can be written");
    let mut command = Command::new(&nvcc);
    command.args(["-std=c++17", "-O3", "--fatbin", "--Werror", "all-warnings", "--threads", "2"]);
    command.args(TARGETS.iter().flat_map(|target| ["-gencode", target]));
    command.arg("-I").arg(kernels).arg("-o").arg(out.join("kernels.fatbin")).arg(&source);
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()));
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    println!("cargo::rustc-cfg=has_cuda_kernels");
}

fn find_nvcc() -> Option<PathBuf> {
    let from_variable = |name: &str, below: &str| {
        env::var_os(name).filter(|value| !value.is_empty()).map(|v| PathBuf::from(v).join(below))
    };
    let named = env::var_os("NVCC").filter(|value| !value.is_empty()).map(PathBuf::from);
    let folders: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    named
        .into_iter()
        .chain(from_variable("CUDA_HOME", "bin/nvcc"))
        .chain(folders.into_iter().map(|folder| folder.join("nvcc")))
        .chain([PathBuf::from(OWN_NVCC)])
        .filter(|path| path.is_file())
        .map(|path| fs::canonicalize(&path).unwrap_or(path))
        .find(|path| {
            let release = release(path);
            let fits = release.is_some_and(|release| release >= OLDEST_NVCC);
            if !fits {
                let release = release.map_or("unknown".into(), |release| release.to_string());
                println!(
                    "cargo::warning={} is not used: its release is {release}, not {OLDEST_NVCC} or later",
                    path.display()
                );
            }
            fits
        })
}

/// The major release of an nvcc: it says "Cuda compilation tools, release 13.0, V13.0.88".
fn release(nvcc: &Path) -> Option<u32> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_once("release ")?.1.split('.').next()?.parse().ok()
}
