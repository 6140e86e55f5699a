//! Labels of identities, as Cilium writes them.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// A label: `k8s:app=web`, `reserved:world`, `cidr:10.0.0.0/8`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    /// Who gave it: `k8s`, `reserved`, `cidr`, ….
    pub source: String,
    /// Key.
    pub key: String,
    /// Value, empty if it has none.
    pub value: String,
}

impl Label {
    /// Reads a label as the agent writes it. Without a source it is `unspec`, as in Cilium.
    pub fn parse(text: &str) -> Self {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let (source, key) = name.split_once(':').unwrap_or(("unspec", name));
        Self { source: source.to_owned(), key: key.to_owned(), value: value.to_owned() }
    }

    /// A label of another source than Kubernetes, without a value.
    pub(super) fn plain(source: &str, key: impl Into<String>) -> Self {
        Self { source: source.to_owned(), key: key.into(), value: String::new() }
    }

    /// The label of a prefix.
    pub(super) fn cidr(prefix: IpNet) -> Self {
        Self::plain("cidr", prefix.to_string().replace(':', "-"))
    }

    /// The prefix that it names, if it is a `cidr:` label. IPv6 is written with `-` for `:`.
    pub fn prefix(&self) -> Option<IpNet> {
        (self.source == "cidr").then(|| parse_prefix(&self.key.replace('-', ":")))?
    }

    /// Whether it is the reserved label of this name.
    pub fn is_reserved(&self, name: &str) -> bool {
        self.source == "reserved" && self.key == name
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.key)?;
        if self.value.is_empty() { Ok(()) } else { write!(f, "={}", self.value) }
    }
}

/// A prefix, or an address as a prefix of full length; host bits are cleared.
pub(super) fn parse_prefix(text: &str) -> Option<IpNet> {
    let prefix = match text.parse::<IpNet>() {
        Ok(prefix) => prefix,
        Err(_) => text.parse::<IpAddr>().ok()?.into(),
    };
    Some(prefix.trunc())
}

/// The labels of one identity, and the prefix among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    all: Vec<Label>,
    prefix: Option<IpNet>,
}

impl Labels {
    /// No labels.
    pub(super) const NONE: Self = Self { all: Vec::new(), prefix: None };

    /// From a list; up to 1.15 a CIDR identity has a label for every covering prefix too, and the longest is its own.
    pub fn new(labels: impl IntoIterator<Item = Label>) -> Self {
        let mut all: Vec<_> = labels.into_iter().collect();
        all.sort();
        let prefix = all.iter().filter_map(Label::prefix).max_by_key(IpNet::prefix_len);
        Self { all, prefix }
    }

    /// From labels as the agent writes them.
    pub fn parse<'a>(labels: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(labels.into_iter().map(Label::parse))
    }

    /// Every label, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.all.iter()
    }

    /// The prefix of a CIDR identity.
    pub fn prefix(&self) -> Option<IpNet> {
        self.prefix
    }

    /// Whether there is the reserved label of this name.
    pub fn has_reserved(&self, name: &str) -> bool {
        self.all.iter().any(|label| label.is_reserved(name))
    }

    /// The value of a key of Kubernetes, if there is one.
    pub fn kubernetes(&self, key: &str) -> Option<&str> {
        self.all
            .iter()
            .find(|label| label.source == "k8s" && label.key == key)
            .map(|label| label.value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_back_as_they_went_in() {
        for text in
            ["k8s:app=web", "reserved:world", "cidr:10.0.0.0/8", "k8s:a.b/c=d:e", "cidr:2001-db8--/32"]
        {
            assert_eq!(Label::parse(text).to_string(), text);
        }
        assert_eq!(Label::parse("cidr:2001-db8--/32").prefix(), "2001:db8::/32".parse().ok());
        assert_eq!(Label::cidr("2001:db8::/32".parse().unwrap()).to_string(), "cidr:2001-db8--/32");
    }

    #[test]
    fn the_longest_of_several_prefixes_is_the_identitys_own() {
        let labels =
            Labels::parse(["cidr:0.0.0.0/0", "cidr:10.1.0.0/16", "cidr:10.0.0.0/8", "reserved:world"]);
        assert_eq!(labels.prefix(), "10.1.0.0/16".parse().ok());
    }
}
