//! The load balancer's health probes, line by line: what they see decides whether it sends flows to this node at all.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::evidence::ReactionKind;
use super::flow::Path;
use super::outcome::Outcome;
use crate::explain::AZURE_PROBE;
use crate::proxy_protocol::FirstBytes;

/// Where Azure's load balancers probe from over IPv6. Source: cilium#25242.
pub const AZURE_PROBE_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x1234, 0x5678, 0x9abc);

/// Failures in a row after which the load balancer sends a node no more flows, unless its probe says otherwise.
/// Source: cloud-provider-azure's default number of probes.
pub const THRESHOLD: u32 = 2;
/// Nanoseconds between two probes, unless the probe says otherwise. Source: cloud-provider-azure's default interval.
pub const INTERVAL_NS: u64 = 5_000_000_000;
/// Times of probes that are kept, for the interval.
const TIMES_MAX: usize = 16;
/// Lines that are watched: a node has a probe for each of its services' ports.
const LINES_MAX: usize = 256;

/// Whether an address is one that Azure probes from.
pub fn is_probe_source(address: IpAddr) -> bool {
    address == IpAddr::from(AZURE_PROBE) || address == IpAddr::from(AZURE_PROBE_V6)
}

/// What a probe got for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// The connection was accepted: all that a TCP probe wants.
    Accepted,
    /// An HTTP status.
    Status(u16),
    /// Accepted, then reset.
    Reset,
    /// Accepted; what it then asked was not answered while it was watched.
    Unanswered,
    /// It was turned away: a reset or an ICMP error.
    Refused,
    /// It was dropped on this node.
    Dropped,
    /// Nothing came back.
    None,
}

impl ProbeAnswer {
    fn of(path: &Path) -> Self {
        match path.outcome {
            Outcome::Refused { .. } => return Self::Refused,
            Outcome::DroppedByCilium { .. } | Outcome::DroppedByKernel { .. } => return Self::Dropped,
            Outcome::AnswerLost | Outcome::NoAnswer | Outcome::Silent => return Self::None,
            Outcome::Answered => {}
        }
        let evidence = &path.evidence;
        let has_asked = evidence.request().is_some_and(|request| {
            request.first == FirstBytes::Http || request.then == Some(FirstBytes::Http)
        });
        match evidence.reaction.map(|reaction| reaction.kind) {
            Some(ReactionKind::Status(status)) => Self::Status(status),
            Some(ReactionKind::Reset) => Self::Reset,
            None if has_asked => Self::Unanswered,
            _ => Self::Accepted,
        }
    }

    /// Whether the load balancer takes it for a healthy node's.
    pub fn is_healthy(self) -> bool {
        matches!(self, Self::Accepted | Self::Status(200))
    }

    /// A stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Status(_) => "http-status",
            Self::Reset => "reset",
            Self::Unanswered => "unanswered",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::None => "none",
        }
    }
}

/// What the load balancer makes of its probes' answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Conclusion {
    /// The node gets flows.
    Up,
    /// It is about to get no more new ones.
    Failing,
    /// It gets no new flows.
    Down,
}

impl Conclusion {
    /// A stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Failing => "failing",
            Self::Down => "down",
        }
    }
}

/// The probes to one port of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeLine {
    /// From where.
    pub from: IpAddr,
    /// To which address and port.
    pub to: SocketAddr,
    /// Where the last one ended: a pod, if one is asked.
    pub last_to: SocketAddr,
    /// What the last one got.
    pub answer: ProbeAnswer,
    /// Probes that failed in a row, up to the last.
    pub failed: u32,
    /// Probes that were seen.
    pub seen: u64,
    /// When the last one came.
    pub last_ns: u64,
    /// Whether the last one began with a PROXY header; `None` if it sent nothing, or its first bytes were not seen.
    pub with_header: Option<bool>,
    /// When the last ones came, in order.
    times: VecDeque<u64>,
}

impl ProbeLine {
    /// Nanoseconds between two, as they came: the median. `None` for one probe.
    pub fn interval_ns(&self) -> Option<u64> {
        let mut gaps: Vec<u64> =
            self.times.iter().zip(self.times.iter().skip(1)).map(|(a, b)| b - a).collect();
        gaps.sort_unstable();
        gaps.get(gaps.len() / 2).copied()
    }

    /// What the load balancer concludes if so many failures in a row decide.
    pub fn conclusion(&self, threshold: u32) -> Conclusion {
        match self.failed {
            0 => Conclusion::Up,
            failed if failed < threshold => Conclusion::Failing,
            _ => Conclusion::Down,
        }
    }

    /// Takes a probe into account; says whether it got another answer than the one before.
    fn take(&mut self, path: &Path) -> bool {
        let (before, header_before) = (self.answer, self.with_header);
        let at = self.times.partition_point(|time| *time <= path.first_ns);
        self.times.insert(at, path.first_ns);
        if self.times.len() > TIMES_MAX {
            self.times.pop_front();
        }
        self.seen += 1;
        let answer = ProbeAnswer::of(path);
        self.failed = if answer.is_healthy() { 0 } else { self.failed + 1 };
        self.answer = answer;
        self.last_ns = self.last_ns.max(path.first_ns);
        self.last_to = end(path);
        self.with_header = path.evidence.request().map(|request| request.first.is_proxy());
        (before, header_before) != (self.answer, self.with_header)
    }
}

fn end(path: &Path) -> SocketAddr {
    let last = path.final_tuple();
    SocketAddr::new(last.daddr, last.dport)
}

/// Every line of probes that is watched, by where it leads.
#[derive(Clone, Debug, Default)]
pub struct Probes(BTreeMap<(SocketAddr, IpAddr), ProbeLine>);

impl Probes {
    /// Takes a probe, decided, in the order they were sent. The line that it is of, if it is the first of that line or got
    /// another answer than the one before.
    pub fn take(&mut self, path: &Path) -> Option<&ProbeLine> {
        let to = SocketAddr::new(path.tuple.daddr, path.tuple.dport);
        let key = (to, path.tuple.saddr);
        if !self.0.contains_key(&key) {
            if self.0.len() >= LINES_MAX {
                return None;
            }
            let line = ProbeLine {
                from: path.tuple.saddr,
                to,
                last_to: to,
                answer: ProbeAnswer::None,
                failed: 0,
                seen: 0,
                last_ns: 0,
                with_header: None,
                times: VecDeque::new(),
            };
            self.0.insert(key, line);
        }
        let line = self.0.get_mut(&key)?;
        let is_first = line.seen == 0;
        let has_changed = line.take(path);
        (is_first || has_changed).then_some(&*line)
    }

    /// All of them.
    pub fn lines(&self) -> impl Iterator<Item = &ProbeLine> {
        self.0.values()
    }
}
