//! A lab that is up: its namespaces, its servers, and its end.
use std::fmt;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result};

use crate::addresses::{APP, APP_POD, NAT_IPS, NGINX, Pod, VM};
use crate::agent::Agent;
use crate::agent::answers::Answers;
use crate::agent::map_entries::map_entries;
use crate::agent::realize::Realized;
use crate::agent::rest::Source;
use crate::background::Background;
use crate::instance::{Instance, Lock, Process, State};
use crate::netns::{Netns, Ns};
use crate::probe::{ClientSaw, Probe, Probed};
use crate::scenario::Scenario;
use crate::server::{App, Service};
use crate::standin::{AttachBy, Standin, StandinConfig};
use crate::{kube_proxy, shell, topology};

/// How packets reach the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Shape {
    /// AKS-managed Cilium: endpoint routes, the host's stack between `eth0` and the pod's veth.
    #[default]
    Aks,
    /// Cilium's default with kube-proxy replacement: BPF host routing from `eth0` straight into the pod.
    Kpr,
    /// No kube-proxy replacement: iptables rules in kube-proxy's manner, then `cilium_host`.
    KubeProxy,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Aks => "aks",
            Self::Kpr => "kpr",
            Self::KubeProxy => "kubeproxy",
        })
    }
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Aks, Self::Kpr, Self::KubeProxy]
            .into_iter()
            .find(|shape| shape.to_string() == name)
            .with_context(|| format!("no shape `{name}`, expected aks, kpr or kubeproxy"))
    }
}

/// What to bring up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabOptions {
    /// The lab's name: labs of different names do not meet.
    pub instance: String,
    /// The shape of the datapath; the scenario must make sense in it.
    pub shape: Shape,
    /// The name of a [`Scenario`].
    pub scenario: String,
}

/// A lab that is up, until dropped.
#[derive(Debug)]
pub struct Lab {
    instance: Instance,
    shape: Shape,
    netns: [Netns; Ns::ALL.len()],
    bpffs: PathBuf,
    run_dir: PathBuf,
    scenario: &'static Scenario,
    /// How many scenarios there have been, which is the agent's policy revision.
    revision: u64,
    standin: Option<Standin>,
    agent: Option<Agent>,
    background: Option<Background>,
    /// Last: whoever waits for it may start as soon as everything else is gone.
    _lock: Lock,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { instance: "lab".to_owned(), shape: Shape::default(), scenario: "none".to_owned() }
    }
}

/// Why no lab can be brought up on this machine, or `None` if one can: for tests that skip.
pub fn unavailable() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let euid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().nth(1));
    if euid != Some("0") {
        return Some("a lab needs root".to_owned());
    }
    let tools = [("ip", "-V"), ("nft", "-v"), ("iptables-restore", "-V"), ("mount", "-V"), ("umount", "-V")];
    if let Some((tool, _)) = tools.iter().find(|(tool, flag)| Command::new(tool).arg(flag).output().is_err())
    {
        return Some(format!("a lab needs `{tool}`"));
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    (!filesystems.contains("\tbpf")).then(|| "a lab needs a kernel with bpffs".to_owned())
}

impl Lab {
    /// Brings a lab up; what a killed owner of the same name has left behind goes first.
    ///
    /// # Errors
    ///
    /// Not root, a lab of this name is up already, or a tool (`ip`, `nft`, `mount`) refuses something.
    pub fn up(options: &LabOptions) -> Result<Self> {
        Self::up_attached(options, AttachBy::default())
    }

    /// The same with the datapath's programs attached by means of the caller's choice.
    ///
    /// # Errors
    ///
    /// As [`Self::up`], or a kernel without tcx.
    pub fn up_attached(options: &LabOptions, attach_by: AttachBy) -> Result<Self> {
        let mut lab = Self::up_without_datapath(options)?;
        lab.start_datapath(attach_by)?;
        Ok(lab)
    }

    /// The same without the stand-in for Cilium's datapath: packets take the way of the host's stack.
    ///
    /// # Errors
    ///
    /// As [`Self::up`].
    pub fn up_without_datapath(options: &LabOptions) -> Result<Self> {
        let instance = Instance::new(&options.instance)?;
        let scenario = Scenario::named(&options.scenario)?;
        scenario.check_shape(options.shape)?;
        let lock = instance.lock()?;
        instance.sweep()?;
        let mut lab = Self {
            netns: Ns::ALL.map(|ns| instance.netns(ns)),
            bpffs: instance.bpffs(),
            run_dir: instance.run_dir(),
            shape: options.shape,
            scenario,
            revision: 1,
            standin: None,
            agent: None,
            background: None,
            instance,
            _lock: lock,
        };
        // From here on dropping `lab` takes down whatever is up.
        lab.make_dirs()?;
        topology::build(&lab.instance, lab.shape)?;
        if lab.shape == Shape::KubeProxy {
            kube_proxy::install(lab.netns(Ns::Node))?;
        }
        let background = Background::start()?;
        for service in services(scenario) {
            let bound = service.bind(&lab.instance)?;
            background.handle().spawn(async move {
                if let Err(err) = bound.serve().await {
                    eprintln!("plsprobe-lab: a server ended: {err:#}");
                }
            });
        }
        lab.background = Some(background);
        lab.start_agent()?;
        Ok(lab)
    }

    /// Takes the lab down and says what went wrong, which dropping it cannot.
    ///
    /// # Errors
    ///
    /// Something cannot be removed.
    pub fn down(mut self) -> Result<()> {
        self.take_down()
    }

    /// The lab's name and places.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The shape it was brought up in.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The scenario it was brought up with.
    pub fn scenario(&self) -> &'static Scenario {
        self.scenario
    }

    /// Replaces the policy while packets pass, as the agent does: identities, policy map, the programs' idea of what
    /// is enforced, REST answers. Who listens in the pod stays as it is.
    ///
    /// # Errors
    ///
    /// The scenario makes no sense in the lab's shape, or the stand-in refuses something.
    pub fn change_policy(&mut self, scenario: &str) -> Result<()> {
        let scenario = Scenario::named(scenario)?;
        scenario.check_shape(self.shape)?;
        (self.scenario, self.revision) = (scenario, self.revision + 1);
        let realized = Realized::new(scenario.policy.as_ref())?;
        let maps = map_entries(&realized, self.shape, topology::router(self.shape))?;
        if let Some(standin) = &mut self.standin {
            standin.set_enforcement(APP_POD.endpoint_id, realized.ingress, realized.egress)?;
            standin.fill(&maps)?;
        }
        let source = self.computed_answers()?;
        if let Some(agent) = &self.agent {
            agent.rest().set_source(source);
        }
        Ok(())
    }

    /// Ends the stand-in for the agent: both sockets close and their files go, as when the agent's pod is deleted.
    pub fn stop_agent(&mut self) {
        self.agent = None;
    }

    /// Starts the stand-in for the agent, again or after [`Self::stop_agent`].
    ///
    /// # Errors
    ///
    /// A socket cannot be bound.
    pub fn start_agent(&mut self) -> Result<()> {
        let source = self.computed_answers()?;
        self.start_agent_with(source)
    }

    /// Starts it with REST answers of the caller's choice, such as a recording's.
    ///
    /// # Errors
    ///
    /// A socket cannot be bound.
    pub fn start_agent_with(&mut self, source: Source) -> Result<()> {
        self.stop_agent();
        let background = self.background.as_ref().context("the lab is going down")?;
        self.agent = Some(Agent::start(background.handle(), &self.run_dir, &self.bpffs, source)?);
        Ok(())
    }

    /// The stand-in for the agent, unless it was stopped.
    pub fn agent(&self) -> Option<&Agent> {
        self.agent.as_ref()
    }

    /// One of its namespaces.
    pub fn netns(&self, ns: Ns) -> &Netns {
        &self.netns[ns as usize]
    }

    /// Calls `work` on a thread of its own inside `ns`.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered.
    pub fn run_in<T: Send>(&self, ns: Ns, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns(ns).run_in(work)
    }

    /// The root of its private bpffs, which stands for `/sys/fs/bpf`.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The folder of the agent's sockets, which stands for `/var/run/cilium`.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The number of an interface inside `ns`.
    ///
    /// # Errors
    ///
    /// There is no such interface.
    pub fn ifindex(&self, ns: Ns, interface: &str) -> Result<u32> {
        let mut show = Command::new("ip");
        show.args(["-n", self.netns(ns).name(), "-o", "link", "show", "dev", interface]);
        let line = shell::run(&mut show)?;
        line.split_once(':')
            .and_then(|(index, _)| index.parse().ok())
            .with_context(|| format!("failed to find the number of `{interface}` in `{line}`"))
    }

    /// Has a child process ended with the lab if this process is killed first.
    ///
    /// # Errors
    ///
    /// There is no such process, or the lab's state cannot be written.
    pub fn adopt(&mut self, pid: u32) -> Result<()> {
        let mut state = self.instance.state()?;
        state.children.push(Process::of(pid)?);
        self.instance.write_state(&state)
    }

    /// Makes one attempt and says what the client saw.
    ///
    /// # Errors
    ///
    /// The attempt could not be made: nothing about the network between can be concluded.
    pub fn probe(&self, probe: &Probe) -> Result<ClientSaw> {
        self.instance.probe(probe)
    }

    /// Makes one attempt and says what both ends saw.
    ///
    /// # Errors
    ///
    /// As [`Self::probe`].
    pub fn probe_both_ends(&self, probe: &Probe) -> Result<Probed> {
        self.instance.probe_both_ends(probe)
    }

    /// The stand-in for Cilium's datapath, unless the lab is up without.
    pub fn standin(&self) -> Option<&Standin> {
        self.standin.as_ref()
    }

    /// The same, to load its programs anew.
    pub fn standin_mut(&mut self) -> Option<&mut Standin> {
        self.standin.as_mut()
    }

    /// Deletes a pod's veth and makes it anew under the same names, as when a pod is replaced by one of its kind.
    ///
    /// # Errors
    ///
    /// `ip` refuses something, or the stand-in does.
    pub fn recreate_pod(&mut self, pod: &Pod) -> Result<()> {
        topology::recreate_pod(&self.instance, pod, self.shape)?;
        let Some(standin) = &mut self.standin else { return Ok(()) };
        standin.regenerate()?;
        self.fill_datapath(&Realized::new(self.scenario.policy.as_ref())?)
    }

    /// Loads the stand-in's programs and fills its maps with what the agent makes of the scenario.
    fn start_datapath(&mut self, attach_by: AttachBy) -> Result<()> {
        let realized = Realized::new(self.scenario.policy.as_ref())?;
        let mut config = StandinConfig { attach_by, ..StandinConfig::for_lab(self) };
        for endpoint in &mut config.endpoints {
            if endpoint.id == APP_POD.endpoint_id {
                (endpoint.enforce_ingress, endpoint.enforce_egress) = (realized.ingress, realized.egress);
            }
        }
        let standin = Standin::start(config)?;
        self.standin = Some(standin);
        self.fill_datapath(&realized)
    }

    /// Fills the stand-in's maps with what the agent makes of the scenario.
    fn fill_datapath(&self, realized: &Realized) -> Result<()> {
        let Some(standin) = &self.standin else { return Ok(()) };
        standin.fill(&map_entries(realized, self.shape, topology::router(self.shape))?)
    }

    fn computed_answers(&self) -> Result<Source> {
        let router = topology::router(self.shape);
        Answers::new(self.scenario, self.shape, router, self.revision).map(Source::Computed)
    }

    fn make_dirs(&self) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for dir in [&self.bpffs, &self.run_dir] {
            builder.create(dir).with_context(|| format!("failed to create `{}`", dir.display()))?;
        }
        let owner = Some(Process::of(std::process::id())?);
        self.instance.write_state(&State { owner, children: Vec::new() })?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "bpf", "-o", "mode=0700", "plsprobe-lab"]).arg(&self.bpffs);
        shell::run(&mut mount)?;
        let globals = self.bpffs.join("tc/globals");
        builder.create(&globals).with_context(|| format!("failed to create `{}`", globals.display()))
    }

    fn take_down(&mut self) -> Result<()> {
        self.agent = None;
        self.standin = None;
        self.background = None;
        self.instance.sweep()?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(err) = self.take_down() {
            eprintln!("plsprobe-lab: failed to take down `{}`: {err:#}", self.instance.name());
        }
    }
}

/// Who listens where; the recordings' world but for `pls-app`'s TCP ports and what it makes of a PROXY header.
fn services(scenario: &Scenario) -> Vec<Service> {
    let http = |ns, address, port| Service::Http { ns, address, port, app: App::Http };
    let app = |port: &u16| Service::Http { ns: Ns::App, address: APP, port: *port, app: scenario.app };
    let mut services: Vec<_> = scenario.app_ports.iter().map(app).collect();
    services.extend([
        Service::UdpEcho { ns: Ns::App, address: APP, port: 53 },
        http(Ns::Nginx, NGINX, 80),
        http(Ns::Vm, VM, 80),
        http(Ns::Vm, VM, 8080),
        http(Ns::Pls, NAT_IPS[0], 80),
    ]);
    services
}
