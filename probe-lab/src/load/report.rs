//! What became of a load.
use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::counters::Counters;
use super::latency::Percentiles;
use super::tcp::Exchanged;
use super::udp::{Direction, Sent};

/// What became of everything that was sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How long it was sent.
    pub seconds: f64,
    /// Packets per second over the node's uplink, TCP and UDP, both directions.
    pub packets_per_second: u64,
    /// From the clients to the pod.
    pub to_pod: Datagrams,
    /// From the pod to the clients.
    pub from_pod: Datagrams,
    /// Datagrams that found a receive buffer full: lost, but not on the way.
    pub overrun: u64,
    /// Packets that a full interface queue dropped anywhere in the lab: lost, but by no program.
    pub queue_drops: u64,
    /// Connections that lived as long as the load.
    pub persistent: Connections,
    /// Connections for one request each.
    pub newcomers: Connections,
    /// TCP segments sent again: lost, or only late on a busy machine.
    pub retransmitted: u64,
    /// What sockets said, where they said anything.
    pub errors: Vec<String>,
}

/// Datagrams of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Datagrams {
    /// Taken by the socket.
    pub sent: u64,
    /// Arrived unchanged.
    pub received: u64,
    /// Sent and not received.
    pub lost: u64,
    /// Arrived a second time.
    pub duplicated: u64,
    /// Arrived with other bytes than were sent.
    pub changed: u64,
}

/// TCP connections of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Connections {
    /// Opened.
    pub opened: u64,
    /// Requests that were answered, with the right bytes.
    pub answered: u64,
    /// Connections that were refused or reset.
    pub reset: u64,
    /// Connections on which nothing came for too long.
    pub stalled: u64,
    /// Exchanges with wrong bytes.
    pub wrong: u64,
    /// From the request, or the connection's beginning, to the whole answer.
    pub round_trip_us: Percentiles,
}

impl Report {
    pub(super) fn new(
        elapsed: Duration,
        datagrams: Vec<Sent>,
        connections: Vec<Exchanged>,
        counters: &Counters,
    ) -> Self {
        let mut errors = Vec::new();
        let (mut to_pod, mut from_pod) = (Datagrams::default(), Datagrams::default());
        let overrun = datagrams.iter().map(|sent| sent.overrun).sum();
        for sent in datagrams {
            to_pod.add(&sent.to_pod);
            from_pod.add(&sent.from_pod);
            errors.extend([sent.to_pod.error, sent.from_pod.error].into_iter().flatten());
        }
        let [persistent, newcomers] =
            [0, 1].map(|at| connections.get(at).map(Connections::new).unwrap_or_default());
        errors.extend(connections.into_iter().filter_map(|exchanged| exchanged.error));
        Self {
            seconds: elapsed.as_secs_f64(),
            packets_per_second: counters.uplink * 1000 / (elapsed.as_millis() as u64).max(1),
            to_pod,
            from_pod,
            overrun,
            queue_drops: counters.queue_drops,
            persistent,
            newcomers,
            retransmitted: counters.retransmitted,
            errors,
        }
    }

    /// Checks that nothing was lost, changed, doubled, reset or stalled.
    ///
    /// # Errors
    ///
    /// Something was; the message has all figures.
    pub fn check_harmless(&self) -> Result<()> {
        let datagrams = [self.to_pod, self.from_pod];
        let connections = [self.persistent, self.newcomers];
        let is_well = datagrams.iter().all(|d| d.sent > 0 && d.lost + d.duplicated + d.changed == 0)
            && connections.iter().all(|c| c.reset + c.stalled + c.wrong == 0)
            && self.errors.is_empty();
        ensure!(is_well, "the load did not come through:\n{self}");
        Ok(())
    }
}

impl Datagrams {
    fn add(&mut self, direction: &Direction) {
        self.sent += direction.sent;
        self.received += direction.received;
        self.lost += direction.lost();
        self.duplicated += direction.duplicated;
        self.changed += direction.changed;
    }
}

impl Connections {
    fn new(exchanged: &Exchanged) -> Self {
        let Exchanged { opened, answered, reset, stalled, wrong, ref latencies, .. } = *exchanged;
        Self { opened, answered, reset, stalled, wrong, round_trip_us: latencies.percentiles() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:.1} s, {} packets/s over the uplink", self.seconds, self.packets_per_second)?;
        for (what, d) in [("datagrams to the pod", self.to_pod), ("datagrams from the pod", self.from_pod)] {
            let Datagrams { sent, lost, duplicated, changed, .. } = d;
            writeln!(f, "{what}: {sent} sent, {lost} lost, {duplicated} twice, {changed} changed")?;
        }
        for (what, c) in [("long connections", self.persistent), ("new connections", self.newcomers)] {
            let Connections { opened, answered, reset, stalled, wrong, round_trip_us: took } = c;
            writeln!(
                f,
                "{what}: {opened}, {answered} requests answered, {reset} reset, {stalled} stalled, {wrong} wrong; \
                 p50 {:.0} µs, p99 {:.0} µs, max {:.0} µs",
                took.p50, took.p99, took.max
            )?;
        }
        let Self { overrun, queue_drops, retransmitted, .. } = self;
        write!(
            f,
            "{overrun} receive buffer overruns, {queue_drops} queue drops, {retransmitted} segments sent again"
        )?;
        self.errors.iter().try_for_each(|error| write!(f, "\n{error}"))
    }
}
