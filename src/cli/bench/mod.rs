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
mod waiting;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;

pub use self::bounds::Work;
pub use self::machine::{Fence, Machine, Measured};
use self::models::ModelArgs;
pub use self::models::Trio;
pub use self::report::{Format, Origin, Row, print, save};
pub use self::shapes::Shape;
use super::Done;
use super::device::{DeviceArgs, Job};
use crate::backend::Backend;
use crate::error::{Error, Result};

/// `trimtab bench`
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

/// More texts or searches at once than any device has memory for.
const MAX_TOGETHER: usize = 4096;

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
    /// Also write the rows there, as with --format json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// One of the numbers of a list.
fn count(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| "must be whole numbers, such as 1,4,16".into())
}

impl Common {
    /// Refuses counts of nothing, also of the command's own `more` flags, and absurd ones of what
    /// runs `together`.
    fn check(&self, more: &[(&str, usize)], together: (&str, &[usize])) -> Result<()> {
        let own = [("--prompt-len", self.prompt_len), ("--repeat", self.repeat)];
        let counts = together.1.iter().map(|&count| (together.0, count));
        let all = own.into_iter().chain(more.iter().copied()).chain(counts);
        if let Some((flag, _)) = all.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::flag(flag, "must be at least 1"));
        }
        if together.1.iter().any(|&count| count > MAX_TOGETHER) {
            return Err(Error::flag(together.0, format!("must be at most {MAX_TOGETHER}")));
        }
        Ok(())
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

/// One of the benches, which runs on any device.
trait Bench: Sync {
    const NAME: &'static str;

    fn common(&self) -> &Common;

    /// Refuses what can never be measured, before anything is.
    fn check(&self) -> Result<()>;

    /// Bytes of the weights that are read in turn.
    fn weight_bytes(&self) -> Result<usize>;

    /// Bytes without which it cannot run, and what they are for.
    fn needed<B: Backend>(&self, backend: &B) -> Result<(usize, &'static str)>;

    /// All results but the machine's own.
    fn measure<B: Measured>(&self, backend: &Arc<B>, machine: &Machine) -> Result<Vec<Row>>;
}

/// A bench as what is to be done on a device.
struct Measurement<'a, T>(&'a T);

impl<T: Bench> Job for Measurement<'_, T> {
    type Output = Done;

    fn run<B: Measured>(self, backend: &Arc<B>) -> Result<Done> {
        // Before a minute has been spent.
        let (memory, (bytes, what)) = (backend.memory(), self.0.needed(&**backend)?);
        let (taken, limit) = (memory.taken(), memory.limit().unwrap_or(usize::MAX));
        if taken.saturating_add(bytes) > limit {
            return Err(Error::DeviceBudget { bytes, what, taken, limit });
        }
        let machine = Machine::measure(backend, self.0.weight_bytes()?)?;
        let mut rows = machine.rows(T::NAME);
        rows.extend(self.0.measure(backend, &machine)?);
        let (common, origin) = (self.0.common(), Origin::now(backend.describe()));
        common.json.as_ref().map_or(Ok(()), |file| save(&rows, file, &origin))?;
        print(&rows, common.format, &origin)?;
        Ok(Done::Well)
    }
}

fn on_device<T: Bench>(bench: &T) -> Result<Done> {
    // Before minutes have been spent.
    bench.check()?;
    if let Some(file) = &bench.common().json {
        File::create(file).map_err(Error::io("write to", file))?;
    }
    bench.common().device.run(Measurement(bench))
}

pub(super) fn run(args: Args) -> Result<Done> {
    match args.what {
        What::Decode(args) => decode::run(&args),
        What::Score(args) => score::run(&args),
        What::Search(args) => search::run(&args),
        What::Compare(args) => compare::run(&args),
    }
}
