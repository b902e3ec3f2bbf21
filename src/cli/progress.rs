//! How far a command has come, on stderr.

use std::fmt::Display;
use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::server::say;

/// A bar on a terminal, nothing elsewhere; a closing line on both.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    /// What its tokens are called.
    of: &'static str,
    tokens: usize,
    done: usize,
}

impl Progress {
    /// Of `total` prompts, `finished` of which were done before, with tokens `of` something.
    pub fn new(total: usize, finished: usize, of: &'static str) -> Self {
        // Draws to stderr, and only if that is a terminal.
        let bar = ProgressBar::new(total as u64).with_position(finished as u64);
        let style = "{wide_bar} {pos}/{len} prompts · {msg} · {eta} left";
        bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
        bar.reset_eta();
        // Its thread is asked for where there is something to draw, and where the system has one to give.
        if !bar.is_hidden() && std::thread::Builder::new().spawn(|| ()).is_ok() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar, started: Instant::now(), of, tokens: 0, done: 0 }
    }

    /// One more prompt with so many tokens.
    pub fn done(&mut self, tokens: usize) {
        self.tokens += tokens;
        self.done += 1;
        self.bar.set_message(format!("{:.0} tokens/s", self.rate()));
        self.bar.inc(1);
    }

    /// A message above the bar.
    pub fn say(&self, message: impl Display) {
        self.bar.suspend(|| say(message));
    }

    /// Removes the bar and sums up.
    pub fn finish(self, device: &str) {
        self.bar.finish_and_clear();
        let (done, of, tokens, rate) = (self.done, self.of, self.tokens, self.rate());
        let seconds = self.started.elapsed().as_secs_f64();
        let prompts = if done == 1 { "prompt" } else { "prompts" };
        // Whoever does not read it has the results.
        let _ = writeln!(
            std::io::stderr(),
            "{done} {prompts}, {tokens} {of} in {seconds:.2} s ({rate:.0} tokens/s) on {device}"
        );
    }

    fn rate(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}
