//! Walks one new connection's first packet through the rules of a hook.

use std::net::{IpAddr, Ipv4Addr};

use super::{Match, Policy, Rule, Ruleset, Target, Test};
use crate::tuple::Tuple;

/// More branches than this (backends chosen at random) are not followed.
const MAX_BRANCHES: usize = 1024;
/// More rules than this in one walk are a loop.
const MAX_RULES: usize = 100_000;

/// Where in the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// In from an interface, before routing.
    Prerouting,
    /// To the node itself.
    Input,
    /// Through the node.
    Forward,
    /// From the node itself.
    Output,
    /// Out to an interface, after routing.
    Postrouting,
}

impl Hook {
    fn chain(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
        }
    }

    /// The tables at this hook, in the kernel's order.
    fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Prerouting | Self::Output => &["raw", "mangle", "nat", "filter"],
            Self::Forward => &["mangle", "filter"],
            Self::Input => &["mangle", "filter", "nat"],
            Self::Postrouting => &["mangle", "nat"],
        }
    }
}

/// A packet as the rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Addresses, ports and protocol now.
    pub tuple: Tuple,
    /// `skb->mark`.
    pub mark: u32,
    /// Where it came in, `None` from the node itself.
    pub in_dev: Option<String>,
    /// Where it goes out, once routed.
    pub out_dev: Option<String>,
    /// Whether a rule has rewritten its destination.
    pub dnat: bool,
    /// Whether a rule has rewritten its source.
    pub snat: bool,
}

/// How a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The packet goes on.
    Accept,
    /// Dropped by this rule, or a chain's policy.
    Drop(String),
    /// Refused by this rule: the sender gets an ICMP error or a reset.
    Reject(String),
    /// This rule decides by something plsprobe does not know.
    Unknown(String),
}

/// One way through a hook. Rules that choose at random make several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traversal {
    /// The packet afterwards.
    pub packet: Packet,
    /// How it ended.
    pub end: End,
    /// The rules that rewrote an address, with their table.
    pub rewrites: Vec<String>,
}

/// What a rule's conditions say of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Yes,
    Either,
    Unknown,
    No,
}

/// Facts outside the packet that rules ask for.
pub(crate) struct Facts<'a> {
    /// Whether an address is the node's own.
    pub(crate) is_local: &'a dyn Fn(IpAddr) -> bool,
    /// The address that MASQUERADE gives on an interface.
    pub(crate) masquerade: &'a dyn Fn(&str) -> Option<Ipv4Addr>,
}

impl Ruleset {
    /// Every way that the first packet of a connection can take through `hook`.
    pub(crate) fn traverse(&self, hook: Hook, packet: Packet, facts: &Facts<'_>) -> Vec<Traversal> {
        let mut done = Vec::new();
        let mut open = vec![Traversal { packet, end: End::Accept, rewrites: Vec::new() }];
        for table in hook.tables() {
            let mut next = Vec::new();
            for way in open {
                for after in self.table(table, hook, way, facts) {
                    match after.end {
                        End::Accept => next.push(after),
                        _ => done.push(after),
                    }
                }
            }
            open = next;
        }
        done.extend(open);
        done
    }

    fn table(&self, table: &str, hook: Hook, way: Traversal, facts: &Facts<'_>) -> Vec<Traversal> {
        let Some(chains) = self.tables.get(table) else { return vec![way] };
        let Some(base) = chains.get(hook.chain()) else { return vec![way] };
        let mut done = Vec::new();
        let mut open = vec![Walker { way, stack: vec![(hook.chain(), 0)] }];
        let mut steps = 0;
        while let Some(mut walker) = open.pop() {
            steps += 1;
            if steps > MAX_RULES || open.len() + done.len() > MAX_BRANCHES {
                walker.way.end =
                    End::Unknown(format!("table `{table}`: too many rules or branches to follow"));
                done.push(walker.way);
                return done;
            }
            let Some((chain, idx)) = walker.stack.pop() else {
                if base.policy == Some(Policy::Drop) {
                    walker.way.end = End::Drop(format!("{table}: policy DROP of {}", hook.chain()));
                }
                done.push(walker.way);
                continue;
            };
            let Some(rule) = chains.get(chain).and_then(|chain| chain.rules.get(idx)) else {
                open.push(walker);
                continue;
            };
            walker.stack.push((chain, idx + 1));
            match rule.answer(&walker.way.packet, facts) {
                Answer::No => open.push(walker),
                Answer::Unknown if rule.only_notes() => open.push(walker),
                Answer::Unknown => {
                    walker.way.end = End::Unknown(format!("{table}: {}", rule.text));
                    done.push(walker.way);
                }
                Answer::Either => {
                    open.push(walker.clone());
                    walker.apply(table, rule, chains, facts, &mut open, &mut done);
                }
                Answer::Yes => walker.apply(table, rule, chains, facts, &mut open, &mut done),
            }
        }
        done
    }
}

/// One branch of the walk through a table.
#[derive(Clone)]
struct Walker<'a> {
    way: Traversal,
    /// Chains entered, innermost last, with the next rule's index.
    stack: Vec<(&'a str, usize)>,
}

impl<'a> Walker<'a> {
    /// Does what a matching rule's target says; the walk goes on in `open` or ends in `done`.
    fn apply(
        mut self,
        table: &str,
        rule: &'a Rule,
        chains: &std::collections::BTreeMap<String, super::Chain>,
        facts: &Facts<'_>,
        open: &mut Vec<Self>,
        done: &mut Vec<Traversal>,
    ) {
        let evidence = || format!("{table}: {}", rule.text);
        match &rule.target {
            Target::Continue => return open.push(self),
            Target::Mark { value, mask } => {
                self.way.packet.mark = self.way.packet.mark & !mask ^ value;
                return open.push(self);
            }
            Target::Return => {
                self.stack.pop();
                return open.push(self);
            }
            Target::Jump(chain) | Target::Goto(chain) if chains.contains_key(chain) => {
                if matches!(rule.target, Target::Goto(_)) {
                    self.stack.pop();
                }
                self.stack.push((chain, 0));
                return open.push(self);
            }
            Target::Accept => {}
            Target::Drop => self.way.end = End::Drop(evidence()),
            Target::Reject => self.way.end = End::Reject(evidence()),
            Target::Dnat(to) => {
                for (address, port) in to {
                    let mut way = self.way.clone();
                    way.packet.tuple.daddr = (*address).into();
                    way.packet.tuple.dport = port.unwrap_or(way.packet.tuple.dport);
                    way.packet.dnat = true;
                    way.rewrites.push(evidence());
                    done.push(way);
                }
                return;
            }
            Target::Snat(to) => self.snat(*to, evidence()),
            Target::Masquerade => {
                let out_dev = self.way.packet.out_dev.clone().unwrap_or_default();
                match (facts.masquerade)(&out_dev) {
                    Some(to) => self.snat(to, evidence()),
                    None => {
                        self.way.end =
                            End::Unknown(format!("{}: the address of `{out_dev}` is not known", evidence()));
                    }
                }
            }
            Target::Jump(_) | Target::Goto(_) | Target::Unknown(_) => self.way.end = End::Unknown(evidence()),
        }
        done.push(self.way);
    }

    fn snat(&mut self, to: Ipv4Addr, evidence: String) {
        self.way.packet.tuple.saddr = to.into();
        self.way.packet.snat = true;
        self.way.rewrites.push(evidence);
    }
}

impl Rule {
    /// Whether the rule neither stops nor changes what plsprobe follows.
    fn only_notes(&self) -> bool {
        matches!(self.target, Target::Continue)
    }

    fn answer(&self, packet: &Packet, facts: &Facts<'_>) -> Answer {
        self.matches.iter().map(|condition| condition.answer(packet, facts)).max().unwrap_or(Answer::Yes)
    }
}

impl Match {
    fn answer(&self, packet: &Packet, facts: &Facts<'_>) -> Answer {
        let holds = match &self.test {
            Test::Source(net) => contains(*net, packet.tuple.saddr),
            Test::Destination(net) => contains(*net, packet.tuple.daddr),
            Test::Protocol(protocol) => packet.tuple.protocol == *protocol,
            Test::InDev(name) => packet.in_dev.as_ref().is_some_and(|dev| same_dev(name, dev)),
            Test::OutDev(name) => packet.out_dev.as_ref().is_some_and(|dev| same_dev(name, dev)),
            Test::SourcePort(_) if packet.tuple.sport == 0 => return Answer::Unknown,
            Test::SourcePort(ranges) => in_ranges(ranges, packet.tuple.sport),
            Test::DestinationPort(ranges) => in_ranges(ranges, packet.tuple.dport),
            Test::Mark { value, mask } => packet.mark & mask == *value,
            Test::DestinationLocal => (facts.is_local)(packet.tuple.daddr),
            Test::SourceLocal => (facts.is_local)(packet.tuple.saddr),
            Test::ConntrackState(states) => states.iter().any(|state| match state.as_str() {
                "NEW" => true,
                "DNAT" => packet.dnat,
                "SNAT" => packet.snat,
                _ => false,
            }),
            Test::Random => return Answer::Either,
            // The first packet of a connection that no L7 proxy has taken has no local socket.
            Test::Socket => false,
            Test::Unknown(_) => return Answer::Unknown,
        };
        if holds == self.negated { Answer::No } else { Answer::Yes }
    }
}

fn contains(net: ipnet::Ipv4Net, address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if net.contains(&v4))
}

fn same_dev(pattern: &str, dev: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => dev.starts_with(prefix),
        None => pattern == dev,
    }
}

fn in_ranges(ranges: &[(u16, u16)], port: u16) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
}
