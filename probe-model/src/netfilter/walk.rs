//! Walks one new connection's first packet through the rules of a hook.

use std::net::{IpAddr, Ipv4Addr};

use super::{Base, Element, Field, Match, Policy, Rule, Ruleset, Target, Test};
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
    /// The name of iptables' chain there.
    pub(super) fn chain(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
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
#[expect(missing_debug_implementations, reason = "functions have nothing to show")]
pub struct Facts<'a> {
    /// Whether an address is the node's own.
    pub is_local: &'a dyn Fn(IpAddr) -> bool,
    /// The address that MASQUERADE gives on an interface.
    pub masquerade: &'a dyn Fn(&str) -> Option<Ipv4Addr>,
}

impl Ruleset {
    /// Every way that the first packet of a connection can take through `hook`.
    pub fn traverse(&self, hook: Hook, packet: Packet, facts: &Facts<'_>) -> Vec<Traversal> {
        let mut ways = vec![Traversal { packet, end: End::Accept, rewrites: Vec::new() }];
        let entered = self.entered(hook);
        for same_priority in entered.chunk_by(|a, b| a.base.priority == b.base.priority) {
            ways = ways.into_iter().flat_map(|way| through(same_priority, way, facts)).collect();
        }
        ways
    }

    /// The chains that the kernel enters at a hook, in its order as far as priorities tell it.
    fn entered(&self, hook: Hook) -> Vec<Entered<'_>> {
        let mut entered = Vec::new();
        for (table, chains) in &self.tables {
            for (name, chain) in chains {
                if let Some(base) = chain.base.filter(|base| base.hook == hook) {
                    entered.push(Entered { table, name, chains, base, policy: chain.policy });
                }
            }
        }
        entered.sort_by_key(|entered| entered.base.priority);
        entered
    }
}

/// Through chains of one priority, which the kernel enters in an order that rules do not tell: if it makes a
/// difference, what comes out is not known.
fn through(chains: &[Entered<'_>], way: Traversal, facts: &Facts<'_>) -> Vec<Traversal> {
    let in_order = |order: &mut dyn Iterator<Item = &Entered<'_>>| {
        let mut ways = vec![way.clone()];
        for entered in order {
            ways = ways.into_iter().flat_map(|way| entered.walk(way, facts)).collect();
        }
        ways
    };
    let forth = in_order(&mut chains.iter());
    if chains.len() < 2 {
        return forth;
    }
    let back = in_order(&mut chains.iter().rev());
    let within = |some: &[Traversal], all: &[Traversal]| {
        some.iter().all(|a| all.iter().any(|b| (&a.packet, &a.end) == (&b.packet, &b.end)))
    };
    if within(&forth, &back) && within(&back, &forth) {
        return forth;
    }
    let names: Vec<String> =
        chains.iter().map(|entered| format!("{} {}", entered.table, entered.name)).collect();
    let why = format!("the order of chains {} is not known, and matters", names.join(" and "));
    vec![Traversal { end: End::Unknown(why), ..way }]
}

/// A chain that the kernel enters.
struct Entered<'a> {
    table: &'a str,
    name: &'a str,
    chains: &'a std::collections::BTreeMap<String, super::Chain>,
    base: Base,
    policy: Option<Policy>,
}

impl Entered<'_> {
    fn walk(&self, way: Traversal, facts: &Facts<'_>) -> Vec<Traversal> {
        let Self { table, name, chains, base, policy } = *self;
        // An address that a chain before at this hook has rewritten is not rewritten again.
        if way.end != End::Accept || base.nat && !way.rewrites.is_empty() {
            return vec![way];
        }
        let mut done = Vec::new();
        let mut open = vec![Walker { way, stack: vec![(name, 0)] }];
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
                if policy == Some(Policy::Drop) {
                    walker.way.end = End::Drop(format!("{table}: policy DROP of {name}"));
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
                    walker.apply(&Applied { table, rule, chains, facts }, &rule.target, &mut open, &mut done);
                }
                Answer::Yes => {
                    walker.apply(&Applied { table, rule, chains, facts }, &rule.target, &mut open, &mut done);
                }
            }
        }
        done
    }
}

/// A rule that is done, and what it needs.
struct Applied<'a, 'f> {
    table: &'a str,
    rule: &'a Rule,
    chains: &'a std::collections::BTreeMap<String, super::Chain>,
    facts: &'a Facts<'f>,
}

impl Applied<'_, '_> {
    fn evidence(&self) -> String {
        format!("{}: {}", self.table, self.rule.text)
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
        applied: &Applied<'a, '_>,
        target: &'a Target,
        open: &mut Vec<Self>,
        done: &mut Vec<Traversal>,
    ) {
        let evidence = || applied.evidence();
        match target {
            Target::Continue => return open.push(self),
            Target::Mark { value, mask } => {
                self.way.packet.mark = self.way.packet.mark & !mask ^ value;
                return open.push(self);
            }
            Target::Return => {
                self.stack.pop();
                return open.push(self);
            }
            Target::Jump(chain) | Target::Goto(chain) if applied.chains.contains_key(chain) => {
                if matches!(target, Target::Goto(_)) {
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
                match (applied.facts.masquerade)(&out_dev) {
                    Some(to) => self.snat(to, evidence()),
                    None => {
                        self.way.end =
                            End::Unknown(format!("{}: the address of `{out_dev}` is not known", evidence()));
                    }
                }
            }
            Target::Map { key, elements } => match lookup(key, elements, &self.way.packet) {
                Ok(Some(target)) => return self.apply(applied, target, open, done),
                Ok(None) => return open.push(self),
                Err(()) => self.way.end = End::Unknown(evidence()),
            },
            Target::Random(targets) => {
                for target in targets {
                    self.clone().apply(applied, target, open, done);
                }
                return;
            }
            Target::Jump(_) | Target::Goto(_) | Target::Queue(_) | Target::Unknown(_) => {
                self.way.end = End::Unknown(evidence());
            }
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
        match (self.test.answer(packet, facts), self.negated) {
            (Answer::Yes, true) => Answer::No,
            (Answer::No, true) => Answer::Yes,
            (answer, _) => answer,
        }
    }
}

impl Test {
    fn answer(&self, packet: &Packet, facts: &Facts<'_>) -> Answer {
        let holds = match self {
            Test::In { key, elements } => {
                let fits = elements.iter().map(|element| fits(key, element, packet));
                return fits.min().unwrap_or(Answer::No);
            }
            Test::Any(tests) => {
                return tests.iter().map(|test| test.answer(packet, facts)).min().unwrap_or(Answer::No);
            }
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
        if holds { Answer::Yes } else { Answer::No }
    }
}

/// Whether a packet's fields are those of an element.
fn fits(key: &[Field], element: &Element, packet: &Packet) -> Answer {
    let tuple = &packet.tuple;
    let of = |address: IpAddr| match address {
        IpAddr::V4(v4) => Some(u32::from(v4)),
        IpAddr::V6(_) => None,
    };
    let one = |(field, (first, last)): (&Field, &(u32, u32))| {
        let value = match field {
            Field::SourceAddress => of(tuple.saddr),
            Field::DestinationAddress => of(tuple.daddr),
            Field::Protocol => Some(tuple.protocol.0.into()),
            Field::SourcePort if tuple.sport == 0 => return Answer::Unknown,
            Field::SourcePort => Some(tuple.sport.into()),
            Field::DestinationPort => Some(tuple.dport.into()),
        };
        // No IPv6 packet has an IPv4 address.
        if value.is_some_and(|value| (*first..=*last).contains(&value)) { Answer::Yes } else { Answer::No }
    };
    key.iter().zip(element).map(one).max().unwrap_or(Answer::Yes)
}

/// What the element says that fits a packet; an error if that depends on what is not known.
fn lookup<'t>(
    key: &[Field],
    elements: &'t [(Element, Target)],
    packet: &Packet,
) -> Result<Option<&'t Target>, ()> {
    for (element, target) in elements {
        match fits(key, element, packet) {
            Answer::Yes => return Ok(Some(target)),
            Answer::No => {}
            Answer::Either | Answer::Unknown => return Err(()),
        }
    }
    Ok(None)
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
