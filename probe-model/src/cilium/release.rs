//! Releases of Cilium, where a meaning depends on them and no bytes tell.

use core::fmt;

/// A minor release of Cilium 1: `Release(14)` is 1.14, with all its patch releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release(pub u8);

impl Release {
    /// The first that plsprobe knows.
    pub const FIRST: Self = Self(13);
    /// The last that plsprobe knows.
    pub const LAST: Self = Self(20);

    /// The release of a version as the agent says it: `1.14.19`, `1.16.0-rc.2`.
    ///
    /// `None` for what is no version, and for builds of a development branch, which are between two releases.
    pub fn of_version(version: &str) -> Option<Self> {
        let (number, suffix) = version.split_once('-').unwrap_or((version, ""));
        let mut parts = number.trim_start_matches('v').split('.');
        if parts.next()? != "1" || suffix.starts_with("dev") {
            return None;
        }
        let minor = parts.next()?.parse().ok()?;
        parts.next()?.parse::<u32>().ok()?;
        parts.next().is_none().then_some(Self(minor))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (version, release) in [
            ("1.14.19", Some(14)),
            ("v1.17.4", Some(17)),
            ("1.16.0-rc.2", Some(16)),
            ("1.18.6-0", Some(18)),
            ("1.14.0-dev", None),
            ("2.14.0", None),
            ("1.14", None),
            ("1.14.x", None),
            ("1.14.1.2", None),
            ("1.999.1", None),
            ("", None),
        ] {
            assert_eq!(Release::of_version(version), release.map(Release), "{version}");
        }
    }
}
