//! The node's netfilter rules, read from `iptables-save` and walked for one new connection.
//!
//! kube-proxy and ip-masq-agent rewrite addresses here, before Cilium's policy sees the packet.
//! What a rule tests and plsprobe cannot know makes the walk end in [`End::Unknown`], never in a guess.

mod parse;
pub(crate) mod walk;

pub use parse::ParseError;
pub use walk::{End, Hook, Packet, Traversal};

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::tuple::Protocol;

/// Tables, chains and rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    tables: BTreeMap<String, BTreeMap<String, Chain>>,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    /// What happens at the end of a built-in chain; `None` for others.
    policy: Option<Policy>,
    rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Accept,
    Drop,
}

/// One rule, with its text for the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    text: String,
    matches: Vec<Match>,
    target: Target,
}

/// A condition, with `true` for a negated one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Match {
    negated: bool,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Source(Ipv4Net),
    Destination(Ipv4Net),
    Protocol(Protocol),
    /// `-i`; a trailing `+` stands for any ending.
    InDev(String),
    /// `-o`; a trailing `+` stands for any ending.
    OutDev(String),
    /// Ranges of source ports.
    SourcePort(Vec<(u16, u16)>),
    /// Ranges of destination ports.
    DestinationPort(Vec<(u16, u16)>),
    Mark {
        value: u32,
        mask: u32,
    },
    /// `addrtype --dst-type LOCAL`.
    DestinationLocal,
    /// `addrtype --src-type LOCAL`.
    SourceLocal,
    /// `conntrack --ctstate`, the states by name.
    ConntrackState(Vec<String>),
    /// `statistic --mode random`: either way.
    Random,
    /// `socket`: the packet belongs to a local (transparent) socket.
    Socket,
    /// Anything else, as written.
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// Count, log, or set something that no other rule here reads.
    Continue,
    Jump(String),
    Goto(String),
    Accept,
    Drop,
    Reject,
    Return,
    Mark {
        value: u32,
        mask: u32,
    },
    Dnat(Vec<(Ipv4Addr, Option<u16>)>),
    Snat(Ipv4Addr),
    Masquerade,
    /// Anything else, as written.
    Unknown(String),
}

impl Ruleset {
    /// Reads the output of `iptables-save`.
    ///
    /// # Errors
    ///
    /// [`ParseError`] with the line, for text that is no such output. A match or target that plsprobe does not know is
    /// no error: it counts when a packet meets it.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parse::ruleset(text)
    }

    /// Destination ports that rules of the nat table name, with their exact address if they name one too: what can be
    /// a service frontend in kube-proxy's manner. A node port has no address.
    pub fn frontends(&self) -> impl Iterator<Item = (Option<Ipv4Addr>, u16, Protocol)> {
        let rules =
            self.tables.get("nat").into_iter().flat_map(BTreeMap::values).flat_map(|chain| &chain.rules);
        rules.filter_map(|rule| {
            let tests = || {
                rule.matches.iter().filter(|condition| !condition.negated).map(|condition| &condition.test)
            };
            let port = tests().find_map(|test| match test {
                Test::DestinationPort(ranges) => match ranges.as_slice() {
                    [(first, last)] if first == last => Some(*first),
                    _ => None,
                },
                _ => None,
            })?;
            let address = tests().find_map(|test| match test {
                Test::Destination(net) if net.prefix_len() == 32 => Some(net.addr()),
                _ => None,
            });
            let protocol = tests().find_map(|test| match test {
                Test::Protocol(protocol) => Some(*protocol),
                _ => None,
            });
            Some((address, port, protocol.unwrap_or(Protocol::TCP)))
        })
    }
}
