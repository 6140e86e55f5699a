//! The two scenarios that are more than a list of probes.
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_lab::addresses::{APP_POD, ILB, NAT_IPS, NODE, VM};
use probe_lab::{ClientSaw, Ns, Probe};
use socket2::{Domain, Protocol, Socket, Type};

use crate::notification::Notification;
use crate::traffic;
use crate::{KPR, World, ip, once};

pub(crate) const NAMES: [&str; 2] = ["established-then-deny", "misc-drops"];

fn scenario(name: &str) -> PathBuf {
    fixtures::recording("cilium-1.14").join(name)
}

/// Drops and verdicts of a client port, each kind once: how often depends on time.
fn decided(all: &[Notification], port: u16) -> BTreeSet<Notification> {
    all.iter().filter(|n| n.has_port(port) && !n.is_trace()).cloned().collect()
}

/// A connection that was open before default deny is cut by it: every packet is judged.
#[test]
fn established_then_deny() -> Result<()> {
    const CLIENT_PORT: u16 = 29001;
    let Some(mut world) = World::up("fidelity-deny", KPR)? else { return Ok(()) };
    let recorded = world.recorded(&scenario("established-then-deny"))?;
    let expected = decided(&recorded, CLIENT_PORT);
    let payload = expected.first().context("nothing was recorded")?.payload().to_vec();

    world.load(&scenario("none"))?;
    let mut stream = world.lab.run_in(Ns::Pls, || connect(NAT_IPS[0], CLIENT_PORT))??;
    let before = decided(&world.seen()?, CLIENT_PORT);
    assert!(before.is_empty(), "no policy, no verdicts: {before:#?}");

    let contents = probe_lab::standin::MapContents::from_recording(&scenario("established-then-deny"))?;
    world.standin.fill(&contents)?;
    world.standin.set_enforcement(APP_POD.endpoint_id, true, false)?;
    stream.write_all(&payload)?;
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(decided(&world.seen()?, CLIENT_PORT), expected);
    Ok(())
}

fn connect(from: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddrV4::new(from, port).into())?;
    socket.connect_timeout(&SocketAddrV4::new(ILB, 80).into(), Duration::from_secs(2))?;
    Ok(socket.into())
}

/// Drops that no policy is behind.
#[test]
fn misc_drops() -> Result<()> {
    let Some(mut world) = World::up("fidelity-misc", KPR)? else { return Ok(()) };
    let recorded = world.recorded(&scenario("misc-drops"))?;
    world.load(&scenario("misc-drops"))?;
    // The pod sends from an address that is not its own.
    let spoofed = Ipv4Addr::new(10, 0, 0, 66);
    ip(&world.lab, Ns::App, &format!("address add {spoofed}/32 dev lo"))?;

    // The ports are in the recorded packets; the one of `no-service` in an ICMP error about it.
    let probes = [
        ("no-backend", Ns::Pls, NAT_IPS[0], 28000, ILB, 81),
        ("gone-backend", Ns::Pls, NAT_IPS[0], 28001, ILB, 82),
        ("no-service", Ns::Pls, NAT_IPS[0], 28002, ILB, 8081),
        ("no-pod", Ns::Pls, NAT_IPS[0], 28003, Ipv4Addr::new(10, 0, 0, 99), 80),
        ("spoofed-source", Ns::App, spoofed, 28010, VM, 80),
    ];
    for (id, ns, from, from_port, to, port) in probes {
        let saw = world.lab.probe(&Probe::tcp(ns, from, to, port).with_src_port(from_port))?;
        assert_eq!(saw, ClientSaw::Timeout, "{id}");
        let of = |all: &[Notification]| -> Vec<_> {
            once(all.iter().filter(|n| n.has_port(from_port)).cloned().collect())
        };
        assert_eq!(of(&world.seen()?), of(&recorded), "{id}");
    }
    node_icmp(&mut world, &recorded)?;
    ipv6(&mut world, &recorded)
}

/// ICMP errors of the node do not pass the uplink's translation: replayed, and dropped as recorded.
fn node_icmp(world: &mut World, recorded: &[Notification]) -> Result<()> {
    for reason in [168, 143] {
        let expected: Vec<_> = recorded.iter().filter(|n| n.drop_reason() == Some(reason)).collect();
        ensure!(!expected.is_empty(), "no drop {reason} was recorded");
        for notification in expected {
            let message = notification.ip_payload();
            world.lab.run_in(Ns::Node, || traffic::icmp(NODE, NAT_IPS[0], message))??;
            let seen: Vec<_> =
                world.seen()?.into_iter().filter(|n| n.drop_reason() == Some(reason)).collect();
            assert_eq!(seen, std::slice::from_ref(notification));
        }
    }
    Ok(())
}

/// The first packet of a pod that begins to speak IPv6.
fn ipv6(world: &mut World, recorded: &[Notification]) -> Result<()> {
    let expected =
        recorded.iter().find(|n| n.drop_reason() == Some(139)).context("no drop 139 was recorded")?;
    if fs::metadata("/proc/sys/net/ipv6").is_err() {
        fixtures::skip!("this kernel has no IPv6");
        return Ok(());
    }
    world.lab.run_in(Ns::App, || fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0"))??;
    std::thread::sleep(Duration::from_secs(1));
    let seen = world.seen()?;
    assert!(seen.contains(expected), "expected {expected:#?}\n  among {seen:#?}");
    Ok(())
}
