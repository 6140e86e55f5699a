//! One connection of netfilter's own table, by ctnetlink: what it was translated to. Read-only.
//!
//! Source: `include/uapi/linux/netfilter/nfnetlink.h` and `nfnetlink_conntrack.h`.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use probe_model::tuple::{Protocol, Tuple};

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_NEW` and `IPCTNL_MSG_CT_GET`.
const ANSWER: u16 = 1 << 8;
const QUESTION: u16 = 1 << 8 | 1;
/// `NLMSG_ERROR` and `NLM_F_REQUEST`.
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
/// `NLA_F_NESTED`; attributes are compared without flags.
const NESTED: u16 = 1 << 15;
const FLAGS: u16 = 3 << 14;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER_LEN: usize = 16;
const FAMILY_LEN: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4: [u16; 2] = [1, 2];
const CTA_IP_V6: [u16; 2] = [3, 4];
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_PORTS: [u16; 2] = [2, 3];

/// The tuple that netfilter expects the answers to `original` with: its source is whom the connection was translated
/// to. `None` if netfilter does not know the connection, or this kernel's does not answer.
///
/// # Errors
///
/// When the kernel refuses, or answers what is no connection.
pub fn expected_answer(original: Tuple) -> Result<Option<Tuple>> {
    // A question to a module that is not there makes the kernel load it; nobody asked plsprobe to do that.
    if std::fs::read_to_string("/proc/modules").is_ok_and(|modules| !is_loaded(&modules)) {
        return Ok(None);
    }
    let mut socket = Socket::new(NETLINK_NETFILTER).context("failed to open a netlink socket")?;
    socket.bind_auto().context("failed to bind a netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("failed to connect to the kernel by netlink")?;
    socket.send(&question(original), 0).context("failed to ask netfilter for a connection")?;
    let (datagram, _) = socket.recv_from_full().context("failed to read netfilter's answer")?;
    answer(&datagram)
}

/// Whether ctnetlink is among the modules of `/proc/modules`; a kernel without modules has no such file.
fn is_loaded(modules: &str) -> bool {
    modules.lines().any(|line| line.split(' ').next() == Some("nf_conntrack_netlink"))
}

fn question(tuple: Tuple) -> Vec<u8> {
    let (family, sides, addresses) = match (tuple.saddr, tuple.daddr) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            (libc::AF_INET, CTA_IP_V4, [src.octets().to_vec(), dst.octets().to_vec()])
        }
        (src, dst) => {
            let v6 = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            (libc::AF_INET6, CTA_IP_V6, [v6(src), v6(dst)])
        }
    };
    let [src, dst] = &addresses;
    let ip = [attribute(sides[0], src), attribute(sides[1], dst)].concat();
    let ports = [tuple.sport, tuple.dport];
    let mut proto = attribute(CTA_PROTO_NUM, &[tuple.protocol.0]);
    for (kind, port) in CTA_PROTO_PORTS.into_iter().zip(ports) {
        proto.extend(attribute(kind, &port.to_be_bytes()));
    }
    let inside =
        [attribute(CTA_TUPLE_IP | NESTED, &ip), attribute(CTA_TUPLE_PROTO | NESTED, &proto)].concat();
    let body = attribute(CTA_TUPLE_ORIG | NESTED, &inside);
    let len = (HEADER_LEN + FAMILY_LEN + body.len()) as u32;
    let mut message = len.to_ne_bytes().to_vec();
    message.extend([QUESTION, REQUEST].into_iter().flat_map(u16::to_ne_bytes));
    // Sequence number and port: the socket has one question at a time.
    message.extend([0; 8]);
    // Version 0, and no resource.
    message.extend([family.cast_unsigned() as u8, 0, 0, 0]);
    message.extend(body);
    message
}

/// Length, kind, value, and padding to whole words.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = (4 + value.len()) as u16;
    let mut bytes = [len, kind].into_iter().flat_map(u16::to_ne_bytes).collect::<Vec<u8>>();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn answer(datagram: &[u8]) -> Result<Option<Tuple>> {
    let kind = number(datagram, 4).context("netfilter's answer is cut short")?;
    if kind == ERROR {
        let code = datagram.get(HEADER_LEN..).and_then(|rest| rest.first_chunk());
        let code = -i32::from_ne_bytes(*code.context("netfilter's answer is cut short")?);
        return match code {
            // No such connection; or nobody here keeps connections.
            libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL => Ok(None),
            code => {
                Err(std::io::Error::from_raw_os_error(code)).context("netfilter does not tell of connections")
            }
        };
    }
    if kind != ANSWER {
        bail!("netfilter answered with a message of type {kind}, expected {ANSWER}");
    }
    let body = datagram.get(HEADER_LEN + FAMILY_LEN..).context("netfilter's answer is cut short")?;
    let reply = find(body, CTA_TUPLE_REPLY).context("netfilter's answer has no reply tuple")?;
    tuple(reply).context("netfilter's answer has a tuple without addresses").map(Some)
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (find(bytes, CTA_TUPLE_IP)?, find(bytes, CTA_TUPLE_PROTO)?);
    let v4 = |kind| Some(IpAddr::from(<[u8; 4]>::try_from(find(ip, kind)?).ok()?));
    let v6 = |kind| Some(IpAddr::from(<[u8; 16]>::try_from(find(ip, kind)?).ok()?));
    let address = |side: usize| v4(CTA_IP_V4[side]).or_else(|| v6(CTA_IP_V6[side]));
    let port = |side: usize| {
        find(proto, CTA_PROTO_PORTS[side]).and_then(|port| port.try_into().ok()).map_or(0, u16::from_be_bytes)
    };
    let protocol = Protocol(*find(proto, CTA_PROTO_NUM)?.first()?);
    Some(Tuple { saddr: address(0)?, daddr: address(1)?, sport: port(0), dport: port(1), protocol })
}

/// The value of the first attribute of a kind.
fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(number(bytes, 0)?);
        let value = bytes.get(4..len)?;
        if number(bytes, 2)? & !FLAGS == wanted {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dst: &str) -> Tuple {
        let (saddr, daddr) = ("10.224.0.8".parse().unwrap(), dst.parse().unwrap());
        Tuple { saddr, daddr, sport: 33_270, dport: 80, protocol: Protocol::TCP }
    }

    /// The kernel's answer has the tuples of its question's form, and more around them.
    fn answer_with(reply: Tuple) -> Vec<u8> {
        let mut message = question(reply);
        message[4..6].copy_from_slice(&ANSWER.to_ne_bytes());
        let at = HEADER_LEN + FAMILY_LEN;
        message[at + 2..at + 4].copy_from_slice(&(CTA_TUPLE_REPLY | NESTED).to_ne_bytes());
        let before = attribute(3 | 1 << 14, &[0, 0, 1]);
        message.splice(at..at, before);
        message
    }

    #[test]
    fn a_module_that_is_not_loaded_is_not_asked() {
        let other = "nf_conntrack 200704 3 nf_nat,xt_conntrack,nf_conntrack_netlink, Live 0x0\n";
        assert!(!is_loaded(other) && !is_loaded(""));
        assert!(is_loaded(&format!("{other}nf_conntrack_netlink 57344 0 - Live 0x0\n")));
    }

    #[test]
    fn the_reply_tuple_is_read() {
        let reply = sample("10.0.0.143").reversed();
        assert_eq!(answer(&answer_with(reply)).unwrap(), Some(reply));
        let v6 = Tuple { saddr: "fd00::1".parse().unwrap(), daddr: "fd00::2".parse().unwrap(), ..reply };
        assert_eq!(answer(&answer_with(v6)).unwrap(), Some(v6));
    }

    #[test]
    fn what_is_cut_short_is_no_connection() {
        let whole = answer_with(sample("10.0.0.143"));
        for len in 0..whole.len() {
            assert!(answer(&whole[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_refusal_is_an_error_and_absence_is_none() {
        let error = |code: i32| {
            let mut message = vec![0; HEADER_LEN];
            message[4..6].copy_from_slice(&ERROR.to_ne_bytes());
            message.extend((-code).to_ne_bytes());
            answer(&message)
        };
        assert_eq!(error(libc::ENOENT).unwrap(), None);
        assert!(error(libc::EPERM).is_err());
    }

    #[test]
    fn a_connection_that_nobody_has_is_none() {
        // Root or not: without the right to ask it is an error.
        if let Ok(found) = expected_answer(sample("203.0.113.77")) {
            assert_eq!(found, None);
        }
    }
}
