//! Floor 7: a backend to put behind something. Nothing below knows of requests.
//!
//! ```text
//! http  stdio          bytes in, bytes out
//!    └┬──┘
//!    api               requests → jobs, events → answers
//!     ├ request, wire  what may be asked: each field honoured, or refused by its name
//!     ├ fields, number what is taken although it says nothing; whole numbers
//!     ├ answer         what is said: OpenAI's objects
//!     ├ refusal        and what instead of it
//!     ├ log            a line for each request
//!     ├ origin, host   pages of other origins; the names that a server goes by
//!     ├ connections    how many each address has
//!     └ gate           whether anybody is let in
//!    desk              where requests are handed in, and read on threads of their own
//!    engine            the thread that owns the scheduler
//!    watch, signals    whether these threads get on with it; when to end
//! ```

mod answer;
mod api;
mod connections;
mod desk;
mod engine;
mod fields;
mod gate;
mod host;
mod http;
mod log;
mod metrics;
mod number;
mod origin;
mod refusal;
mod request;
mod signals;
mod stdio;
mod watch;
mod wire;

pub use api::Options;
pub use host::{HostName, Hosts};
pub use http::HttpOptions;
pub use log::say;
pub use number::{Seed, TopK};
pub use origin::{Origin, Origins};
pub use request::{Defaults, Limits};

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::error::{Error, Result};
use crate::guide::Guide;
use crate::proposer::Proposer;
use crate::scheduler::Scheduler;
use api::Api;
use desk::{Handle, Inbox};
use engine::Engine;
use metrics::Metrics;

/// Reads a request's body as each path does that takes one, for the fuzz targets in `fuzz/`. Returns how many
/// of them take it.
#[doc(hidden)]
pub fn bodies_taken(body: &[u8], defaults: &Defaults, limits: &Limits) -> usize {
    let writes = |chat| request::Generation::read(body, chat, "model", defaults, limits).is_ok();
    let scores = request::Scores::read(body, "model", limits).is_ok();
    [writes(false), writes(true), scores].into_iter().filter(|&taken| taken).count()
}

/// Tokens between two looks at who came and who went.
const STRIDE: usize = 8;

/// The outer side of a server, on threads of its own: it answers from the start, and with an
/// engine behind it, it answers requests.
pub struct Server {
    api: Arc<Api>,
    inbox: Inbox,
    outside: JoinHandle<()>,
}

impl Server {
    /// Listens for HTTP on `address`; returns where that is, too: port 0 is any free one.
    ///
    /// # Errors
    /// [`Error::Flag`] if the address cannot be listened on.
    pub fn http(
        address: SocketAddr,
        http: HttpOptions,
        options: Options,
    ) -> Result<(Self, SocketAddr)> {
        let refuse = |error| Error::flag("--host", format!("{address}: cannot listen: {error}"));
        let listener = TcpListener::bind(address).map_err(refuse)?;
        listener.set_nonblocking(true).map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        Ok((Self::new(options, |api| http::serve(listener, http, api)), address))
    }

    /// Reads requests from standard input, of which at most `outstanding` are answered at a time.
    pub fn stdio(outstanding: usize, options: Options) -> Self {
        Self::new(options, move |api| stdio::serve(outstanding, api))
    }

    fn new(options: Options, serve: impl FnOnce(Arc<Api>) + Send + 'static) -> Self {
        let (handle, inbox) = Handle::new();
        let api = Arc::new(Api::new(handle, options, Arc::new(Metrics::default())));
        let outside = std::thread::spawn({
            let api = api.clone();
            move || serve(api)
        });
        Self { api, inbox, outside }
    }

    /// Lets requests in, which were told to come back until now, and runs the engine on this
    /// thread until the outer side has ended and everything is answered.
    ///
    /// # Errors
    /// The device's, if it has failed for good, after all who were inside have been told. It was
    /// written to stderr when it happened.
    pub fn run<P: Proposer + 'static, G: Guide + 'static>(
        self,
        scheduler: Scheduler<P, G>,
        opened: impl FnOnce(),
    ) -> Result<(), Arc<Error>> {
        let Self { api, inbox, outside } = self;
        let (queue, metrics) = (api.options().queue, api.metrics.clone());
        let gate = api.gate.clone();
        let engine =
            Engine::new(scheduler.with_stride(STRIDE).with_small_first(), queue, metrics, gate);
        api.gate.open();
        opened();
        // The engine ends when nobody is left who could hand anything in.
        drop(api);
        let ended = engine.run(inbox);
        if let Err(panic) = outside.join() {
            std::panic::resume_unwind(panic);
        }
        ended
    }
}
