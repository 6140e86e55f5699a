//! The node plsprobe runs on: Cilium's pinned maps, the agent's answers, netfilter rules, interfaces and routes.
//!
//! All of it is read at once, since it belongs together and changes: the maps on a few threads, the agent, the rules and the
//! network beside them. Only what no answer can do without ends the reading; the rest is listed as missing.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::{
    addresses,
    agent::{self, Agent},
    maps::{Globals, Reading},
    netfilter,
    raw::{Missing, Network, RawMap, RawNode},
    unusable::Unusable,
};

/// Where the BPF file system is, unless `--bpffs` says otherwise.
pub const BPFFS: &str = "/sys/fs/bpf";
/// The agent's run directory, unless `--cilium-run` says otherwise. Source: `pkg/defaults`, Cilium 1.13–1.18.
pub const CILIUM_RUN: &str = "/var/run/cilium";

/// Threads that read maps: the kernel does the work, and the node has other things to do.
const READERS: usize = 4;
/// Pins whose entries an answer is drawn from, by how they begin.
const WANTED: [&str; 10] = [
    "cilium_policy_",
    "cilium_ipcache",
    "cilium_lxc",
    "cilium_lb4_",
    "cilium_lb6_",
    "cilium_ct",
    "cilium_snat_",
    "cilium_metrics",
    "cilium_runtime_config",
    "cilium_tunnel_map",
];
/// Of these, pins that are large and decide nothing.
const UNWANTED: [&str; 4] = ["_maglev", "_reverse_sk", "_affinity", "_health"];

/// Where a live node's facts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveOptions {
    /// The BPF file system with Cilium's maps.
    pub bpffs: PathBuf,
    /// The agent's run directory, with its sockets.
    pub cilium_run: PathBuf,
}

impl Default for LiveOptions {
    fn default() -> Self {
        Self { bpffs: BPFFS.into(), cilium_run: CILIUM_RUN.into() }
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
}

/// A live node's facts and what they cost.
#[derive(Clone, Debug)]
pub struct LiveNode {
    /// The facts.
    pub node: RawNode,
    /// How long each part took: maps by pin name, `agent`, `iptables-save`, `network`.
    pub took: Vec<(String, Duration)>,
}

/// Reads the node that this process runs on, in its own network and mount namespaces.
///
/// # Errors
///
/// When there is no Cilium here, or none of its maps can be read: nothing could be judged.
pub fn read(options: &LiveOptions) -> Result<LiveNode> {
    let globals = globals(options)?;
    let pins = globals.pins()?;
    if pins.is_empty() {
        return Err(no_cilium(options, &anyhow!("no pin of Cilium's in `{}`", globals.path().display())));
    }
    let agent = Agent::new(&options.agent_socket());
    let (maps, answers, rules, network) = thread::scope(|scope| {
        let answers = scope.spawn(|| timed(|| agent.get_all()));
        let rules = scope.spawn(|| timed(netfilter::iptables_save));
        let network = scope.spawn(|| timed(addresses::network));
        let maps = read_maps(&globals, &pins);
        let joined = "no reader panics";
        (maps, answers.join().expect(joined), rules.join().expect(joined), network.join().expect(joined))
    });
    let mut live = LiveNode {
        node: RawNode { origin: "live".to_owned(), ..RawNode::default() },
        took: vec![
            ("agent".to_owned(), answers.1),
            ("iptables-save".to_owned(), rules.1),
            ("network".to_owned(), network.1),
        ],
    };
    live.add_maps(maps)?;
    let (rest, missing) = answers.0;
    live.node.rest = rest;
    live.node.missing.extend(missing);
    live.add_rules(rules.0);
    live.add_network(network.0);
    Ok(live)
}

impl LiveNode {
    fn add_maps(&mut self, maps: Vec<MapRead>) -> Result<()> {
        let mut first_failure = None;
        for MapRead { name, reading, took } in maps {
            self.took.push((name.clone(), took));
            match reading {
                Ok(Reading { map, caveat }) => {
                    self.node.missing.extend(caveat.map(|why| Missing { what: name.clone(), why }));
                    self.node.maps.insert(name, map);
                }
                Err(error) => {
                    self.node.missing.push(Missing { what: name, why: format!("{error:#}") });
                    first_failure.get_or_insert(error);
                }
            }
        }
        match first_failure {
            Some(error) if self.node.maps.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    fn add_rules(&mut self, rules: Result<netfilter::Rules>) {
        match rules {
            Ok(rules) => {
                self.node.iptables_save = Some(rules.text);
                self.node.missing.extend(rules.missing);
            }
            Err(error) => {
                let (what, why) = ("iptables-save".to_owned(), format!("{error:#}"));
                self.node.missing.push(Missing { what, why });
            }
        }
    }

    fn add_network(&mut self, network: Result<Network>) {
        match network {
            Ok(network) => self.node.network = Some(network),
            Err(error) => {
                let why = format!("{error:#}");
                self.node.missing.push(Missing { what: "network".to_owned(), why });
            }
        }
    }
}

/// Cilium's pins, or why there is no Cilium here.
fn globals(options: &LiveOptions) -> Result<Globals> {
    Globals::open(&options.bpffs).map_err(|error| {
        let is_absent = error.downcast_ref::<Unusable>().is_some_and(|unusable| unusable.is_absent);
        if is_absent { no_cilium(options, &error) } else { error }
    })
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

/// One map's reading.
struct MapRead {
    name: String,
    reading: Result<Reading>,
    took: Duration,
}

/// Reads every pin on a few threads: entries where an answer needs them, else only what the map is.
fn read_maps(globals: &Globals, pins: &[String]) -> Vec<MapRead> {
    let next = AtomicUsize::new(0);
    let read_some = || {
        let mut read = Vec::new();
        while let Some(name) = pins.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (reading, took) = timed(|| read_map(globals, name));
            read.push(MapRead { name: name.clone(), reading, took });
        }
        read
    };
    let readers = thread::available_parallelism().map_or(1, usize::from).min(READERS);
    let mut read: Vec<MapRead> = thread::scope(|scope| {
        let readers: Vec<_> = (0..readers).map(|_| scope.spawn(read_some)).collect();
        readers.into_iter().flat_map(|reader| reader.join().expect("no reader panics")).collect()
    });
    read.sort_by(|a, b| a.name.cmp(&b.name));
    read
}

fn read_map(globals: &Globals, name: &str) -> Result<Reading> {
    if is_wanted(name) {
        return globals.read(name);
    }
    let map: RawMap = globals.map(name)?.facts();
    Ok(Reading { map, caveat: None })
}

fn is_wanted(name: &str) -> bool {
    WANTED.iter().any(|wanted| name.starts_with(wanted))
        && !UNWANTED.iter().any(|unwanted| name.contains(unwanted))
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    (run(), begun.elapsed())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::net::UnixListener};

    use libbpf_rs::{MapCore as _, MapFlags, MapType};

    use super::*;
    use crate::sources::{
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
            let Some(map_type) = map_type(&map.map_type).filter(|_| is_wanted(name)) else { return false };
            let max_entries = map.max_entries.min(16_384);
            let made = bpffs.create(name, map_type, map.key_size, map.value_size, max_entries);
            for (key, value) in &map.entries {
                made.update(key, value, MapFlags::ANY).unwrap();
            }
            map.id = made.info().unwrap().info.id;
            map.max_entries = max_entries;
            map.entries.sort();
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
        let options = LiveOptions { bpffs: bpffs.path().to_owned(), cilium_run: run.path().to_owned() };
        serve_rest(&options.agent_socket(), recorded.rest.clone());

        let live = read(&options).unwrap();
        assert_eq!(live.node.origin, "live");
        assert_eq!(live.node.maps, recorded.maps);
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
    fn a_node_without_its_agent() {
        let Some(bpffs) = PrivateBpffs::mount() else { return };
        drop(bpffs.create("cilium_lxc", MapType::Hash, 20, 48, 16));
        let run = tempfile::tempdir().unwrap();
        let options = LiveOptions { bpffs: bpffs.path().to_owned(), cilium_run: run.path().to_owned() };
        let live = read(&options).unwrap();
        let agent = live.node.missing.iter().find(|missing| missing.what == "cilium.sock").unwrap();
        assert!(agent.why.starts_with("no socket at `"), "{agent}");
    }

    #[test]
    fn no_cilium_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let shown = folder.path().display();
        let options = LiveOptions { bpffs: folder.path().join("bpf"), cilium_run: folder.path().join("run") };
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
        let options = LiveOptions { bpffs: bpffs.path().to_owned(), cilium_run: bpffs.path().join("run") };
        let error = read(&options).unwrap_err().to_string();
        assert!(error.starts_with("no Cilium on this node: no pin of Cilium's in `"), "{error}");
        assert!(!error.contains('\n'));
    }
}
