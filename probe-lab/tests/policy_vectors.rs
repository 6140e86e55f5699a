//! The stand-in's policy lookup against the golden vectors of Cilium 1.14's own, with real packets.
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use probe_lab::addresses::{APP, APP_POD, NAT_IPS};
use probe_lab::standin::{self, Entries, EventReader, MapContents, Standin, StandinConfig, policy_map};
use probe_lab::{Lab, LabOptions, Ns, Shape};
use probe_model::cilium::Direction;
use probe_model::cilium::events::{Notification, Sample};
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::{PolicyEntry, PolicyKey, PolicyLayout};
use socket2::{Domain, Socket, Type};

const VECTORS: &str = include_str!("../../fixtures/policy-vectors.tsv");

/// What the stand-in has.
const LAYOUT: PolicyLayout = PolicyLayout::WildcardBits;
const TCP: u8 = 6;
const HOST: u32 = 1;

/// One line: a policy map, a packet, and what Cilium says of it.
struct Vector {
    entries: Entries,
    identity: u32,
    proto: u8,
    port: u16,
    expected: Answer,
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    result: i32,
    match_type: u8,
    auth_type: u8,
    proxy_port: u16,
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().ok().with_context(|| format!("`{text}` is not a number"))
}

impl Vector {
    fn parse(line: &str) -> Result<Self> {
        let fields: Vec<_> = line.split('\t').collect();
        let result = number(fields[6])?;
        let entries = fields[2].split(';').filter(|text| *text != "-").map(entry).collect::<Result<_>>()?;
        let expected = Answer {
            result,
            match_type: number(fields[7])?,
            auth_type: number(fields[8])?,
            // Of a packet that is dropped, no notification says where it would have gone.
            proxy_port: if result == 0 { number(fields[9])? } else { 0 },
        };
        Ok(Self {
            entries,
            identity: number(fields[3])?,
            proto: number(fields[4])?,
            port: number(fields[5])?,
            expected,
        })
    }
}

/// `id/plen/proto/port/deny/proxy_port/auth/explicit_auth/x`.
fn entry(text: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let fields: Vec<_> = text.split('/').collect();
    let key = PolicyKey {
        prefixlen: 40 + number::<u32>(fields[1])?,
        sec_label: Identity(number(fields[0])?),
        direction: Direction::Ingress,
        protocol: number(fields[2])?,
        dport: number(fields[3])?,
    };
    let entry = PolicyEntry {
        proxy_port: number(fields[5])?,
        auth_type: number(fields[6])?,
        ..PolicyEntry::for_key(&key, LAYOUT, fields[4] == "1")
    };
    Ok((key.encode(LAYOUT), entry.encode(LAYOUT)))
}

#[test]
fn group_b_1_14_to_1_16_3() -> Result<()> {
    if let Some(reason) = standin::unavailable() {
        fixtures::skip!("{reason}");
        return Ok(());
    }
    let instance = format!("vectors-{}", std::process::id());
    let lab = Lab::up_without_datapath(&LabOptions { instance, shape: Shape::Kpr, ..LabOptions::default() })?;
    let mut config = StandinConfig::for_lab(&lab);
    config.endpoints[0].enforce_ingress = true;
    let standin = Standin::start(config)?;
    let none = fixtures::recording("cilium-1.14").join("none");
    standin.fill(&MapContents::from_recording(&none)?)?;
    let mut events = standin.events()?;

    let lines: Vec<_> = VECTORS.lines().filter(|line| line.starts_with("B\t")).collect();
    assert_eq!(lines.len(), 150);
    for (line, source_port) in lines.iter().zip(41000..) {
        let vector = Vector::parse(line)?;
        standin.map(&policy_map(APP_POD.endpoint_id))?.replace(&vector.entries)?;
        set_identity(&standin, vector.identity)?;
        lab.run_in(sender(vector.identity), || send(&vector, source_port))??;
        let answer = answer(&mut events, source_port).with_context(|| (*line).to_owned())?;
        assert_eq!(answer, vector.expected, "{line}");
    }
    Ok(())
}

/// Who can be given the identity: only the node itself is the host.
fn sender(identity: u32) -> Ns {
    if identity == HOST { Ns::Node } else { Ns::Pls }
}

/// Makes the first NAT IP one of `identity`.
fn set_identity(standin: &Standin, identity: u32) -> Result<()> {
    // `struct ipcache_key`: 10.224.0.8/32; `struct remote_endpoint_info`: the identity and nothing more.
    let key = [[64, 0, 0, 0].as_slice(), &[0, 0, 0, 1], &NAT_IPS[0].octets(), &[0; 12]].concat();
    let value = [identity.to_ne_bytes().as_slice(), &[0; 8]].concat();
    standin.map("cilium_ipcache")?.update(&key, &value)
}

/// Sends the first packet of a flow, and no more.
fn send(vector: &Vector, source_port: u16) -> Result<()> {
    let to = SocketAddrV4::new(APP, vector.port);
    let source = if vector.identity == HOST { Ipv4Addr::UNSPECIFIED } else { NAT_IPS[0] };
    let kind = if vector.proto == TCP { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::IPV4, kind, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(source, source_port).into())?;
    match socket.connect(&to.into()) {
        Err(err) if err.raw_os_error() == Some(libc::EINPROGRESS) => {}
        result => result?,
    }
    if vector.proto != TCP {
        match socket.send(b"x") {
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {}
            result => result.map(|_| ())?,
        }
    }
    Ok(())
}

/// What the stand-in notified of the flow's first packet.
fn answer(events: &mut EventReader, source_port: u16) -> Result<Answer> {
    let end = Instant::now() + Duration::from_secs(2);
    let mut answer: Option<Answer> = None;
    while Instant::now() < end {
        for raw in events.drain()? {
            let sample = Sample::decode(&raw)?;
            // Ethernet and an IPv4 header without options before it.
            if sample.packet.get(34..36) != Some(&source_port.to_be_bytes()) {
                continue;
            }
            match sample.notification {
                Notification::PolicyVerdict(verdict) => {
                    answer.get_or_insert(Answer {
                        result: verdict.verdict.min(0),
                        match_type: verdict.match_type as u8,
                        auth_type: 0,
                        proxy_port: verdict.proxy_port().unwrap_or(0),
                    });
                }
                Notification::Drop(drop) => {
                    let Some(mut answer) = answer else { bail!("a drop before its verdict") };
                    assert_eq!(i32::from(drop.reason.0), -answer.result, "the drop's reason is the verdict");
                    answer.auth_type = drop.ext_error.unsigned_abs();
                    return Ok(answer);
                }
                Notification::Trace(_) => return answer.context("a trace before its verdict"),
                _ => {}
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("nothing was notified of source port {source_port}")
}
