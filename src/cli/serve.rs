//! `trimtab serve` and `trimtab stdio`

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Done;
use super::base::BaseArgs;
use super::device::{DeviceArgs, Job};
use super::memory::{self, Bytes};
use super::models::{self, GuideArgs, Plan};
use super::settings::SearchArgs;
use super::stdout;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::folder::read_file;
use crate::kv_cache::Lifetime;
use crate::scheduler::Scheduler;
use crate::search::Settings;
use crate::server::{Defaults, HostName, Hosts, HttpOptions, Limits, Options};
use crate::server::{Origin, Origins, Server, say};
use crate::text::Prompt;

/// A prompt that every model can read.
const PLAINEST: &str = "The";

/// More bytes than a file with a key has.
const MAX_KEY_FILE: u64 = 1 << 16;

/// What is served, and to what extent.
#[derive(clap::Args, Clone, Debug)]
pub struct BackendArgs {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    guide: GuideArgs,
    /// What requests get that do not say otherwise
    #[command(flatten)]
    search: SearchArgs,
    /// The model's name in requests and answers [default: the base model's, or its folder's]
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Searches that run at the same time
    #[arg(long, value_name = "N", default_value_t = 16)]
    concurrency: usize,
    /// Candidates (W·K) of all searches that may wait together; more are told to come back later
    #[arg(long, value_name = "N", default_value_t = 16384)]
    queue: usize,
    /// A request's body at most
    #[arg(long, value_name = "BYTES", default_value = "1M")]
    max_body: Bytes,
    /// A prompt at most
    #[arg(long, value_name = "BYTES", default_value = "64K")]
    max_prompt: Bytes,
    /// W·K of a search at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_candidates: usize,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_tokens: usize,
    /// Answers, or scores, of one request at most
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_answers: usize,
    /// A request may take this long
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// /health is 503 when there is work and no step of the models has ended for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    stall_timeout: u64,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The address to listen on, or a name that has one; 0.0.0.0 is all of them
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// The port to listen on; 0 is any that is free
    #[arg(long, value_name = "N", default_value_t = 8000)]
    port: u16,
    /// Refuse requests to /v1 without this key
    #[arg(long, value_name = "KEY", env = "TRIMTAB_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// The same with a key that is the first line of this file: other users of the machine can read a command line
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    api_key_file: Option<PathBuf>,
    /// Connections at the same time; more wait to be accepted
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_connections: usize,
    /// Connections of one address at the same time; more are closed at once [default: nine tenths of
    /// --max-connections, so that no address has them all]
    #[arg(long, value_name = "N")]
    max_connections_per_address: Option<usize>,
    /// Let pages of this origin, such as https://example.org, ask from a browser; * is all of them;
    /// may be repeated
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<Origin>,
    /// Take requests that call this server by this name, as well as localhost, 127.0.0.1 and [::1]: without a key on
    /// an address of this machine alone, no others are taken, so that no web page can ask under its own name; may
    /// be repeated
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<HostName>,
    /// Write a line to stderr for each request to the API, with nothing of prompts and answers in it
    #[arg(long)]
    log_requests: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

#[derive(clap::Args, Clone, Debug)]
pub struct StdioArgs {
    /// Requests that are answered at the same time; more are not read yet
    #[arg(long, value_name = "N", default_value_t = 64)]
    outstanding: usize,
    #[command(flatten)]
    backend: BackendArgs,
}

impl BackendArgs {
    fn options(&self, settings: &Settings) -> Result<Options> {
        let at_least_one = [
            ("--concurrency", self.concurrency),
            ("--queue", self.queue),
            ("--max-body", self.max_body.0),
            ("--max-prompt", self.max_prompt.0),
            ("--max-candidates", self.max_candidates),
            ("--max-tokens", self.max_tokens),
            ("--max-answers", self.max_answers),
            ("--timeout", self.timeout as usize),
            ("--stall-timeout", self.stall_timeout as usize),
        ];
        require_at_least_one(&at_least_one)?;
        self.require_own_limits(settings)?;
        Ok(Options {
            model: self.model_name.clone().unwrap_or_else(|| self.base.name()),
            defaults: Defaults {
                method: self.search.method,
                shape: self.search.shape(),
                settings: settings.clone(),
                seed: self.search.seed,
                guided: !self.guide.pairs().is_empty(),
                tells_tokens: self.base.base_url.is_none(),
            },
            limits: Limits {
                body: self.max_body.0,
                prompt: self.max_prompt.0,
                candidates: self.max_candidates,
                tokens: self.max_tokens,
                answers: self.max_answers,
            },
            queue: self.queue,
            timeout: Duration::from_secs(self.timeout),
            stall_timeout: Duration::from_secs(self.stall_timeout),
        })
    }

    /// Refuses limits that a request exceeds by saying nothing.
    fn require_own_limits(&self, settings: &Settings) -> Result<()> {
        let Settings { beam_width, successors, max_new_tokens, .. } = *settings;
        let candidates = beam_width * successors;
        let product = format!("--beam-width times --successors, {beam_width} times {successors}");
        let limits = [
            ("--max-tokens", self.max_tokens, "--max-new-tokens", max_new_tokens),
            ("--max-candidates", self.max_candidates, &product, candidates),
            ("--queue", self.queue, &product, candidates),
        ];
        match limits.into_iter().find(|(_, limit, _, default)| limit < default) {
            None => Ok(()),
            Some((flag, limit, flags, default)) => {
                let reason = format!(
                    "{limit} is less than what a request gets that does not say otherwise: {default} \
                     ({flags}); raise the one or lower the other"
                );
                Err(Error::flag(flag, reason))
            }
        }
    }

    /// What each of the searches in flight may need: enough for all of them as the flags have it,
    /// and for the largest that a request may ask for.
    fn life(&self, settings: &Settings) -> Lifetime {
        let share = self.max_candidates.div_ceil(self.concurrency);
        let life = settings.lifetime();
        Lifetime {
            response: self.max_tokens,
            chunk: self.max_tokens,
            beams: life.beams.max(share),
            candidates: life.candidates.max(share),
        }
    }

    /// Loads the models and answers what comes in by the server that `outside` makes.
    fn run(&self, outside: impl FnOnce(Options) -> Result<Server>) -> Result<Done> {
        self.device.run(Serving { args: self, outside })
    }

    fn serve<B: Backend>(
        &self,
        backend: &Arc<B>,
        outside: impl FnOnce(Options) -> Result<Server>,
    ) -> Result<Done> {
        let settings = self.search.settings(&self.guide)?;
        let options = self.options(&settings)?;
        let server = outside(options)?;
        let plan = Plan {
            life: self.life(&settings),
            ..self.search.plan(self.base.base()?, &settings, self.concurrency)?
        };
        let ready = models::load(backend, &plan, &self.guide, self.device.kv_memory)?;
        let mut scheduler = Scheduler::new(ready.proposer, ready.guide, self.concurrency);
        // Where the plainest request could never run, none could that does not say otherwise.
        scheduler.submit(0, &Prompt::Text(PLAINEST.into()), settings)?;
        scheduler.cancel(0);
        let ready = || say(format_args!("ready on {}", memory::describe(&**backend)));
        let ended = server.run(scheduler, ready);
        Ok(if ended.is_ok() { Done::Well } else { Done::WithFailures })
    }
}

/// A server that waits for its device.
struct Serving<'a, F> {
    args: &'a BackendArgs,
    outside: F,
}

impl<F: FnOnce(Options) -> Result<Server>> Job for Serving<'_, F> {
    type Output = Done;

    fn run<B: Backend>(self, backend: &Arc<B>) -> Result<Done> {
        self.args.serve(backend, self.outside)
    }
}

fn require_at_least_one(flags: &[(&str, usize)]) -> Result<()> {
    match flags.iter().find(|(_, value)| *value == 0) {
        None => Ok(()),
        Some((flag, _)) => Err(Error::flag(*flag, "must be at least 1")),
    }
}

/// The address that a name has, or an address itself; of several the first that all clients know.
fn resolve(host: &str, port: u16) -> Result<SocketAddr> {
    let refuse = |reason: &str| {
        let advice = "write an address, such as 127.0.0.1, or 0.0.0.0 for all of this machine's";
        Error::flag("--host", format!("{host:?} has no address: {reason}; {advice}"))
    };
    // To a resolver 0 is 0.0.0.0, and 1 is 0.0.0.1.
    if host.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse("it is a number"));
    }
    let found = (host, port).to_socket_addrs().map_err(|error| refuse(&error.to_string()))?;
    let addresses: Vec<SocketAddr> = found.collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| refuse("the name is known, but without one"))
}

/// The key in a file: its first line.
fn read_key(path: &Path) -> Result<String> {
    let refuse =
        |reason: &str| Error::flag("--api-key-file", format!("{} {reason}", path.display()));
    let bytes = read_file(path, MAX_KEY_FILE)?.ok_or_else(|| refuse("is not there"))?;
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii();
    let key =
        std::str::from_utf8(line).ok().filter(|key| key.bytes().all(|b| b.is_ascii_graphic()));
    let key = key.ok_or_else(|| {
        refuse("has characters in its first line, the key, that no header can hold, or spaces")
    })?;
    if key.is_empty() {
        return Err(refuse("must have the key in its first line, which is empty"));
    }
    Ok(key.to_owned())
}

/// The names under which requests are taken, where these are not all.
fn hosts(
    host: &str,
    address: SocketAddr,
    mut allowed: Vec<HostName>,
    has_key: bool,
) -> Option<Hosts> {
    if allowed.is_empty() && (has_key || !address.ip().is_loopback()) {
        return None;
    }
    allowed.push(address.ip().into());
    allowed.extend(host.parse());
    Some(Hosts(allowed))
}

pub fn run(args: Args) -> Result<Done> {
    let Args {
        host,
        port,
        api_key,
        api_key_file,
        max_connections,
        max_connections_per_address,
        allow_origin,
        allow_host,
        log_requests,
        backend,
    } = args;
    let per_address = max_connections_per_address.unwrap_or(max_connections - max_connections / 10);
    require_at_least_one(&[
        ("--max-connections", max_connections),
        ("--max-connections-per-address", per_address),
    ])?;
    if api_key.as_deref() == Some("") {
        return Err(Error::flag("--api-key", "must not be empty; leave it out to need none"));
    }
    let api_key = match api_key_file {
        Some(path) => Some(read_key(&path)?),
        None => api_key,
    };
    let address = resolve(&host, port)?;
    let http = HttpOptions {
        hosts: hosts(&host, address, allow_host, api_key.is_some()),
        api_key,
        connections: max_connections,
        connections_per_address: per_address,
        origins: Origins(allow_origin),
        log: log_requests,
    };
    backend.run(|options| {
        let (server, address) = Server::http(address, http, options)?;
        say(format_args!("listening on http://{address}"));
        Ok(server)
    })
}

pub fn run_stdio(args: StdioArgs) -> Result<Done> {
    stdout::check()?;
    let StdioArgs { outstanding, backend } = args;
    require_at_least_one(&[("--outstanding", outstanding)])?;
    backend.run(|options| Ok(Server::stdio(outstanding, options)))
}
