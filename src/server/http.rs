//! HTTP/1.1: connections, keys, bodies, server-sent events, and an orderly end.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{Stream, StreamExt, stream};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use super::api::{Api, Reply, takes_body};
use super::connections::Connections;
use super::host::{self, Hosts};
use super::log::{Tally, say};
use super::origin::{Origins, preflight};
use super::refusal::Refusal;
use super::signals;

/// Threads that talk to clients; the searches have their own.
const THREADS: usize = 2;
/// A client that has not sent its headers, or its body, or has not taken what it was sent.
const PATIENCE: Duration = Duration::from_secs(30);
/// What an idle stream sends a comment after, so that nobody in between gives it up.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// For connections to end once all requests are answered.
const GOODBYE: Duration = Duration::from_secs(5);
/// How far beyond the limit a body is still read: who is cut off while sending sees no answer.
const OVERRUN: usize = 8;
/// A limit below this one is taken for it there: what a client has on its way does not shrink with it.
const LEAST_LIMIT: usize = 2 << 20;

/// How to be reached.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// What clients must know to use `/v1`.
    pub api_key: Option<String>,
    /// Connections at the same time; more wait to be accepted.
    pub connections: usize,
    /// Of one address at most; more are closed at once.
    pub connections_per_address: usize,
    /// Pages that may ask from a browser, besides the server's own.
    pub origins: Origins,
    /// The names under which it may be asked, where it does not take all.
    pub hosts: Option<Hosts>,
    /// Whether to write a line to stderr for each request.
    pub log: bool,
}

#[derive(Clone)]
struct Site {
    api: Arc<Api>,
    options: Arc<HttpOptions>,
}

/// Answers requests until a signal says to stop, and then the last ones.
pub fn serve(listener: TcpListener, options: HttpOptions, api: Arc<Api>) {
    signals::heed(api.gate.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("http")
        .enable_all()
        .build()
        .expect("threads for HTTP");
    runtime.block_on(listen(listener, options, api));
    // What still runs has been given up.
    runtime.shutdown_timeout(Duration::from_secs(1));
}

async fn listen(listener: TcpListener, options: HttpOptions, api: Arc<Api>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(options.connections));
    let (most, mut told) = (options.connections_per_address, false);
    let connections = Connections::new(most);
    let router = router(Site { api: api.clone(), options: Arc::new(options) });
    let mut stopped = std::pin::pin!(stopped(&api));
    loop {
        let accepted = tokio::select! {
            permit = permits.clone().acquire_owned() => tokio::select! {
                accepted = listener.accept() => accepted.map(|accepted| (accepted, permit)),
                () = &mut stopped => break,
            },
            () = &mut stopped => break,
        };
        let ((stream, peer), permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: others will be closed.
                say(format_args!("cannot accept a connection: {error}"));
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(connected) = connections.connect(peer.ip()) else {
            if !std::mem::replace(&mut told, true) {
                let address = peer.ip();
                say(format_args!(
                    "{address} has {most} connections; more are closed at once, as are those of others \
                     (--max-connections-per-address)"
                ));
            }
            continue;
        };
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(PATIENCE));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(
                TokioIo::new(Box::pin(stream)),
                TowerToHyperService::new(router.clone()),
            );
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off is no news.
            let _ = connection.await;
            drop((permit, connected));
        });
    }
    drop(listener);
    let _ = timeout(GOODBYE, graceful.shutdown()).await;
}

/// Ends once a signal has come, or the device has failed, and all requests are answered.
async fn stopped(api: &Api) {
    tokio::select! {
        () = api.gate.stopped() => {}
        () = api.gate.failed() => {
            say("ending: the device works again only for a new process");
        }
    }
    if !api.gate.drain().await {
        // The engine is not there yet, and loading cannot be interrupted.
        std::process::exit(0);
    }
}

fn router(site: Site) -> Router {
    const HTML: &str = "text/html; charset=utf-8";
    let page = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
    };
    Router::new()
        .route("/", page(HTML, include_str!("page/index.html")))
        .route("/page.css", page("text/css; charset=utf-8", include_str!("page/page.css")))
        .route("/page.js", page("text/javascript; charset=utf-8", include_str!("page/page.js")))
        .fallback(answer)
        .layer(from_fn_with_state(site.clone(), guard))
        .with_state(site)
}

/// Refuses requests that are not meant for this server, and protects its pages.
async fn guard(State(site): State<Site>, request: Request, next: Next) -> Response {
    let hosts = site.options.hosts.as_ref();
    let mut response = match host::check(hosts, request.version(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            let mut booking = Booking::new(&site, &request);
            booking.status = refusal.status;
            refuse(&refusal)
        }
    };
    host::protect(&mut response);
    response
}

/// Books a request when it has been answered, or given up.
struct Booking {
    site: Site,
    method: Method,
    path: String,
    status: u16,
    tally: Tally,
    started: Instant,
}

impl Booking {
    fn new(site: &Site, request: &Request) -> Self {
        Self {
            site: site.clone(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            // Unless it is answered, it was given up.
            status: Refusal::cancelled().status,
            tally: Tally::default(),
            started: Instant::now(),
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        let Self { site, method, path, status, tally, started } = self;
        let time = started.elapsed();
        site.api.metrics.request(known(path), *status, time);
        if site.options.log {
            tally.log(method.as_str(), path, *status, time);
        }
    }
}

/// A path as it stands in the metrics, where strangers must not make up new ones.
fn known(path: &str) -> &'static str {
    const PATHS: [&str; 7] = [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/score",
        "/v1/models",
        "/health",
        "/ready",
        "/metrics",
    ];
    PATHS.into_iter().find(|&known| known == path).unwrap_or("other")
}

async fn answer(State(site): State<Site>, request: Request) -> Response {
    let origins = &site.options.origins;
    let allowed = origins.allow(request.headers());
    let preflight = allowed.as_ref().and_then(|_| preflight(&request));
    let mut response = match preflight {
        Some(response) => response,
        None => answer_booked(&site, request).await,
    };
    origins.mark(allowed, &mut response);
    response
}

async fn answer_booked(site: &Site, request: Request) -> Response {
    let mut booking = Booking::new(site, &request);
    match reply(site, request, &booking.tally).await {
        Ok(reply) => {
            booking.status = 200;
            match reply {
                Reply::Json(value) => json(StatusCode::OK, &value),
                Reply::Text(kind, text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
                Reply::Stream(events) => {
                    let events = Sse::new(server_sent(events, booking));
                    let mut response =
                        events.keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
                    let unbuffered = HeaderValue::from_static("no");
                    response.headers_mut().insert("x-accel-buffering", unbuffered);
                    response
                }
            }
        }
        Err(refusal) => {
            booking.status = refusal.status;
            refuse(&refusal)
        }
    }
}

async fn reply(site: &Site, request: Request, tally: &Tally) -> Result<Reply, Refusal> {
    let Site { api, options } = site;
    let path = request.uri().path().to_owned();
    if let Some(key) = &options.api_key
        && path.starts_with("/v1/")
        && !knows(request.headers(), key)
    {
        return Err(Refusal::unauthorized());
    }
    let takes_body = takes_body(&path);
    match *request.method() {
        Method::GET | Method::HEAD if !takes_body => api.get(&path),
        Method::POST if takes_body => {
            let kind = request.headers().get(header::CONTENT_TYPE);
            let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            let kind = kind.split(';').next().unwrap_or_default().trim();
            if !kind.eq_ignore_ascii_case("application/json") {
                return Err(Refusal::not_json());
            }
            let encodings = request.headers().get_all(header::CONTENT_ENCODING);
            if !encodings.iter().all(|name| name.as_bytes().eq_ignore_ascii_case(b"identity")) {
                return Err(Refusal::encoded());
            }
            let body = read(request.into_body(), api.options().limits.body);
            let body = timeout(PATIENCE, body).await.map_err(|_| Refusal::too_slow())??;
            api.post(&path, &body, tally).await
        }
        // What is nowhere is not found, whatever the method.
        _ if !takes_body && known(&path) == "other" => Err(Refusal::not_found(path)),
        ref method => Err(Refusal::wrong_method(method.as_str(), &path)),
    }
}

/// Whether a client has the key. Takes as long for an almost right one as for a wrong one.
fn knows(headers: &HeaderMap, key: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = |(scheme, _): &(&str, &str)| scheme.eq_ignore_ascii_case("Bearer");
    let given = given.and_then(|value| value.split_once(' ')).filter(bearer);
    let given = given.map_or("", |(_, key)| key.trim_start_matches(' '));
    let differences = given.bytes().zip(key.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    given.len() == key.len() && differences == 0
}

async fn read(body: Body, limit: usize) -> Result<Vec<u8>, Refusal> {
    let mut parts = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut len = 0;
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| Refusal::malformed("the request's body was cut off"))?;
        len += part.len();
        if len <= limit {
            bytes.extend_from_slice(&part);
        } else if len > limit.max(LEAST_LIMIT).saturating_mul(OVERRUN) {
            break;
        }
    }
    if len > limit { Err(Refusal::too_large("the request's body", limit)) } else { Ok(bytes) }
}

fn json(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn refuse(refusal: &Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = json(status, &refusal.body());
    if let Some(seconds) = refusal.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    if status == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
    }
    response
}

/// `data: {…}` for each event, and `data: [DONE]` unless the last one is an error.
fn server_sent(
    events: mpsc::Receiver<Result<Value, Refusal>>,
    booking: Booking,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some((events, booking)), |open| async {
        let (mut events, mut booking) = open?;
        let (data, open) = match events.recv().await {
            Some(Ok(value)) => (value.to_string(), Some((events, booking))),
            Some(Err(refusal)) => {
                booking.status = refusal.status;
                (refusal.body().to_string(), None)
            }
            None => ("[DONE]".to_owned(), None),
        };
        Some((Ok(Event::default().data(data)), open))
    })
}
