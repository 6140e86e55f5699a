//! A stand-in for Cilium's datapath: our own eBPF programs with Cilium 1.14's maps, conntrack and notifications.
//!
//! A test fixture. What it does is described in `probe-lab-ebpf`; this module loads it as Cilium's agent does: one
//! object per endpoint and one per device of the host, legacy tc filters at priority 1 and handle 1 (or tcx links, as
//! later versions have them), maps pinned under `tc/globals`, the pods' policy programs in `cilium_call_policy`.
//!
//! ```no_run
//! use probe_lab::{Lab, LabOptions, standin::{MapContents, Standin, StandinConfig}};
//!
//! let lab = Lab::up_without_datapath(&LabOptions::default())?;
//! let mut standin = Standin::start(StandinConfig::for_lab(&lab))?;
//! standin.fill(&MapContents::from_recording("fixtures/cilium-1.14/deny-all".as_ref())?)?;
//! # Ok::<(), anyhow::Error>(())
//! ```
mod contents;
mod events;
mod object;
mod raw_map;
mod tc;
mod tcx;

#[path = "../../../probe-lab-ebpf/src/config.rs"]
#[expect(unreachable_pub, reason = "the eBPF crate, which owns the file, is a binary")]
mod config;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData, MapError, PerCpuArray, PerfEventArray};

pub use contents::{Entries, MapContents, policy_map, read_dump};
pub use events::EventReader;
pub use object::load_again;
pub use raw_map::RawMap;

use crate::addresses::{APP_POD, NGINX_POD, NODE, Pod};
use crate::lab::{Lab, Shape};
use crate::netns::{Netns, Ns};
use crate::shell;
use object::Object;
use tc::{Direction, Filter};

/// The host's endpoint in every lab.
pub const HOST_ENDPOINT_ID: u16 = 512;

/// Maps that Cilium has only with its kube-proxy replacement.
const MAPS_OF_REPLACEMENT: [&str; 6] = [
    "cilium_lb4_affinity",
    "cilium_lb4_reverse_sk",
    "cilium_lb4_source_range",
    "cilium_lb_affinity_match",
    "cilium_nodeport_neigh4",
    "cilium_snat_v4_external",
];
/// Maps that Cilium has only with a tunnel, which the recordings with kube-proxy have.
const MAPS_OF_TUNNEL: [&str; 1] = ["cilium_tunnel_map"];

/// Marks what the node itself sends, as Cilium's own `CILIUM_OUTPUT` chain does.
const MARK_RULES: &str = "*filter
:CILIUM_OUTPUT - [0:0]
-A OUTPUT -j CILIUM_OUTPUT
-A CILIUM_OUTPUT -m mark ! --mark 0xe00/0xf00 -m mark ! --mark 0xd00/0xf00 -m mark ! --mark 0xa00/0xe00 \
-m mark ! --mark 0x800/0xe00 -m mark ! --mark 0xf00/0xf00 -j MARK --set-xmark 0xc00/0xf00
COMMIT
";

/// How much the datapath tells of what it forwards (`monitor-aggregation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aggregation {
    /// Every packet, at every point.
    None,
    /// First packets, new TCP flags, and one in five seconds.
    #[default]
    Medium,
}

/// How the stand-in attaches its programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachBy {
    /// By legacy tc filters at priority 1 and handle 1: before Cilium 1.16, on kernels before 6.6, on managed AKS.
    #[default]
    LegacyTc,
    /// By tcx links, pinned under `cilium/` beside `tc/`.
    Tcx,
}

/// How many packets one of the stand-in's programs was given, by all its copies since the stand-in began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// All of them.
    pub packets: u64,
    /// Those that were UDP over IPv4.
    pub udp: u64,
}

/// One local pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Cilium's endpoint id.
    pub id: u16,
    /// Its security identity.
    pub identity: u32,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Host side of its veth.
    pub host_ifname: String,
    /// Whether a policy selects it for ingress: only then are ingress verdicts notified.
    pub enforce_ingress: bool,
    /// Whether a policy selects it for egress.
    pub enforce_egress: bool,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct StandinConfig {
    /// The shape of the datapath.
    pub shape: Shape,
    /// The node's network namespace.
    pub netns: Netns,
    /// Stands for `/sys/fs/bpf`.
    pub bpffs: PathBuf,
    /// The node's interface to the outside.
    pub uplink: String,
    /// The node's address on it.
    pub node_ip: Ipv4Addr,
    /// The host's endpoint.
    pub host_endpoint_id: u16,
    /// The local pods.
    pub endpoints: Vec<EndpointConfig>,
    /// How much is traced.
    pub aggregation: Aggregation,
    /// `monitor-aggregation-flags`: the TCP flags whose first sight is traced.
    pub report_flags: u8,
    /// How the programs are attached.
    pub attach_by: AttachBy,
}

/// A running stand-in; its programs are detached when it is dropped, its pins go with the bpffs.
#[derive(Debug)]
pub struct Standin {
    config: StandinConfig,
    filters: Vec<Filter>,
    hooks: Vec<tcx::Hook>,
}

impl EndpointConfig {
    /// The pod of the lab's world, with no policy.
    pub fn for_pod(pod: &Pod) -> Self {
        Self {
            id: pod.endpoint_id,
            identity: pod.identity,
            ip: pod.address,
            host_ifname: pod.host_interface.to_owned(),
            enforce_ingress: false,
            enforce_egress: false,
        }
    }
}

impl StandinConfig {
    /// The lab's node and its two pods, in the lab's shape.
    pub fn for_lab(lab: &Lab) -> Self {
        Self {
            shape: lab.shape(),
            netns: lab.netns(Ns::Node).clone(),
            bpffs: lab.bpffs().to_owned(),
            uplink: "eth0".to_owned(),
            node_ip: NODE,
            host_endpoint_id: HOST_ENDPOINT_ID,
            endpoints: [APP_POD, NGINX_POD].iter().map(EndpointConfig::for_pod).collect(),
            aggregation: Aggregation::default(),
            report_flags: 0x07,
            attach_by: AttachBy::default(),
        }
    }

    fn endpoint_mut(&mut self, id: u16) -> Result<&mut EndpointConfig> {
        self.endpoints
            .iter_mut()
            .find(|endpoint| endpoint.id == id)
            .with_context(|| format!("failed to find endpoint `{id}` in the stand-in"))
    }
}

impl Standin {
    /// Loads and attaches everything. The maps are empty: nothing passes before [`Self::fill`] except to the host.
    ///
    /// # Errors
    ///
    /// Built without the eBPF object, or the kernel refuses a map, a program or a filter.
    pub fn start(config: StandinConfig) -> Result<Self> {
        let mut standin = Self { config, filters: Vec::new(), hooks: Vec::new() };
        standin.set_mark_rule()?;
        standin.load_all()?;
        Ok(standin)
    }

    /// What it was started with, and what has been changed since.
    pub fn config(&self) -> &StandinConfig {
        &self.config
    }

    /// The folder of the pinned maps.
    pub fn globals(&self) -> PathBuf {
        globals(&self.config.bpffs)
    }

    /// A pinned map, to read or to write.
    ///
    /// # Errors
    ///
    /// There is no such pin.
    pub fn map(&self, name: &str) -> Result<RawMap> {
        RawMap::open(&self.globals().join(name))
    }

    /// Replaces what is in the named maps. Interface numbers in `cilium_lxc` become those of this node.
    ///
    /// # Errors
    ///
    /// A map is unknown, or an entry does not have its size.
    pub fn fill(&self, contents: &MapContents) -> Result<()> {
        for (name, entries) in contents.iter() {
            let map = self.map(name)?;
            let entries =
                if name == "cilium_lxc" { self.with_local_ifindex(entries)? } else { entries.clone() };
            map.replace(&entries).with_context(|| format!("failed to fill `{name}`"))?;
        }
        Ok(())
    }

    /// Replaces the policy of an endpoint while packets pass, as the agent does when a policy changes.
    ///
    /// # Errors
    ///
    /// There is no such endpoint, an entry does not have the map's size, or regeneration fails.
    pub fn replace_policy(&mut self, id: u16, entries: &Entries) -> Result<()> {
        self.config.endpoint_mut(id)?;
        self.map(&policy_map(id))?.replace(entries)
    }

    /// Says which directions of an endpoint are enforced, and regenerates it: the programs know it from load time.
    ///
    /// # Errors
    ///
    /// There is no such endpoint, or the kernel refuses its programs.
    pub fn set_enforcement(&mut self, id: u16, ingress: bool, egress: bool) -> Result<()> {
        let endpoint = self.config.endpoint_mut(id)?;
        (endpoint.enforce_ingress, endpoint.enforce_egress) = (ingress, egress);
        let endpoint = endpoint.clone();
        self.load_endpoint(&endpoint)?;
        self.unpin_absent()
    }

    /// Changes how much is traced, and regenerates everything.
    ///
    /// # Errors
    ///
    /// As [`Self::regenerate`].
    pub fn set_aggregation(&mut self, aggregation: Aggregation) -> Result<()> {
        self.config.aggregation = aggregation;
        self.regenerate()
    }

    /// Loads everything anew and replaces the filters in place, as the agent does when its configuration changes.
    ///
    /// # Errors
    ///
    /// The kernel refuses a program or a filter.
    pub fn regenerate(&mut self) -> Result<()> {
        self.load_all()
    }

    /// Detaches everything and attaches it anew, as an agent does that starts without what an earlier one has left.
    /// In between, packets pass as if there was no Cilium.
    ///
    /// # Errors
    ///
    /// As [`Self::regenerate`].
    pub fn restart(&mut self) -> Result<()> {
        self.detach_programs()?;
        self.load_all()
    }

    /// How many packets a program was given, by the name Cilium has for it (`cil_from_netdev`).
    ///
    /// # Errors
    ///
    /// There is no such program, or its counters cannot be read.
    pub fn seen(&self, program: &str) -> Result<Seen> {
        let at = config::COUNTED.iter().position(|name| *name == program);
        let slot = at.with_context(|| format!("the stand-in has no program `{program}`"))? as u32 * 2;
        let pin = object::seen_pin(&self.globals());
        let map = MapData::from_pin(&pin).with_context(|| format!("failed to open `{}`", pin.display()))?;
        let counts = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(map))?;
        let sum = |slot: u32| Ok::<u64, MapError>(counts.get(&slot, 0)?.iter().sum());
        Ok(Seen { packets: sum(slot)?, udp: sum(slot + 1)? })
    }

    /// `cilium_events`, for whoever stands in for the agent's monitor.
    ///
    /// # Errors
    ///
    /// The pin cannot be opened.
    pub fn events_map(&self) -> Result<PerfEventArray<MapData>> {
        events::open(&self.globals())
    }

    /// Reads notifications from now on.
    ///
    /// # Errors
    ///
    /// The perf buffers cannot be opened.
    pub fn events(&self) -> Result<EventReader> {
        EventReader::new(self.events_map()?)
    }

    /// Detaches the programs and says what went wrong, which dropping cannot.
    ///
    /// # Errors
    ///
    /// A filter cannot be deleted.
    pub fn stop(mut self) -> Result<()> {
        self.detach()
    }

    fn load_all(&mut self) -> Result<()> {
        self.load_host()?;
        for endpoint in self.config.endpoints.clone() {
            self.load_endpoint(&endpoint)?;
        }
        self.unpin_absent()
    }

    /// The host's programs: one object per device, since each has its own tail-call map.
    fn load_host(&mut self) -> Result<()> {
        let uplink_egress =
            (self.config.shape != Shape::KubeProxy).then_some(("cil_to_netdev", Direction::Egress));
        let uplink = self.config.uplink.clone();
        let cilium_host = [("cil_from_host", Direction::Egress), ("cil_to_host", Direction::Ingress)];
        let devices: [(&str, Vec<(&str, Direction)>); 3] = [
            (&uplink, [("cil_from_netdev", Direction::Ingress)].into_iter().chain(uplink_egress).collect()),
            ("cilium_net", vec![("cil_to_host", Direction::Ingress)]),
            ("cilium_host", cilium_host.to_vec()),
        ];
        for (ifname, programs) in devices {
            let calls = if ifname == "cilium_host" {
                format!("cilium_calls_hostns_{:05}", self.config.host_endpoint_id)
            } else {
                format!("cilium_calls_netdev_{:05}", self.ifindex(ifname)?)
            };
            let id = self.config.host_endpoint_id;
            let mut object = Object::load(&self.globals(), self.constants(id, None)?, id, &calls)?;
            for (program, direction) in programs {
                self.attach(&mut object, program, ifname, direction)?;
            }
        }
        Ok(())
    }

    /// A pod's programs, attached and put where other programs tail-call them.
    fn load_endpoint(&mut self, endpoint: &EndpointConfig) -> Result<()> {
        let constants = self.constants(endpoint.id, Some(endpoint))?;
        let calls = format!("cilium_calls_{:05}", endpoint.id);
        let mut object = Object::load(&self.globals(), constants, endpoint.id, &calls)?;
        object.set_policy_program(endpoint.id)?;
        if self.config.shape == Shape::Aks {
            self.attach(&mut object, "cil_to_container", &endpoint.host_ifname, Direction::Egress)?;
        }
        self.attach(&mut object, "cil_from_container", &endpoint.host_ifname, Direction::Ingress)
    }

    /// The object declares every map; a node has those of its configuration.
    fn unpin_absent(&self) -> Result<()> {
        let absent: &[&str] =
            if self.config.shape == Shape::KubeProxy { &MAPS_OF_REPLACEMENT } else { &MAPS_OF_TUNNEL };
        for map in absent {
            let pin = self.globals().join(map);
            fs::remove_file(&pin).with_context(|| format!("failed to unpin `{}`", pin.display()))?;
        }
        Ok(())
    }

    fn attach(
        &mut self,
        object: &mut Object,
        program: &str,
        ifname: &str,
        direction: Direction,
    ) -> Result<()> {
        let ifname = ifname.to_owned();
        match self.config.attach_by {
            AttachBy::LegacyTc => {
                let fd = object.program(program)?;
                let filter = Filter { name: format!("{program}-{ifname}"), ifname, direction };
                self.config.netns.run_in(|| filter.replace(fd))??;
                if !self.filters.contains(&filter) {
                    self.filters.push(filter);
                }
            }
            AttachBy::Tcx => {
                let pin = self.links(&ifname).join(program);
                let hook = tcx::Hook { ifname, direction, pin };
                self.config.netns.run_in(|| object.attach_tcx(program, &hook))??;
                if !self.hooks.contains(&hook) {
                    self.hooks.push(hook);
                }
            }
        }
        Ok(())
    }

    /// Where Cilium pins the tcx links of an interface.
    fn links(&self, ifname: &str) -> PathBuf {
        let endpoint = self.config.endpoints.iter().find(|endpoint| endpoint.host_ifname == ifname);
        let owner = match endpoint {
            Some(endpoint) => format!("endpoints/{}", endpoint.id),
            None => format!("devices/{ifname}"),
        };
        self.config.bpffs.join("cilium").join(owner).join("links")
    }

    /// The load-time constants of one object.
    fn constants(&self, endpoint_id: u16, endpoint: Option<&EndpointConfig>) -> Result<config::Config> {
        let be = |ip: Ipv4Addr| u32::from_ne_bytes(ip.octets());
        let filter = |on: bool, bit: u32| if on { bit } else { 0 };
        Ok(config::Config {
            shape: match self.config.shape {
                Shape::Aks => config::SHAPE_AKS,
                Shape::Kpr => config::SHAPE_KPR,
                Shape::KubeProxy => config::SHAPE_KUBEPROXY,
            },
            endpoint_id: u32::from(endpoint_id),
            // The host's object knows itself as the host.
            identity: endpoint.map_or(1, |endpoint| endpoint.identity),
            endpoint_ip_be: endpoint.map_or(0, |endpoint| be(endpoint.ip)),
            node_ip_be: be(self.config.node_ip),
            uplink_ifindex: self.ifindex(&self.config.uplink)?,
            verdict_filter: endpoint.map_or(0, |endpoint| {
                filter(endpoint.enforce_ingress, config::FILTER_INGRESS)
                    | filter(endpoint.enforce_egress, config::FILTER_EGRESS)
            }),
            aggregation: match self.config.aggregation {
                Aggregation::None => 0,
                Aggregation::Medium => 3,
            },
            report_flags: u32::from(self.config.report_flags),
            masquerade: u32::from(self.config.shape == Shape::Kpr),
            native_net_be: be(Ipv4Addr::new(10, 0, 0, 0)),
            native_mask_be: be(Ipv4Addr::new(255, 255, 0, 0)),
            cilium_net_mac: self.mac("cilium_net")?,
        })
    }

    fn ifindex(&self, ifname: &str) -> Result<u32> {
        self.config.netns.run_in(|| tc::ifindex(ifname))?
    }

    /// The MAC address of one of the node's interfaces, padded as in `struct endpoint_info`.
    fn mac(&self, ifname: &str) -> Result<[u8; 8]> {
        let mut show = self.config.netns.command("ip")?;
        let line = shell::run(show.args(["-o", "link", "show", "dev", ifname]))?;
        line.split_once("link/ether ")
            .and_then(|(_, rest)| parse_mac(rest.split(' ').next()?))
            .with_context(|| format!("failed to find the MAC address of `{ifname}` in `{line}`"))
    }

    /// Puts this node's interface numbers into the entries of `cilium_lxc`.
    fn with_local_ifindex(&self, entries: &Entries) -> Result<Entries> {
        let mut entries = entries.clone();
        for (_, value) in &mut entries {
            // `struct endpoint_info`: `ifindex` at 0, `lxc_id` at 6.
            let Some(id) = value.get(6..8).map(|id| u16::from_ne_bytes([id[0], id[1]])) else {
                bail!("failed to fill `cilium_lxc`: `endpoint_info` is {} bytes, expected 48", value.len());
            };
            if let Some(endpoint) = self.config.endpoints.iter().find(|endpoint| endpoint.id == id) {
                let ifindex = self.ifindex(&endpoint.host_ifname)?;
                value[..4].copy_from_slice(&ifindex.to_ne_bytes());
            }
        }
        Ok(entries)
    }

    /// What the node itself sends gets the mark that says so, by the iptables rule with which Cilium's agent does it.
    ///
    /// Behind kube-proxy the lab's own rules have it already.
    fn set_mark_rule(&self) -> Result<()> {
        if self.config.shape == Shape::KubeProxy {
            return Ok(());
        }
        let mut restore = self.config.netns.command("iptables-restore")?;
        shell::run_with_input(restore.arg("--noflush"), MARK_RULES)?;
        Ok(())
    }

    fn remove_mark_rule(&self) -> Result<()> {
        if self.config.shape == Shape::KubeProxy {
            return Ok(());
        }
        for arguments in ["-D OUTPUT -j CILIUM_OUTPUT", "-F CILIUM_OUTPUT", "-X CILIUM_OUTPUT"] {
            let mut iptables = self.config.netns.command("iptables")?;
            shell::run(iptables.args(arguments.split(' ')))?;
        }
        Ok(())
    }

    fn detach(&mut self) -> Result<()> {
        // With the namespace, everything in it has gone.
        if !self.config.netns.path().exists() {
            return Ok(());
        }
        self.detach_programs()?;
        self.remove_mark_rule()?;
        Ok(())
    }

    fn detach_programs(&mut self) -> Result<()> {
        let filters = std::mem::take(&mut self.filters);
        self.config.netns.run_in(|| filters.iter().try_for_each(Filter::delete))??;
        std::mem::take(&mut self.hooks).iter().try_for_each(tcx::Hook::unpin)
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        if let Err(err) = self.detach() {
            eprintln!("plsprobe-lab: failed to detach the stand-in: {err:#}");
        }
    }
}

fn parse_mac(text: &str) -> Option<[u8; 8]> {
    let mut mac = [0; 8];
    let mut parts = text.split(':');
    for byte in &mut mac[..6] {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn globals(bpffs: &Path) -> PathBuf {
    bpffs.join("tc/globals")
}

/// Why the stand-in cannot run on this machine, or `None` if it can: for tests that skip.
pub fn unavailable() -> Option<String> {
    object::is_empty()
        .then(|| "built without the stand-in's eBPF object; run `cargo xtask test`".to_owned())
        .or_else(crate::unavailable)
}
