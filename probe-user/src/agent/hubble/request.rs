//! `observer.GetFlowsRequest`.
//!
//! Source: field numbers of `api/v1/observer/observer.proto`; which flows are meant, Cilium's
//! `pkg/hubble/observer/local_observer.go`.

use std::sync::Arc;

use super::filter::{Allowance, Filter};
use super::flow::Teller;
use super::wire::{Field, Fields};
use crate::agent::flow::Flow;
use crate::grpc::Status;

/// Values of all filters of a request: what is compared with each flow.
pub(super) const VALUES_MAX: usize = 1024;
const NANOS: i128 = 1_000_000_000;

/// Which flows a client wants.
#[derive(Clone, Debug, Default)]
pub(super) struct FlowsRequest {
    /// How many; 0 is all.
    number: usize,
    /// The first, not the last of those that are kept.
    is_first: bool,
    /// And those to come.
    pub(super) is_following: bool,
    /// One of these must match, if there are any.
    whitelist: Vec<Filter>,
    /// None of these may.
    blacklist: Vec<Filter>,
    /// Nanoseconds since 1970.
    since: Option<i128>,
    pub(super) until: Option<i128>,
}

impl FlowsRequest {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Status> {
        let mut request = Self::default();
        let mut values = Allowance::new(VALUES_MAX);
        for field in Fields(bytes) {
            let field = field?;
            match field.number {
                1 => request.number = usize::try_from(field.number("number")?).unwrap_or(usize::MAX),
                3 => request.is_following = field.number("follow")? != 0,
                5 => request.blacklist.push(Filter::decode(field.bytes("blacklist")?, &mut values)?),
                6 => request.whitelist.push(Filter::decode(field.bytes("whitelist")?, &mut values)?),
                7 => request.since = Some(time(field, "since")?),
                8 => request.until = Some(time(field, "until")?),
                9 => request.is_first = field.number("first")? != 0,
                // Which fields to leave out, in versions old and new: a flow is told whole, it is small.
                10 | 999 => {}
                other => {
                    let text = format!("field {other} of `observer.GetFlowsRequest` is not known here");
                    return Err(Status::invalid(text));
                }
            }
            if request.whitelist.len() + request.blacklist.len() > VALUES_MAX {
                return Err(Status::invalid(format!("there are more than {VALUES_MAX} filters")));
            }
        }
        if request.is_first && request.is_following {
            return Err(Status::invalid("`first` and `follow` exclude each other"));
        }
        Ok(request)
    }

    /// Whether a flow is wanted.
    pub(super) fn matches(&self, told: &Teller, flow: &Flow) -> bool {
        let fits = |filter: &Filter| filter.matches(told, flow);
        self.since.is_none_or(|since| i128::from(flow.first_ns) >= since)
            && self.until.is_none_or(|until| i128::from(flow.first_ns) <= until)
            && (self.whitelist.is_empty() || self.whitelist.iter().any(fits))
            && !self.blacklist.iter().any(fits)
    }

    /// The numbers of those of the kept flows that are wanted, in their order.
    pub(super) fn of_kept(&self, told: &Teller, kept: &[Arc<Flow>]) -> Vec<u64> {
        let is_from_now_on = self.is_following && self.number == 0 && self.since.is_none();
        if is_from_now_on {
            return Vec::new();
        }
        let mut wanted: Vec<u64> =
            kept.iter().filter(|flow| self.matches(told, flow)).map(|flow| flow.number).collect();
        if self.number == 0 {
            return wanted;
        }
        if !self.is_first && self.since.is_none() {
            wanted.drain(..wanted.len().saturating_sub(self.number));
        } else if !self.is_following {
            // With `since` the flows are counted from there, as Hubble does it.
            wanted.truncate(self.number);
        }
        wanted
    }
}

/// A `google.protobuf.Timestamp` in nanoseconds.
fn time(field: Field<'_>, name: &str) -> Result<i128, Status> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields(field.bytes(name)?) {
        let field = field?;
        match field.number {
            1 => seconds = field.number(name)?.cast_signed(),
            2 => nanos = field.number(name)?,
            _ => return Err(Status::invalid(format!("`{name}` is no time"))),
        }
    }
    if i128::from(nanos) >= NANOS {
        return Err(Status::invalid(format!("`{name}` has {nanos} nanoseconds in a second")));
    }
    Ok(i128::from(seconds) * NANOS + i128::from(nanos))
}
