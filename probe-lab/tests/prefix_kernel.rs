//! The simulator's longest prefixes against the kernel's own tries: the ipcache, and the source ranges of services.
//!
//! `PLSPROBE_PREFIX_CASES` is the number of addresses for each layout.
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use aya::maps::Map;
use aya::{Ebpf, include_bytes_aligned};
use fastrand::Rng;
use ipnet::IpNet;
use probe_lab::standin::RawMap;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::ipcache::{Ipcache, IpcacheKey, IpcacheLayout, RemoteEndpointInfo};
use probe_model::cilium::lb::{LbMaps, LbSourceRange, LoadBalancer};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lookups"));

const CASES: u64 = 250_000;
const SEED: u64 = 0x0070_7265_6669_7865;
/// Addresses asked for in one map.
const ADDRESSES: usize = 512;

/// One prefix of an ipcache.
struct Entry {
    key: IpcacheKey,
    info: RemoteEndpointInfo,
}

/// Few networks, so that prefixes lie in one another.
fn address(ipv4: bool, rng: &mut Rng) -> IpAddr {
    let far = if rng.u8(..8) == 0 { rng.u128(..) } else { 0 };
    if ipv4 {
        let net = [0x0a00_0000, 0x0a80_0000, 0x0ae0_0000, 0xc0a8_0000][rng.usize(..4)];
        Ipv4Addr::from_bits(net ^ far as u32 ^ rng.u32(..0x400)).into()
    } else {
        let net = [0xfd00 << 112, 0xfd80 << 112, 0x2001_0db8 << 96][rng.usize(..3)];
        Ipv6Addr::from_bits(net ^ far ^ u128::from(rng.u32(..0x400)) << [0, 32, 64, 80][rng.usize(..4)])
            .into()
    }
}

/// A prefix around an address: anything from everything to the address alone.
fn prefix(address: IpAddr, rng: &mut Rng) -> IpNet {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let bits = match rng.u8(..8) {
        0 => 0,
        1..3 => longest,
        _ => rng.u8(..=longest),
    };
    IpNet::new(address, bits).expect("no longer than the address").trunc()
}

/// An address in a prefix, most often an edge of it.
fn near(prefix: IpNet, rng: &mut Rng) -> IpAddr {
    match rng.u8(..4) {
        0 => address(prefix.network().is_ipv4(), rng),
        1 => prefix.network(),
        _ => prefix.broadcast(),
    }
}

fn entries(layout: IpcacheLayout, rng: &mut Rng) -> Vec<Entry> {
    let count = [0, 1, 3, 10, 100, 1000, 3000][rng.usize(..7)];
    let mut seen = BTreeSet::new();
    let mut entries = Vec::new();
    for tag in 0..count {
        let address = address(rng.bool(), rng);
        let cluster_id =
            if layout == IpcacheLayout::ALL[0] || rng.u8(..16) != 0 { 0 } else { rng.u16(1..256) };
        let key = IpcacheKey { prefix: prefix(address, rng), cluster_id };
        if seen.insert(key) {
            let info =
                RemoteEndpointInfo { sec_identity: Identity(tag), key: rng.u8(..), ..Default::default() };
            entries.push(Entry { key, info });
        }
    }
    entries
}

/// `struct ipcache_key` with the whole address significant, as the datapath asks.
fn question(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => [&[64, 0, 0, 0, 0, 0, 0, 1][..], &v4.octets(), &[0; 12]].concat(),
        IpAddr::V6(v6) => [&[160, 0, 0, 0, 0, 0, 0, 2][..], &v6.octets()].concat(),
    }
}

fn load(map: &str) -> Result<RawMap> {
    let mut ebpf = Ebpf::load(OBJECT).context("failed to load the tries")?;
    match ebpf.take_map(map).with_context(|| format!("no map `{map}`"))? {
        Map::LpmTrie(data) => RawMap::new(data),
        other => anyhow::bail!("`{map}` is {other:?}"),
    }
}

/// How many addresses to ask for; `None` where the kernel cannot be asked, having said why.
fn cases() -> Result<Option<u64>> {
    if let Some(reason) = probe_lab::standin::unavailable() {
        fixtures::skip!("{reason}");
        return Ok(None);
    }
    let cases = std::env::var("PLSPROBE_PREFIX_CASES").map_or(Ok(CASES), |text| text.parse());
    cases.map(Some).context("`PLSPROBE_PREFIX_CASES` is no number")
}

#[test]
fn kernel_and_ipcache_find_the_same_prefix() -> Result<()> {
    let Some(cases) = cases()? else { return Ok(()) };
    let mut rng = Rng::with_seed(SEED);
    for layout in IpcacheLayout::ALL {
        let map = load(if layout.value_size() == 12 { "IPCACHE_12" } else { "IPCACHE_24" })?;
        let (mut asked, mut found) = (0, 0);
        while asked < cases {
            let entries = entries(layout, &mut rng);
            map.clear()?;
            for Entry { key, info } in &entries {
                map.update(&key.encode(layout), &info.encode(layout))?;
            }
            found += compare(layout, &map, &entries, &mut rng)?;
            asked += ADDRESSES as u64;
        }
        writeln!(
            std::io::stdout(),
            "\nipcache of {}, seed {SEED}: the kernel agrees on {asked} addresses, {found} in a prefix",
            layout.versions()
        )?;
        ensure!(found > cases / 4, "too few addresses lie in a prefix");
    }
    Ok(())
}

/// Asks both for some addresses; how many lie in a prefix.
fn compare(layout: IpcacheLayout, map: &RawMap, entries: &[Entry], rng: &mut Rng) -> Result<u64> {
    let decoded: Vec<_> = map
        .entries()?
        .iter()
        .map(|(key, value)| Ok((IpcacheKey::decode(key)?, RemoteEndpointInfo::decode(value)?)))
        .collect::<Result<_>>()?;
    ensure!(decoded.len() == entries.len(), "{} of {} entries are in the map", decoded.len(), entries.len());
    let cache = Ipcache::new(decoded);
    let mut found = 0;
    for _ in 0..ADDRESSES {
        let address = match entries.get(rng.usize(..=entries.len())) {
            Some(entry) => near(entry.key.prefix, rng),
            None => address(rng.bool(), rng),
        };
        let kernel = map.lookup(&question(address))?;
        let model = cache.lookup(address);
        let model_bytes = model.map(|(_, info)| info.encode(layout));
        ensure!(
            kernel == model_bytes,
            "{address}: the kernel finds {kernel:02x?}, `Ipcache::lookup` {model:?}, {model_bytes:02x?}"
        );
        if let Some((prefix, info)) = model {
            let key = IpcacheKey { prefix, cluster_id: 0 };
            let named = entries.iter().find(|entry| entry.info.sec_identity == info.sec_identity);
            ensure!(
                named.is_some_and(|entry| entry.key == key),
                "{address}: `Ipcache::lookup` names {prefix}, which holds another value"
            );
            found += 1;
        }
    }
    Ok(found)
}

#[test]
fn kernel_and_simulator_agree_on_source_ranges() -> Result<()> {
    let Some(cases) = cases()? else { return Ok(()) };
    let mut rng = Rng::with_seed(SEED);
    for (ipv4, name) in [(true, "SOURCE_RANGE_4"), (false, "SOURCE_RANGE_6")] {
        let map = load(name)?;
        let (mut asked, mut found) = (0, 0);
        while asked < cases {
            let ranges: Vec<_> = (0..rng.usize(..20)).map(|_| source_range(ipv4, &mut rng)).collect();
            map.clear()?;
            for range in &ranges {
                map.update(&range.encode(), &[1])?;
            }
            found += compare_clients(&map, &ranges, ipv4, &mut rng)?;
            asked += ADDRESSES as u64;
        }
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        writeln!(
            std::io::stdout(),
            "\nsource ranges, {family}, seed {SEED}: the kernel agrees on {asked} clients, {found} in a range"
        )?;
        ensure!(found > cases / 16 && found < cases, "too few clients are in a range, or out of all");
    }
    Ok(())
}

/// A prefix of one of few services; their numbers are small and large, so that the order of their bytes shows.
fn source_range(ipv4: bool, rng: &mut Rng) -> LbSourceRange {
    let rev_nat_id = rng.u16(1..4).rotate_right(8 * u32::from(rng.bool()));
    LbSourceRange { rev_nat_id, prefix: prefix(address(ipv4, rng), rng) }
}

/// Asks both for some clients of some services; how many are in a range.
fn compare_clients(map: &RawMap, ranges: &[LbSourceRange], ipv4: bool, rng: &mut Rng) -> Result<u64> {
    let decoded =
        map.entries()?.iter().map(|(key, _)| LbSourceRange::decode(key)).collect::<Result<_, _>>()?;
    let lb = LoadBalancer::new(LbMaps { source_ranges: Some(decoded), ..LbMaps::default() });
    let mut found = 0;
    for _ in 0..ADDRESSES {
        let service = source_range(ipv4, rng).rev_nat_id;
        let client = match ranges.get(rng.usize(..=ranges.len())) {
            Some(range) => near(range.prefix, rng),
            None => address(ipv4, rng),
        };
        let kernel = map.lookup(&client_question(service, client))?.is_some();
        let model = lb.in_source_range(service, client);
        ensure!(
            model == Some(kernel),
            "service {service} and {client}: the kernel says {kernel}, `in_source_range` {model:?}, of {ranges:?}"
        );
        found += u64::from(kernel);
    }
    Ok(found)
}

/// `struct lb4_src_range_key` or `struct lb6_src_range_key` with the whole address significant.
fn client_question(rev_nat_id: u16, client: IpAddr) -> Vec<u8> {
    let service = rev_nat_id.to_be_bytes();
    match client {
        IpAddr::V4(v4) => [&[64, 0, 0, 0][..], &service, &[0; 2], &v4.octets()].concat(),
        IpAddr::V6(v6) => [&[160, 0, 0, 0][..], &service, &[0; 2], &v6.octets()].concat(),
    }
}
