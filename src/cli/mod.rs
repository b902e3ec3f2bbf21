//! Floor 7: the command line. One command per file; `run` is the table of contents.
//!
//! stdout carries results only; progress and messages go to stderr. Bad input ends with a
//! sentence on stderr and exit code 2; a reader of stdout that has gone ends the command quietly.

mod base;
pub mod bench;
mod demo;
mod described;
mod device;
#[doc(hidden)]
pub mod fuzzing;
mod input;
mod inspect;
mod judge;
mod line;
mod memory;
mod models;
mod output;
mod progress;
mod resume;
mod score;
mod search;
mod serve;
mod settings;
mod stdout;
mod tree;
mod vocabulary;
mod written;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
use crate::server::say;
use crate::text::panics_are_caught;

/// Steers a large frozen language model with two small ones: weak-to-strong search.
#[derive(Parser)]
#[command(name = "trimtab", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer prompts with a base model guided by a tuned and an untuned small one.
    Search(Box<search::Args>),
    /// Score given responses: log-probabilities of a pair and their difference.
    Score(Box<score::Args>),
    /// Answer requests over HTTP, as OpenAI's API does, and show searches on a page.
    Serve(Box<serve::Args>),
    /// Answer requests that come as JSON lines on standard input.
    Stdio(Box<serve::StdioArgs>),
    /// Say what a model folder holds and what it needs in memory.
    Inspect(inspect::Args),
    /// List what there is to compute on, and why not more.
    Devices,
    /// Show weak-to-strong search on the three small models that come with trimtab.
    Demo(demo::Args),
    /// Measure, beside what this machine's memory and arithmetic allow.
    Bench(bench::Args),
}

/// How a command that did not stop early went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// All of it.
    Well,
    /// Some of what came in could not be answered; stderr says what.
    WithFailures,
}

/// Runs the command that the process was started with; `has_stdout` if it was started with one.
pub fn main(has_stdout: bool) -> ExitCode {
    if !has_stdout {
        stdout::is_closed();
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !panics_are_caught() {
            hook(info);
        }
    }));
    let done = match Cli::try_parse() {
        Ok(cli) => run(cli.command),
        Err(error) if error.use_stderr() => error.exit(),
        // What --help and --version ask for.
        Err(text) => stdout::check().and_then(|()| {
            text.print().map_err(Error::io("write to", stdout::STDOUT)).map(|()| Done::Well)
        }),
    };
    match done.and_then(|done| stdout::finish().map(|()| done)) {
        Ok(Done::Well) => ExitCode::SUCCESS,
        Ok(Done::WithFailures) => ExitCode::from(2),
        Err(error) if stdout::is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(error);
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<Done> {
    match command {
        Command::Search(args) => search::run(*args),
        Command::Score(args) => score::run(*args),
        Command::Serve(args) => serve::run(*args),
        Command::Stdio(args) => serve::run_stdio(*args),
        Command::Inspect(args) => inspect::run(args),
        Command::Devices => device::list(),
        Command::Demo(args) => demo::run(args),
        Command::Bench(args) => bench::run(args),
    }
}
