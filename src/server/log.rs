//! What is said on stderr. The log of requests: a line for each, once it is over. Of prompts and answers it
//! has the number of tokens, and nothing else.

use std::fmt::Display;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::text::shown;

/// Says something on stderr, and quotes files in it without harm. Where stderr is not read, requests are still
/// served: that is no error.
pub fn say(message: impl Display) {
    let _ = writeln!(std::io::stderr(), "trimtab: {}", shown(&message.to_string()));
}

/// What a request was answered with; clones count together.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<Counts>>);

/// So many.
#[derive(Clone, Copy, Default)]
struct Counts {
    answers: usize,
    /// None if nobody counted them.
    prompt_tokens: Option<usize>,
    answer_tokens: usize,
}

impl Tally {
    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The request was taken.
    pub fn prompt(&self, tokens: Option<usize>) {
        self.change(|counts| counts.prompt_tokens = tokens);
    }

    /// One of its answers, or scores, is there.
    pub fn answer(&self, tokens: usize) {
        self.change(|counts| {
            counts.answers += 1;
            counts.answer_tokens += tokens;
        });
    }

    /// Writes the request's line to stderr.
    pub fn log(&self, method: &str, path: &str, status: u16, time: Duration) {
        let counts = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { answers, prompt_tokens, answer_tokens } = counts;
        let prompt_tokens = prompt_tokens.map_or("-".to_owned(), |tokens| tokens.to_string());
        say(format_args!(
            "method={method} path={path} status={status} answers={answers} \
             prompt_tokens={prompt_tokens} answer_tokens={answer_tokens} seconds={:.3}",
            time.as_secs_f64()
        ));
    }
}
