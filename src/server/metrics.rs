//! What Prometheus is told.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::error::Result;
use crate::scheduler::{PoolUse, Spent};
use crate::search::Outcome;

type Label = [(&'static str, String); 1];
type Labels = [(&'static str, String); 2];
type Histograms = Family<Label, Histogram, fn() -> Histogram>;

/// All metrics, kept by the engine and by whoever answers requests.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<Labels, Counter>,
    request_seconds: Histograms,
    searches: Family<Label, Counter>,
    tokens: Family<Label, Counter>,
    gain: Histogram,
    phase_seconds: Histograms,
    waiting: Gauge,
    waiting_candidates: Gauge,
    running: Gauge,
    pages: Family<Label, Gauge>,
    pages_reserved: Family<Label, Gauge>,
    pages_free: Family<Label, Gauge>,
    uptime: Counter<f64, AtomicU64>,
    started: std::time::Instant,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 4.0, 10))
}

impl Default for Metrics {
    fn default() -> Self {
        let gains = [-20.0, -10.0, -5.0, -2.0, -1.0, 0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];
        let metrics = Self {
            registry: Mutex::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            searches: Family::default(),
            tokens: Family::default(),
            gain: Histogram::new(gains),
            phase_seconds: Family::new_with_constructor(seconds),
            waiting: Gauge::default(),
            waiting_candidates: Gauge::default(),
            running: Gauge::default(),
            pages: Family::default(),
            pages_reserved: Family::default(),
            pages_free: Family::default(),
            uptime: Counter::default(),
            started: std::time::Instant::now(),
        };
        let mut registry = Registry::with_prefix("trimtab");
        let r = &mut registry;
        r.register("requests", "Requests answered, by path and status", metrics.requests.clone());
        r.register_with_unit(
            "request",
            "Time from a request to the end of its answer, by path",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        r.register("searches", "Searches that ended, by result", metrics.searches.clone());
        r.register("tokens", "Tokens of prompts and of answers", metrics.tokens.clone());
        r.register("gain", "Gains of answers", metrics.gain.clone());
        r.register_with_unit(
            "phase",
            "Time of each part of a tick: prefill, expand, score, select",
            Unit::Seconds,
            metrics.phase_seconds.clone(),
        );
        r.register("queue_searches", "Searches that wait", metrics.waiting.clone());
        r.register("queue_candidates", "W·K of those", metrics.waiting_candidates.clone());
        r.register("running_searches", "Searches that run", metrics.running.clone());
        r.register("pages", "Cache pages, by pool", metrics.pages.clone());
        r.register("pages_reserved", "Cache pages promised", metrics.pages_reserved.clone());
        r.register("pages_free", "Cache pages that nobody holds", metrics.pages_free.clone());
        let uptime = metrics.uptime.clone();
        r.register_with_unit("uptime", "Time since the start", Unit::Seconds, uptime);
        Self { registry: Mutex::new(registry), ..metrics }
    }
}

impl Metrics {
    /// OpenMetrics text, as Prometheus reads it.
    pub fn text(&self) -> String {
        let known = self.uptime.get();
        self.uptime.inc_by((self.started.elapsed().as_secs_f64() - known).max(0.0));
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        encode(&mut text, &registry).expect("a String takes everything");
        text
    }

    /// A request was answered.
    pub fn request(&self, path: &str, status: u16, time: Duration) {
        let by_path = [("path", path.to_owned())];
        self.request_seconds.get_or_create(&by_path).observe(time.as_secs_f64());
        let [path] = by_path;
        self.requests.get_or_create(&[path, ("status", status.to_string())]).inc();
    }

    /// Searches were taken; the tokens of their prompts.
    pub fn prompts(&self, tokens: &[Option<usize>]) {
        let tokens = tokens.iter().flatten().sum::<usize>() as u64;
        self.tokens.get_or_create(&[("kind", "prompt".into())]).inc_by(tokens);
    }

    /// A search ended by itself.
    pub fn finished(&self, result: &Result<Outcome>) {
        let label = if result.is_ok() { "done" } else { "failed" };
        self.searches.get_or_create(&[("result", label.into())]).inc();
        if let Ok(outcome) = result {
            let tokens = outcome.response.tokens.len() as u64;
            self.tokens.get_or_create(&[("kind", "answer".into())]).inc_by(tokens);
            self.gain.observe(outcome.score.gain);
        }
    }

    /// A search was given up.
    pub fn cancelled(&self) {
        self.searches.get_or_create(&[("result", "cancelled".into())]).inc();
    }

    /// A tick was run.
    pub fn phases(&self, before: Spent, after: Spent) {
        let phases = [
            ("prefill", after.prefill - before.prefill),
            ("expand", after.expand - before.expand),
            ("score", after.score - before.score),
            ("select", after.select - before.select),
        ];
        for (phase, time) in phases {
            let histogram = self.phase_seconds.get_or_create(&[("phase", phase.into())]);
            histogram.observe(time.as_secs_f64());
        }
    }

    /// Searches that wait, their W·K, and searches that run.
    pub fn queue(&self, waiting: usize, candidates: usize, running: usize) {
        self.waiting.set(waiting as i64);
        self.waiting_candidates.set(candidates as i64);
        self.running.set(running as i64);
    }

    /// All pools, of which the first `of_proposer` are the base model's.
    pub fn pools(&self, pools: &[PoolUse], of_proposer: usize) {
        for (index, pool) in pools.iter().enumerate() {
            let (role, number) = match index.checked_sub(of_proposer) {
                None => ("base", index),
                Some(number) => ("guide", number),
            };
            let label = [("pool", format!("{role}-{number}"))];
            self.pages.get_or_create(&label).set(pool.capacity as i64);
            self.pages_reserved.get_or_create(&label).set(pool.reserved as i64);
            self.pages_free.get_or_create(&label).set(pool.free as i64);
        }
    }
}
