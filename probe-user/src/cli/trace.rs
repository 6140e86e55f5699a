//! `plsprobe trace`.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use probe_model::tuple::Protocol;

use super::{Global, Outcome};
use crate::attach::RING_BYTES;
use crate::trace::{self, Options};

/// `plsprobe trace`'s flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// To whom: pod, namespace/pod, svc/NAME, key=value, an address, ep/ID
    #[arg(long, value_name = "TARGET")]
    dst: String,
    /// From whom: `pls` (the NAT IPs), `probe` (168.63.129.16), `any`, an address or CIDR; may be repeated
    #[arg(long, value_name = "SRC")]
    src: Vec<String>,
    /// Only this port, of the target or of its service
    #[arg(long, value_name = "N[/PROTO]", value_parser = parse_port)]
    port: Option<(u16, Protocol)>,
    /// How long to trace
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    duration: Duration,
    /// End after so many flows
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// A NAT IP of the Private Link service; may be repeated
    #[arg(long, value_name = "IP")]
    pls_nat_ip: Vec<IpAddr>,
    /// The interface to the network [default: the default route's]
    #[arg(long, value_name = "IF")]
    interface: Option<String>,
    /// Attach nothing to tc: tracepoints at receiving and sending stand in, at a cost to every packet of the machine
    #[arg(long)]
    no_tc: bool,
    /// Size of the ring buffer, a power of two from 4096
    #[arg(long, value_name = "BYTES", default_value_t = RING_BYTES, value_parser = parse_ring_bytes)]
    ring_bytes: u32,
}

pub(super) fn run(args: Args, global: &Global) -> Result<Outcome> {
    trace::run(&Options {
        dst: args.dst,
        src: args.src,
        port: args.port,
        duration: args.duration,
        count: args.count,
        pls_nat_ips: args.pls_nat_ip,
        interface: args.interface,
        no_tc: args.no_tc,
        ring_bytes: args.ring_bytes,
        live: global.live_options(),
        output: global.output,
    })
}

fn parse_port(text: &str) -> Result<(u16, Protocol)> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let port = port.parse().ok().filter(|port| *port != 0).context("expected a port from 1 to 65535")?;
    match Protocol::parse(protocol) {
        Some(protocol) if protocol.has_ports() => Ok((port, protocol)),
        _ => bail!("found protocol `{protocol}`, expected tcp, udp or sctp"),
    }
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

fn parse_ring_bytes(text: &str) -> Result<u32> {
    match text.parse::<u32>() {
        Ok(bytes) if bytes.is_power_of_two() && bytes >= 4096 => Ok(bytes),
        _ => bail!("found `{text}`, expected a power of two from 4096 to 2147483648"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ports_as_people_write_them() {
        assert_eq!(parse_duration("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("90m").unwrap(), parse_duration("5400s").unwrap());
        assert_eq!(parse_duration("7").unwrap(), Duration::from_secs(7));
        assert!(parse_duration("s").is_err() && parse_duration("3d").is_err());
        assert_eq!(parse_port("80").unwrap(), (80, Protocol::TCP));
        assert_eq!(parse_port("53/udp").unwrap(), (53, Protocol::UDP));
        assert!(parse_port("0").is_err() && parse_port("80/icmp").is_err() && parse_port("http").is_err());
        assert_eq!(parse_ring_bytes("4096").unwrap(), 4096);
        assert!(parse_ring_bytes("5000").is_err());
    }
}
