//! The event loop: records and notifications in, judged flows out, and everything detached at the end.
use std::collections::BTreeSet;
use std::io::{StdoutLock, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use probe_common::{Config, Counter, PacketRecord, PayloadRecord, SocketRecord};
use probe_model::explain::{Caveat, Code, observed};
use probe_model::lint::{self, Silence, silence};
use probe_model::path::probe::Conclusion;
use probe_model::path::together::Together;
use probe_model::path::{
    Confirmation, HookPoint, Namespace, Outcome as PathOutcome, Path, Patience, Seen, Sighting, Tracker,
    Watch,
};
use probe_model::world::nat::{NatSources, nat_sources};
use probe_model::world::{Endpoint, World};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Options;
use super::advice::Adviser;
use super::gaps::{Gap, Gaps};
use super::judge::{EventSource, FlowVerdict, Judgement, judge};
use super::kernel::{self, Names};
use super::neighbours::{self, Trouble};
use super::scope::{Class, HOOKS_MAX, Scope, Tunnels};
use super::tally::Tally;
use super::verdicts::{Event, Sockets, Verdicts};
use super::watch::watch;
use super::watched::{Watched, WatchedProbe};
use crate::attach::{
    Attachment, Counters, FunctionIds, Hook, HookKind, HookState, Probe, Record, Records, Settings, Skipped,
};
use crate::cli::{Outcome, Output};
use crate::doctor::privileges;
use crate::render::{trace as text, trace_json as json, trace_watched as beside};
use crate::sources::assemble::assemble;
use crate::sources::btf::Btf;
use crate::sources::changes::{Change, Changes};
use crate::sources::live::{self, LiveNode};
use crate::sources::maps::Globals;
use crate::sources::nf_conntrack;
use crate::sys;

/// How often undecided flows are looked at.
const POLL: Duration = Duration::from_millis(50);
/// How often interfaces are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How old the maps may be when a flow is judged by them.
const WORLD_AGE: Duration = Duration::from_millis(500);
/// How long after the last change of an interface the target may turn out to be another one: a pod's interface is
/// there before Cilium knows the pod.
const UNSETTLED: Duration = Duration::from_secs(20);
/// Notifications taken in one go.
const NOTIFICATIONS_MAX: usize = 4096;
/// Cilium's perf event array.
const EVENTS_MAP: &str = "cilium_events";

/// How a trace went.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Flows by verdict: allowed, dropped, inconclusive.
    pub flows: [u64; 3],
    /// Flows that were refused by whoever they reached; counted as allowed too.
    pub refused: u64,
    /// What our programs saw, kept and lost.
    pub counters: Counters,
    /// Records read from the ring buffer.
    pub records: u64,
    /// Records that could not be read.
    pub malformed: u64,
    /// Records that were made, and are neither read nor counted as lost: 0, or plsprobe's own counting is wrong.
    pub unaccounted: u64,
    /// Sightings dropped because too many flows were undecided.
    pub overflowed: u64,
    /// Packets of flows after they had been decided.
    pub later_packets: u64,
    /// SYNs that came again after their flow had been decided.
    pub later_retransmissions: u64,
    /// Notifications from an agent's socket or our probe, and those lost before it and not understood.
    pub notifications: (u64, u64, u64),
    /// Every hook that was wanted.
    pub hooks: Vec<Hook>,
    /// Times in which nothing could be seen at a place.
    pub gaps: Vec<Gap>,
    /// Hooks whose programs the kernel did not run each time.
    pub skipped: Vec<Skipped>,
    /// Records whose number was not above the one before: at most as many were lost uncounted.
    pub disordered: u64,
    /// Where Cilium's verdicts came from.
    pub events: EventSource,
    /// The maps that the last flows were judged by, which name consumers.
    pub world: World,
    /// Health probes that were watched.
    pub probes: Vec<WatchedProbe>,
    /// What the flows tell together.
    pub together: Together,
    /// Flows that the target's pods could not open soon after they had accepted one.
    pub egress_drops: u64,
    /// Connections that were reset after they had been reported and idle.
    pub late_resets: u64,
    /// Where no flow was seen: what may keep Private Link's packets away.
    pub silence: Option<Silence>,
    /// When it ended, in nanoseconds of `CLOCK_MONOTONIC`.
    pub ended_ns: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// When the first record was read, from the start on.
    pub first_record: Option<Duration>,
}

impl Summary {
    fn outcome(&self) -> Outcome {
        match self.flows {
            [_, dropped, _] if dropped > 0 => Outcome::Dropped,
            [allowed, _, 0] if allowed > 0 => Outcome::Allowed,
            _ => Outcome::Inconclusive,
        }
    }
}

/// What tells a trace to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Time,
    Count,
    Signal,
}

pub(super) async fn run(options: &Options) -> Result<Outcome> {
    let mut stop = Stop::new()?;
    let started = Instant::now();
    let mut session = Session::start(options).await?;
    let end = session.follow(&mut stop, started + options.duration).await;
    let summary = session.close(started)?;
    let end = end?;
    let mut out = std::io::stdout().lock();
    match options.output {
        Output::Text => text::summary(&summary, &mut out)?,
        Output::Json => json::summary(&summary, &mut out)?,
    }
    out.flush()?;
    let nothing = summary.flows == [0; 3];
    Ok(if end == End::Signal && nothing { Outcome::Interrupted } else { summary.outcome() })
}

/// Ctrl-C and SIGTERM; handled from the start, so that nothing is attached that is not detached.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        let handle = |kind| signal(kind).context("failed to handle signals");
        Ok(Self { interrupt: handle(SignalKind::interrupt())?, terminate: handle(SignalKind::terminate())? })
    }

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// One line for the operator, beside the data.
fn notice(text: &str) {
    // Nothing is left to do if stderr is gone.
    let _ = writeln!(std::io::stderr(), "plsprobe: {text}");
}

/// What every answer says of a trace with an expression.
fn packets_filtered() -> Caveat {
    let text = "an answer, reset or drop that `--filter` does not match was not seen".to_owned();
    Caveat { code: Code::PacketsFiltered, text }
}

/// How long the agent may take to pass on what Cilium's programs said, in nanoseconds.
const AGENTS_WORD_NS: u64 = 2_500_000_000;

struct Session<'o> {
    options: &'o Options,
    world: World,
    /// The last maps that had every traced pod, while one is gone from them.
    complete: Option<World>,
    node: LiveNode,
    world_read: Instant,
    scope: Scope,
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
    /// Earlier records of this attachment are the one's before it.
    since_ns: u64,
    first_record: Option<Instant>,
    /// Until when the target is looked up each second.
    unsettled_until: Instant,
    verdicts: Verdicts,
    tracker: Tracker,
    batch: Vec<Record>,
    undecoded: u64,
    flows: [u64; 3],
    refused: u64,
    was_lost: u64,
    /// What is watched, by which a flow that is lost from sight is judged.
    watch: Watch,
    gaps: Gaps,
    changes: Option<Changes>,
    /// When interfaces and filters were last looked at.
    looked: Instant,
    /// They have changed since.
    is_stale: bool,
    /// What is watched beside the flows.
    watched: Watched,
}

impl<'o> Session<'o> {
    async fn start(options: &'o Options) -> Result<Self> {
        let node = live::read(&options.live)?;
        let world = assemble(&node.node);
        let scope = Scope::new(&world, options)?;
        let btf = Btf::load()?;
        let mut config = kernel::config(&btf)?;
        // Only without it there is no verdict from our own probe; the hook's state says so.
        config.events_map_id =
            Globals::open(&options.live.bpffs)?.map(EVENTS_MAP).map_or(0, |events| events.id());
        let names = Names::new(&btf);
        let function_ids = kernel::function_ids(&btf);
        // Six megabytes, of which nothing else is wanted.
        drop(btf);
        let settings = settings(&scope, config, function_ids, options);
        // Before anything of ours is there, so that nothing that happens to it is missed.
        let changes = Changes::listen().inspect_err(|error| {
            notice(&format!("interfaces and filters are looked at once a second only: {error:#}"));
        });
        let changes = changes.ok();
        let (mut attachment, records) = Attachment::start(&settings)?;
        if let Err(error) = sees_packets(&attachment) {
            attachment.detach();
            return Err(error);
        }
        let probe = probe_state(&attachment);
        let verdicts = Verdicts::open(probe, Sockets::new(&options.live, scope.watched())).await;
        let tracker = Tracker::new(patience(verdicts.source()));
        let netns = sys::network_namespace().context("failed to read this network namespace's number")?;
        let names = names.with_namespaces(netns, scope.pod_namespaces.clone());
        let mut session = Self {
            options,
            world,
            complete: None,
            node,
            world_read: Instant::now(),
            scope,
            names,
            netns,
            settings,
            attachment,
            records,
            past: Tally::default(),
            advice: Adviser::default(),
            nat: None,
            since_ns: 0,
            first_record: None,
            unsettled_until: Instant::now(),
            verdicts,
            tracker,
            batch: Vec::new(),
            undecoded: 0,
            flows: [0; 3],
            refused: 0,
            was_lost: 0,
            watch: Watch::default(),
            gaps: Gaps::new(now_ns()),
            changes,
            looked: Instant::now(),
            is_stale: false,
            watched: Watched::default(),
        };
        session.refresh_watch();
        session.announce();
        Ok(session)
    }

    /// Says what is watched, and what is not.
    fn announce(&self) {
        for leftover in self.attachment.leftovers() {
            notice(&format!("removed a leftover of an earlier run, {leftover}"));
        }
        self.announce_hooks();
        self.announce_verdicts();
    }

    fn announce_hooks(&self) {
        let hooks: Vec<_> = self.attachment.hooks().collect();
        let attached: Vec<_> =
            hooks.iter().filter(|hook| hook.state.is_attached()).map(|hook| hook.place.as_str()).collect();
        notice(&format!("tracing `{}` at {}", self.options.dst, attached.join(", ")));
        // Without the one on Cilium's notifications there is another source, which is said below.
        let rest = hooks.iter().copied().filter(|hook| hook.kind != HookKind::CiliumEvents);
        for line in text::not_attached(rest) {
            notice(&format!("not attached: {line}"));
        }
        if !self.scope.left_out.is_empty() {
            notice(&format!(
                "left out, since a trace takes {HOOKS_MAX} hooks at most: {}; trace single pods to see them",
                self.scope.left_out.join(", ")
            ));
        }
        if self.options.no_tc {
            notice(text::NO_TC_COST);
        }
    }

    fn announce_verdicts(&self) {
        notice(&match self.verdicts.source() {
            EventSource::Probe(means) => format!("Cilium's verdicts come from its own notifications ({means})"),
            EventSource::MonitorSocket => "this kernel refuses a probe on Cilium's notifications; its verdicts come from the agent's monitor socket".to_owned(),
            EventSource::Hubble => "this kernel refuses a probe on Cilium's notifications and the agent has no monitor socket; its verdicts come from Hubble, which does not tell packets of one connection apart".to_owned(),
            EventSource::None(why) => {
                format!("no notification of Cilium's can be read ({why}); verdicts come from its maps")
            }
        });
    }

    async fn follow(&mut self, stop: &mut Stop, until: Instant) -> Result<End> {
        let mut poll = interval(POLL);
        let mut housekeeping = interval(HOUSEKEEPING);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.requested() => return Ok(End::Signal),
                () = sleep_until(until) => return Ok(End::Time),
                read = self.records.next_batch(&mut self.batch) => {
                    read.context("failed to read our ring buffer")?;
                    self.first_record.get_or_insert_with(Instant::now);
                    self.take_batch();
                }
                event = self.verdicts.next() => self.note(event),
                changed = changes(&mut self.changes) => self.hear(changed)?,
                _ = housekeeping.tick() => self.keep_house()?,
                _ = poll.tick() => {
                    if self.is_stale {
                        self.look_around()?;
                    }
                    self.take_notifications().await;
                    let paths = self.tracker.poll(now_ns());
                    self.report(paths)?;
                    self.report_late_resets(now_ns())?;
                }
            }
            if self.is_count_reached() {
                return Ok(End::Count);
            }
        }
    }

    fn is_count_reached(&self) -> bool {
        self.options.count.is_some_and(|count| self.flows.iter().sum::<u64>() >= count)
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Sighting(sighting) => self.tracker.push(*sighting),
            Event::Notice(text) => notice(&text),
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

    fn take_batch(&mut self) {
        // Its memory is kept for the next.
        let mut batch = std::mem::take(&mut self.batch);
        for record in batch.drain(..) {
            if record.header().ktime_ns < self.since_ns {
                continue;
            }
            match self.sighting(&record) {
                Ok(Some(sighting)) => self.tracker.push(sighting),
                Ok(None) => {}
                Err(error) => {
                    self.undecoded += 1;
                    if self.undecoded == 1 {
                        notice(&format!("a notification of Cilium's was not read: {error}"));
                    }
                }
            }
        }
        self.batch = batch;
    }

    fn sighting(&self, record: &Record) -> Result<Option<Sighting>, probe_model::cilium::DecodeError> {
        Ok(match record {
            Record::Packet(record) => self.packet_sighting(record),
            Record::Drop(record) => Sighting::from_drop(record).filter(|sighting| self.is_ours(sighting)),
            Record::Event(record) => Sighting::from_event(record)?,
            Record::Socket(record) => self.socket_sighting(record),
            Record::Payload(record) => self.payload_sighting(record),
        })
    }

    /// Hooks on the kernel see every namespace of the machine: only the node's and the traced pods' count.
    fn packet_sighting(&self, record: &PacketRecord) -> Option<Sighting> {
        let sighting = Sighting::from_packet(record, self.namespace_of_hook(record.netns)?)?;
        Some(self.at_its_role(sighting))
    }

    fn payload_sighting(&self, record: &PayloadRecord) -> Option<Sighting> {
        let sighting = Sighting::from_payload(record, self.namespace_of_hook(record.netns)?)?;
        Some(self.at_its_role(sighting))
    }

    /// A classifier does not say: it is always in our own.
    fn namespace_of_hook(&self, netns: u32) -> Option<Namespace> {
        if netns == 0 { Some(Namespace::Node) } else { self.namespace(netns) }
    }

    /// With what its place is to the node.
    fn at_its_role(&self, mut sighting: Sighting) -> Sighting {
        if let Seen::Hook { place, .. } | Seen::Payload { place, .. } = &mut sighting.seen {
            place.point = self.scope.point(*place);
        }
        sighting
    }

    fn socket_sighting(&self, record: &SocketRecord) -> Option<Sighting> {
        Sighting::from_socket(record, self.namespace(record.netns)?)
    }

    fn namespace(&self, netns: u32) -> Option<Namespace> {
        if netns == self.netns {
            Some(Namespace::Node)
        } else {
            self.scope.pod_namespaces.contains(&netns).then_some(Namespace::Pod)
        }
    }

    /// Drops are the whole machine's: those of other namespaces count only with the pod's own address on them.
    fn is_ours(&self, sighting: &Sighting) -> bool {
        let Seen::KernelDrop { netns, .. } = sighting.seen else { return true };
        let tuple = sighting.packet.tuple;
        netns == self.netns || self.scope.is_at(tuple.saddr) || self.scope.is_at(tuple.daddr)
    }

    /// Looks around; sees records that are lost.
    fn keep_house(&mut self) -> Result<()> {
        for message in self.attachment.program_news() {
            notice(&message);
        }
        self.look_around()?;
        if Instant::now() < self.unsettled_until {
            self.follow_target()?;
        }
        let lost = self.attachment.counters()?.lost();
        if lost > self.was_lost {
            notice(&format!(
                "{} records lost in the last second; narrow the filter or raise `--ring-bytes`",
                lost - self.was_lost
            ));
            self.was_lost = lost;
        }
        self.refresh_watch();
        Ok(())
    }

    /// The kernel tells of a change: looks at once, or soon if that was a moment ago.
    fn hear(&mut self, changed: std::io::Result<Change>) -> Result<()> {
        match changed {
            Ok(Change::Interfaces) => self.unsettled_until = Instant::now() + UNSETTLED,
            Ok(Change::Filters) => {}
            Err(error) => {
                notice(&format!("interfaces and filters are looked at once a second from now on: {error}"));
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
        for hook in self.attachment.recheck(&self.scope.interfaces) {
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

    /// Looks the target up again, and goes on with it if it was made anew or became more.
    fn follow_target(&mut self) -> Result<()> {
        // Where maps cannot be read, that is said when a flow is judged.
        let Ok(node) = live::refresh(&self.options.live, &self.node) else { return Ok(()) };
        let mut world = assemble(&node.node);
        world.inherit(&self.world);
        self.nat = None;
        // A pod that is being made anew is none for a while.
        let Ok(scope) = Scope::new(&world, self.options) else { return Ok(()) };
        if !scope.adds_to(&self.scope) {
            return Ok(());
        }
        (self.node, self.world, self.world_read) = (node, world, Instant::now());
        self.complete = None;
        self.switch(scope.in_place_of(&self.scope))
    }

    /// Attaches for another scope. The old attachment stays until the new one is there; a record is taken from the one
    /// or the other by its time, so that no packet is missed or seen twice.
    fn switch(&mut self, scope: Scope) -> Result<()> {
        let settings =
            settings(&scope, self.settings.config, self.settings.function_ids.clone(), self.options);
        let (attachment, records) = match Attachment::start(&settings) {
            Ok(started) => started,
            Err(error) => {
                notice(&format!(
                    "`{}` is another now, and nothing is attached for it: {error:#}",
                    self.options.dst
                ));
                return Ok(());
            }
        };
        let switched_ns = now_ns();
        let mut old = std::mem::replace(&mut self.attachment, attachment);
        let mut old_records = std::mem::replace(&mut self.records, records);
        let ended = self.past.end(&mut old, &mut old_records, &mut self.batch, notice);
        self.batch.retain(|record| record.header().ktime_ns < switched_ns);
        self.take_batch();
        ended?;
        (self.since_ns, self.was_lost) = (switched_ns, 0);
        (self.settings, self.scope) = (settings, scope);
        self.verdicts.watch(self.scope.watched());
        let places: BTreeSet<String> = self.attachment.hooks().map(|hook| hook.place.clone()).collect();
        self.gaps.keep_open(|place| places.contains(place), now_ns());
        notice(&format!("`{}` was made anew or became more", self.options.dst));
        let namespaces = self.scope.pod_namespaces.clone();
        self.names = std::mem::take(&mut self.names).with_namespaces(self.netns, namespaces);
        self.announce_hooks();
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
                notice(&match trouble {
                    Some(trouble) => format!("{trouble} at `{place}`; attached anew{gap}"),
                    None => format!("attached at `{place}` by {means}{gap}"),
                });
            }
            HookState::Lost(why) | HookState::Refused(why) => {
                self.unsettled_until = Instant::now() + UNSETTLED;
                self.gaps.open(place, why);
                notice(&format!("nothing is seen any more at `{place}`: {why}"));
            }
        }
    }

    fn report(&mut self, paths: Vec<Path>) -> Result<()> {
        let mut ours = paths.into_iter().filter(|path| path.is_of_node(self.netns)).peekable();
        if ours.peek().is_none() {
            return Ok(());
        }
        let ours: Vec<Path> = ours.collect();
        self.refresh_world();
        for path in ours {
            if self.scope.is_probe(&path) {
                self.report_probe(&path)?;
            }
            match self.scope.class(&path) {
                Class::Target if self.is_count_reached() => {}
                Class::Target => self.report_flow(path)?,
                Class::Other if self.scope.is_from_pod(&path) => self.report_egress(&path)?,
                Class::Probe | Class::Other => {}
            }
        }
        Ok(())
    }

    fn report_flow(&mut self, path: Path) -> Result<()> {
        if let Some(observed) = self.watched.observe(&path) {
            notice(&format!(
                "{} is a NAT IP of Private Link: a PROXY header with linkID {} came from it",
                observed.source, observed.link_id
            ));
            self.world.private_link.observed.push(observed);
            self.nat = None;
        }
        let judgement = self.judged(path);
        self.count(&judgement);
        self.watched.flow(&judgement);
        self.print(|out, session| match session.options.output {
            Output::Text => text::flow(session.world_of(&judgement.path), &judgement, &session.names, out),
            Output::Json => json::flow(session.world_of(&judgement.path), &judgement, &session.names, out),
        })
    }

    fn judged(&mut self, path: Path) -> Judgement {
        self.names.learn_interfaces(&path);
        self.names.learn_functions(&path);
        let is_departed = self.complete.as_ref().is_some_and(|complete| self.is_of_departed(complete, &path));
        let world = self.complete.as_ref().filter(|_| is_departed).unwrap_or(&self.world);
        let nat = self.nat.get_or_insert_with(|| nat_sources(world));
        let mut judgement = judge(world, path, self.verdicts.source(), &self.watch, nat);
        if judgement.confirmation.is_none() {
            judgement.confirmation = by_netfilter(&judgement.path);
        }
        judgement.remedies = self.advice.remedies(world, &judgement);
        judgement.is_beside = self.scope.is_beside(&judgement.path);
        judgement.causes = observed(world, &judgement.path, judgement.is_beside);
        judgement.explanation.caveats.extend(self.options.expression.is_some().then(packets_filtered));
        judgement.explanation.caveats.extend(self.gap_caveats(&judgement.path));
        judgement
    }

    fn report_probe(&mut self, path: &Path) -> Result<()> {
        let Some(probe) = self.watched.probe(&self.world, &self.scope, path) else { return Ok(()) };
        let judgement = self.judged(path.clone());
        self.print(|out, session| match session.options.output {
            Output::Text => beside::probe(&probe, Some(&judgement), out),
            Output::Json => beside::probe_json(&session.world, &probe, Some(&judgement), out),
        })
    }

    /// What a pod of the target's was not allowed to do soon after it had accepted a flow.
    fn report_egress(&mut self, path: &Path) -> Result<()> {
        let Some(drop) = self.watched.egress(path) else { return Ok(()) };
        self.print(|out, session| match session.options.output {
            Output::Text => beside::egress(&drop, out),
            Output::Json => beside::egress_json(&drop, out),
        })
    }

    fn report_late_resets(&mut self, now_ns: u64) -> Result<()> {
        for late in self.tracker.late_resets(now_ns) {
            if !self.watched.late_reset(&self.scope, &late) {
                continue;
            }
            self.print(|out, session| match session.options.output {
                Output::Text => beside::late_reset(&late, &session.names, out),
                Output::Json => beside::late_reset_json(&late, &session.names, out),
            })?;
        }
        Ok(())
    }

    fn print(&self, write: impl FnOnce(&mut StdoutLock<'_>, &Self) -> std::io::Result<()>) -> Result<()> {
        let mut out = std::io::stdout().lock();
        write(&mut out, self)?;
        out.flush()?;
        Ok(())
    }

    /// Where packets of this flow may have passed unseen.
    fn gap_caveats(&self, path: &Path) -> Vec<Caveat> {
        let now_ns = now_ns();
        // What was not seen is missed until now.
        let until_ns = match path.outcome {
            PathOutcome::NoAnswer | PathOutcome::Silent | PathOutcome::AnswerLost => now_ns,
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

    fn count(&mut self, judgement: &Judgement) {
        let slot = match judgement.verdict {
            FlowVerdict::Allowed => 0,
            FlowVerdict::Dropped => 1,
            FlowVerdict::Inconclusive => 2,
        };
        self.flows[slot] += 1;
        let refused = matches!(judgement.path.outcome, PathOutcome::Refused { .. });
        self.refused += u64::from(refused && judgement.verdict == FlowVerdict::Allowed);
    }

    /// Says anew what is watched.
    fn refresh_watch(&mut self) {
        let cilium = !matches!(self.verdicts.source(), EventSource::None(_));
        let lost_records = self.was_lost > 0 || self.past.counters.lost() > 0;
        let watch = watch(self.attachment.hooks(), &self.scope.interfaces);
        self.watch = Watch { cilium, lost_records, ..watch };
        if !self.scope.left_out.is_empty() {
            // Of some pods only: not to have seen a packet there means nothing.
            self.watch.points.retain(|(_, point)| !matches!(point, HookPoint::PodIn | HookPoint::PodOut));
        }
    }

    /// Reads the maps again, unless that was a moment ago. While a pod is gone from them, the last ones that had it
    /// explain its flows better.
    fn refresh_world(&mut self) {
        if self.world_read.elapsed() < WORLD_AGE {
            return;
        }
        match live::refresh(&self.options.live, &self.node) {
            Ok(node) => {
                self.node = node;
                let mut world = assemble(&self.node.node);
                world.inherit(&self.world);
                self.nat = None;
                let before = std::mem::replace(&mut self.world, world);
                self.advice.forget();
                let is_there = |id| self.world.endpoints.contains_key(id);
                if self.scope.endpoints.iter().all(is_there) {
                    self.complete = None;
                } else if self.complete.is_none() {
                    notice(
                        "a traced pod has gone from Cilium's maps; its flows are judged by the last ones that had it",
                    );
                    self.complete = Some(before);
                }
            }
            Err(error) => notice(&format!("flows are judged by older maps: {error:#}")),
        }
        self.world_read = Instant::now();
    }

    /// The target as `lint` knows it.
    fn lint_scope(&self) -> lint::Scope<'_> {
        match self.scope.endpoints.first() {
            Some(id) => lint::Scope::of_endpoint(&self.world, *id),
            None => lint::Scope::of_service(&self.world, &self.options.dst, &[]),
        }
    }

    /// The maps to judge a flow by: while a traced pod is gone from them, its flows by the last ones that had it.
    fn world_of(&self, path: &Path) -> &World {
        match &self.complete {
            Some(complete) if self.is_of_departed(complete, path) => complete,
            _ => &self.world,
        }
    }

    /// Whether a flow is one of a traced pod's that is gone.
    fn is_of_departed(&self, complete: &World, path: &Path) -> bool {
        let has_gone = |endpoint: &&Endpoint| {
            self.scope.endpoints.contains(&endpoint.id) && !self.world.endpoints.contains_key(&endpoint.id)
        };
        let gone = complete.endpoints.values().filter(has_gone);
        let ends = [path.tuple, path.final_tuple()].map(|tuple| [tuple.saddr, tuple.daddr]);
        gone.flat_map(|endpoint| &endpoint.addresses).any(|at| ends.as_flattened().contains(at))
    }

    /// Detaches before anything else, reports what is left undecided, and sums up.
    fn close(mut self, started: Instant) -> Result<Summary> {
        let elapsed = started.elapsed();
        self.refresh_watch();
        let hooks: Vec<Hook> = self.attachment.hooks().cloned().collect();
        let mut tally = self.past.clone();
        let ended = tally.end(&mut self.attachment, &mut self.records, &mut self.batch, notice);
        self.watch.lost_records |= tally.counters.lost() > 0;
        self.take_batch();
        let left = self.tracker.finish();
        self.report(left)?;
        self.report_late_resets(u64::MAX)?;
        ended?;
        let counters = tally.counters;
        let probes = self.watched.probes(&self.world, &self.scope);
        let is_silent = self.flows == [0; 3];
        let silence = is_silent.then(|| silence(&self.lint_scope(), probes_seen(&probes)));
        Ok(Summary {
            silence,
            flows: self.flows,
            refused: self.refused,
            counters,
            records: tally.records,
            malformed: tally.malformed,
            unaccounted: tally.unaccounted,
            overflowed: self.tracker.overflowed(),
            later_packets: self.tracker.later_packets(),
            later_retransmissions: self.tracker.later_retransmissions(),
            notifications: match self.verdicts.source() {
                EventSource::Probe(_) => {
                    (counters.get(Counter::EventSeen), counters.get(Counter::EventLost), self.undecoded)
                }
                _ => (self.verdicts.received, self.verdicts.lost, self.verdicts.undecoded),
            },
            hooks,
            gaps: self.gaps.all().to_vec(),
            skipped: tally.skipped,
            disordered: tally.disordered,
            events: self.verdicts.source().clone(),
            probes,
            together: self.watched.together,
            egress_drops: self.watched.egress_drops,
            late_resets: self.watched.late_resets,
            world: self.world,
            ended_ns: now_ns(),
            elapsed,
            first_record: self.first_record.map(|at| at - started),
        })
    }
}

/// What the probes tell of the node.
fn probes_seen(probes: &[WatchedProbe]) -> lint::Probes {
    let has = |wanted: Conclusion| probes.iter().any(|probe| probe.conclusion == wanted);
    match (has(Conclusion::Up), probes.is_empty()) {
        (true, _) => lint::Probes::Answered,
        (false, false) => lint::Probes::Failing,
        (false, true) => lint::Probes::Unseen,
    }
}

/// What netfilter's table says of a translation that Cilium's has not. It may be gone from there, or nobody may be
/// allowed to ask: then nothing is confirmed, which is no error.
fn by_netfilter(path: &Path) -> Option<Confirmation> {
    let (first, _) = path.translation()?;
    path.confirmation_by_netfilter(nf_conntrack::expected_answer(first).ok()??)
}

fn settings(scope: &Scope, config: Config, function_ids: FunctionIds, options: &Options) -> Settings {
    let Tunnels { vxlan_port, geneve_port } = scope.tunnels;
    Settings {
        filter: scope.filter(),
        config: Config { vxlan_port, geneve_port, ..config },
        function_ids,
        ring_bytes: options.ring_bytes,
        interfaces: scope.interfaces.clone(),
        no_tc: options.no_tc,
        probe: Probe::Any,
    }
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
fn now_ns() -> u64 {
    sys::monotonic().as_nanos() as u64
}

/// The next change, if somebody tells.
async fn changes(changes: &mut Option<Changes>) -> std::io::Result<Change> {
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
