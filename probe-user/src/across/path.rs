//! One path across nodes, as it is told: its parts in order, with times since its first packet, and who judges it.

use probe_model::cilium::identity::Identity;
use probe_model::explain::Code;
use probe_model::tuple::Tuple;

use super::clock::Clock;
use super::collect::Report;
use super::join::{Apart, Chain, PAIRS_MAX, Why};
use super::part::Part;
use super::plan::Plan;
use super::verdict::{Finding, Judged, judge};

/// A time since the path's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// In nanoseconds; by an error of the clocks it may be before the first packet.
    pub ns: i128,
    /// How wrong that may be, either way.
    pub error_ns: u64,
}

/// A part of a path and whose it is.
#[derive(Clone, Copy, Debug)]
pub struct Leg<'p> {
    /// The node's name.
    pub node: &'p str,
    /// What its agent said.
    pub part: &'p Part,
}

/// One path across nodes.
#[derive(Clone, Debug)]
pub struct Path<'p> {
    /// Its parts in order; one at least.
    pub legs: Vec<Leg<'p>>,
    /// The verdict, and whose it is.
    pub judged: Judged,
    /// What else is to be said of how it was put together.
    pub notes: Vec<String>,
    clocks: &'p [Clock],
}

impl<'p> Path<'p> {
    /// From a chain of `parts`.
    pub(super) fn new(report: &'p Report, clocks: &'p [Clock], parts: &'p [Part], chain: &Chain) -> Self {
        let legs: Vec<_> = chain.parts.iter().map(|part| leg(&report.plan, &parts[*part])).collect();
        let judged = judge(&legs.iter().map(|leg| leg.part).collect::<Vec<_>>());
        let mut path = Self { legs, judged, notes: Vec::new(), clocks };
        path.notes.extend(path.finding_text());
        path.notes.extend(chain.apart.iter().map(|apart| apart_text(&report.plan, parts, chain, apart)));
        if chain.is_crowded {
            path.notes.push(format!(
                "more than {PAIRS_MAX} pairs of flows have one tuple with it: none of them was joined"
            ));
        }
        // What is said of pairs already is not a loss.
        if chain.apart.is_empty() && !chain.is_crowded {
            path.notes.extend(path.beyond(report));
            path.notes.extend(path.before(report));
        }
        path
    }

    /// The one part that everything is measured from.
    pub fn first(&self) -> Leg<'p> {
        self.legs[0]
    }

    /// The part whose verdict it is.
    pub fn judge(&self) -> Leg<'p> {
        self.legs[self.judged.by]
    }

    /// Addresses and ports after every change on every node.
    pub fn left(&self) -> Tuple {
        self.legs.last().map_or(self.first().part.tuple, |leg| leg.part.left())
    }

    /// A time of a part's node, since the path's first packet. On the first node it is exact.
    pub fn since(&self, leg: Leg<'_>, at_ns: u64) -> Since {
        let first = self.first().part;
        if leg.part.node == first.node {
            return Since { ns: i128::from(at_ns) - i128::from(first.first_ns), error_ns: 0 };
        }
        let ours = |part: &Part, ns| {
            self.clocks.get(part.node).map_or(Clock::default().ours(ns), |own| own.ours(ns))
        };
        let (then, now) = (ours(first, first.first_ns), ours(leg.part, at_ns));
        Since { ns: now.ns - then.ns, error_ns: now.error_ns.saturating_add(then.error_ns) }
    }

    fn finding_text(&self) -> Option<String> {
        let name = |at: usize| self.legs[at].node;
        let last = self.legs.last()?.node;
        Some(match self.judged.finding? {
            Finding::AnswerMissing { through } => format!(
                "answered on {last}; {through} put its own address in the sender's place, so the answer must come back through it, and was not seen there: it was lost between them, or not seen",
                through = name(through)
            ),
            Finding::Hidden { by } => self.hidden_text(by),
            Finding::WentOn { at } => format!(
                "the maps of {at} drop it, and yet it came to the next node: the maps changed in between, or plsprobe is wrong",
                at = name(at)
            ),
        })
    }

    /// What the node that dropped it judged, where another had put itself in the sender's place.
    fn hidden_text(&self, by: usize) -> String {
        let (judge, sender) = (self.judge(), self.first().part.tuple.saddr);
        let value = judge.part.value();
        let identity = value["identity"]["text"].as_str().unwrap_or("an identity that is not known");
        let id = value["identity"]["id"].as_u64().map(|id| Identity(id as u32));
        let in_tunnel = value["hops"].as_array().into_iter().flatten().any(|hop| !hop["tunnel"].is_null());
        let code = match id {
            Some(Identity::REMOTE_NODE) => format!(" [{}]", Code::RemoteAsNode),
            Some(Identity::WORLD | Identity::WORLD_IPV4) if in_tunnel => {
                format!(" [{}]", Code::RemoteAsWorld)
            }
            _ => String::new(),
        };
        format!(
            "{} judged {}, identity {identity}, which {} had put in the place of the sender {sender}: no rule admits the sender by its own address there; \
             `externalTrafficPolicy: Local` on the Service keeps it{code}",
            judge.node, judge.part.tuple.saddr, self.legs[by].node
        )
    }

    /// Where it went on to, if nothing of it was seen there.
    fn beyond(&self, report: &Report) -> Option<String> {
        let last = self.legs.last()?;
        let (node, pod) = report.plan.owners.get(&last.part.left().daddr)?;
        if !last.part.may_go_on() || node == last.node {
            return None;
        }
        let state = report.plan.nodes.iter().zip(&report.nodes).find(|(own, _)| own.name == *node);
        let why = match (state, report.plan.blind.get(node)) {
            (Some((_, state)), _) if state.is_running && !matches!(state.ended, Some(Err(_))) => {
                return Some(format!("it went on towards {pod} on {node}, where nothing of it was seen"));
            }
            (Some((_, state)), _) => match &state.ended {
                Some(Err(why)) => why.clone(),
                _ => "its agent does not trace yet".to_owned(),
            },
            (None, Some(why)) => why.clone(),
            (None, None) => "it is beyond what is traced at once".to_owned(),
        };
        Some(format!("it went on towards {pod} on {node}, which is not traced: {why}"))
    }

    /// Which node it came from, if nothing of it was seen there.
    fn before(&self, report: &Report) -> Option<String> {
        let first = self.first();
        let has = |own: &&super::plan::PlanNode| {
            let source = first.part.tuple.saddr;
            own.addresses.iter().any(|net| net.prefix_len() == net.max_prefix_len() && net.addr() == source)
        };
        let from = report.plan.nodes.iter().find(has).filter(|own| own.name != first.node)?;
        first.part.may_have_come().then(|| {
            format!("it comes from {name}, and no flow seen there fits: {name} itself sends it, or what it was there was not seen", name = from.name)
        })
    }
}

fn leg<'p>(plan: &'p Plan, part: &'p Part) -> Leg<'p> {
    Leg { node: plan.nodes.get(part.node).map_or("a node", |node| node.name.as_str()), part }
}

fn apart_text(plan: &Plan, parts: &[Part], chain: &Chain, apart: &Apart) -> String {
    let is_from = chain.parts.contains(&apart.link.from);
    let other = leg(plan, &parts[if is_from { apart.link.to } else { apart.link.from }]);
    let what = if is_from { "it may have gone on as" } else { "it may be what became of" };
    let why = match apart.why {
        Why::SeveralNext(count) => format!("{count} flows fit alike to be what it became"),
        Why::SeveralBefore(count) => format!("{count} flows fit alike to be what it was"),
        Why::Circle => "the clocks do not tell which of them is first".to_owned(),
    };
    format!("{what} {} on {}, and is not joined with it: {why}", other.part.tuple, other.node)
}
