//! `plsprobe trace`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use probe_model::path::Capacity;
use probe_model::tuple::Protocol;

use super::{Global, Outcome, across};
use crate::agent::client;
use crate::attach::{Expression, PortRange, RING_BYTES};
use crate::trace::{self, Ask, Options, Setup};

/// `plsprobe trace`'s flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// To whom: pod, namespace/pod, svc/NAME, key=value, an address or CIDR, ep/ID
    #[arg(long, value_name = "TARGET")]
    dst: String,
    /// From whom: `pls` (the NAT IPs), `probe` (168.63.129.16), `any`, an address or CIDR; may be repeated
    #[arg(long, value_name = "SRC")]
    src: Vec<String>,
    /// Only this port or range, of the target or of its service, TCP if no protocol is said; may be repeated
    #[arg(long, value_name = "N[-M][/PROTO]", value_parser = parse_ports)]
    port: Vec<Ports>,
    /// Only this protocol: tcp, udp, sctp, icmp (of both families) or a number; may be repeated
    #[arg(long, value_name = "PROTO", value_parser = parse_protocol)]
    proto: Vec<Protocol>,
    /// Only packets that this expression matches, in tcpdump's language: `tcp[tcpflags] & tcp-syn != 0`
    ///
    /// It sees each packet from its IP header on, in either direction, after all else has matched, and up to 256 bytes
    /// of it; there is no link layer to ask about. What it leaves out is missing from the answer: a connection whose SYN
    /// it turns away cannot be judged by its packets. As in tcpdump, `tcp[…]` and the like are of IPv4.
    #[arg(long, value_name = "EXPR", value_parser = parse_expression)]
    filter: Option<Expression>,
    /// How long to trace
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    duration: Duration,
    /// End after so many flows
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// The interface to the network [default: the default route's]
    #[arg(long, value_name = "IF")]
    interface: Option<String>,
    /// Attach nothing to tc: tracepoints at receiving and sending stand in, at a cost to every packet of the machine
    #[arg(long)]
    no_tc: bool,
    /// Size of the ring buffer, a power of two from 4096
    #[arg(long, value_name = "BYTES", default_value_t = RING_BYTES, value_parser = parse_ring_bytes)]
    ring_bytes: u32,
    /// What an agent of this node remembers of so long ago on, instead of what comes
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with_all = ["duration", "alone"])]
    since: Option<Duration>,
    /// The socket of this node's agent, which is asked where there is one
    #[arg(long, value_name = "FILE", default_value = client::SOCKET)]
    agent: PathBuf,
    /// Ask no agent: attach programs of our own
    #[arg(long)]
    alone: bool,
    /// By agents of other nodes.
    #[command(flatten)]
    across: across::Args,
}

pub(super) fn run(args: Args, global: &Global) -> Result<Outcome> {
    let ports = port_ranges(&args.port, &args.proto)?;
    if args.across.is_given() {
        let own = args.own_flag();
        let ask = Ask { dst: args.dst, src: args.src, ports, expression: args.filter };
        let Args { duration, count, since, .. } = args;
        return args.across.run(across::Rest { ask, duration, count, since, own }, global);
    }
    let own = args.needs_own_programs(global);
    if let Some(outcome) = by_agent(&args, &ports, own, global)? {
        return Ok(outcome);
    }
    let setup = Setup {
        interface: args.interface,
        no_tc: args.no_tc,
        ring_bytes: args.ring_bytes,
        capacity: Capacity::default(),
        live: global.live_options()?,
        cluster: None,
    };
    let ask = Ask { dst: args.dst, src: args.src, ports, expression: args.filter };
    let Args { duration, count, .. } = args;
    trace::run(&Options { ask, setup, duration, count, output: global.output })
}

impl Args {
    /// A flag that an agent, which has its programs and its sources already, cannot do.
    fn needs_own_programs(&self, global: &Global) -> Option<&'static str> {
        self.own_flag().or_else(|| global.other_than_the_nodes())
    }

    fn own_flag(&self) -> Option<&'static str> {
        let flags = [
            (self.alone, "--alone"),
            (self.filter.is_some(), "--filter"),
            (self.interface.is_some(), "--interface"),
            (self.no_tc, "--no-tc"),
            (self.ring_bytes != RING_BYTES, "--ring-bytes"),
        ];
        flags.into_iter().find(|(is_given, _)| *is_given).map(|(_, flag)| flag)
    }
}

/// Asks this node's agent, if there is one that can do what is asked.
fn by_agent(
    args: &Args,
    ports: &[PortRange],
    own: Option<&'static str>,
    global: &Global,
) -> Result<Option<Outcome>> {
    if let Some(flag) = own {
        ensure!(
            args.since.is_none(),
            "found `--since` beside `{flag}`: only an agent remembers, and it has its own sources and programs"
        );
        return Ok(None);
    }
    let ask = Ask { dst: args.dst.clone(), src: args.src.clone(), ports: ports.to_vec(), expression: None };
    let Args { duration, count, since, .. } = *args;
    let asked = client::Options { ask, duration, count, since, output: global.output };
    let outcome = client::run(&args.agent, &asked)?;
    ensure!(
        outcome.is_some() || since.is_none(),
        "no agent on `{}`, and only an agent remembers; start one with `plsprobe agent`",
        args.agent.display()
    );
    Ok(outcome)
}

/// clap prints an error without its causes.
fn parse_expression(text: &str) -> Result<Expression, String> {
    Expression::parse(text).map_err(|error| format!("{error:#}"))
}

/// A `--port`, as it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    first: u16,
    last: u16,
    protocol: Option<Protocol>,
}

/// `80`, `53/udp`, `8000-8100`, `8000-8100/tcp`.
fn parse_ports(text: &str) -> Result<Ports> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, Some(protocol)),
        None => (text, None),
    };
    let number = |port: &str| match port.parse::<u16>() {
        Ok(port) if port != 0 => Ok(port),
        _ => {
            bail!("found port `{port}`, expected a number from 1 to 65535, or a range as in `8000-8100/tcp`")
        }
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (number(first)?, number(last)?);
    ensure!(first <= last, "found the range `{ports}`, expected the lower port first");
    let protocol = match protocol.map(|name| (name, Protocol::parse(name))) {
        None => None,
        Some((_, Some(protocol))) if protocol.has_ports() => Some(protocol),
        Some((name, _)) => bail!("found protocol `{name}`, expected tcp, udp or sctp"),
    };
    Ok(Ports { first, last, protocol })
}

fn parse_protocol(text: &str) -> Result<Protocol> {
    match Protocol::parse(text) {
        Some(protocol) if protocol != Protocol::ANY => Ok(protocol),
        _ => bail!("found protocol `{text}`, expected tcp, udp, sctp, icmp or a number from 1 to 255"),
    }
}

/// What `--port` and `--proto` say together.
fn port_ranges(ports: &[Ports], protocols: &[Protocol]) -> Result<Vec<PortRange>> {
    if ports.is_empty() {
        let with_both_icmps = protocols.iter().flat_map(|protocol| match *protocol {
            Protocol::ICMP => vec![Protocol::ICMP, Protocol::ICMPV6],
            other => vec![other],
        });
        return Ok(with_both_icmps.map(|protocol| PortRange::all(protocol.0)).collect());
    }
    if let Some(protocol) = protocols.iter().find(|protocol| !protocol.has_ports()) {
        bail!("found `--port` beside `--proto {protocol}`, which has no ports; leave one of them out");
    }
    let mut ranges = Vec::new();
    for Ports { first, last, protocol } in ports.iter().copied() {
        ensure!(
            protocol.is_none() || protocols.is_empty(),
            "found a protocol in `--port` and in `--proto`; say it in one of them"
        );
        let spoken = protocol.or(protocols.is_empty().then_some(Protocol::TCP));
        let all = spoken.as_slice().iter().chain(protocols);
        ranges.extend(all.map(|protocol| PortRange { protocol: protocol.0, first, last }));
    }
    Ok(ranges)
}

/// `30s`, `500ms`, `5m`, `1h`; a number alone is seconds.
fn parse_duration(text: &str) -> Result<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().context("expected a time such as `30s`, `500ms`, `5m` or `1h`")?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => bail!("found unit `{unit}`, expected ms, s, m or h"),
    };
    number.checked_mul(millis).map(Duration::from_millis).context("that is too long")
}

pub(super) fn parse_ring_bytes(text: &str) -> Result<u32> {
    match text.parse::<u32>() {
        Ok(bytes) if bytes.is_power_of_two() && bytes >= 4096 => Ok(bytes),
        _ => bail!("found `{text}`, expected a power of two from 4096 to 2147483648"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_people_write_them() {
        assert_eq!(parse_duration("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("90m").unwrap(), parse_duration("5400s").unwrap());
        assert_eq!(parse_duration("7").unwrap(), Duration::from_secs(7));
        assert!(parse_duration("s").is_err() && parse_duration("3d").is_err());
        assert_eq!(parse_ring_bytes("4096").unwrap(), 4096);
        assert!(parse_ring_bytes("5000").is_err());
    }

    /// What `--port` and `--proto` mean, as `protocol:first-last`, or what is wrong with them.
    fn check(ports: &[&str], protocols: &[&str], expected: &str) {
        let ranges = || {
            let ports = ports.iter().map(|text| parse_ports(text)).collect::<Result<Vec<_>>>()?;
            let protocols = protocols.iter().map(|text| parse_protocol(text)).collect::<Result<Vec<_>>>()?;
            port_ranges(&ports, &protocols)
        };
        let text = |range: PortRange| format!("{}:{}-{}", range.protocol, range.first, range.last);
        let found = match ranges() {
            Ok(ranges) => ranges.into_iter().map(text).collect::<Vec<_>>().join(" "),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(found, expected, "--port {ports:?} --proto {protocols:?}");
    }

    #[test]
    fn an_expression_that_cannot_run_says_why() {
        // Which instruction it is depends on libpcap.
        let error = parse_expression("ip protochain 6").unwrap_err();
        assert!(
            error.starts_with("failed to translate the expression `ip protochain 6`: instruction "),
            "{error}"
        );
        assert!(error.ends_with(" leads out of it, or back"), "{error}");
    }

    #[test]
    fn ports_as_people_write_them() {
        check(&[], &[], "");
        check(&["80"], &[], "6:80-80");
        check(&["53/udp", "8000-8100/tcp", "1-65535"], &[], "17:53-53 6:8000-8100 6:1-65535");
        check(&[], &["udp", "132"], "17:0-65535 132:0-65535");
        check(&[], &["icmp"], "1:0-65535 58:0-65535");
        check(&["53", "80-81"], &["tcp", "udp"], "6:53-53 17:53-53 6:80-81 17:80-81");
    }

    #[test]
    fn ports_that_cannot_be_meant() {
        let number = "expected a number from 1 to 65535, or a range as in `8000-8100/tcp`";
        check(&["0"], &[], &format!("found port `0`, {number}"));
        check(&["http"], &[], &format!("found port `http`, {number}"));
        check(&["80-"], &[], &format!("found port ``, {number}"));
        check(&["80-65536"], &[], &format!("found port `65536`, {number}"));
        check(&["81-80"], &[], "found the range `81-80`, expected the lower port first");
        check(&["80/icmp"], &[], "found protocol `icmp`, expected tcp, udp or sctp");
        check(&[], &["any"], "found protocol `any`, expected tcp, udp, sctp, icmp or a number from 1 to 255");
        check(&[], &["256"], "found protocol `256`, expected tcp, udp, sctp, icmp or a number from 1 to 255");
        check(&["53/udp"], &["tcp"], "found a protocol in `--port` and in `--proto`; say it in one of them");
        check(
            &["53"],
            &["icmp"],
            "found `--port` beside `--proto ICMP`, which has no ports; leave one of them out",
        );
    }
}
