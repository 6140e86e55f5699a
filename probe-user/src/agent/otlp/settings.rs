//! Where spans go, and with which headers.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use rustls::ClientConfig;

use crate::sources::http::{Resolver, Url, tls};

/// The variable by which every OpenTelemetry exporter is told headers.
pub const HEADERS_VARIABLE: &str = "OTEL_EXPORTER_OTLP_HEADERS";
/// Bytes of all headers.
const HEADERS_MAX: usize = 8 << 10;
/// The path where none is given.
const PATH: &str = "/v1/traces";

/// Where spans go.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The collector, without a path.
    pub(super) base: Url,
    /// The path of requests.
    pub(super) path: String,
    /// Whom to trust, for `https`.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Sent with every request.
    pub(super) headers: Headers,
    /// How its name becomes an address.
    pub(super) resolver: Resolver,
    /// This node's name.
    pub(super) node: String,
}

impl Settings {
    /// To `endpoint` (`http://host:4318`, with `/v1/traces` unless it has a path), trusting the authorities in `ca` or
    /// else those this machine trusts.
    ///
    /// # Errors
    ///
    /// If the address is none, or there are no authorities to trust.
    pub fn new(endpoint: &str, ca: Option<&Path>, headers: Headers, node: &str) -> Result<Self> {
        let mut base: Url = endpoint.parse().context("failed to read the OTLP endpoint")?;
        let path = std::mem::take(&mut base.path);
        let path = if path.is_empty() { PATH.to_owned() } else { path };
        let tls = match (base.is_https, ca) {
            (false, _) => None,
            (true, None) => Some(tls::trusting_system(None)?),
            (true, Some(ca)) => {
                let origin = format!("`{}`", ca.display());
                let pem = std::fs::read(ca).with_context(|| format!("failed to read {origin}"))?;
                Some(tls::trusting(&pem, &origin, None)?)
            }
        };
        Ok(Self { base, path, tls, headers, resolver: Resolver::default(), node: node.to_owned() })
    }

    /// Whether headers are sent that others can read on their way.
    pub(super) fn tells_headers(&self) -> bool {
        let Url { is_https, host, .. } = &self.base;
        let is_here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        !is_https && !is_here && !self.headers.0.is_empty()
    }
}

/// Headers of requests. Never shown: they hold tokens.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub(super) Vec<(String, String)>);

impl fmt::Debug for Headers {
    /// Their names alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Headers {
    /// Those in `file` if one is given, else those of [`HEADERS_VARIABLE`], else none.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or they are not written as [`Self::parse`] wants them.
    pub fn find(file: Option<&Path>) -> Result<Self> {
        let Some(file) = file else {
            let text = std::env::var(HEADERS_VARIABLE).unwrap_or_default();
            return Self::parse(&text).with_context(|| format!("failed to read {HEADERS_VARIABLE}"));
        };
        let shown = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("failed to read `{shown}`"))?;
        Self::parse(&text).with_context(|| format!("failed to read the headers in `{shown}`"))
    }

    /// `name=value`, several with commas or on lines of their own, values with `%20` and the like.
    ///
    /// Source: OpenTelemetry's specification, "Specifying headers via environment variables".
    ///
    /// # Errors
    ///
    /// If it is something else; the message has no value.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(text.len() <= HEADERS_MAX, "they have {} bytes, expected at most {HEADERS_MAX}", text.len());
        let mut headers = Vec::new();
        let pairs = text.split([',', '\n']).map(str::trim).filter(|pair| !pair.is_empty());
        for (idx, pair) in pairs.enumerate() {
            let nth = idx + 1;
            let Some((name, value)) = pair.split_once('=') else {
                bail!("header {nth} has no `=`, expected `name=value`");
            };
            let name = name.trim();
            let is_token = !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
            ensure!(is_token, "the name of header {nth} is no HTTP header's");
            let own = ["host", "content-length", "content-type", "transfer-encoding", "connection", "accept"];
            ensure!(
                !own.contains(&name.to_ascii_lowercase().as_str()),
                "header `{name}` is plsprobe's to set"
            );
            let value = unescape(value.trim());
            let value = value.filter(|value| value.bytes().all(|b| b == b' ' || b.is_ascii_graphic()));
            let Some(value) = value else {
                bail!("the value of header `{name}` is no HTTP header's; write what is special as `%20`");
            };
            headers.push((name.to_owned(), value));
        }
        Ok(Self(headers))
    }
}

/// Text with `%20` and the like replaced, if it is text then.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        let digits =
            std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(text: &str) -> Result<Vec<(String, String)>, String> {
        Headers::parse(text).map(|headers| headers.0).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn headers_as_the_specification_writes_them() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(headers(""), Ok(vec![]));
        let text = "Authorization=Bearer%20s3cret, x-tenant = a=b \n";
        assert_eq!(headers(text), Ok(vec![pair("Authorization", "Bearer s3cret"), pair("x-tenant", "a=b")]));
        assert_eq!(headers("a=x y\nb=1"), Ok(vec![pair("a", "x y"), pair("b", "1")]));
    }

    #[test]
    fn a_value_is_in_no_message() {
        for (text, expected) in [
            ("s3cret", "header 1 has no `=`, expected `name=value`"),
            ("a=1,s3cret", "header 2 has no `=`, expected `name=value`"),
            ("s3 cret=1", "the name of header 1 is no HTTP header's"),
            (
                "a=s3cret%0d%0ax: y",
                "the value of header `a` is no HTTP header's; write what is special as `%20`",
            ),
            ("a=s3cret%2", "the value of header `a` is no HTTP header's; write what is special as `%20`"),
            ("a=s3cret%zz", "the value of header `a` is no HTTP header's; write what is special as `%20`"),
            ("a=s3cret%+f", "the value of header `a` is no HTTP header's; write what is special as `%20`"),
            ("a=s3cret%c3", "the value of header `a` is no HTTP header's; write what is special as `%20`"),
            ("Content-Length=3", "header `Content-Length` is plsprobe's to set"),
        ] {
            assert_eq!(headers(text), Err(expected.to_owned()), "{text}");
        }
        let long = headers(&format!("a={}", "x".repeat(HEADERS_MAX)));
        assert_eq!(long, Err("they have 8194 bytes, expected at most 8192".to_owned()));
        let shown = format!("{:?}", Headers::parse("authorization=s3cret").unwrap());
        assert_eq!(shown, r#"["authorization"]"#);
    }

    #[test]
    fn headers_that_others_can_read() {
        let tells = |endpoint: &str, headers: &str| {
            Settings::new(endpoint, None, Headers::parse(headers).unwrap(), "n").unwrap().tells_headers()
        };
        assert!(tells("http://c:4318", "a=b"));
        assert!(!tells("http://c:4318", ""));
        assert!(!tells("http://localhost:4318", "a=b"));
        assert!(!tells("http://127.0.0.1:4318", "a=b"));
        assert!(!tells("http://[::1]:4318", "a=b"));
    }

    #[test]
    fn endpoints() {
        let path = |endpoint: &str| {
            let settings = Settings::new(endpoint, None, Headers::default(), "n");
            settings
                .map(|settings| format!("{}{}", settings.base, settings.path))
                .map_err(|e| format!("{e:#}"))
        };
        assert_eq!(path("http://c:4318").unwrap(), "http://c:4318/v1/traces");
        assert_eq!(path("http://c:4318/").unwrap(), "http://c:4318/v1/traces");
        assert_eq!(path("http://c:4318/otlp/v1/traces").unwrap(), "http://c:4318/otlp/v1/traces");
        assert_eq!(
            path("c:4318").unwrap_err(),
            "failed to read the OTLP endpoint: found address `c:4318`, expected one such as `https://10.0.0.1:6443`: it has no scheme"
        );
    }
}
