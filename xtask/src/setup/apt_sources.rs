//! Which mirror this machine takes its distribution from, read from apt's own configuration.
//!
//! So that nothing here has to name a host, and a machine behind a company's mirror stays behind it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One archive as apt knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    /// The part of the address before `dists/`.
    pub(crate) uri: String,
    /// `bookworm`, `bookworm-security`, …
    pub(crate) suites: Vec<String>,
    /// The key ring its signature is checked with, where the configuration names one.
    pub(crate) signed_by: Option<PathBuf>,
}

/// The archive of the distribution itself, rather than of its security updates or of somebody else.
///
/// # Errors
///
/// If a file cannot be read.
pub(crate) fn main_archive(etc_apt: &Path, codename: &str) -> Result<Option<Archive>> {
    let archives = archives(etc_apt)?;
    Ok(archives.into_iter().find(|archive| archive.suites.iter().any(|suite| suite == codename)))
}

fn archives(etc_apt: &Path) -> Result<Vec<Archive>> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        let mut parts = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
        parts.sort();
        files.extend(parts);
    }
    let mut archives = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("failed to read `{}`", file.display()))?;
        match file.extension().and_then(|ext| ext.to_str()) {
            Some("list") => archives.extend(text.lines().filter_map(one_line)),
            Some("sources") => archives.extend(deb822(&text)),
            _ => {} // apt ignores other names too
        }
    }
    Ok(archives)
}

/// `deb [signed-by=/…] URI SUITE COMPONENT…`, see sources.list(5).
fn one_line(line: &str) -> Option<Archive> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    Some(Archive {
        uri: uri.to_owned(),
        suites: vec![suite.to_owned()],
        signed_by: signed_by.and_then(key_ring),
    })
}

/// Stanzas of `Key: value`, see sources.list(5).
fn deb822(text: &str) -> Vec<Archive> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).filter_map(stanza).flatten().collect()
}

fn stanza(lines: &[&str]) -> Option<Vec<Archive>> {
    let field = |key: &str| {
        let named =
            |line: &&&str| line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(key));
        lines.iter().find(named).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim())
    };
    let enabled = !field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
    let binary = field("Types")?.split_whitespace().any(|kind| kind == "deb");
    if !enabled || !binary {
        return None;
    }
    let suites: Vec<String> = field("Suites")?.split_whitespace().map(str::to_owned).collect();
    let signed_by = field("Signed-By").and_then(key_ring);
    let archive =
        |uri: &str| Archive { uri: uri.to_owned(), suites: suites.clone(), signed_by: signed_by.clone() };
    Some(field("URIs")?.split_whitespace().map(archive).collect())
}

/// A path; fingerprints and keys in the text itself are left to apt's defaults.
fn key_ring(value: &str) -> Option<PathBuf> {
    value.starts_with('/').then(|| PathBuf::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(uri: &str, suites: &[&str], signed_by: Option<&str>) -> Archive {
        let suites = suites.iter().map(|suite| (*suite).to_owned()).collect();
        Archive { uri: uri.to_owned(), suites, signed_by: signed_by.map(PathBuf::from) }
    }

    #[test]
    fn one_line_format() {
        assert_eq!(
            one_line("deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm main # ours"),
            Some(archive("http://mirror.test/debian", &["bookworm"], Some("/k.gpg")))
        );
        assert_eq!(
            one_line("deb http://mirror.test/debian bookworm main"),
            Some(archive("http://mirror.test/debian", &["bookworm"], None))
        );
        assert_eq!(one_line("deb-src http://mirror.test/debian bookworm main"), None);
        assert_eq!(one_line("# deb http://mirror.test/debian bookworm main"), None);
        assert_eq!(one_line("deb http://mirror.test/debian"), None);
    }

    #[test]
    fn deb822_format() {
        let text = "# mirror of ours\nTypes: deb deb-src\n# http://old.test/debian\nURIs: http://mirror.test/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\n\
                    Types: deb-src\nURIs: http://src.test/\nSuites: bookworm\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.test/\nSuites: bookworm\n";
        assert_eq!(
            deb822(text),
            [archive("http://mirror.test/debian", &["bookworm", "bookworm-updates"], Some("/k.gpg"))]
        );
    }

    #[test]
    fn security_updates_are_not_the_archive() {
        let dir = std::env::temp_dir().join(format!("plsprobe-xtask-apt-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("sources.list.d")).unwrap();
        std::fs::write(dir.join("sources.list"), "deb http://sec.test/ bookworm-security main\n").unwrap();
        std::fs::write(dir.join("sources.list.d/a.list.disabled"), "deb http://off.test/ bookworm main\n")
            .unwrap();
        std::fs::write(
            dir.join("sources.list.d/b.sources"),
            "Types: deb\nURIs: http://main.test/\nSuites: bookworm\n",
        )
        .unwrap();
        let found = main_archive(&dir, "bookworm");
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found.unwrap(), Some(archive("http://main.test/", &["bookworm"], None)));
    }
}
