//! Which file of Cilium's source a number in a drop notification or in `cilium_metrics` stands for.
//!
//! The numbers were given out anew in most releases: without the release, few of them mean anything.
//!
//! Source: `__MAGIC_FILE__` and `BPF_SOURCE_*`, Cilium 1.13 to 1.20 `bpf/lib/{common,source_info}.h`.

use core::ops::RangeInclusive;

use super::release::Release;

/// The number of the first of [`HEADERS`].
const FIRST_HEADER: u8 = 101;

/// The headers from [`FIRST_HEADER`] on, by the first release that numbers them so.
#[rustfmt::skip]
const HEADERS: [(Release, &[&str]); 7] = [
    (Release(13), &["arp.h", "drop.h", "egress_policies.h", "icmp6.h", "nodeport.h", "encrypt.h"]),
    (Release(14), &["arp.h", "drop.h", "srv6.h", "icmp6.h", "nodeport.h", "encrypt.h"]),
    (Release(15), &["arp.h", "drop.h", "srv6.h", "icmp6.h", "nodeport.h", "lb.h", "encrypt.h", "mcast.h"]),
    (Release(16), &[
        "arp.h", "drop.h", "srv6.h", "icmp6.h", "nodeport.h", "lb.h", "mcast.h", "ipv4.h", "conntrack.h",
        "l3.h", "trace.h", "encap.h", "encrypt.h",
    ]),
    (Release(17), &[
        "arp.h", "drop.h", "srv6.h", "icmp6.h", "nodeport.h", "lb.h", "mcast.h", "ipv4.h", "conntrack.h",
        "l3.h", "trace.h", "encap.h", "encrypt.h", "host_firewall.h", "nodeport_egress.h",
    ]),
    (Release(18), &[
        "arp.h", "drop.h", "srv6.h", "icmp6.h", "nodeport.h", "lb.h", "mcast.h", "ipv4.h", "conntrack.h",
        "local_delivery.h", "trace.h", "encap.h", "encrypt.h", "host_firewall.h", "nodeport_egress.h",
        "ipv6.h", "classifiers.h",
    ]),
    (Release(19), &[
        "drop.h", "srv6.h", "icmp6.h", "nodeport.h", "lb.h", "mcast.h", "ipv4.h", "conntrack.h",
        "local_delivery.h", "trace.h", "encap.h", "host_firewall.h", "nodeport_egress.h", "ipv6.h",
        "classifiers.h",
    ]),
];

/// The file that a number stands for in every release of a range: `bpf_lxc.c`, or a header of `bpf/lib` as `nodeport.h`.
///
/// `None` where the releases disagree, or one of them has no such number or is not known.
pub fn source_file(number: u8, releases: RangeInclusive<Release>) -> Option<&'static str> {
    let (first, last) = releases.into_inner();
    let mut names = (first.0..=last.0).map(|minor| of_release(number, Release(minor)));
    let name = names.next()??;
    names.all(|other| other == Some(name)).then_some(name)
}

fn of_release(number: u8, release: Release) -> Option<&'static str> {
    if !(Release::FIRST..=Release::LAST).contains(&release) {
        return None;
    }
    let since = |first, name| (release >= Release(first)).then_some(name);
    match number {
        1 => Some("bpf_host.c"),
        2 => Some("bpf_lxc.c"),
        3 => Some("bpf_overlay.c"),
        4 => Some("bpf_xdp.c"),
        5 => since(16, "bpf_sock.c"),
        6 if release < Release(20) => since(16, "bpf_network.c"),
        7 => since(16, "bpf_wireguard.c"),
        header => {
            let (_, names) = HEADERS.iter().rev().find(|(first, _)| *first <= release)?;
            names.get(usize::from(header.checked_sub(FIRST_HEADER)?)).copied()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference's table, one column per release, `-` where there is no such number.
    const TABLE: &str = "
        101 arp arp arp arp arp arp drop
        102 drop drop drop drop drop drop srv6
        103 egress_policies srv6 srv6 srv6 srv6 srv6 icmp6
        104 icmp6 icmp6 icmp6 icmp6 icmp6 icmp6 nodeport
        105 nodeport nodeport nodeport nodeport nodeport nodeport lb
        106 encrypt encrypt lb lb lb lb mcast
        107 - - encrypt mcast mcast mcast ipv4
        108 - - mcast ipv4 ipv4 ipv4 conntrack
        109 - - - conntrack conntrack conntrack local_delivery
        110 - - - l3 l3 local_delivery trace
        111 - - - trace trace trace encap
        112 - - - encap encap encap host_firewall
        113 - - - encrypt encrypt encrypt nodeport_egress
        114 - - - - host_firewall host_firewall ipv6
        115 - - - - nodeport_egress nodeport_egress classifiers
        116 - - - - - ipv6 -
        117 - - - - - classifiers -
        118 - - - - - - -";

    #[test]
    fn headers_of_each_release() {
        for line in TABLE.trim().lines() {
            let cells: Vec<_> = line.split_whitespace().collect();
            assert_eq!(cells.len(), 8, "{line}");
            let number = cells[0].parse().unwrap();
            for minor in Release::FIRST.0..=Release::LAST.0 {
                let cell = cells[usize::from(minor.min(19) - 12)];
                let expected = (cell != "-").then(|| format!("{cell}.h"));
                let release = Release(minor);
                assert_eq!(
                    source_file(number, release..=release),
                    expected.as_deref(),
                    "{number} in {release}"
                );
            }
        }
    }

    #[test]
    fn programs() {
        let all = Release::FIRST..=Release::LAST;
        assert_eq!(source_file(2, all.clone()), Some("bpf_lxc.c"));
        assert_eq!(source_file(7, all.clone()), None, "1.13 has no such number");
        assert_eq!(source_file(7, Release(16)..=Release::LAST), Some("bpf_wireguard.c"));
        assert_eq!(source_file(6, Release(19)..=Release(19)), Some("bpf_network.c"));
        assert_eq!(source_file(6, Release(20)..=Release(20)), None);
        assert_eq!(source_file(0, all.clone()), None);
        assert_eq!(source_file(8, all.clone()), None);
        assert_eq!(source_file(255, all), None);
    }

    #[test]
    fn releases_that_disagree_or_are_not_known() {
        assert_eq!(source_file(104, Release(13)..=Release(18)), Some("icmp6.h"));
        assert_eq!(source_file(104, Release(13)..=Release(19)), None);
        assert_eq!(source_file(110, Release(17)..=Release(18)), None);
        assert_eq!(source_file(2, Release(12)..=Release(13)), None);
        assert_eq!(source_file(2, Release(20)..=Release(21)), None);
        assert_eq!(source_file(2, Release(14)..=Release(13)), None);
    }
}
