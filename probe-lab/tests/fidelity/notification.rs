//! Notifications as bytes, made comparable: what differs between two runs of the same thing is blanked.
use std::fmt;
use std::net::Ipv4Addr;

use probe_lab::addresses::NODE;
use probe_model::cilium::events::Sample;

/// `cilium_events` message types.
const DROP: u8 = 1;
const TRACE: u8 = 4;
const VERDICT: u8 = 5;

const ETH_LEN: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

/// Which probe a packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flow {
    /// By its ports, in no order.
    Ports(u16, u16),
    /// An ICMP packet.
    Icmp,
    /// A packet of a masqueraded connection, whose port is random, or no IPv4 packet.
    Unknown,
}

/// One notification, blanked.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Notification {
    meta: Vec<u8>,
    packet: Vec<u8>,
}

impl Notification {
    /// Reads a perf sample: drops, traces and verdicts; `None` for the other types.
    ///
    /// # Panics
    ///
    /// The sample is shorter than it says.
    pub(crate) fn parse(sample: &[u8]) -> Option<Self> {
        let meta_len = match *sample.first()? {
            DROP => 36,
            TRACE => 48,
            VERDICT => 32,
            _ => return None,
        };
        let cap_len = usize::from(u16::from_ne_bytes([sample[12], sample[13]]));
        let mut notification =
            Self { meta: sample[..meta_len].to_vec(), packet: sample[meta_len..meta_len + cap_len].to_vec() };
        notification.blank();
        Some(notification)
    }

    pub(crate) fn is_trace(&self) -> bool {
        self.meta[0] == TRACE
    }

    /// The same at another place: `move_to` tells the number here of an interface there.
    pub(crate) fn moved(mut self, move_to: impl Fn(u32) -> u32) -> Self {
        let at = match self.meta[0] {
            DROP => 32,
            TRACE => 28,
            _ => return self,
        };
        let field = &mut self.meta[at..at + 4];
        let ifindex = u32::from_ne_bytes(field.try_into().expect("four bytes"));
        field.copy_from_slice(&move_to(ifindex).to_ne_bytes());
        self
    }

    /// Whether it is an ARP packet's: who asks, and when, depends on a neighbour table.
    pub(crate) fn is_arp(&self) -> bool {
        self.ethertype() == 0x0806
    }

    /// The reason of a drop.
    pub(crate) fn drop_reason(&self) -> Option<u8> {
        (self.meta[0] == DROP).then(|| self.meta[1])
    }

    /// The probe it belongs to.
    pub(crate) fn flow(&self) -> Flow {
        if self.ethertype() != 0x0800 || self.masqueraded() {
            return Flow::Unknown;
        }
        if self.packet[ETH_LEN + 9] == ICMP {
            return Flow::Icmp;
        }
        let (sport, dport) = self.ports();
        Flow::Ports(sport.min(dport), sport.max(dport))
    }

    /// Whether the flow has this port at one of its ends.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        matches!(self.flow(), Flow::Ports(a, b) if a == port || b == port)
    }

    /// What the packet carries behind its transport header.
    pub(crate) fn payload(&self) -> &[u8] {
        let l4 = &self.packet[self.l4_off()..];
        match self.packet[ETH_LEN + 9] {
            TCP => &l4[usize::from(l4[12] >> 4) * 4..],
            _ => &l4[8..],
        }
    }

    /// Everything behind the IPv4 header.
    pub(crate) fn ip_payload(&self) -> &[u8] {
        &self.packet[self.l4_off()..]
    }

    /// The hash, and where the code lies that dropped it; then the packet. A trace stands for all of its kind: of its
    /// packet only where it came from and went to is kept, since which segments were sent depends on the client.
    fn blank(&mut self) {
        self.meta[4..8].fill(0);
        if self.meta[0] == DROP {
            // line, file
            self.meta[28..31].fill(0);
        }
        if self.ethertype() != 0x0800 {
            return;
        }
        if self.is_trace() {
            self.meta[8..14].fill(0);
            self.packet.truncate(self.l4_off() + 4);
            self.packet[ETH_LEN..ETH_LEN + 8].fill(0);
            if self.masqueraded() || self.packet[ETH_LEN + 9] == ICMP {
                let l4_off = self.l4_off();
                self.packet[l4_off..].fill(0);
            }
        } else {
            self.blank_transport();
        }
        // IP: identification and checksum
        self.packet[ETH_LEN + 4..ETH_LEN + 6].fill(0);
        self.packet[ETH_LEN + 10..ETH_LEN + 12].fill(0);
    }

    fn blank_transport(&mut self) {
        let l4_off = self.l4_off();
        let proto = self.packet[ETH_LEN + 9];
        let l4 = &mut self.packet[l4_off..];
        match proto {
            TCP => {
                l4[4..12].fill(0); // sequence and acknowledgement
                l4[16..18].fill(0);
                let header_len = usize::from(l4[12] >> 4) * 4;
                blank_timestamps(&mut l4[20..header_len]);
            }
            UDP => l4[6..8].fill(0),
            // Checksum and, of an echo, the identifier.
            ICMP if l4[0] == 8 || l4[0] == 0 => l4[2..6].fill(0),
            _ => {}
        }
    }

    /// Whether the packet is outside, where a pod has the node's address and a random port.
    fn masqueraded(&self) -> bool {
        let node_end = self.address(12) == NODE || self.address(16) == NODE;
        let (sport, dport) = self.ports();
        node_end && self.is_trace() && (sport >= 32_768 || dport >= 32_768)
    }

    fn ethertype(&self) -> u16 {
        u16::from_be_bytes([self.packet[12], self.packet[13]])
    }

    fn l4_off(&self) -> usize {
        ETH_LEN + usize::from(self.packet[ETH_LEN] & 0x0f).max(5) * 4
    }

    fn ports(&self) -> (u16, u16) {
        let l4 = &self.packet[self.l4_off()..];
        (u16::from_be_bytes([l4[0], l4[1]]), u16::from_be_bytes([l4[2], l4[3]]))
    }

    fn address(&self, off: usize) -> Ipv4Addr {
        let at = ETH_LEN + off;
        let octets: [u8; 4] = self.packet[at..at + 4].try_into().expect("four bytes");
        octets.into()
    }
}

/// Blanks the values of timestamp options (kind 8).
fn blank_timestamps(options: &mut [u8]) {
    let mut at = 0;
    while at < options.len() {
        match options[at] {
            0 => return,
            1 => at += 1,
            kind => {
                let len = usize::from(options.get(at + 1).copied().unwrap_or(2)).max(2);
                let end = (at + len).min(options.len());
                if kind == 8 {
                    options[at + 2..end].fill(0);
                }
                at = end;
            }
        }
    }
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Sample::from_hook(&self.meta, self.meta.len(), &self.packet) {
            Ok(sample) => write!(f, "{:?}", sample.notification)?,
            Err(err) => write!(f, "{err}")?,
        }
        for byte in &self.packet {
            write!(f, " {byte:02x}")?;
        }
        Ok(())
    }
}
