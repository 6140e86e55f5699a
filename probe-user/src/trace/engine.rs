//! What sees and judges: our programs and their records, Cilium's word, the maps. Whose question a flow answers, it does
//! not know.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail};
use probe_common::{Config, Counter};
use probe_model::explain::{Caveat, Code};
use probe_model::path::evidence::LateReset;
use probe_model::path::{Confirmation, HookPoint, Outcome, Path, Patience, Tracker, Watch, proxy};
use probe_model::world::nat::{NatSources, nat_sources};
use probe_model::world::{Endpoint, World};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::Setup;
use super::advice::Adviser;
use super::coverage::Coverage;
use super::gaps::{Gap, Gaps};
use super::intake::Intake;
use super::judge::{EventSource, Judgement, asked_of_conntrack, judge};
use super::kernel::{self, Names};
use super::neighbours::{self, Trouble};
use super::reading::{self, Maps, Reading};
use super::scope::{HOOKS_MAX, Tunnels};
use super::streams::Order;
use super::tally::{Tally, Totals};
use super::verdicts::{Event, Sockets, Verdicts};
use super::watch::watch;
use crate::attach::{
    Attachment, Hook, HookKind, HookState, Probe, Record, Records, Settings, Skipped, TypeIds,
};
use crate::doctor::privileges;
use crate::render::trace as text;
use crate::sources::btf::Btf;
use crate::sources::changes::{Change, Changes};
use crate::sources::live::LiveNode;
use crate::sources::maps::Globals;
use crate::sources::nf_conntrack;
use crate::sys;

/// How often undecided flows are looked at.
const POLL: Duration = Duration::from_millis(50);
/// How often interfaces are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How old the maps may be when a flow is judged by them.
const WORLD_AGE: Duration = Duration::from_millis(500);
/// How old the maps may be when only the cluster's objects have changed.
const CLUSTER_AGE: Duration = Duration::from_secs(5);
/// How long after the last change of an interface a target may turn out to be another one: a pod's interface is there
/// before Cilium knows the pod.
const UNSETTLED: Duration = Duration::from_secs(20);
/// Decided flows that wait for the maps at most; of more, all are judged by the maps at hand.
const WAITING_MAX: usize = 4096;
/// Notifications taken in one go.
const NOTIFICATIONS_MAX: usize = 4096;
/// NAT IPs with linkIDs that are known from PROXY headers; then they are told again.
const OBSERVED_MAX: usize = 4096;
/// Cilium's perf event array.
const EVENTS_MAP: &str = "cilium_events";
/// How long the agent may take to pass on what Cilium's programs said, in nanoseconds.
const AGENTS_WORD_NS: u64 = 2_500_000_000;

/// Our programs on this node, and all that a flow is judged by.
pub(crate) struct Engine {
    pub(super) setup: Setup,
    pub(super) world: World,
    /// The last maps that had every traced pod, while one is gone from them, and since when.
    complete: Option<(World, Instant)>,
    node: Arc<LiveNode>,
    world_read: Instant,
    /// The maps are being read anew.
    reading: Option<Reading>,
    /// Flows that are decided and wait for that.
    waiting: Vec<Path>,
    coverage: Coverage,
    names: Names,
    netns: u32,
    settings: Settings,
    attachment: Attachment,
    records: Records,
    /// What earlier attachments counted.
    past: Tally,
    advice: Adviser,
    /// What is known of NAT IPs, of the maps at hand; made when it is asked for.
    nat: Option<NatSources>,
    /// NAT IPs that PROXY headers gave away.
    observed: BTreeSet<(IpAddr, u32)>,
    /// Until when targets are looked up each second.
    unsettled_until: Instant,
    /// Since when they are to be looked up, in maps that are read from then on.
    look_up_since: Option<Instant>,
    /// Changes of the cluster's objects that were looked at.
    cluster_changes: u64,
    verdicts: Verdicts,
    intake: Intake,
    was_lost: u64,
    /// What is watched, by which a flow that is lost from sight is judged.
    watch: Watch,
    gaps: Gaps,
    changes: Option<Changes>,
    /// When interfaces and filters were last looked at.
    looked: Instant,
    /// They have changed since.
    is_stale: bool,
    notices: Vec<String>,
    poll: Interval,
    housekeeping: Interval,
}

/// Why the engine woke.
pub(crate) enum Woken {
    /// Records were read.
    Records(io::Result<()>),
    /// A socket of the agent's brought something.
    Word(Event),
    /// The kernel told of a change.
    Change(io::Result<Change>),
    /// Another second.
    Housekeeping,
    /// Time to look at undecided flows.
    Poll,
    /// The maps were read anew.
    Maps(Result<Maps>),
}

/// What happened at a turn.
#[derive(Default)]
pub(crate) struct Turn {
    /// Flows that are decided.
    pub(super) paths: Vec<Path>,
    /// Connections that were reset long after they had been.
    pub(super) late_resets: Vec<LateReset>,
    /// Maps that were read anew since targets may be others: look them up there.
    pub(super) maps: Option<Maps>,
    /// Records were read.
    pub(super) has_records: bool,
}

impl Engine {
    /// Attaches for `coverage`, of which `node` and `world` are the maps.
    pub(super) async fn start(
        setup: Setup,
        node: LiveNode,
        world: World,
        coverage: Coverage,
    ) -> Result<Self> {
        let btf = Btf::load()?;
        let mut config = kernel::config(&btf)?;
        // Only without it there is no verdict from our own probe; the hook's state says so.
        config.events_map_id = events_map_id(&setup).unwrap_or(0);
        let names = Names::new(&btf);
        let type_ids = kernel::type_ids(&btf);
        // Six megabytes, of which nothing else is wanted.
        drop(btf);
        let netns = sys::network_namespace().context("failed to read this network namespace's number")?;
        let settings = settings(&coverage, config, type_ids, netns, &setup);
        let mut notices = Vec::new();
        // Before anything of ours is there, so that nothing that happens to it is missed.
        let changes = Changes::listen().map_err(|error| {
            notices.push(format!("interfaces and filters are looked at once a second only: {error:#}"));
        });
        let (mut attachment, records) = Attachment::start(&settings)?;
        if let Err(error) = sees_packets(&attachment) {
            attachment.detach();
            return Err(error);
        }
        let removed = attachment.leftovers().iter();
        notices.extend(removed.map(|leftover| format!("removed a leftover of an earlier run, {leftover}")));
        let probe = probe_state(&attachment);
        let verdicts = Verdicts::open(probe, Sockets::new(&setup.live, coverage.watched())).await;
        let tracker = Tracker::new(patience(verdicts.source())).with_capacity(setup.capacity);
        let names = names.with_namespaces(netns, coverage.pod_namespaces.clone());
        let mut engine = Self {
            setup,
            world,
            complete: None,
            node: Arc::new(node),
            world_read: Instant::now(),
            reading: None,
            waiting: Vec::new(),
            coverage,
            names,
            netns,
            settings,
            attachment,
            records,
            past: Tally::default(),
            advice: Adviser::default(),
            nat: None,
            observed: BTreeSet::new(),
            unsettled_until: Instant::now(),
            look_up_since: None,
            cluster_changes: 0,
            verdicts,
            intake: Intake::new(tracker, netns),
            was_lost: 0,
            watch: Watch::default(),
            gaps: Gaps::new(now_ns()),
            changes: changes.ok(),
            looked: Instant::now(),
            is_stale: false,
            notices,
            poll: patient(POLL),
            housekeeping: patient(HOUSEKEEPING),
        };
        engine.refresh_watch();
        sys::give_start_back();
        Ok(engine)
    }

    /// What there is to say to whoever looks, since the last time.
    pub(crate) fn take_notices(&mut self) -> Vec<String> {
        if let Some(error) = self.intake.not_read.take() {
            self.notice(format!("a notification of Cilium's was not read: {error}"));
        }
        std::mem::take(&mut self.notices)
    }

    fn notice(&mut self, text: impl Into<String>) {
        self.notices.push(text.into());
    }

    /// Waits until there is something to do. Cancelling it loses nothing.
    pub(crate) async fn wait(&mut self) -> Woken {
        tokio::select! {
            read = self.records.ready() => Woken::Records(read),
            event = self.verdicts.next() => Woken::Word(event),
            changed = changes(&mut self.changes) => Woken::Change(changed),
            _ = self.housekeeping.tick() => Woken::Housekeeping,
            _ = self.poll.tick(), if self.is_stale || self.intake.tracker.has_work() => Woken::Poll,
            read = outcome(&mut self.reading) => Woken::Maps(read),
        }
    }

    /// Does what there is to do.
    ///
    /// # Errors
    ///
    /// When our programs cannot be read or asked any more.
    pub(super) async fn turn(&mut self, woken: Woken) -> Result<Turn> {
        let mut turn = Turn::default();
        match woken {
            Woken::Records(read) => {
                read.context("failed to read our ring buffer")?;
                turn.has_records = self.take_records() > 0;
            }
            Woken::Word(event) => self.note(event),
            Woken::Change(changed) => self.hear(changed)?,
            Woken::Housekeeping => {
                self.keep_house()?;
                if Instant::now() < self.unsettled_until || self.has_cluster_changed() {
                    self.look_up_since = Some(Instant::now());
                }
                if self.look_up_since.is_some() {
                    self.begin_reading();
                }
            }
            Woken::Poll => {
                if self.is_stale {
                    self.look_around()?;
                }
                self.take_notifications().await;
                let decided = self.intake.tracker.poll(now_ns());
                turn.paths = self.with_young_maps(decided);
                turn.late_resets = self.intake.tracker.late_resets(now_ns());
            }
            Woken::Maps(read) => {
                turn.maps = self.take_reading(read);
                turn.paths = std::mem::take(&mut self.waiting);
            }
        }
        Ok(turn)
    }

    /// Whether the cluster's objects are others than at the last look, which was a while ago: in a large cluster something
    /// changes all the time, and pods of this node come with an interface.
    fn has_cluster_changed(&mut self) -> bool {
        if self.world_read.elapsed() < CLUSTER_AGE {
            return false;
        }
        let changes = self.setup.cluster.as_ref().map_or(0, |cluster| cluster.changed());
        let before = std::mem::replace(&mut self.cluster_changes, changes);
        changes != before
    }

    /// Paths that are the node's and that somebody wants. Cilium notifies of everybody's: to read the maps for those too
    /// would be the dearest of all that a trace does.
    fn wanted(&self, mut paths: Vec<Path>) -> Vec<Path> {
        paths.retain(|path| path.is_of_node(self.netns) && self.coverage.concerns(path));
        paths
    }

    /// These flows, and those that wait, if the maps are young; else they wait until the maps have been read.
    fn with_young_maps(&mut self, decided: Vec<Path>) -> Vec<Path> {
        let decided = self.wanted(decided);
        self.waiting.extend(decided);
        if self.is_fresh() || self.waiting.len() > WAITING_MAX {
            return std::mem::take(&mut self.waiting);
        }
        if !self.waiting.is_empty() {
            self.begin_reading();
        }
        Vec::new()
    }

    fn begin_reading(&mut self) {
        if self.reading.is_none() {
            self.reading = Some(Reading::begin(self.setup.live.clone(), Arc::clone(&self.node)));
        }
    }

    /// Goes on with maps that were read beside, unless others were read since they were begun. Gives them instead if targets
    /// are to be looked up in them first.
    fn take_reading(&mut self, read: Result<Maps>) -> Option<Maps> {
        let began = self.reading.take()?.began();
        let mut maps = match read {
            Ok(maps) if began >= self.world_read => maps,
            Ok(_) => return None,
            Err(error) => {
                // Without a flow to judge it does not matter, and the next look may succeed.
                if !self.waiting.is_empty() {
                    self.keep_older_maps(&error);
                }
                return None;
            }
        };
        self.complement(&mut maps.1);
        if self.look_up_since.is_some_and(|since| since <= began) {
            self.look_up_since = None;
            return Some(maps);
        }
        let (node, world) = *maps;
        self.take(node, world);
        if self.look_up_since.is_some() {
            self.begin_reading();
        }
        None
    }

    /// Flows that are not decided yet, by what was seen until now, and those that are and wait. They stay so.
    pub(crate) fn undecided(&mut self) -> Vec<Path> {
        self.take_records();
        let undecided = self.intake.tracker.undecided();
        let mut paths = self.waiting.clone();
        paths.extend(self.wanted(undecided));
        self.refresh_world_for(&paths);
        paths
    }

    /// Detaches before anything else; what is left undecided, and what went wrong.
    pub(super) fn finish(&mut self) -> (Turn, Result<()>) {
        self.refresh_watch();
        let mut notices = Vec::new();
        let each = |record: Record<'_>| self.intake.take(record, &self.coverage);
        let ended = self.past.end(&mut self.attachment, &mut self.records, each, |text| {
            notices.push(text.to_owned());
        });
        self.notices.extend(notices);
        self.watch.lost_records |= self.past.counters.lost() > 0;
        let left = self.intake.tracker.finish();
        let late_resets = self.intake.tracker.late_resets(u64::MAX);
        let mut paths = std::mem::take(&mut self.waiting);
        paths.extend(self.wanted(left));
        self.refresh_world_for(&paths);
        (Turn { paths, late_resets, ..Turn::default() }, ended)
    }

    /// What was counted by now, with this attachment's share while it is there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to read our counters.
    pub(crate) fn totals(&mut self) -> Result<Totals> {
        let mut tally = self.past.clone();
        let each = |record: Record<'_>| self.intake.take(record, &self.coverage);
        tally.add_running(&self.attachment, &mut self.records, each)?;
        Ok(self.totals_of(tally))
    }

    /// What was counted in all, after [`Self::finish`].
    pub(super) fn final_totals(&self) -> Totals {
        self.totals_of(self.past.clone())
    }

    fn totals_of(&self, tally: Tally) -> Totals {
        let notifications = match self.verdicts.source() {
            EventSource::Probe(_) => {
                let of = |counter| tally.counters.get(counter);
                [of(Counter::EventSeen), of(Counter::EventLost), self.intake.undecoded]
            }
            _ => [self.verdicts.received, self.verdicts.lost, self.verdicts.undecoded],
        };
        Totals {
            tally,
            notifications,
            overflowed: self.intake.tracker.overflowed(),
            later_packets: self.intake.tracker.later_packets(),
            later_retransmissions: self.intake.tracker.later_retransmissions(),
        }
    }

    /// Hooks whose programs the kernel did not run each time, by now.
    pub(crate) fn skipped(&self) -> Vec<Skipped> {
        self.attachment.skipped().unwrap_or_default()
    }

    pub(crate) fn hooks(&self) -> impl Iterator<Item = &Hook> {
        self.attachment.hooks()
    }

    pub(crate) fn source(&self) -> &EventSource {
        self.verdicts.source()
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// How long a traced pod has been gone from Cilium's maps, if one is.
    pub(super) fn departed_for(&self) -> Option<Duration> {
        self.complete.as_ref().map(|(_, since)| since.elapsed())
    }

    pub(crate) fn world_age(&self) -> Duration {
        self.world_read.elapsed()
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// Gaps that reach into the time since `since_ns`.
    pub(super) fn gaps_since(&self, since_ns: u64) -> Vec<Gap> {
        self.gaps.between(since_ns, u64::MAX).cloned().collect()
    }

    /// Says which hooks are attached, and which are not; `what` is done there: ``tracing `pls-app` ``.
    pub(crate) fn hooks_told(&self, what: &str) -> Vec<String> {
        let hooks: Vec<_> = self.attachment.hooks().collect();
        let attached: Vec<_> =
            hooks.iter().filter(|hook| hook.state.is_attached()).map(|hook| hook.place.as_str()).collect();
        let mut told = vec![format!("{what} at {}", attached.join(", "))];
        // Without the one on Cilium's notifications there is another source, which is said too.
        let rest = hooks.iter().copied().filter(|hook| hook.kind != HookKind::CiliumEvents);
        told.extend(text::not_attached(rest).into_iter().map(|line| format!("not attached: {line}")));
        if !self.coverage.left_out.is_empty() {
            told.push(format!(
                "left out, since a trace takes {HOOKS_MAX} hooks at most: {}; trace single pods to see them",
                self.coverage.left_out.join(", ")
            ));
        }
        if self.setup.no_tc {
            told.push(text::NO_TC_COST.to_owned());
        }
        told
    }

    /// Says where verdicts come from.
    pub(crate) fn verdicts_told(&self) -> String {
        match self.verdicts.source() {
            EventSource::Probe(means) => format!("Cilium's verdicts come from its own notifications ({means})"),
            EventSource::MonitorSocket => "this kernel refuses a probe on Cilium's notifications; its verdicts come from the agent's monitor socket".to_owned(),
            EventSource::Hubble => "this kernel refuses a probe on Cilium's notifications and the agent has no monitor socket; its verdicts come from Hubble, which does not tell packets of one connection apart".to_owned(),
            EventSource::None(why) => {
                format!("no notification of Cilium's can be read ({why}); verdicts come from its maps")
            }
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Sighting(sighting) => self.intake.hear(&sighting, &self.coverage),
            Event::Notice(text) => self.notice(text),
        }
    }

    /// Takes the notifications that are there, a bounded number: no flow is to be judged without one that has come.
    async fn take_notifications(&mut self) {
        for _ in 0..NOTIFICATIONS_MAX {
            tokio::select! {
                biased;
                event = self.verdicts.next() => self.note(event),
                () = std::future::ready(()) => return,
            }
        }
    }

    /// Takes in the records that are there, a bounded number; how many.
    fn take_records(&mut self) -> usize {
        let taken = self.records.take(|record| self.intake.take(record, &self.coverage));
        self.tell_streams();
        taken
    }

    /// Tells the programs which streams' packets they need not make records of.
    fn tell_streams(&mut self) {
        let orders = self.intake.streams.take_orders();
        let told = orders.into_iter().map(|order| match order {
            Order::Count { stream, since_ns } => self.attachment.count_only(&stream, since_ns),
            Order::Record { stream } => self.attachment.record_each(&stream),
        });
        // One is enough to know, of thousands.
        if let Some(error) = told.filter_map(Result::err).last() {
            self.notice(format!("{error:#}"));
        }
        if self.intake.streams.was_late() && !self.watch.lost_records {
            self.watch.lost_records = true;
            self.notice("records were read so late that a new connection's may be missing");
        }
    }

    /// Looks around; sees records that are lost.
    fn keep_house(&mut self) -> Result<()> {
        let news = self.attachment.program_news();
        self.notices.extend(news);
        self.look_around()?;
        self.follow_events_map();
        self.intake.streams.forget(now_ns());
        let lost = self.attachment.counters()?.lost();
        if lost > self.was_lost {
            self.notice(format!(
                "{} records lost in the last second; narrow the filter or raise `--ring-bytes`",
                lost - self.was_lost
            ));
            self.was_lost = lost;
        }
        self.refresh_watch();
        Ok(())
    }

    /// Cilium's notifications go to another map after it was upgraded: attaches anew, for that one.
    fn follow_events_map(&mut self) {
        // Where there is none, Cilium is being made anew, or gone: the old one's number harms nobody.
        let Some(id) = events_map_id(&self.setup) else { return };
        if id == self.settings.config.events_map_id {
            return;
        }
        let config = Config { events_map_id: id, ..self.settings.config };
        let coverage = self.coverage.clone();
        match self.attach_anew(coverage, config) {
            Ok(()) => self.notice("Cilium has another map for its notifications; attached anew for it"),
            Err(error) => {
                self.notice(format!("Cilium's new map for its notifications is not heard: {error:#}"));
            }
        }
    }

    /// The kernel tells of a change: looks at once, or soon if that was a moment ago.
    fn hear(&mut self, changed: io::Result<Change>) -> Result<()> {
        match changed {
            Ok(Change::Interfaces) => self.unsettled_until = Instant::now() + UNSETTLED,
            Ok(Change::Filters) => {}
            Err(error) => {
                self.notice(format!(
                    "interfaces and filters are looked at once a second from now on: {error}"
                ));
                self.changes = None;
            }
        }
        if self.looked.elapsed() < POLL {
            self.is_stale = true;
            return Ok(());
        }
        self.look_around()
    }

    /// Sees interfaces go and come, and filters that are in our way, and attaches anew.
    fn look_around(&mut self) -> Result<()> {
        (self.looked, self.is_stale) = (Instant::now(), false);
        for hook in self.attachment.recheck(&self.coverage.interfaces) {
            self.tell(&hook, None);
        }
        for (place, trouble) in neighbours::troubled(&self.attachment.classifiers())? {
            self.gaps.open(&place, &trouble.to_string());
            let hook = match trouble {
                Trouble::Behind => self.attachment.reattach(&place),
                Trouble::Removed => self.attachment.restore(&place),
            };
            if let Some(hook) = hook {
                self.tell(&hook, Some(trouble));
            }
        }
        self.gaps.looked(now_ns());
        Ok(())
    }

    /// Whether the maps at hand were read a moment ago.
    pub(super) fn is_fresh(&self) -> bool {
        self.world_read.elapsed() < WORLD_AGE
    }

    /// Reads the maps to look targets up again; `None` where they cannot be read, which is said when a flow is judged.
    pub(super) fn look_again(&mut self) -> Option<(LiveNode, World)> {
        self.read_again().ok()
    }

    fn read_again(&self) -> Result<(LiveNode, World)> {
        let (node, mut world) = reading::read(&self.setup.live, &self.node)?;
        self.complement(&mut world);
        Ok((node, world))
    }

    /// Adds what the maps do not say: what was learnt before, and the cluster's objects.
    fn complement(&self, world: &mut World) {
        world.inherit(&self.world);
        self.setup.put_cluster_into(world);
    }

    /// Goes on with these maps: every traced pod is in them.
    pub(super) fn adopt(&mut self, node: LiveNode, world: World) {
        (self.node, self.world, self.world_read) = (Arc::new(node), world, Instant::now());
        (self.complete, self.nat) = (None, None);
        self.advice.forget();
    }

    /// Attaches for other scopes, if they need anything else. The old attachment stays until the new one is there; a
    /// record is taken from the one or the other by its time, so that no packet is missed or seen twice.
    ///
    /// Gives from when on, by the records' clock, all is seen that they need; 0 if it was before.
    ///
    /// # Errors
    ///
    /// When nothing could be attached for them; all is as before then.
    pub(super) fn cover(&mut self, coverage: Coverage) -> Result<u64> {
        if coverage.is_same_as(&self.coverage) {
            self.coverage = coverage;
            return Ok(0);
        }
        self.attach_anew(coverage, self.settings.config)?;
        Ok(self.intake.since_ns)
    }

    fn attach_anew(&mut self, coverage: Coverage, config: Config) -> Result<()> {
        let settings = settings(&coverage, config, self.settings.type_ids.clone(), self.netns, &self.setup);
        let (attachment, records) = Attachment::start(&settings)?;
        let switched_ns = now_ns();
        let mut old = std::mem::replace(&mut self.attachment, attachment);
        let mut old_records = std::mem::replace(&mut self.records, records);
        let mut notices = Vec::new();
        // Both see what comes from now on; the old one's is left out.
        self.intake.until_ns = switched_ns;
        let each = |record: Record<'_>| self.intake.take(record, &self.coverage);
        let ended = self.past.end(&mut old, &mut old_records, each, |text| notices.push(text.to_owned()));
        self.intake.until_ns = u64::MAX;
        notices.extend(ended.err().map(|error| format!("{error:#}")));
        self.notices.extend(notices);
        (self.intake.since_ns, self.was_lost) = (switched_ns, 0);
        self.intake.streams.begin_anew();
        (self.settings, self.coverage) = (settings, coverage);
        self.verdicts.watch(self.coverage.watched());
        let places: BTreeSet<String> = self.attachment.hooks().map(|hook| hook.place.clone()).collect();
        self.gaps.keep_open(|place| places.contains(place), now_ns());
        let namespaces = self.coverage.pod_namespaces.clone();
        self.names = std::mem::take(&mut self.names).with_namespaces(self.netns, namespaces);
        self.refresh_watch();
        Ok(())
    }

    /// Says what became of a hook.
    fn tell(&mut self, hook: &Hook, trouble: Option<Trouble>) {
        let place = &hook.place;
        match &hook.state {
            HookState::Attached(means) => {
                let now_ns = now_ns();
                let gap = self.gaps.close(place, now_ns).map(|gap| gap.length(now_ns));
                let gap = gap.map_or_else(String::new, |gap| {
                    format!("; nothing was seen there for {}", text::seconds(gap))
                });
                self.notice(match trouble {
                    Some(trouble) => format!("{trouble} at `{place}`; attached anew{gap}"),
                    None => format!("attached at `{place}` by {means}{gap}"),
                });
            }
            HookState::Lost(why) | HookState::Refused(why) => {
                self.unsettled_until = Instant::now() + UNSETTLED;
                self.gaps.open(place, why);
                self.notice(format!("nothing is seen any more at `{place}`: {why}"));
            }
        }
    }

    /// Takes note of a NAT IP that a flow's PROXY header gives away.
    pub(super) fn observe(&mut self, path: &Path) {
        let Some(observed) = proxy::observed(path) else { return };
        if self.observed.len() >= OBSERVED_MAX {
            self.observed.clear();
        }
        if self.observed.insert((observed.source, observed.link_id)) {
            self.notice(format!(
                "{} is a NAT IP of Private Link: a PROXY header with linkID {} came from it",
                observed.source, observed.link_id
            ));
            let known = &mut self.world.private_link.observed;
            if !known.contains(&observed) && known.len() < OBSERVED_MAX {
                known.push(observed);
            }
            self.nat = None;
        }
    }

    /// Judges a flow by the maps at hand.
    pub(super) fn judge(&mut self, path: Path) -> Judgement {
        self.names.learn_interfaces(&path);
        self.names.learn_functions(&path);
        let departed = self.complete.as_ref().map(|(complete, _)| complete);
        let departed = departed.filter(|complete| self.is_of_departed(complete, &path));
        if departed.is_none() {
            // Where the maps are of an earlier time, what conntrack has now would not go with them.
            self.node.lookups.complete(&mut self.world, |world| asked_of_conntrack(world, &path));
        }
        let world = departed.unwrap_or(&self.world);
        let nat = self.nat.get_or_insert_with(|| nat_sources(world));
        let mut judgement = judge(world, path, self.verdicts.source(), &self.watch, nat);
        if judgement.confirmation.is_none() {
            judgement.confirmation = by_netfilter(&judgement.path);
        }
        judgement.remedies = self.advice.remedies(world, &judgement);
        judgement.explanation.caveats.extend(self.gap_caveats(&judgement.path));
        judgement
    }

    /// Where packets of this flow may have passed unseen.
    fn gap_caveats(&self, path: &Path) -> Vec<Caveat> {
        let now_ns = now_ns();
        // What was not seen is missed until now.
        let until_ns = match path.outcome {
            Outcome::NoAnswer | Outcome::Silent | Outcome::AnswerLost => now_ns,
            _ => path.last_ns,
        };
        let caveat = |gap: &Gap| Caveat {
            code: Code::HookGap,
            text: format!(
                "nothing was seen at {} for {} ({})",
                gap.place,
                text::seconds(gap.length(now_ns)),
                gap.why
            ),
        };
        self.gaps.between(path.first_ns, until_ns).map(caveat).collect()
    }

    /// Says anew what is watched.
    fn refresh_watch(&mut self) {
        let cilium = !matches!(self.verdicts.source(), EventSource::None(_));
        let lost_records =
            self.was_lost > 0 || self.past.counters.lost() > 0 || self.intake.streams.was_late();
        let watch = watch(self.attachment.hooks(), &self.coverage.interfaces);
        self.watch = Watch { cilium, lost_records, ..watch };
        if !self.coverage.left_out.is_empty() {
            // Of some pods only: not to have seen a packet there means nothing.
            self.watch.points.retain(|(_, point)| !matches!(point, HookPoint::PodIn | HookPoint::PodOut));
        }
    }

    /// Reads the maps again if there is anything to judge by them, unless that was a moment ago.
    fn refresh_world_for(&mut self, paths: &[Path]) {
        if paths.is_empty() || self.is_fresh() {
            return;
        }
        match self.read_again() {
            Ok((node, world)) => self.take(node, world),
            Err(error) => self.keep_older_maps(&error),
        }
    }

    fn keep_older_maps(&mut self, error: &Error) {
        self.world_read = Instant::now();
        self.notice(format!("flows are judged by older maps: {error:#}"));
    }

    /// Goes on with these maps, and keeps the last ones that had every traced pod if these do not.
    pub(super) fn take(&mut self, node: LiveNode, world: World) {
        (self.node, self.world_read, self.nat) = (Arc::new(node), Instant::now(), None);
        let before = std::mem::replace(&mut self.world, world);
        self.advice.forget();
        let is_there = |id| self.world.endpoints.contains_key(id);
        if self.coverage.endpoints.iter().all(is_there) {
            self.complete = None;
        } else if self.complete.is_none() {
            self.notice(
                "a traced pod has gone from Cilium's maps; its flows are judged by the last ones that had it",
            );
            self.complete = Some((before, Instant::now()));
        }
    }

    /// The maps to judge a flow by: while a traced pod is gone from them, its flows by the last ones that had it.
    pub(super) fn world_of(&self, path: &Path) -> &World {
        match &self.complete {
            Some((complete, _)) if self.is_of_departed(complete, path) => complete,
            _ => &self.world,
        }
    }

    /// Whether a flow is one of a traced pod's that is gone.
    fn is_of_departed(&self, complete: &World, path: &Path) -> bool {
        let has_gone = |endpoint: &&Endpoint| {
            self.coverage.endpoints.contains(&endpoint.id) && !self.world.endpoints.contains_key(&endpoint.id)
        };
        let gone = complete.endpoints.values().filter(has_gone);
        let ends = [path.tuple, path.final_tuple()].map(|tuple| [tuple.saddr, tuple.daddr]);
        gone.flat_map(|endpoint| &endpoint.addresses).any(|at| ends.as_flattened().contains(at))
    }
}

/// What netfilter's table says of a translation that Cilium's has not. It may be gone from there, or nobody may be
/// allowed to ask: then nothing is confirmed, which is no error.
fn by_netfilter(path: &Path) -> Option<Confirmation> {
    let (first, _) = path.translation()?;
    path.confirmation_by_netfilter(nf_conntrack::expected_answer(first).ok()??)
}

fn settings(coverage: &Coverage, config: Config, type_ids: TypeIds, netns: u32, setup: &Setup) -> Settings {
    let Tunnels { vxlan_port, geneve_port } = coverage.tunnels;
    Settings {
        filter: coverage.filter.clone(),
        config: Config { vxlan_port, geneve_port, ..config },
        type_ids,
        ring_bytes: setup.ring_bytes,
        interfaces: coverage.interfaces.clone(),
        // As `namespace` has it: the node's own and the traced pods'.
        namespaces: coverage.pod_namespaces.iter().copied().chain([netns]).collect(),
        no_tc: setup.no_tc,
        probe: Probe::Any,
    }
}

/// The number of the map that Cilium's notifications go to.
fn events_map_id(setup: &Setup) -> Option<u32> {
    let events = Globals::open(&setup.live.bpffs).and_then(|globals| globals.map(EVENTS_MAP));
    events.ok().map(|events| events.id())
}

/// How long flows wait, by the way that Cilium's word takes.
fn patience(source: &EventSource) -> Patience {
    let patience = Patience::default();
    match source {
        EventSource::MonitorSocket | EventSource::Hubble => Patience { word_ns: AGENTS_WORD_NS, ..patience },
        EventSource::Probe(_) | EventSource::None(_) => patience,
    }
}

/// The clock of the records.
pub(crate) fn now_ns() -> u64 {
    sys::monotonic().as_nanos() as u64
}

/// Ticks that are not made up for when they come late.
fn patient(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// What was read, if the maps are being read.
async fn outcome(reading: &mut Option<Reading>) -> Result<Maps> {
    match reading {
        Some(reading) => reading.outcome().await,
        None => std::future::pending().await,
    }
}

/// The next change, if somebody tells.
async fn changes(changes: &mut Option<Changes>) -> io::Result<Change> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// Without any hook that packets pass there is nothing to trace by.
fn sees_packets(attachment: &Attachment) -> Result<()> {
    let wanted = |hook: &&Hook| matches!(hook.kind, HookKind::Classifier | HookKind::Devices);
    if attachment.hooks().filter(wanted).any(|hook| hook.state.is_attached()) {
        return Ok(());
    }
    let refused = text::not_attached(attachment.hooks().filter(wanted)).join("; ");
    let lacking = privileges::lacking();
    let next = if lacking.is_empty() {
        "run `plsprobe doctor`".to_owned()
    } else {
        format!("run as root, in a container with {}", lacking.join(", "))
    };
    bail!("no hook that packets pass could be attached: {refused}; {next}")
}

/// How our probe on Cilium's notifications is attached, or why not.
fn probe_state(attachment: &Attachment) -> Result<&'static str, String> {
    let events = attachment.hooks().find(|hook| hook.kind == HookKind::CiliumEvents);
    match events.map(|hook| &hook.state) {
        Some(HookState::Attached(means)) => Ok(means),
        Some(HookState::Refused(why) | HookState::Lost(why)) => Err(why.clone()),
        None => Err("not wanted".to_owned()),
    }
}
