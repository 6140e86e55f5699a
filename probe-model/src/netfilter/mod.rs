//! The node's netfilter rules, from `iptables-save` and nftables, walked for one new connection.
//!
//! kube-proxy and ip-masq-agent rewrite addresses here, before Cilium's policy sees the packet.
//! What a rule tests and plsprobe cannot know makes the walk end in [`End::Unknown`], never in a guess.

mod parse;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

pub use parse::ParseError;
pub use walk::{End, Facts, Hook, Packet, Traversal};

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::tuple::Protocol;

/// Tables, chains and rules. A table of iptables' has its name, one of nftables' its family too: `ip kube-proxy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    tables: BTreeMap<String, BTreeMap<String, Chain>>,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where the kernel enters it; `None` for one that only rules enter.
    pub base: Option<Base>,
    /// What happens at the end of a built-in chain; `None` for others.
    pub policy: Option<Policy>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// Where the kernel enters a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Hook.
    pub hook: Hook,
    /// Lower ones come first.
    pub priority: i32,
    /// Whether it is a `nat` chain, which only runs until an address is rewritten.
    pub nat: bool,
}

/// What happens at the end of a chain that the kernel enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The packet goes on.
    Accept,
    /// It is dropped.
    Drop,
}

/// One rule, with its text for the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As its source writes it.
    pub text: String,
    /// All must hold.
    pub matches: Vec<Match>,
    /// What it does then.
    pub target: Target,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Whether the test must not hold.
    pub negated: bool,
    /// The test.
    pub test: Test,
}

/// A number of a packet's that nftables' sets and maps are looked up by. An address is one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// IPv4 source.
    SourceAddress,
    /// IPv4 destination.
    DestinationAddress,
    /// IP protocol.
    Protocol,
    /// Source port, host order.
    SourcePort,
    /// Destination port, host order.
    DestinationPort,
}

/// One element of a set or map: first and last number of each field of the key.
pub type Element = Vec<(u32, u32)>;

/// What a condition tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// Source address in a prefix.
    Source(Ipv4Net),
    /// Destination address in a prefix.
    Destination(Ipv4Net),
    /// IP protocol.
    Protocol(Protocol),
    /// Fields of the packet in a set.
    In {
        /// What is looked up.
        key: Vec<Field>,
        /// Of which one must fit.
        elements: Vec<Element>,
    },
    /// At least one of them.
    Any(Vec<Test>),
    /// `-i`; a trailing `+` stands for any ending.
    InDev(String),
    /// `-o`; a trailing `+` stands for any ending.
    OutDev(String),
    /// Ranges of source ports.
    SourcePort(Vec<(u16, u16)>),
    /// Ranges of destination ports.
    DestinationPort(Vec<(u16, u16)>),
    /// The mark's bits under a mask.
    Mark {
        /// What they must be.
        value: u32,
        /// Which.
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

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Count, log, or set something that no other rule here reads.
    Continue,
    /// Into a chain, and back at its end.
    Jump(String),
    /// Into a chain instead of this one.
    Goto(String),
    /// It passes this table, or with nftables this chain and those it was called by.
    Accept,
    /// It is dropped.
    Drop,
    /// It is refused.
    Reject,
    /// Back to the calling chain.
    Return,
    /// The mark becomes `(mark & !mask) ^ value`.
    Mark {
        /// Bits to turn.
        value: u32,
        /// Bits to clear before.
        mask: u32,
    },
    /// The destination is rewritten to one of these; no port leaves the port.
    Dnat(Vec<(Ipv4Addr, Option<u16>)>),
    /// The source is rewritten.
    Snat(Ipv4Addr),
    /// The source becomes the outgoing interface's address.
    Masquerade,
    /// What the element says that fits the packet; without one the next rule.
    Map {
        /// What is looked up.
        key: Vec<Field>,
        /// Elements and what they say.
        elements: Vec<(Element, Target)>,
    },
    /// One of these, at random.
    Random(Vec<Target>),
    /// A program that reads a queue of netfilter's decides, as written.
    Queue(String),
    /// Anything else, as written.
    Unknown(String),
}

impl Target {
    /// Whether some packet may be given to a program, which can keep it.
    fn may_queue(&self) -> bool {
        match self {
            Self::Queue(_) => true,
            Self::Map { elements, .. } => elements.iter().any(|(_, target)| target.may_queue()),
            Self::Random(targets) => targets.iter().any(Self::may_queue),
            _ => false,
        }
    }
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

    /// Whether a rule gives packets to a program that reads a queue, whatever its conditions.
    pub fn may_queue(&self) -> bool {
        let chains = self.tables.values().flat_map(BTreeMap::values);
        chains.flat_map(|chain| &chain.rules).any(|rule| rule.target.may_queue())
    }

    /// Adds a chain; one of the same table and name is replaced.
    pub fn add_chain(&mut self, table: impl Into<String>, name: impl Into<String>, chain: Chain) {
        self.tables.entry(table.into()).or_default().insert(name.into(), chain);
    }

    /// Adds another ruleset's tables, which come from another back end.
    pub fn merge(&mut self, other: Self) {
        self.tables.extend(other.tables);
    }

    /// Adds a table that was seen and not read: whatever passes it is not known from there on.
    pub fn add_unread(&mut self, table: &str, why: &str) {
        for hook in [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting] {
            let target = Target::Unknown(why.to_owned());
            let rule = Rule { text: format!("not read, {why}"), matches: Vec::new(), target };
            let base = Some(Base { hook, priority: i32::MIN, nat: false });
            let chain = Chain { base, policy: None, rules: vec![rule] };
            self.add_chain(format!("unread {table}"), hook.chain(), chain);
        }
    }

    /// How many rules there are.
    pub fn rule_count(&self) -> usize {
        self.tables.values().flat_map(BTreeMap::values).map(|chain| chain.rules.len()).sum()
    }

    /// Destination ports that rules of the nat table name, with their exact address if they name one too: what can be
    /// a service frontend in kube-proxy's manner. A node port has no address.
    pub fn frontends(&self) -> impl Iterator<Item = (Option<Ipv4Addr>, u16, Protocol)> {
        let does_nat = |chains: &&BTreeMap<String, Chain>| {
            chains.values().any(|chain| chain.base.is_some_and(|base| base.nat))
        };
        let nat = || self.tables.values().filter(does_nat).flat_map(BTreeMap::values);
        let mapped = nat().flat_map(|chain| &chain.rules).flat_map(|rule| match &rule.target {
            Target::Map { key, elements } => mapped_frontends(key, elements),
            _ => Vec::new(),
        });
        let rules = nat().flat_map(|chain| &chain.rules);
        let matched = rules.filter_map(|rule| {
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
        });
        matched.chain(mapped)
    }
}

/// Frontends that a map's keys name.
fn mapped_frontends(key: &[Field], elements: &[(Element, Target)]) -> Vec<(Option<Ipv4Addr>, u16, Protocol)> {
    let exact = |element: &Element, wanted: Field| {
        let (first, last) = key.iter().zip(element).find(|(field, _)| **field == wanted)?.1;
        (first == last).then_some(*first)
    };
    let frontend = |(element, _): &(Element, Target)| {
        let port = u16::try_from(exact(element, Field::DestinationPort)?).ok()?;
        let address = exact(element, Field::DestinationAddress).map(Ipv4Addr::from);
        let protocol = exact(element, Field::Protocol).map(|number| Protocol(number as u8));
        Some((address, port, protocol.unwrap_or(Protocol::TCP)))
    };
    elements.iter().filter_map(frontend).collect()
}
