//! By what names a server is asked, and what browsers are told of its pages.
//!
//! A browser lets a page read answers of the page's own host. The owner of a name can let it point to 127.0.0.1
//! after the page is loaded (DNS rebinding); then only `Host` tells that the page is a stranger's.

use std::net::IpAddr;
use std::str::FromStr;

use axum::http::{HeaderMap, HeaderValue, Version, header};
use axum::response::Response;

use super::refusal::Refusal;

/// A name or an address, without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let address = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match address {
            Ok(address) => Ok(address.into()),
            Err(_) if !text.is_empty() && text.chars().all(is_of_name) => {
                Ok(Self(text.to_ascii_lowercase()))
            }
            Err(_) => Err("must be a name or an address, such as box.example.org or 10.0.0.5, \
                           without scheme, port and path"
                .into()),
        }
    }
}

impl From<IpAddr> for HostName {
    /// As it is written in `Host`.
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        })
    }
}

/// The names under which a server may be asked, in addition to those that a machine has for itself.
#[derive(Clone, Debug, Default)]
pub struct Hosts(pub Vec<HostName>);

/// What a machine calls itself.
const OWN: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

impl Hosts {
    fn takes(&self, host: &str) -> bool {
        let port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let name = match host.rsplit_once(':') {
            Some((name, after)) if port(after) => name,
            _ => host,
        };
        let own = OWN.into_iter();
        own.chain(self.0.iter().map(|HostName(name)| name.as_str()))
            .any(|taken| taken.eq_ignore_ascii_case(name))
    }
}

/// Whether a request names its host, once, and one of these, if there are any.
///
/// # Errors
/// 400 and 403.
pub fn check(hosts: Option<&Hosts>, version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut given = headers.get_all(header::HOST).iter();
    let host = match (given.next(), given.next()) {
        (Some(host), None) => host,
        // No browser speaks HTTP/1.0, which has no such header.
        (None, _) if version < Version::HTTP_11 => return Ok(()),
        (None, _) => return Err(Refusal::malformed("the header Host is missing")),
        (Some(_), Some(_)) => return Err(Refusal::malformed("the header Host is given twice")),
    };
    match hosts {
        Some(hosts) if !host.to_str().is_ok_and(|host| hosts.takes(host)) => {
            Err(Refusal::unknown_host(&String::from_utf8_lossy(host.as_bytes())))
        }
        _ => Ok(()),
    }
}

/// Tells browsers what a page may do: run what comes from here and ask here, and be in no other page.
pub fn protect(response: &mut Response) {
    const HEADERS: [(header::HeaderName, &str); 4] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
}
