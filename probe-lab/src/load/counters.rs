//! What the kernel counts in the lab's namespaces, which are nobody else's.
use std::fs;

use anyhow::{Context as _, Result};

use crate::instance::Instance;
use crate::netns::Ns;

/// Sums over the namespaces on the load's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counters {
    /// Packets over the node's uplink, both directions.
    pub(super) uplink: u64,
    /// Packets that a full queue of an interface dropped, or of the CPU behind it.
    pub(super) queue_drops: u64,
    /// TCP segments sent again.
    pub(super) retransmitted: u64,
}

impl Counters {
    pub(super) fn read(instance: &Instance) -> Result<Self> {
        let mut sum = Self { uplink: 0, queue_drops: 0, retransmitted: 0 };
        for ns in Ns::ALL {
            let netns = instance.netns(ns);
            let (interfaces, protocols) = netns.run_in(|| (read("net/dev"), read("net/snmp")))?;
            let (interfaces, protocols) = (interfaces?, protocols?);
            for (name, fields) in interfaces.lines().filter_map(|line| line.trim().split_once(':')) {
                let fields: Vec<u64> =
                    fields.split_whitespace().filter_map(|field| field.parse().ok()).collect();
                // Received: bytes packets errs drop fifo frame compressed multicast; sent: bytes packets errs drop …
                let [_, received, _, received_drop, _, _, _, _, _, sent, _, sent_drop, ..] = fields[..]
                else {
                    continue;
                };
                sum.queue_drops += received_drop + sent_drop;
                if ns == Ns::Node && name == "eth0" {
                    sum.uplink = received + sent;
                }
            }
            sum.retransmitted += field(&protocols, "Tcp:", "RetransSegs");
        }
        Ok(sum)
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            uplink: self.uplink.saturating_sub(before.uplink),
            queue_drops: self.queue_drops.saturating_sub(before.queue_drops),
            retransmitted: self.retransmitted.saturating_sub(before.retransmitted),
        }
    }
}

/// A file of the calling thread's network namespace.
fn read(name: &str) -> Result<String> {
    let path = format!("/proc/thread-self/{name}");
    fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))
}

/// `/proc/net/snmp` has two lines for each protocol: names, then numbers.
fn field(text: &str, protocol: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else { return 0 };
    let mut both = names.split_whitespace().zip(numbers.split_whitespace());
    both.find(|(known, _)| *known == name).and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snmp_is_read_by_name() {
        let text = "Tcp: RtoMin RetransSegs\nTcp: 200 7\nUdp: InDatagrams RcvbufErrors\nUdp: 1 3\n";
        assert_eq!(field(text, "Tcp:", "RetransSegs"), 7);
        assert_eq!(field(text, "Udp:", "RcvbufErrors"), 3);
        assert_eq!(field(text, "UdpLite:", "RcvbufErrors"), 0);
    }
}
