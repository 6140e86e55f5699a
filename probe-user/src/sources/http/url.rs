//! Addresses of servers.

use std::{
    fmt::{self, Write as _},
    str::FromStr,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The address of a server, with the path that every request's begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// `https`, not `http`.
    pub is_https: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Host and, where it was given, port, as the `Host` header has them.
    pub authority: String,
    /// Path without `/` at its end.
    pub path: String,
}

impl FromStr for Url {
    type Err = anyhow::Error;

    /// `https://host`, `http://127.0.0.1:8080/path`, `https://[fd00::1]:6443`.
    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (scheme, rest) = text.split_once("://").context("it has no scheme")?;
            let is_https = match scheme {
                "https" => true,
                "http" => false,
                _ => bail!("its scheme is neither https nor http"),
            };
            ensure!(
                !rest.contains(['?', '#', '@']) && !rest.contains(char::is_whitespace),
                "it has more than a path"
            );
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let (host, port) = match authority.strip_prefix('[') {
                Some(rest) => rest.split_once(']').context("its bracket is not closed")?,
                None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
            };
            ensure!(!host.is_empty(), "it has no host");
            let port = match port.strip_prefix(':') {
                Some(port) => port.parse().context("its port is no number")?,
                None if port.is_empty() => {
                    if is_https {
                        443
                    } else {
                        80
                    }
                }
                None => bail!("its port is no number"),
            };
            let (host, authority) = (host.to_owned(), authority.to_owned());
            Ok(Self { is_https, host, port, authority, path: path.trim_end_matches('/').to_owned() })
        };
        parse().with_context(|| {
            format!("found address `{}`, expected one such as `https://10.0.0.1:6443`", super::shown(text))
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

/// Text as a query or a form takes it.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte as char),
            // Writing to a string cannot fail.
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
    }
    escaped
}
