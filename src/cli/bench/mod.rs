//! `trimtab bench`: how fast it is, beside how fast this machine could be.
//!
//! Every row comes with a bound where one can be stated: the bytes that must be read at the
//! measured bandwidth of memory, or the operations at the measured rate of a large matmul,
//! whichever takes longer. Weights that stay in a cache can beat the first of them.

mod bounds;
mod compare;
mod decode;
mod machine;
mod models;
mod plot;
mod report;
mod score;
mod search;
mod shapes;

use clap::Subcommand;

use self::models::ModelArgs;
use self::report::Format;
use super::Done;
use super::device::DeviceArgs;
use crate::error::{Error, Result};

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    /// A model alone: prompts, then one token at a time
    Decode(Box<decode::Args>),
    /// A model alone: log-probabilities of given texts
    Score(Box<score::Args>),
    /// Whole searches, and where their time goes
    Search(Box<search::Args>),
    /// Say what moved beyond the noise between two outputs with --format json
    Compare(compare::Args),
}

/// What all measurements can be told.
#[derive(clap::Args, Clone, Debug)]
struct Common {
    #[command(flatten)]
    models: ModelArgs,
    /// Tokens of a prompt, or of a text to score
    #[arg(long, value_name = "N", default_value_t = 64)]
    prompt_len: usize,
    /// Measurements of each kind
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
    /// Runs before them that are not counted
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Common {
    /// Refuses counts of nothing, also of the command's own `more` flags.
    fn check(&self, more: &[(&str, usize)]) -> Result<()> {
        let own = [("--prompt-len", self.prompt_len), ("--repeat", self.repeat)];
        match own.iter().chain(more).find(|(_, value)| *value == 0) {
            Some((flag, _)) => Err(Error::flag(*flag, "must be at least 1")),
            None => Ok(()),
        }
    }

    /// The results of `run`, the warm-up's left out. `what` is for those who wait.
    fn repeated<R>(&self, what: &str, mut run: impl FnMut() -> Result<R>) -> Result<Vec<R>> {
        eprintln!("bench {what}: {} + {} runs", self.warmup, self.repeat);
        for _ in 0..self.warmup {
            run()?;
        }
        (0..self.repeat).map(|_| run()).collect()
    }
}

pub fn run(args: Args) -> Result<Done> {
    match args.what {
        What::Decode(args) => decode::run(&args),
        What::Score(args) => score::run(&args),
        What::Search(args) => search::run(&args),
        What::Compare(args) => compare::run(&args),
    }
}
