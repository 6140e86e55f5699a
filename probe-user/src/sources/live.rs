//! The node plsprobe runs on: Cilium's pinned maps, the agent's answers, netfilter rules, interfaces and routes.
//!
//! All of it is read at once, since it belongs together and changes: the maps on a few threads, the agent, the rules and the
//! network beside them. Only what no answer can do without ends the reading; the rest is listed as missing.
//!
//! A busy node has conntrack and NAT maps of hundreds of thousands of entries. An answer needs few of them, so they are
//! read whole only for `dump`, and a question looks its own up ([`Lookups`]). Who follows a node ([`refresh`]) always does,
//! and asks the agent again only when the maps say that something changed, or after a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Error, Result, anyhow};
use probe_model::cilium::policy::{PolicyEntry, pin_endpoint};
use probe_model::cilium::runtime_config::UTime;

use super::{
    addresses,
    agent::{self, Agent},
    cluster,
    lookups::Lookups,
    maps::{Globals, PinnedMap, Reading},
    netfilter, programs,
    raw::{Missing, Network, Program, RawMap, RawNode},
    unusable::Unusable,
};

/// Where the BPF file system is, unless `--bpffs` says otherwise.
pub const BPFFS: &str = "/sys/fs/bpf";
/// The agent's run directory, unless `--cilium-run` says otherwise. Source: `pkg/defaults`, Cilium 1.13–1.18.
pub const CILIUM_RUN: &str = "/var/run/cilium";

/// Threads that read maps: the kernel does the work, and the node has other things to do.
const READERS: usize = 4;
/// Pins whose entries an answer is drawn from, by how they begin.
const WANTED: [&str; 11] = [
    "cilium_policy_",
    "cilium_ipcache",
    "cilium_lxc",
    "cilium_lb4_",
    "cilium_lb6_",
    "cilium_runtime_config",
    "cilium_tunnel_map",
    "cilium_auth_map",
    "cilium_node_map",
    "cilium_ipv4_frag_",
    "cilium_ipv6_frag_",
];
/// Of these, pins that are large and decide nothing.
const UNWANTED: [&str; 4] = ["_maglev", "_reverse_sk", "_affinity", "_health"];
/// Pins of which an answer needs a few entries, and that may have hundreds of thousands.
const CONNTRACK: &str = "cilium_ct";
/// Pins that are read only to be shown.
const SHOWN: [&str; 6] = [
    "cilium_snat_",
    "cilium_metrics",
    "cilium_policystats",
    "cilium_lb4_affinity",
    "cilium_lb6_affinity",
    "cilium_lb_affinity_match",
];
/// Conntrack maps with more entries are not read for an answer, unless fewer are allowed: reading and decoding 200,000
/// took 0.9 s and 0.2 s on two loaded cores.
const CONNTRACK_ENTRIES: usize = 65_536;
/// Who follows a node reads conntrack whole only so often, for what needs every entry: to know NAT IPs by it.
const CONNTRACK_AGE: Duration = Duration::from_mins(1);
/// A map that the datapath asks only where an entry of a policy demands authentication, so that it is read only then: it has
/// half a million buckets, and to walk through them takes longer than to read all other maps of a small node.
const AUTH: &str = "cilium_auth_map";
/// How old the agent's answers, the netfilter rules and the network may be while the maps have the same keys.
const SLOW_AGE: Duration = Duration::from_secs(10);
/// How long after the maps' keys changed the agent is asked at every look: its answers follow later.
const SETTLING: Duration = Duration::from_secs(3);

/// Where a live node's facts are.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveOptions {
    /// The BPF file system with Cilium's maps.
    pub bpffs: PathBuf,
    /// The agent's run directory, with its sockets.
    pub cilium_run: PathBuf,
    /// What is asked beyond the node, and what was given with the command.
    pub cluster: cluster::Options,
    /// Conntrack maps with more entries are not read for an answer, but looked up in.
    pub conntrack_entries: usize,
}

impl Default for LiveOptions {
    fn default() -> Self {
        Self {
            bpffs: BPFFS.into(),
            cilium_run: CILIUM_RUN.into(),
            cluster: cluster::Options::default(),
            conntrack_entries: CONNTRACK_ENTRIES,
        }
    }
}

impl LiveOptions {
    /// The agent's REST socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.cilium_run.join(agent::SOCKET)
    }

    /// The agent's monitor socket.
    pub fn monitor_socket(&self) -> PathBuf {
        self.cilium_run.join(super::monitor::SOCKET)
    }

    /// The agent's Hubble socket.
    pub fn hubble_socket(&self) -> PathBuf {
        self.cilium_run.join(super::hubble::SOCKET)
    }
}

/// A live node's facts and what they cost.
#[derive(Clone, Debug)]
pub struct LiveNode {
    /// The facts.
    pub node: RawNode,
    /// What was too large to be read, for questions to look up in.
    pub lookups: Lookups,
    /// How long each part took: maps by pin name, `agent`, `iptables-save`, `network`.
    pub took: Vec<(String, Duration)>,
    slow: Slow,
    /// When the maps' keys were last seen to have changed.
    changed: Instant,
    /// When conntrack was last read whole, as far as it could be.
    counted: Instant,
}

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// What an answer needs, and conntrack maps of up to so many entries.
    Answer { most: usize },
    /// What an answer needs; conntrack is looked up in.
    LookUp,
    /// What there is to show.
    Everything,
}

/// Reads the node that this process runs on, in its own network and mount namespaces, as far as an answer needs it:
/// no NAT entries or metrics, and conntrack only of a node with few connections.
///
/// # Errors
///
/// When there is no Cilium here, or none of its maps can be read: nothing could be judged.
pub fn read(options: &LiveOptions) -> Result<LiveNode> {
    read_extent(options, Extent::Answer { most: options.conntrack_entries })
}

/// As [`read`], with every entry of the maps that can be shown.
///
/// # Errors
///
/// As [`read`].
pub fn read_whole(options: &LiveOptions) -> Result<LiveNode> {
    read_extent(options, Extent::Everything)
}

/// As [`read`], with the agent's answers, the rules and the network of `last` while they are young and the maps of
/// policies, endpoints, addresses and services have the same keys. Conntrack is read whole once a minute, and looked up in
/// between.
///
/// Nobody beyond the node is asked again: who follows a node keeps what is known of that
/// ([`World::inherit`](probe_model::world::World::inherit)).
///
/// # Errors
///
/// As [`read`].
pub fn refresh(options: &LiveOptions, last: &LiveNode) -> Result<LiveNode> {
    let (globals, pins) = globals(options)?;
    let is_counted = last.counted.elapsed() < CONNTRACK_AGE;
    let extent = if is_counted { Extent::LookUp } else { Extent::Answer { most: options.conntrack_entries } };
    let maps = Maps::read(&globals, &pins, extent, &last.node.maps)?;
    let changed = if maps.same_keys(&last.node) { last.changed } else { Instant::now() };
    let is_settled = last.slow.at.saturating_duration_since(changed) >= SETTLING;
    let is_young = last.slow.at.elapsed() < SLOW_AGE;
    let slow = if is_settled && is_young { last.slow.clone() } else { Slow::read(options) };
    let counted = if is_counted { last.counted } else { Instant::now() };
    Ok(LiveNode { counted, ..LiveNode::new(maps, slow, changed) })
}

fn read_extent(options: &LiveOptions, extent: Extent) -> Result<LiveNode> {
    let (globals, pins) = globals(options)?;
    thread::scope(|scope| {
        let slow = scope.spawn(|| Slow::read(options));
        let facts = scope.spawn(|| timed(|| options.cluster.read()));
        let maps = Maps::read(&globals, &pins, extent, &BTreeMap::new());
        let joined = "no reader panics";
        let (slow, (facts, took)) = (slow.join().expect(joined), facts.join().expect(joined));
        let mut live = LiveNode::new(maps?, slow, Instant::now());
        facts?.add_to(&mut live.node);
        options.cluster.add_given(&mut live.node);
        live.took.push(("cluster".to_owned(), took));
        Ok(live)
    })
}

impl LiveNode {
    fn new(maps: Maps, slow: Slow, changed: Instant) -> Self {
        let node = RawNode {
            origin: "live".to_owned(),
            read_at: maps.read_at,
            maps: maps.read,
            programs: maps.programs,
            rest: slow.rest.clone(),
            iptables_save: slow.iptables_save.clone(),
            nft_ruleset: slow.nft_ruleset.clone(),
            network: slow.network.clone(),
            unread: maps.unread,
            missing: [maps.missing, slow.missing.clone()].concat(),
            ..RawNode::default()
        };
        let took = [maps.took, slow.took.clone()].concat();
        Self { node, lookups: maps.lookups, took, slow, changed, counted: Instant::now() }
    }
}

/// What is asked of programs and of the agent, which costs more than maps and changes less.
#[derive(Clone, Debug)]
struct Slow {
    at: Instant,
    rest: BTreeMap<String, String>,
    iptables_save: Option<String>,
    nft_ruleset: Option<String>,
    network: Option<Network>,
    missing: Vec<Missing>,
    took: Vec<(String, Duration)>,
}

impl Slow {
    fn read(options: &LiveOptions) -> Self {
        let at = Instant::now();
        let agent = Agent::new(&options.agent_socket());
        let (answers, rules, network) = thread::scope(|scope| {
            let answers = scope.spawn(|| timed(|| agent.get_all()));
            let rules = scope.spawn(|| timed(netfilter::rules));
            let network = timed(addresses::network);
            let joined = "no reader panics";
            (answers.join().expect(joined), rules.join().expect(joined), network)
        });
        let took = [("agent", answers.1), ("iptables-save", rules.1), ("network", network.1)]
            .map(|(what, took)| (what.to_owned(), took));
        let (rest, mut missing) = answers.0;
        let mut add = |what: &str, error: &anyhow::Error| {
            missing.push(Missing { what: what.to_owned(), why: format!("{error:#}") });
        };
        let rules = rules.0.inspect_err(|error| add("iptables-save", error)).ok();
        let network = network.0.inspect_err(|error| add("network", error)).ok();
        let rules = rules.unwrap_or_default();
        missing.extend(rules.missing);
        let (iptables_save, nft_ruleset) = (rules.iptables_save, rules.nft_ruleset);
        Self { at, rest, iptables_save, nft_ruleset, network, missing, took: took.to_vec() }
    }
}

/// The maps, as they were read.
#[derive(Default)]
struct Maps {
    read_at: Option<UTime>,
    read: BTreeMap<String, RawMap>,
    programs: BTreeMap<u32, Program>,
    unread: Vec<Missing>,
    lookups: Lookups,
    missing: Vec<Missing>,
    /// Why the first that could not be read was not.
    failed: Option<Error>,
    took: Vec<(String, Duration)>,
}

/// Reads these pins on a few threads; in their order.
fn read_side_by_side<'p>(
    globals: &Globals,
    pins: &[&'p String],
    extent: Extent,
    before: &BTreeMap<String, RawMap>,
) -> Vec<(&'p String, Result<Read>, Duration)> {
    let next = AtomicUsize::new(0);
    let read_some = || {
        let mut read = Vec::new();
        while let Some(name) = pins.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (reading, took) = timed(|| read_map(globals, name, extent, before.get(*name)));
            read.push((*name, reading, took));
        }
        read
    };
    let readers = thread::available_parallelism().map_or(1, usize::from).min(READERS);
    let mut read: Vec<_> = thread::scope(|scope| {
        let readers: Vec<_> = (0..readers).map(|_| scope.spawn(read_some)).collect();
        readers.into_iter().flat_map(|reader| reader.join().expect("no reader panics")).collect()
    });
    read.sort_by_key(|(name, ..)| *name);
    read
}

/// One map, as far as it was read.
enum Read {
    /// As far as it is wanted.
    Map(Reading),
    /// Not at all, and why: it is to be looked up in.
    Open(PinnedMap, String),
}

impl Maps {
    /// Reads every pin on a few threads: entries where the extent has them, else only what the map is. `before` is as they
    /// were read the last time.
    fn read(
        globals: &Globals,
        pins: &[String],
        extent: Extent,
        before: &BTreeMap<String, RawMap>,
    ) -> Result<Self> {
        let mut maps = Self::default();
        let (first, last): (Vec<_>, Vec<_>) = pins.iter().partition(|name| *name != AUTH);
        for (name, reading, took) in read_side_by_side(globals, &first, extent, before) {
            maps.take(name, reading, took);
        }
        if extent == Extent::Everything || maps.may_demand_authentication() {
            for name in last {
                let (reading, took) = timed(|| read_map(globals, name, extent, before.get(name)));
                maps.take(name, reading, took);
            }
        }
        maps.read_at = now();
        if maps.read.is_empty()
            && let Some(error) = maps.failed.take()
        {
            return Err(error);
        }
        let (programs, took) = timed(|| maps.read_programs(globals));
        if let Err(error) = programs {
            maps.missing.push(Missing { what: "programs".to_owned(), why: format!("{error:#}") });
        }
        maps.took.push(("programs".to_owned(), took));
        Ok(maps)
    }

    fn take(&mut self, name: &str, reading: Result<Read>, took: Duration) {
        let missing = |why| Missing { what: name.to_owned(), why };
        self.took.push((name.to_owned(), took));
        match reading {
            Ok(Read::Open(map, found)) => {
                let unread = Unusable::new(found, "look at it with `plsprobe dump conntrack`");
                self.unread.push(missing(unread.to_string()));
                self.lookups.add(name.to_owned(), map);
            }
            Ok(Read::Map(Reading { map, caveat })) => {
                self.missing.extend(caveat.map(missing));
                self.read.insert(name.to_owned(), map);
            }
            Err(error) => {
                self.missing.push(missing(format!("{error:#}")));
                self.failed.get_or_insert(error);
            }
        }
    }

    /// Whether an entry of some policy may demand authentication.
    fn may_demand_authentication(&self) -> bool {
        let policies = self.read.iter().filter(|(name, _)| pin_endpoint(name).is_some());
        let mut entries = policies.flat_map(|(_, map)| map.entries.iter());
        entries.any(|(_, entry)| PolicyEntry::may_demand_authentication(entry))
    }

    /// The programs behind the policy maps, through the pin that is only worth asking for the endpoints' own slots.
    fn read_programs(&mut self, globals: &Globals) -> Result<()> {
        if !self.read.contains_key(programs::CALL_POLICY) {
            return Ok(());
        }
        let endpoints: BTreeSet<_> = self.read.keys().filter_map(|name| pin_endpoint(name)).collect();
        let found = programs::read(globals, endpoints)?;
        self.programs = found.programs;
        if let Some(calls) = self.read.get_mut(programs::CALL_POLICY) {
            calls.entries = found.calls;
        }
        Ok(())
    }

    /// Whether nothing came or went since `last` that the agent would have to explain.
    fn same_keys(&self, last: &RawNode) -> bool {
        let wanted = |maps| BTreeMap::iter(maps).filter(|(name, _): &(&String, &RawMap)| is_wanted(name));
        let (ours, theirs): (Vec<_>, Vec<_>) = (wanted(&self.read).collect(), wanted(&last.maps).collect());
        let same = |((name, ours), (last_name, last)): ((&String, &RawMap), (&String, &RawMap))| {
            name == last_name && ours.id == last.id && ours.entries.keys().eq(last.entries.keys())
        };
        ours.len() == theirs.len() && ours.into_iter().zip(theirs).all(same)
    }
}

/// The wall clock as the datapath counts it.
fn now() -> Option<UTime> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok().map(|ns| UTime(ns / UTime::UNIT_NS))
}

/// Cilium's pins, or why there is no Cilium here.
fn globals(options: &LiveOptions) -> Result<(Globals, Vec<String>)> {
    let globals = Globals::open(&options.bpffs).map_err(|error| {
        let is_absent = error.downcast_ref::<Unusable>().is_some_and(|unusable| unusable.is_absent);
        if is_absent { no_cilium(options, &error) } else { error }
    })?;
    let pins = globals.pins()?;
    if pins.is_empty() {
        return Err(no_cilium(options, &anyhow!("no pin of Cilium's in `{}`", globals.path().display())));
    }
    Ok((globals, pins))
}

/// What was looked for, what was found, and the next step.
fn no_cilium(options: &LiveOptions, maps: &anyhow::Error) -> anyhow::Error {
    let socket = options.agent_socket();
    let agent = match reachable(&socket) {
        Ok(()) => {
            return anyhow!(
                "the cilium-agent listens on `{}`, but its maps cannot be read: {maps:#}",
                socket.display()
            );
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => "is not there".to_owned(),
        Err(error) => format!("refuses: {error}"),
    };
    let found = Unusable::parts(maps).0;
    Unusable::absent(
        format!("no Cilium on this node: {found}, agent socket `{}` {agent}", socket.display()),
        "run plsprobe on the node, or say where Cilium's folders are by `--bpffs` and `--cilium-run`",
    )
    .into()
}

fn reachable(socket: &Path) -> io::Result<()> {
    std::os::unix::net::UnixStream::connect(socket).map(drop)
}

fn read_map(globals: &Globals, name: &str, extent: Extent, before: Option<&RawMap>) -> Result<Read> {
    if is_wanted(name) || (extent == Extent::Everything && is_shown(name)) {
        return globals.read(name, before).map(Read::Map);
    }
    let map = globals.map(name)?;
    let read = |map| Read::Map(Reading { map, caveat: None });
    if !name.starts_with(CONNTRACK) {
        return Ok(read(map.facts()));
    }
    let Extent::Answer { most } = extent else {
        return Ok(Read::Open(map, "only what a flow needs was looked up in it".to_owned()));
    };
    if let Some(whole) = map.read_at_most(most)? {
        return Ok(read(whole));
    }
    Ok(Read::Open(map, format!("it has more than {most} entries, too many to read for one answer")))
}

/// Whether some command reads the entries of the map under this pin, so that a snapshot must hold them.
pub(super) fn is_shown_by_some_command(name: &str) -> bool {
    is_wanted(name) || is_shown(name) || name == programs::CALL_POLICY
}

fn is_wanted(name: &str) -> bool {
    WANTED.iter().any(|wanted| name.starts_with(wanted))
        && !UNWANTED.iter().any(|unwanted| name.contains(unwanted))
}

fn is_shown(name: &str) -> bool {
    name.starts_with(CONNTRACK) || SHOWN.iter().any(|shown| name.starts_with(shown))
}

/// What `run` gives, and how long it took.
pub(super) fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    (run(), begun.elapsed())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use libbpf_rs::{MapCore as _, MapFlags, MapType};
    use probe_model::cilium::ct::{CtEntry, CtTuple};
    use probe_model::cilium::policy::PolicyLayout;
    use probe_model::tuple::Protocol;
    use probe_model::world::conntrack::Tracked;

    use super::*;
    use crate::sources::{
        self,
        assemble::assemble,
        folder,
        testing::{PrivateBpffs, serve_rest},
    };

    /// Types of maps whose recorded entries can be put into a map of this machine.
    fn map_type(word: &str) -> Option<MapType> {
        match word {
            "hash" => Some(MapType::Hash),
            "lpm_trie" => Some(MapType::LpmTrie),
            "lru_hash" => Some(MapType::LruHash),
            _ => None,
        }
    }

    /// A recorded scenario's maps, pinned again.
    fn pin(bpffs: &PrivateBpffs, recorded: &mut RawNode) {
        recorded.maps.retain(|name, map| {
            let Some(map_type) = map_type(&map.map_type).filter(|_| is_wanted(name) || is_shown(name)) else {
                return false;
            };
            let max_entries = map.max_entries.min(16_384);
            let made = bpffs.create(name, map_type, map.key_size, map.value_size, max_entries);
            for (key, value) in map.entries.iter() {
                made.update(key, value, MapFlags::ANY).unwrap();
            }
            map.id = made.info().unwrap().info.id;
            map.max_entries = max_entries;
            map.entries = super::super::maps::sorted(map.entries.clone());
            true
        });
        assert!(recorded.maps.len() > 10, "{:?}", recorded.maps.keys());
    }

    #[test]
    fn a_live_node_reads_as_its_recording() {
        let Some(bpffs) = PrivateBpffs::mount() else { return };
        let mut recorded = folder::read(&fixtures::recording("cilium-1.14").join("cidr-pls8-80")).unwrap();
        pin(&bpffs, &mut recorded);
        let run = tempfile::tempdir().unwrap();
        let options = LiveOptions {
            bpffs: bpffs.path().to_owned(),
            cilium_run: run.path().to_owned(),
            ..LiveOptions::default()
        };
        serve_rest(&options.agent_socket(), recorded.rest.clone());

        let live = read_whole(&options).unwrap();
        assert_eq!(live.node.origin, "live");
        assert_eq!(live.node.maps, recorded.maps);
        let answer = read(&options).unwrap().node.maps;
        let differing: Vec<&String> =
            answer.keys().filter(|name| answer[*name] != recorded.maps[*name]).collect();
        assert_eq!(differing, ["cilium_snat_v4_external"], "read without its entries");
        let asked: BTreeMap<_, _> = agent::PATHS
            .iter()
            .map(|path| path.replace('/', "-"))
            .map(|stem| (stem.clone(), recorded.rest[&stem].clone()))
            .collect();
        assert_eq!(live.node.rest, asked);
        assert!(live.node.network.is_some());
        let took: Vec<&str> = live.took.iter().map(|(what, _)| what.as_str()).collect();
        assert!(took.contains(&"agent") && took.contains(&"cilium_ipcache"), "{took:?}");

        let (from_live, from_recording) = (assemble(&live.node), assemble(&recorded));
        assert_eq!(format!("{:?}", from_live.policy), format!("{:?}", from_recording.policy));
        assert_eq!(from_live.endpoints, from_recording.endpoints);
        assert_eq!(from_live.version, from_recording.version);
    }

    #[test]
    fn the_agent_is_asked_again_when_keys_change() {
        let Some(bpffs) = PrivateBpffs::mount() else { return };
        let policy = bpffs.create("cilium_policy_00001", MapType::Hash, 4, 4, 16);
        policy.update(&[1; 4], &[1; 4], MapFlags::ANY).unwrap();
        let run = tempfile::tempdir().unwrap();
        let options = LiveOptions {
            bpffs: bpffs.path().to_owned(),
            cilium_run: run.path().to_owned(),
            ..LiveOptions::default()
        };
        let mut first = read(&options).unwrap();
        assert!(first.node.rest.is_empty());
        first.changed -= 2 * SETTLING;

        let answers = agent::PATHS.map(|path| (path.replace('/', "-"), "[]".to_owned()));
        serve_rest(&options.agent_socket(), answers.into_iter().collect());
        // A counter moved: nothing to explain.
        policy.update(&[1; 4], &[2; 4], MapFlags::ANY).unwrap();
        let mut second = refresh(&options, &first).unwrap();
        assert_eq!(
            second.node.maps["cilium_policy_00001"].entries.iter().collect::<Vec<_>>(),
            [(&[1; 4][..], &[2; 4][..])]
        );
        assert_eq!((second.node.rest.len(), &second.node.missing), (0, &first.node.missing));
        // A rule came: the agent is asked, and again until its answers have had time to follow.
        policy.update(&[2; 4], &[1; 4], MapFlags::ANY).unwrap();
        let third = refresh(&options, &second).unwrap();
        assert_eq!(third.node.rest.len(), agent::PATHS.len());
        assert!(refresh(&options, &third).unwrap().slow.at > third.slow.at);
        // After a while without a change, too.
        second.slow.at -= SLOW_AGE;
        second.changed -= SLOW_AGE;
        assert!(refresh(&options, &second).unwrap().slow.at > second.slow.at);
    }

    /// The key of a TCP connection, another for each number.
    fn conntrack_key(number: u32) -> [u8; 14] {
        let mut key = [0; 14];
        key[..4].copy_from_slice(&number.to_ne_bytes());
        key[12] = Protocol::TCP.0;
        key
    }

    #[test]
    fn too_many_connections_are_looked_up_in_for_an_answer() {
        let Some(bpffs) = PrivateBpffs::mount() else { return };
        drop(bpffs.create("cilium_lxc", MapType::Hash, 20, 48, 16));
        let entries = CONNTRACK_ENTRIES as u32 + 1;
        let conntrack = bpffs.create("cilium_ct4_global", MapType::Hash, 14, 56, entries);
        for i in 0..entries {
            conntrack.update(&conntrack_key(i), &[0; 56], MapFlags::ANY).unwrap();
        }
        let options = LiveOptions {
            bpffs: bpffs.path().to_owned(),
            cilium_run: bpffs.path().join("run"),
            ..LiveOptions::default()
        };
        let LiveNode { node, lookups, .. } = read(&options).unwrap();
        let unread: Vec<_> = node.unread.iter().map(ToString::to_string).collect();
        assert_eq!(unread.len(), 1);
        assert!(unread[0].starts_with("`cilium_ct4_global`: it has more than 65536 entries"), "{unread:?}");
        assert!(!node.maps.contains_key("cilium_ct4_global"));
        let mut world = assemble(&node);
        let listed = world.missing.iter().any(|missing| missing.what == "cilium_ct4_global");
        assert!(world.conntrack.tcp.whole().is_none() && !listed, "{:?}", world.missing);
        // Who looks nothing up is told.
        let world_of_all = sources::world(&sources::From::Live, &options).unwrap();
        assert_eq!(world_of_all.missing("cilium_ct4_global"), node.unread.first());

        let [there, absent] = [1, entries].map(|i| CtTuple::decode(&conntrack_key(i)).unwrap());
        lookups.complete(&mut world, |_| [there, absent].into());
        assert_eq!(world.connection(&there), Tracked::Entry(&CtEntry::default()));
        assert_eq!(world.connection(&absent), Tracked::Absent);
        // The next question's take their place.
        lookups.complete(&mut world, |_| [absent].into());
        assert_eq!(world.connection(&there), Tracked::Unknown);
        assert_eq!(
            read_whole(&options).unwrap().node.maps["cilium_ct4_global"].entries.len(),
            entries as usize
        );
    }

    /// The datapath asks the map only then, and a walk through its buckets is dear.
    #[test]
    fn who_has_authenticated_is_read_where_an_entry_demands_it() {
        let Some(bpffs) = PrivateBpffs::mount() else { return };
        let policy = bpffs.create("cilium_policy_00001", MapType::Hash, 8, 24, 16);
        drop(bpffs.create(AUTH, MapType::Hash, 12, 8, 16));
        let options = LiveOptions {
            bpffs: bpffs.path().to_owned(),
            cilium_run: bpffs.path().join("run"),
            ..LiveOptions::default()
        };
        let layout = PolicyLayout::WildcardBits;
        let entry = |auth_type| PolicyEntry { auth_type, ..PolicyEntry::default() }.encode(layout);
        policy.update(&[1; 8], &entry(0), MapFlags::ANY).unwrap();
        let first = read(&options).unwrap();
        assert!(!first.node.maps.contains_key(AUTH));
        assert!(first.node.missing.iter().all(|missing| missing.what != AUTH), "{:?}", first.node.missing);
        assert!(read_whole(&options).unwrap().node.maps.contains_key(AUTH));

        policy.update(&[2; 8], &entry(1), MapFlags::ANY).unwrap();
        assert!(refresh(&options, &first).unwrap().node.maps.contains_key(AUTH));
    }

    #[test]
    fn who_follows_a_node_looks_conntrack_up() {
        let Some(bpffs) = PrivateBpffs::mount() else { return };
        drop(bpffs.create("cilium_lxc", MapType::Hash, 20, 48, 16));
        let conntrack = bpffs.create("cilium_ct4_global", MapType::Hash, 14, 56, 16);
        for i in 0..2 {
            conntrack.update(&conntrack_key(i), &[0; 56], MapFlags::ANY).unwrap();
        }
        let options = LiveOptions {
            bpffs: bpffs.path().to_owned(),
            cilium_run: bpffs.path().join("run"),
            ..LiveOptions::default()
        };
        let first = read(&options).unwrap();
        assert_eq!(first.node.maps["cilium_ct4_global"].entries.len(), 2);
        conntrack.delete(&conntrack_key(0)).unwrap();
        let mut second = refresh(&options, &first).unwrap();
        assert_eq!((second.node.unread.len(), second.counted), (1, first.counted));
        assert!(!second.node.maps.contains_key("cilium_ct4_global"));
        // Its entries are those of now.
        let mut world = assemble(&second.node);
        let [gone, there] = [0, 1].map(|i| CtTuple::decode(&conntrack_key(i)).unwrap());
        second.lookups.complete(&mut world, |_| [gone, there].into());
        assert_eq!(world.connection(&gone), Tracked::Absent);
        assert_eq!(world.connection(&there), Tracked::Entry(&CtEntry::default()));
        second.counted -= CONNTRACK_AGE;
        let third = refresh(&options, &second).unwrap();
        assert_eq!((third.node.unread.len(), third.node.maps["cilium_ct4_global"].entries.len()), (0, 1));
        assert!(third.counted > first.counted);
    }

    #[test]
    fn a_node_without_its_agent() {
        let Some(bpffs) = PrivateBpffs::mount() else { return };
        drop(bpffs.create("cilium_lxc", MapType::Hash, 20, 48, 16));
        let run = tempfile::tempdir().unwrap();
        let options = LiveOptions {
            bpffs: bpffs.path().to_owned(),
            cilium_run: run.path().to_owned(),
            ..LiveOptions::default()
        };
        let live = read(&options).unwrap();
        let agent = live.node.missing.iter().find(|missing| missing.what == "cilium.sock").unwrap();
        assert!(agent.why.starts_with("no socket at `"), "{agent}");
    }

    #[test]
    fn no_cilium_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let shown = folder.path().display();
        let options = LiveOptions {
            bpffs: folder.path().join("bpf"),
            cilium_run: folder.path().join("run"),
            ..LiveOptions::default()
        };
        let expected = format!(
            "no Cilium on this node: no folder `{shown}/bpf`, agent socket `{shown}/run/cilium.sock` is not there; \
             run plsprobe on the node, or say where Cilium's folders are by `--bpffs` and `--cilium-run`"
        );
        assert_eq!(read(&options).unwrap_err().to_string(), expected);

        std::fs::create_dir(&options.cilium_run).unwrap();
        let _agent = UnixListener::bind(options.agent_socket()).unwrap();
        let error = read(&options).unwrap_err().to_string();
        assert!(error.starts_with("the cilium-agent listens on `"), "{error}");
        assert!(error.contains("but its maps cannot be read: no folder `"), "{error}");
    }

    #[test]
    fn an_empty_bpffs() {
        let Some(bpffs) = PrivateBpffs::mount() else { return };
        let options = LiveOptions {
            bpffs: bpffs.path().to_owned(),
            cilium_run: bpffs.path().join("run"),
            ..LiveOptions::default()
        };
        let error = read(&options).unwrap_err().to_string();
        assert!(error.starts_with("no Cilium on this node: no pin of Cilium's in `"), "{error}");
        assert!(!error.contains('\n'));
    }
}
