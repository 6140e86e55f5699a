//! Why Cilium counted a packet that it did not drop.

use core::fmt;

use super::release::Release;

/// A reason in `cilium_metrics` below those of drops: the packet went on, or something else was counted.
///
/// Source: `REASON_*`, Cilium 1.13 to 1.20 `bpf/lib/{common,drop_reasons}.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForwardReason(pub u8);

impl ForwardReason {
    /// What Cilium's own command line prints, if the number is known.
    pub fn text(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "Success",
            3 => "Interface",
            4 => "Interface Decrypted",
            5 => "LB, sock cgroup: No backend slot entry found",
            6 => "LB, sock cgroup: No backend entry found",
            7 => "LB, sock cgroup: Reverse entry update failed",
            8 => "LB, sock cgroup: Reverse entry stale",
            9 => "Fragmented packet",
            10 => "Fragmented packet entry update failed",
            11 => "Missed tail call to custom program",
            12 => "Interface Decrypting",
            13 => "Interface Encrypting",
            14 => "LB: sock cgroup: Reverse entry delete succeeded",
            15 => "MTU error message",
            _ => return None,
        })
    }

    /// Whether the datapath of a release counts for this reason.
    pub fn is_of(self, release: Release) -> bool {
        let (first, last) = match self.0 {
            0 | 3..=10 => (13, u8::MAX),
            11 => (13, 18),
            12 | 13 => (17, u8::MAX),
            14 => (18, u8::MAX),
            15 => (19, u8::MAX),
            _ => return false,
        };
        (Release(first)..=Release(last)).contains(&release)
    }
}

impl fmt::Display for ForwardReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => f.pad(text),
            None => write!(f, "unknown forward reason ({})", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_each_release() {
        let of = |minor| {
            (0..130).filter(|number| ForwardReason(*number).is_of(Release(minor))).collect::<Vec<_>>()
        };
        assert!(of(12).is_empty());
        assert_eq!(of(13), [0, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(of(16), of(13));
        assert_eq!(of(17), [0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
        assert_eq!(of(18), [0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        assert_eq!(of(19), [0, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15]);
        assert_eq!(of(20), of(19));
    }

    #[test]
    fn what_a_release_counts_has_a_text() {
        for number in 0..=u8::MAX {
            let counted = (13..=20).any(|minor| ForwardReason(number).is_of(Release(minor)));
            assert_eq!(ForwardReason(number).text().is_some(), counted, "{number}");
        }
        assert_eq!(ForwardReason(1).to_string(), "unknown forward reason (1)");
    }
}
