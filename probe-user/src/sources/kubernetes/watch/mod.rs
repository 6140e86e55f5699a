//! The Kubernetes API, watched: lists that an agent keeps up to date for as long as it runs.
//!
//! A thread per list reads it and then watches it (`follow`); of each object what an answer needs is decoded once, when
//! it comes (`kept`), and shared by every World from then on. So nothing is asked, copied or decoded for an answer.
//!
//! What that takes in memory (measured, 100,000 pods and so on; in bytes): a pod with four labels 1,450, a backend in a slice
//! 220, a service 1,350, a node 1,000, a small policy 810. So pods are watched of this node alone; others are known by the
//! slices of the Services that they are behind.

mod follow;
mod kept;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use probe_model::world::{
    Missing, World,
    kubernetes::{
        EndpointSlice, Kubernetes, List, Namespace, Node, Pod, PolicyKind, PolicyObject, PolicyOrigin,
        Service,
    },
};

pub use kept::Limits;

use super::{
    COST, PREFIX,
    access::Access,
    decode,
    resources::{RESOURCES, Resource},
};
use crate::sources::{
    beyond::{disagreements, list_name},
    http::Stopper,
    utc,
};
use follow::Follower;
use kept::{CidrGroup, Kept, NamedEvent, OneMap, Table};

/// The list of which other nodes' may be left out.
const PODS: &str = "pods";
/// Address space for a thread's stack, of which it touches a few pages; JSON may be 128 levels deep.
const STACK: usize = 1 << 20;
/// For a connection, at least.
const CONNECT: Duration = Duration::from_secs(3);
/// What of pods is not known where only those of this node are watched.
const OTHERS: &str = "pods of other nodes";

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long a watch is asked to last at least, and at most twice as long: the server ends it then.
    pub watch: Duration,
    /// How much longer it may be silent before it is given up.
    pub margin: Duration,
    /// The first wait after a failure; it doubles each time.
    pub first: Duration,
    /// The longest of them.
    pub longest: Duration,
    /// Before what may not be read, or is not there, is asked for again.
    pub denied: Duration,
    /// Before a list that was too long is read again.
    pub given_up: Duration,
    /// Before a list that is not watched is read again.
    pub anew: Duration,
    /// How old what is known may become, after something failed, before that is said.
    pub old: Duration,
}

impl Pace {
    /// As a cluster of thousands of nodes bears it.
    pub const USUAL: Self = Self {
        watch: Duration::from_mins(5),
        margin: Duration::from_secs(30),
        first: Duration::from_millis(250),
        longest: Duration::from_secs(30),
        denied: Duration::from_mins(1),
        given_up: Duration::from_mins(10),
        anew: Duration::from_mins(3),
        old: Duration::from_secs(10),
    };
}

/// What is watched, and how much of it kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The node of which pods are watched; `None` for those of every node.
    pub node: Option<String>,
    /// How long to wait for what.
    pub pace: Pace,
    /// For each list.
    pub limits: Limits,
}

impl Options {
    /// Slices of 80,000 backends, nodes or services by the ten thousand: each list within some 20 MB, two dozen of policies.
    pub const LIMITS: Limits = Limits { objects: 100_000, bytes: 16 << 20 };

    /// Pods of one node, and all else.
    pub fn of_node(node: impl Into<String>) -> Self {
        Self { node: Some(node.into()), pace: Pace::USUAL, limits: Self::LIMITS }
    }
}

/// A list as it is watched, for whoever asks how that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListStatus {
    /// Its name, as in `kubernetes/services`.
    pub name: &'static str,
    /// Objects that are known; `None` if the list is not.
    pub objects: Option<usize>,
    /// Bytes of their JSON, as far as it is kept.
    pub bytes: usize,
    /// How long ago the API server last said something of it.
    pub heard: Option<Duration>,
    /// What is wrong.
    pub trouble: Option<String>,
}

/// Watches the API for as long as it lives.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
}

/// What the threads and the [`Watcher`] share.
struct Shared {
    access: Access,
    options: Options,
    store: Store,
    lists: Vec<Watched>,
    changes: AtomicU64,
    /// Whether somebody was told of a change, and has not looked since.
    is_told: AtomicBool,
    tell: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("access", &self.access).finish_non_exhaustive()
    }
}

/// One list's watch.
struct Watched {
    resource: &'static Resource,
    stopper: Stopper,
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// When the API server last said something of it.
    heard: Option<(Instant, SystemTime)>,
    trouble: Option<Trouble>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    why: String,
    /// Whether it will be so for a while, however lately something was heard.
    is_lasting: bool,
}

/// Every list's objects.
struct Store {
    services: Kept<Service>,
    endpoint_slices: Kept<EndpointSlice>,
    pods: Kept<Pod>,
    namespaces: Kept<Namespace>,
    nodes: Kept<Node>,
    /// By [`PolicyKind::ALL`].
    policies: [Kept<PolicyObject>; 3],
    cidr_groups: Kept<CidrGroup>,
    events: Kept<NamedEvent>,
    cilium_config: Kept<OneMap>,
}

impl Store {
    fn new(limits: Limits) -> Self {
        let policy = |decode| Kept::new(limits, decode);
        Self {
            services: Kept::new(limits, |object| decode::service(object).map(Some)),
            endpoint_slices: Kept::new(limits, decode::endpoint_slice),
            pods: Kept::new(limits, |object| decode::pod(object).map(Some)),
            namespaces: Kept::new(limits, |object| decode::namespace(object).map(Some)),
            nodes: Kept::new(limits, |object| decode::node(object).map(Some)),
            policies: [
                policy(|object| Ok(Some(decode::policy_object(PolicyKind::ALL[0], object)))),
                policy(|object| Ok(Some(decode::policy_object(PolicyKind::ALL[1], object)))),
                policy(|object| Ok(Some(decode::policy_object(PolicyKind::ALL[2], object)))),
            ],
            cidr_groups: Kept::new(limits, |object| {
                let (name, prefixes) = decode::cidr_group(object)?;
                Ok(Some(CidrGroup { name, prefixes }))
            }),
            events: Kept::new(limits, |object| {
                let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
                let (namespace, name) = (text("namespace"), text("name"));
                Ok(decode::event(object)?.map(|event| NamedEvent { namespace, name, event }))
            }),
            cilium_config: Kept::new(limits, |object| Ok(Some(OneMap(decode::config_map(object)?)))),
        }
    }

    /// The objects of a list, by its name.
    fn table(&self, name: &str) -> &dyn Table {
        let policies = PolicyKind::ALL.into_iter().position(|kind| list_name(kind) == name);
        if let Some(at) = policies {
            return &self.policies[at];
        }
        match name {
            "services" => &self.services,
            "endpointslices" => &self.endpoint_slices,
            PODS => &self.pods,
            "namespaces" => &self.namespaces,
            "nodes" => &self.nodes,
            "ciliumcidrgroups" => &self.cidr_groups,
            "events" => &self.events,
            "cilium-config" => &self.cilium_config,
            other => unreachable!("there is a table for `{other}`"),
        }
    }
}

impl Watched {
    fn new(resource: &'static Resource) -> Self {
        Self { resource, stopper: Stopper::default(), state: Mutex::default() }
    }

    fn hear(&self) {
        self.lock().heard = Some((Instant::now(), SystemTime::now()));
    }

    /// Whether there was none before, or is none now.
    fn set_trouble(&self, trouble: Option<Trouble>) -> bool {
        let state = &mut *self.lock();
        let is_other = state.trouble.is_some() != trouble.is_some();
        state.trouble = trouble;
        is_other
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with the list, so that it must be said: with what is known of it since when.
    fn trouble(&self, is_known: bool, old: Duration) -> Option<String> {
        let state = self.lock().clone();
        let Some(trouble) = state.trouble else {
            return (!is_known).then(|| "it is being read for the first time".to_owned());
        };
        match state.heard {
            Some((heard, _)) if is_known && !trouble.is_lasting && heard.elapsed() < old => None,
            Some((_, heard)) if is_known => {
                Some(format!("{}; what is known of it is as of {}", trouble.why, utc::text(heard)))
            }
            _ => Some(trouble.why),
        }
    }
}

impl Shared {
    /// Something that is kept is another now.
    fn change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        if !self.is_told.swap(true, Ordering::AcqRel) {
            (self.tell)();
        }
    }
}

impl Watcher {
    /// Begins to watch. `tell` is called by another thread when something has changed, and then no more until
    /// [`Self::put_into`] was; it must not wait for anything.
    ///
    /// # Errors
    ///
    /// If no thread can be started. Whoever does not answer is a missing fact, for as long as it does not.
    pub fn start(
        mut access: Access,
        options: Options,
        tell: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        // Nobody waits for these threads.
        let connect = &mut access.client.patience.connect;
        *connect = CONNECT.max(*connect);
        let store = Store::new(options.limits);
        let shared = Shared {
            access,
            options,
            store,
            lists: RESOURCES.iter().map(Watched::new).collect(),
            changes: AtomicU64::new(0),
            is_told: AtomicBool::new(false),
            tell: Box::new(tell),
        };
        let watcher = Self { shared: Arc::new(shared) };
        for at in 0..watcher.shared.lists.len() {
            let shared = Arc::clone(&watcher.shared);
            let thread = thread::Builder::new().name("kubernetes".to_owned()).stack_size(STACK);
            let run = move || {
                let watched = &shared.lists[at];
                Follower::new(&shared, watched, shared.store.table(watched.resource.name)).run();
            };
            thread.spawn(run).context("failed to start a thread")?;
        }
        Ok(watcher)
    }

    /// A number that grows when something changes: what is known, or what is wrong.
    pub fn changed(&self) -> u64 {
        self.shared.changes.load(Ordering::Acquire)
    }

    /// Whether every list was read, or something is wrong with it.
    pub fn is_settled(&self) -> bool {
        self.lists().iter().all(|list| list.objects.is_some() || list.trouble.is_some())
    }

    /// How each list is.
    pub fn lists(&self) -> Vec<ListStatus> {
        let status = |watched: &Watched| {
            let (size, state) =
                (self.shared.store.table(watched.resource.name).size(), watched.lock().clone());
            ListStatus {
                name: watched.resource.name,
                objects: size.map(|(objects, _)| objects),
                bytes: size.map_or(0, |(_, bytes)| bytes),
                heard: state.heard.map(|(heard, _)| heard.elapsed()),
                trouble: state.trouble.map(|trouble| trouble.why),
            }
        };
        self.shared.lists.iter().map(status).collect()
    }

    /// Puts what is known of the cluster in the place of what `world` has of it, and says what is missing. Policies of
    /// files stay.
    pub fn put_into(&self, world: &mut World) {
        self.shared.is_told.store(false, Ordering::Release);
        let is_ours = |what: &str| what == "kubernetes" || what.starts_with(PREFIX);
        world.missing.retain(|missing| !is_ours(&missing.what));
        let before = std::mem::take(&mut world.kubernetes);
        let is_of_file = |own: &&Arc<PolicyObject>| own.origin != PolicyOrigin::Kubernetes;
        let files: Vec<_> = before.policies.shared().iter().filter(is_of_file).cloned().collect();
        let known = self.known(&files, &mut world.missing);
        // Objects of the API have names of their own: only a file can contradict one.
        if !files.is_empty() {
            let told = disagreements(&before.policies);
            world.disagreements.retain(|one| !told.contains(one));
            world.disagreements.extend(disagreements(&known.policies));
        }
        world.kubernetes = known;
    }

    fn known(&self, files: &[Arc<PolicyObject>], missing: &mut Vec<Missing>) -> Kubernetes {
        let Shared { store, access, options, .. } = &*self.shared;
        let mut lists = Lists { shared: &self.shared, missing: Vec::new(), known: 0 };
        let mut known = Kubernetes {
            asked: Some(access.origin.clone()),
            services: lists.read("services", &store.services),
            endpoint_slices: lists.read("endpointslices", &store.endpoint_slices),
            pods: lists.read(PODS, &store.pods),
            namespaces: lists.read("namespaces", &store.namespaces),
            nodes: lists.read("nodes", &store.nodes),
            cidr_groups: lists.read("ciliumcidrgroups", &store.cidr_groups).map(|groups| {
                groups.iter().map(|group| (group.name.clone(), group.prefixes.clone())).collect()
            }),
            events: lists.read("events", &store.events).map(|events| {
                let mut events: Vec<_> = events.iter().map(|own| own.event.clone()).collect();
                decode::latest_first(&mut events);
                events.into()
            }),
            cilium_config: lists
                .read("cilium-config", &store.cilium_config)
                .and_then(|maps| maps.iter().next().map(|map| map.0.clone())),
            ..Kubernetes::default()
        };
        let mut policies = Vec::new();
        for (kind, kept) in PolicyKind::ALL.into_iter().zip(&store.policies) {
            let told = lists.missing.len();
            if let Some(objects) = lists.read(list_name(kind), kept) {
                policies.extend(objects.shared().iter().cloned());
                // What is old may lack some.
                if lists.missing.len() == told {
                    known.complete.insert(kind);
                }
            }
        }
        known.policies = policies.into_iter().chain(files.iter().cloned()).collect();
        missing.extend(lists.told());
        if let (Some(node), true) = (&options.node, known.pods.is_some()) {
            let why = format!(
                "pods of `{node}` alone are watched; labels and named ports of others are not known, \
                 nor those that are behind no Service"
            );
            missing.push(Missing { what: format!("{PREFIX}{OTHERS}"), why });
        }
        known
    }
}

impl Drop for Watcher {
    /// Ends every thread: at once where it waits for the API server or for time to pass, else when it has connected, or
    /// failed to.
    fn drop(&mut self) {
        for watched in &self.shared.lists {
            watched.stopper.stop();
        }
    }
}

/// Reads the lists, and says what is missing.
struct Lists<'a> {
    shared: &'a Shared,
    /// Names, reasons, and what that costs.
    missing: Vec<(&'static Resource, String)>,
    /// Lists of which something is known.
    known: usize,
}

impl Lists<'_> {
    fn read<T: kept::Named + PartialEq>(&mut self, name: &str, kept: &Kept<T>) -> Option<List<T>> {
        let watched = self.shared.lists.iter().find(|watched| watched.resource.name == name);
        let watched = watched.expect("every list is watched");
        let objects = kept.objects();
        let is_known = matches!(objects, Ok(Some(_)));
        let trouble = watched.trouble(is_known, self.shared.options.pace.old);
        self.missing.extend(objects.as_ref().err().cloned().or(trouble).map(|why| (watched.resource, why)));
        self.known += usize::from(is_known);
        objects.ok().flatten()
    }

    /// One line, not a dozen, where nobody has answered yet.
    fn told(&self) -> Vec<Missing> {
        let first = self.missing.first().map(|(_, why)| why);
        if let Some(why) = first
            && self.known == 0
            && self.missing.iter().all(|(_, own)| own == why)
        {
            let why = format!("{why} ({}); {COST}", self.shared.access.origin);
            return vec![Missing { what: "kubernetes".to_owned(), why }];
        }
        let each = self.missing.iter().map(|(resource, why)| Missing {
            what: format!("{PREFIX}{}", resource.name),
            why: format!("{why}; {}", resource.cost),
        });
        each.collect()
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
