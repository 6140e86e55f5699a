//! The stand-in loads, attaches as Cilium does, decides, and leaves nothing behind.
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use probe_lab::addresses::{APP, APP_POD, ILB, NAT_IPS, NGINX, VM};
use probe_lab::standin::{self, Aggregation, EventReader, MapContents, Standin, StandinConfig, policy_map};
use probe_lab::{ClientSaw, Lab, LabOptions, Ns, Probe, Shape};
use probe_model::cilium::events::{Notification, Sample};

/// In this order: the stand-in goes before the lab.
struct World {
    standin: Standin,
    events: EventReader,
    lab: Lab,
}

impl World {
    /// A lab and a stand-in with the maps of a recorded scenario, which enforces ingress and tells everything; or a
    /// line that says why not.
    fn up(instance: &str, shape: Shape, contents: &MapContents) -> Result<Option<Self>> {
        if let Some(reason) = standin::unavailable() {
            fixtures::skip!("{reason}");
            return Ok(None);
        }
        let options = LabOptions {
            instance: format!("{instance}-{}", std::process::id()),
            shape,
            ..LabOptions::default()
        };
        let lab = Lab::up_without_datapath(&options)?;
        let mut config = StandinConfig { aggregation: Aggregation::None, ..StandinConfig::for_lab(&lab) };
        config.endpoints[0].enforce_ingress = true;
        let standin = Standin::start(config)?;
        standin.fill(contents)?;
        let events = standin.events()?;
        Ok(Some(Self { standin, events, lab }))
    }

    #[track_caller]
    fn check(&self, probe: &Probe, expected: ClientSaw) {
        assert_eq!(self.lab.probe(probe).unwrap(), expected, "{probe}");
    }

    /// What was notified of packets with this port, each line once, in order.
    fn told(&mut self, port: u16) -> Result<Vec<String>> {
        std::thread::sleep(Duration::from_millis(100));
        let mut told = Vec::new();
        for raw in self.events.drain()? {
            let sample = Sample::decode(&raw)?;
            let Some(addresses) = addresses(sample.packet, port) else { continue };
            let line = format!("{}: {addresses}", describe(&sample.notification));
            if !told.contains(&line) {
                told.push(line);
            }
        }
        Ok(told)
    }
}

/// `client -> server, TTL` of a TCP packet that has `port` at one end.
fn addresses(packet: &[u8], port: u16) -> Option<String> {
    let ip = packet.get(14..34).filter(|ip| packet[12..14] == [8, 0] && ip[9] == 6)?;
    let ports = packet.get(34..38)?;
    let (sport, dport) = (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]));
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let line = format!("{}:{sport} -> {}:{dport}, TTL {}", address(12), address(16), ip[8]);
    (sport == port || dport == port).then_some(line)
}

fn describe(notification: &Notification) -> String {
    match notification {
        Notification::Drop(drop) => format!(
            "drop {} by {}, {} -> {} ({}), interface {}",
            drop.reason.0,
            drop.header.source.0,
            drop.src_label.0,
            drop.dst_label.0,
            drop.dst_id,
            drop.ifindex
        ),
        Notification::Trace(trace) => format!(
            "{} by {}, {} -> {} ({}), reason {}",
            trace.point.name().unwrap_or("?"),
            trace.header.source.0,
            trace.src_label.0,
            trace.dst_label.0,
            trace.dst_id,
            trace.reason.0
        ),
        Notification::PolicyVerdict(verdict) => format!(
            "verdict {} by {}, remote {}, {:?}",
            verdict.verdict, verdict.header.source.0, verdict.remote_label.0, verdict.match_type
        ),
        _ => format!("{notification:?}"),
    }
}

fn recorded(scenario: &str) -> Result<MapContents> {
    MapContents::from_recording(&fixtures::recording("cilium-1.14").join(scenario))
}

fn filters(lab: &Lab, interface: &str, direction: &str) -> Result<String> {
    let node = lab.netns(Ns::Node).name();
    let show =
        Command::new("tc").args(["-n", node, "filter", "show", "dev", interface, direction]).output()?;
    Ok(String::from_utf8(show.stdout)?)
}

#[test]
fn aks_shape_translates_at_the_uplink_and_decides_at_the_veth() -> Result<()> {
    let contents = recorded("cidr-pls8-80")?;
    let Some(mut world) = World::up("standin-aks", Shape::Aks, &contents)? else { return Ok(()) };
    world.check(&Probe::tcp(Ns::Pls, NAT_IPS[1], ILB, 80).with_src_port(40001), ClientSaw::Timeout);
    assert_eq!(
        world.told(40001)?,
        [
            "from-network by 512, 0 -> 0 (0), reason 5: 10.224.0.9:40001 -> 10.224.0.7:80, TTL 64",
            "from-stack by 2686, 2 -> 63921 (2686), reason 5: 10.224.0.9:40001 -> 10.0.0.143:80, TTL 63",
            "verdict -133 by 2686, remote 2, None: 10.224.0.9:40001 -> 10.0.0.143:80, TTL 63",
            "drop 133 by 2686, 2 -> 63921 (2686), interface 5: 10.224.0.9:40001 -> 10.0.0.143:80, TTL 63",
        ]
    );
    world.check(&Probe::tcp(Ns::Pls, NAT_IPS[0], ILB, 80).with_src_port(40002), ClientSaw::Ok);
    let mut told = world.told(40002)?;
    told.sort();
    assert_eq!(
        told,
        [
            "from-endpoint by 2686, 63921 -> 0 (0), reason 5: 10.0.0.143:80 -> 10.224.0.8:40002, TTL 64",
            "from-network by 512, 0 -> 0 (0), reason 5: 10.224.0.8:40002 -> 10.224.0.7:80, TTL 64",
            "from-stack by 2686, 16777218 -> 63921 (2686), reason 5: 10.224.0.8:40002 -> 10.0.0.143:80, TTL 63",
            "to-endpoint by 2686, 16777218 -> 63921 (2686), reason 0: 10.224.0.8:40002 -> 10.0.0.143:80, TTL 63",
            "to-endpoint by 2686, 16777218 -> 63921 (2686), reason 1: 10.224.0.8:40002 -> 10.0.0.143:80, TTL 63",
            "to-network by 2686, 63921 -> 16777218 (0), reason 2: 10.0.0.143:80 -> 10.224.0.8:40002, TTL 64",
            "to-network by 512, 0 -> 0 (0), reason 5: 10.224.0.7:80 -> 10.224.0.8:40002, TTL 63",
            "verdict 0 by 2686, remote 16777218, L3L4: 10.224.0.8:40002 -> 10.0.0.143:80, TTL 63",
        ]
    );
    world.check(&Probe::tcp(Ns::Pls, NAT_IPS[0], APP, 80), ClientSaw::Ok);
    world.check(&Probe::tcp(Ns::Pls, NAT_IPS[0], APP, 8080), ClientSaw::Timeout);
    world.check(&Probe::tcp(Ns::App, APP, VM, 80), ClientSaw::Ok);
    let filters = filters(&world.lab, APP_POD.host_interface, "egress")?;
    assert!(filters.contains("handle 0x1 cil_to_container-lxc"), "{filters}");
    Ok(())
}

/// Who a packet of this node is from reaches the pod's veth in its mark.
#[test]
fn aks_shape_knows_the_host_and_the_pods_by_the_mark() -> Result<()> {
    let contents = recorded("deny-all")?;
    let Some(mut world) = World::up("standin-mark", Shape::Aks, &contents)? else { return Ok(()) };
    let from_node = Probe { src_ip: None, ..Probe::tcp(Ns::Node, APP, APP, 80).with_src_port(40003) };
    world.check(&from_node, ClientSaw::Ok);
    let verdict = "verdict 0 by 2686, remote 1, L3Only: 10.224.0.4:40003 -> 10.0.0.143:80, TTL 64";
    let told = world.told(40003)?;
    assert!(told.iter().any(|line| line == verdict), "{told:#?}");

    world.check(&Probe::tcp(Ns::Nginx, NGINX, APP, 80).with_src_port(40004), ClientSaw::Timeout);
    let verdict = "verdict -133 by 2686, remote 42305, None: 10.0.1.124:40004 -> 10.0.0.143:80, TTL 63";
    let told = world.told(40004)?;
    assert!(told.iter().any(|line| line == verdict), "{told:#?}");
    Ok(())
}

#[test]
fn kpr_shape_delivers_from_the_uplink() -> Result<()> {
    let Some(mut world) = World::up("standin-kpr", Shape::Kpr, &recorded("none")?)? else { return Ok(()) };
    world.check(&Probe::tcp(Ns::Pls, NAT_IPS[0], ILB, 80), ClientSaw::Ok);
    assert_eq!(
        filters(&world.lab, APP_POD.host_interface, "egress")?,
        "",
        "nothing is at the pod's veth egress"
    );

    let before = filters(&world.lab, "eth0", "ingress")?;
    assert!(before.contains("pref 1 bpf chain 0 handle 0x1 cil_from_netdev-eth0 direct-action"), "{before}");
    world.standin.regenerate()?;
    let after = filters(&world.lab, "eth0", "ingress")?;
    assert_eq!(after.matches("handle 0x1").count(), 1, "replaced in place: {after}");
    assert_ne!(before, after, "another program");
    world.check(&Probe::tcp(Ns::Pls, NAT_IPS[0], ILB, 80), ClientSaw::Ok);

    let deny = recorded("deny-all")?;
    let entries = deny.get(&policy_map(APP_POD.endpoint_id)).context("recorded")?;
    world.standin.replace_policy(APP_POD.endpoint_id, entries)?;
    world.check(&Probe::tcp(Ns::Pls, NAT_IPS[0], ILB, 80), ClientSaw::Timeout);

    world.standin.stop()?;
    assert_eq!(filters(&world.lab, "eth0", "ingress")?, "", "detached");
    world.lab.down()
}

/// loadBalancerSourceRanges, which no recording has.
#[test]
fn source_ranges_are_checked_at_the_frontend() -> Result<()> {
    let mut contents = recorded("none")?;
    let mut services = contents.get("cilium_lb4_services_v2").context("recorded")?.clone();
    // `struct lb4_key`: 10.224.0.7, port 80, slot 0; of its `struct lb4_service` the flags at byte 8.
    let (_, frontend) =
        services.iter_mut().find(|(key, _)| key[..8] == [10, 224, 0, 7, 0, 80, 0, 0]).context("recorded")?;
    frontend[8] |= 0x80;
    let rev_nat_index = [frontend[6], frontend[7]];
    contents.insert("cilium_lb4_services_v2", services);
    // `struct lb4_src_range_key`: 10.224.0.8/32 of that service.
    let range = [&[64, 0, 0, 0], rev_nat_index.as_slice(), &[0, 0], &NAT_IPS[0].octets()].concat();
    contents.insert("cilium_lb4_source_range", vec![(range, vec![1])]);

    let Some(mut world) = World::up("standin-range", Shape::Kpr, &contents)? else { return Ok(()) };
    world.check(&Probe::tcp(Ns::Pls, NAT_IPS[0], ILB, 80), ClientSaw::Ok);
    world.check(&Probe::tcp(Ns::Pls, NAT_IPS[1], ILB, 80).with_src_port(40005), ClientSaw::Timeout);
    let drop = "drop 177 by 512, 2 -> 0 (0), interface 2: 10.224.0.9:40005 -> 10.224.0.7:80, TTL 64";
    let told = world.told(40005)?;
    assert!(told.iter().any(|line| line == drop), "{told:#?}");
    Ok(())
}

/// The pins are those of a recorded node, map for map.
#[test]
fn maps_are_those_of_a_recorded_node() -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Shown {
        pinned: String,
        #[serde(rename = "type")]
        kind: String,
        flags: u32,
        bytes_key: u32,
        bytes_value: u32,
        max_entries: u32,
    }
    let Some(world) = World::up("standin-maps", Shape::Kpr, &recorded("none")?)? else { return Ok(()) };
    let show = fixtures::recording("cilium-1.14").join("none/maps/_show.json");
    let shown: Vec<Shown> = serde_json::from_str(&fs::read_to_string(show)?)?;
    let n_cpus = aya::util::nr_cpus().map_err(|(path, err)| anyhow::anyhow!("`{path}`: {err}"))?;
    let expected: BTreeMap<_, _> = shown
        .into_iter()
        .map(|map| {
            let name = map.pinned.rsplit('/').next().unwrap_or_default().to_owned();
            let max_entries = if map.kind == "perf_event_array" { n_cpus as u32 } else { map.max_entries };
            (name, format!("{} {} {}/{} {max_entries}", map.kind, map.flags, map.bytes_key, map.bytes_value))
        })
        .collect();
    let mut seen = BTreeMap::new();
    for file in fs::read_dir(world.standin.globals())? {
        let file = file?;
        let info = MapData::from_pin(file.path())?.info()?;
        let kind = bpftool_name(&format!("{:?}", info.map_type()?));
        let sizes = format!("{}/{} {}", info.key_size(), info.value_size(), info.max_entries());
        seen.insert(
            file.file_name().to_string_lossy().into_owned(),
            format!("{kind} {} {sizes}", info.map_flags()),
        );
    }
    assert_eq!(seen, expected);
    Ok(())
}

/// A map type as bpftool prints it: `LpmTrie` is `lpm_trie`.
fn bpftool_name(kind: &str) -> String {
    let mut name = String::new();
    for c in kind.chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(c.to_lowercase());
    }
    name.replace("program_", "prog_").replace("per_cpu_", "percpu_")
}
