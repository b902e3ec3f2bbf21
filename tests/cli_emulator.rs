//! The program's tests once more, with the GPU's kernels on the emulator.

#[path = "cli/main.rs"]
mod cli;
