//! What is counted of flows. Bounded, whatever is judged.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use probe_model::cilium::drop_reason::DropReason;
use probe_model::explain::Code;

use super::exposition::{Family, Page};
use super::families as f;
use super::histogram::Histogram;
use crate::agent::flow::{Flow, SourceClass};
use crate::render::trace::verdict_word;
use crate::trace::judge::FlowVerdict;

/// Services with series of their own; few clusters have ten behind Private Link. With all that is counted of them a
/// page has 1.3 MB at the very most, and some 50 KB where there are ten.
pub(super) const SERVICES_MAX: usize = 100;
/// Causes with verdicts that are counted apart for one service, of which few meet.
pub(super) const CAUSES_MAX: usize = 16;
/// What is beyond is counted together. No Service is called so, as every name has its namespace before it.
pub(super) const OTHER: &str = "other";
/// The service of flows that came to none.
const NO_SERVICE: &str = "none";
const VERDICTS: [FlowVerdict; 3] = [FlowVerdict::Allowed, FlowVerdict::Dropped, FlowVerdict::Inconclusive];

/// The counters.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// By service: `namespace/name`, [`NO_SERVICE`], [`OTHER`].
    services: HashMap<String, Service>,
    /// How many of them are Services.
    n_named: usize,
    drops: BTreeMap<DropReason, u64>,
    of_others: u64,
    /// Flows that came too fast.
    pub(super) lagged: u64,
}

#[derive(Debug, Default)]
struct Service {
    flows: [[u64; VERDICTS.len()]; SourceClass::ALL.len()],
    /// By cause and verdict; without a cause are those beyond [`CAUSES_MAX`].
    causes: BTreeMap<(Option<Code>, &'static str), u64>,
    refused: u64,
    retransmissions: u64,
    disagreements: u64,
    answers: Histogram,
}

impl Counts {
    /// Counts a flow.
    pub(super) fn add(&mut self, flow: &Flow) {
        if let Some(reason) = flow.drop_reason {
            *self.drops.entry(reason).or_default() += 1;
        }
        let service = self.service(flow);
        let class = SourceClass::ALL.iter().position(|class| *class == flow.class);
        let verdict = VERDICTS.iter().position(|verdict| *verdict == flow.verdict);
        if let (Some(class), Some(verdict)) = (class, verdict) {
            service.flows[class][verdict] += 1;
        }
        service.cause(flow);
        service.refused += u64::from(flow.is_refused);
        service.retransmissions += u64::from(flow.retransmissions);
        service.disagreements += flow.disagreements.len() as u64;
        if let Some(answered_ns) = flow.answered_ns {
            service.answers.observe(Duration::from_nanos(answered_ns.saturating_sub(flow.first_ns)));
        }
    }

    fn service(&mut self, flow: &Flow) -> &mut Service {
        let mut name = match &flow.service {
            Some((namespace, name)) => format!("{namespace}/{name}"),
            None => NO_SERVICE.to_owned(),
        };
        if flow.service.is_some() && !self.services.contains_key(&name) {
            if self.n_named < SERVICES_MAX {
                self.n_named += 1;
            } else {
                self.of_others += 1;
                OTHER.clone_into(&mut name);
            }
        }
        self.services.entry(name).or_default()
    }

    /// Writes all of it.
    pub(super) fn write(&self, page: &mut Page) {
        let mut services: Vec<_> =
            self.services.iter().map(|(name, service)| (name.as_str(), service)).collect();
        services.sort_unstable_by_key(|(name, _)| *name);
        page.family(&f::FLOWS);
        for (name, service) in &services {
            // Those that are 0 as well: the first drop is then seen as one more, not as a series that begins with 1.
            for (class, by_verdict) in SourceClass::ALL.iter().zip(service.flows) {
                for (verdict, count) in VERDICTS.iter().zip(by_verdict) {
                    page.sample(&[name, class.word(), verdict_word(*verdict)], count);
                }
            }
        }
        page.family(&f::CAUSES);
        for (name, service) in &services {
            for ((cause, verdict), count) in &service.causes {
                let cause = cause.map_or(OTHER.into(), Code::text);
                page.sample(&[name, &cause, verdict], count);
            }
        }
        let mut each = |family: &'static Family, value: fn(&Service) -> u64| {
            page.family(family);
            for (name, service) in &services {
                page.sample(&[name], value(service));
            }
        };
        each(&f::REFUSED, |service| service.refused);
        each(&f::RETRANSMISSIONS, |service| service.retransmissions);
        each(&f::DISAGREEMENTS, |service| service.disagreements);
        page.family(&f::ANSWERS);
        for (name, service) in &services {
            service.answers.write(page, &[name]);
        }
        page.family(&f::DROPS);
        for (reason, count) in &self.drops {
            let word = reason.name().map_or_else(|| reason.0.to_string(), str::to_owned);
            page.sample(&[&word], count);
        }
        page.single(&f::OTHERS, self.of_others);
        page.single(&f::LAGGED, self.lagged);
    }
}

impl Service {
    fn cause(&mut self, flow: &Flow) {
        let verdict = verdict_word(flow.verdict);
        let mut key = (Some(flow.cause), verdict);
        if !self.causes.contains_key(&key) && self.causes.len() >= CAUSES_MAX {
            key.0 = None;
        }
        *self.causes.entry(key).or_default() += 1;
    }
}
