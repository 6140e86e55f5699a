//! The drop notification: Cilium dropped a packet, and why.

use core::ops::RangeInclusive;

use super::header::{self, CaptureHeader, NotifyFlags, put};
use super::{DROP, unknown_version};
use crate::cilium::drop_reason::DropReason;
use crate::cilium::identity::Identity;
use crate::cilium::release::Release;
use crate::cilium::source_file::source_file;
use crate::cilium::{DecodeError, u16_le, u32_le, u64_le};

pub(super) const WHAT: &str = "drop_notify";
/// Sizes of versions 1, 2 and 3.
const SIZES: [usize; 3] = [36, 40, 48];

/// A dropped packet.
///
/// Source: `struct drop_notify`, Cilium 1.13 to 1.20 `bpf/lib/drop.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropNotify {
    /// Common header.
    pub header: CaptureHeader,
    /// Why.
    pub reason: DropReason,
    /// Source identity.
    pub src_label: Identity,
    /// Destination identity, 0 if unknown.
    pub dst_label: Identity,
    /// Destination endpoint, 0 on egress or if unknown.
    pub dst_id: u32,
    /// Line in Cilium's source; only meaningful with that very build.
    pub line: u16,
    /// File in Cilium's source, as a number; see [`Self::source_file`].
    pub file: u8,
    /// More on the reason: an errno, an authentication type, a FIB result.
    pub ext_error: i8,
    /// The device that the dropping program ran on.
    pub ifindex: u32,
    /// What kind of packet it was; `None` before 1.17.4 (version 1), which does not say.
    pub flags: Option<NotifyFlags>,
    /// The trace id found in the packet's IP options, 0 if none; `None` before 1.19 (versions 1 and 2).
    pub ip_trace_id: Option<u64>,
}

impl DropNotify {
    /// The size that the header's version gives.
    pub(super) fn size(raw: &[u8]) -> Result<usize, DecodeError> {
        match header::version(raw, WHAT)? {
            1 => Ok(SIZES[0]),
            2 => Ok(SIZES[1]),
            version if version & 0xff == 3 => Ok(SIZES[2]),
            found => Err(unknown_version(
                WHAT,
                "1 (Cilium 1.13 to 1.17.3), 2 (1.17.4 to 1.18) or 3 (1.19 and later)",
                found,
            )),
        }
    }

    /// Reads a notification of exactly the size of its version.
    pub(super) fn decode(raw: &[u8]) -> Self {
        Self {
            header: CaptureHeader::decode(raw),
            reason: DropReason(raw[1]),
            src_label: Identity(u32_le(raw, 16)),
            dst_label: Identity(u32_le(raw, 20)),
            dst_id: u32_le(raw, 24),
            line: u16_le(raw, 28),
            file: raw[30],
            ext_error: raw[31].cast_signed(),
            ifindex: u32_le(raw, 32),
            flags: raw.get(36).copied().map(NotifyFlags),
            ip_trace_id: (raw.len() >= SIZES[2]).then(|| u64_le(raw, 40)),
        }
    }

    /// The version that has the fields which this one has.
    fn version(&self) -> u8 {
        match (self.flags, self.ip_trace_id) {
            (_, Some(_)) => 3,
            (Some(_), None) => 2,
            (None, None) => 1,
        }
    }

    /// The notification without a packet, of the oldest version that has its fields.
    pub fn encode(&self) -> Vec<u8> {
        let version = self.version();
        let mut raw = vec![0; SIZES[usize::from(version) - 1]];
        self.header.encode(&mut raw, DROP, self.reason.0, version);
        put(&mut raw, 16, self.src_label.0.to_le_bytes());
        put(&mut raw, 20, self.dst_label.0.to_le_bytes());
        put(&mut raw, 24, self.dst_id.to_le_bytes());
        put(&mut raw, 28, self.line.to_le_bytes());
        put(&mut raw, 30, [self.file, self.ext_error.cast_unsigned()]);
        put(&mut raw, 32, self.ifindex.to_le_bytes());
        if version > 1 {
            raw[36] = self.flags.unwrap_or_default().0;
        }
        if let Some(ip_trace_id) = self.ip_trace_id {
            put(&mut raw, 40, ip_trace_id.to_le_bytes());
        }
        raw
    }

    /// The releases whose datapath emits this version of the notification.
    pub fn releases(&self) -> RangeInclusive<Release> {
        match self.version() {
            1 => Release(13)..=Release(17),
            2 => Release(17)..=Release(18),
            _ => Release(19)..=Release::LAST,
        }
    }

    /// The file in Cilium's source that dropped the packet, where it is certain.
    ///
    /// The numbers changed their meaning over the releases. The notification's version leaves a few of them; `agent`, the
    /// release the agent says it is, leaves one, unless it contradicts the notification, as while an old program outlives
    /// an upgrade. `None` where those left disagree.
    pub fn source_file(&self, agent: Option<Release>) -> Option<&'static str> {
        let possible = self.releases();
        match agent.filter(|agent| possible.contains(agent)) {
            Some(agent) => source_file(self.file, agent..=agent),
            None => source_file(self.file, possible),
        }
    }
}
