//! Pages of other origins that may ask from a browser (CORS). None may unless the server is told.

use std::str::FromStr;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Scheme, host and port of pages that may ask, or `*` for all pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let host = text.split_once("://").filter(|(scheme, _)| !scheme.is_empty());
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        let whole = host.is_some_and(|(_, host)| !host.is_empty() && host.chars().all(is_host));
        let usual = [("http://", ":80"), ("https://", ":443")].iter().find_map(|(scheme, port)| {
            text.get(..scheme.len()).filter(|start| start.eq_ignore_ascii_case(scheme))?;
            text.strip_suffix(port)
        });
        // Browsers leave out the port that is a scheme's own.
        let value = HeaderValue::from_str(usual.unwrap_or(text)).ok();
        let value = value.filter(|_| whole || text == "*");
        let wanted = "must be * or scheme and host, such as https://example.org or \
                      http://localhost:3000, without a path";
        value.map(Self).ok_or_else(|| wanted.into())
    }
}

/// All origins that may ask.
#[derive(Clone, Debug, Default)]
pub struct Origins(pub Vec<Origin>);

/// What a browser is told about a request of a page that may ask.
pub struct Allowed(HeaderValue);

/// Seconds for which a browser need not ask again.
const MAX_AGE: &str = "600";

impl Origins {
    fn are_all(&self) -> bool {
        self.0.iter().any(|Origin(origin)| origin == "*")
    }

    /// The permission of who sends these headers, if it is a page that may ask.
    pub fn allow(&self, headers: &HeaderMap) -> Option<Allowed> {
        let asking = headers.get(header::ORIGIN)?;
        if self.are_all() {
            return Some(Allowed(HeaderValue::from_static("*")));
        }
        let is = |origin: &HeaderValue| origin.as_bytes().eq_ignore_ascii_case(asking.as_bytes());
        self.0.iter().any(|Origin(origin)| is(origin)).then(|| Allowed(asking.clone()))
    }

    /// Writes a permission, or that there is none, into an answer's headers.
    pub fn mark(&self, allowed: Option<Allowed>, response: &mut Response) {
        let headers = response.headers_mut();
        if !self.0.is_empty() && !self.are_all() {
            // Caches must not show one origin what was meant for another.
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(Allowed(origin)) = allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            let readable = HeaderValue::from_static("Retry-After");
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, readable);
        }
    }
}

/// The answer to a browser's question whether a page may send a request, if this is one: any header
/// may be sent along, since clients have some of their own.
pub fn preflight(request: &Request) -> Option<Response> {
    let headers = request.headers();
    if *request.method() != Method::OPTIONS
        || !headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        return None;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    let answer = response.headers_mut();
    let methods = HeaderValue::from_static("GET, POST");
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    let vary = HeaderValue::from_static("Access-Control-Request-Headers");
    answer.insert(header::VARY, vary);
    Some(response)
}
