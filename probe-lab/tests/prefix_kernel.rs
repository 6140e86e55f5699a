//! The simulator's longest prefixes against the kernel's own tries: the ipcache.
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

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lookups"));

const CASES: u64 = 250_000;
const SEED: u64 = 0x0070_7265_6669_7865;
/// Addresses asked for in one ipcache.
const ADDRESSES: usize = 512;

/// One prefix of an ipcache.
struct Entry {
    key: IpcacheKey,
    info: RemoteEndpointInfo,
}

/// Few networks, so that prefixes lie in one another.
fn address(rng: &mut Rng) -> IpAddr {
    let far = if rng.u8(..8) == 0 { rng.u128(..) } else { 0 };
    if rng.bool() {
        let net = [0x0a00_0000, 0x0a80_0000, 0x0ae0_0000, 0xc0a8_0000][rng.usize(..4)];
        Ipv4Addr::from_bits(net ^ far as u32 ^ rng.u32(..0x400)).into()
    } else {
        let net = [0xfd00 << 112, 0xfd80 << 112, 0x2001_0db8 << 96][rng.usize(..3)];
        Ipv6Addr::from_bits(net ^ far ^ u128::from(rng.u32(..0x400)) << [0, 32, 64, 80][rng.usize(..4)])
            .into()
    }
}

fn entries(layout: IpcacheLayout, rng: &mut Rng) -> Vec<Entry> {
    let count = [0, 1, 3, 10, 100, 1000, 3000][rng.usize(..7)];
    let mut seen = BTreeSet::new();
    let mut entries = Vec::new();
    for tag in 0..count {
        let address = address(rng);
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let bits = match rng.u8(..8) {
            0 => 0,
            1..3 => longest,
            _ => rng.u8(..=longest),
        };
        let cluster_id =
            if layout == IpcacheLayout::ALL[0] || rng.u8(..16) != 0 { 0 } else { rng.u16(1..256) };
        let prefix = IpNet::new(address, bits).expect("no longer than the address").trunc();
        let key = IpcacheKey { prefix, cluster_id };
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

#[test]
fn kernel_and_ipcache_find_the_same_prefix() -> Result<()> {
    if let Some(reason) = probe_lab::standin::unavailable() {
        fixtures::skip!("{reason}");
        return Ok(());
    }
    let cases = std::env::var("PLSPROBE_PREFIX_CASES").map_or(Ok(CASES), |text| text.parse())?;
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
            // An edge of a prefix.
            Some(entry) if rng.bool() => {
                let net = entry.key.prefix;
                if rng.bool() { net.network() } else { net.broadcast() }
            }
            _ => address(rng),
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
