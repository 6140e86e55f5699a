//! The agent's engine and all who ask it: watches what it is told to, answers sessions, and begins anew when it must.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Error, Result};
use probe_model::world::World;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};

use super::clock::Moment;
use super::history::{Found, Lack};
use super::log::Log;
use super::record::{Record, Recorder};
use super::serving::Neighbours;
use super::session::{Line, Request};
use super::status::{Board, HookStatus, Status};
use crate::attach::{Hook, HookState};
use crate::cli::{Outcome, Output};
use crate::render::history as render;
use crate::target::private_link_targets;
use crate::trace::hub::{Hub, Node, ViewId};
use crate::trace::judge::{EventSource, FlowVerdict};
use crate::trace::listener::{Paper as _, Printer};
use crate::trace::scope::Scope;
use crate::trace::session::Stop;
use crate::trace::summary::Summary;
use crate::trace::view::View;
use crate::trace::{Ask, Setup};

/// Sessions at a time.
pub(super) const SESSIONS_MAX: usize = 64;
/// Clients that are told what happened, at a time.
const REMEMBERING_MAX: usize = 8;
/// How often things are said and looked at.
const SECOND: Duration = Duration::from_secs(1);
/// How often targets that are not there are looked up, and Services that ask for Private Link. Pods of what is watched
/// are followed at once.
const LOOK_UP: Duration = Duration::from_secs(5);
/// How long to wait before the node is looked at again where nothing can be seen.
const RETRY: Duration = Duration::from_secs(2);

/// What somebody wants of the keeper.
pub(super) enum Command {
    /// A trace.
    Open(Request, Line),
    /// The end of one, by its client's number.
    Stop(u64),
}

/// What it keeps, and whom it tells.
pub(super) struct Keep {
    pub(super) setup: Setup,
    /// TARGETs to watch.
    pub(super) targets: Vec<String>,
    pub(super) record: Rc<RefCell<Record>>,
    pub(super) board: Arc<Board>,
    pub(super) log: Arc<Log>,
    pub(super) neighbours: Neighbours,
}

impl Keep {
    /// A view that is remembered.
    fn recording(&self, ask: Ask, scope: Scope) -> View {
        View::new(ask, scope, None, Box::new(Recorder(Rc::clone(&self.record))))
    }
}

/// All that comes to a target.
fn watching(name: &str) -> Ask {
    Ask { dst: name.to_owned(), ..Ask::default() }
}

/// Keeps watch until it is told to stop.
///
/// # Errors
///
/// Never of what may pass: that is said, and tried again.
pub(super) async fn run(keep: Keep, mut commands: mpsc::Receiver<Command>, mut stop: Stop) -> Result<()> {
    let mut status = Status::default();
    loop {
        let started = Box::pin(Keeper::start(&keep, &status)).await;
        let trouble = match started {
            Ok(mut keeper) => match keeper.watch(&mut commands, &mut stop).await {
                Ok(()) => {
                    keeper.close();
                    return Ok(());
                }
                Err(error) => {
                    status = keeper.status.clone();
                    keeper.fail(&error);
                    error
                }
            },
            Err(error) => error,
        };
        let told = format!("{trouble:#}");
        keep.log.say(&format!("nothing is seen for now: {told}; looking again in {} s", RETRY.as_secs()));
        let again = Instant::now() + RETRY;
        loop {
            status.trouble = Some(told.clone());
            (status.said, status.hooks) = (Some(SystemTime::now()), Vec::new());
            keep.board.write(status.clone());
            tokio::select! {
                () = stop.requested() => return Ok(()),
                () = sleep_until(again) => break,
                Some(command) = commands.recv() => refuse(command, &told),
            }
        }
    }
}

/// Nothing can be traced now.
fn refuse(command: Command, why: &str) {
    if let Command::Open(_, line) = command {
        line.end(2, format!("the agent sees nothing for now: {why}"));
    }
}

/// A trace that somebody waits for.
struct Session {
    until: Instant,
    line: Line,
    /// Its client's number of it.
    id: u64,
    /// Its client has ended it.
    is_stopped: bool,
}

struct Keeper<'k> {
    keep: &'k Keep,
    hub: Hub,
    /// What is watched, by name.
    watched: BTreeMap<String, ViewId>,
    sessions: BTreeMap<ViewId, Session>,
    status: Status,
    looked_up: Option<Instant>,
    /// Why some are not watched, as was said.
    unwatched: BTreeMap<String, String>,
    /// A permit for each that may be told what happened.
    remembering: Arc<Semaphore>,
}

impl<'k> Keeper<'k> {
    /// Attaches once for all that is to be watched and is there.
    async fn start(keep: &'k Keep, before: &Status) -> Result<Self> {
        let node = Node::read(&keep.setup)?;
        keep.neighbours.learn(node.world.kubernetes.nodes.as_ref());
        let (mut views, mut watched) = (Vec::new(), BTreeMap::new());
        let mut unwatched = BTreeMap::new();
        for name in wanted(&keep.targets, &node.world) {
            let ask = watching(&name);
            match node.scope(&ask, &keep.setup) {
                Ok(scope) => {
                    watched.insert(name, views.len() as ViewId);
                    views.push(keep.recording(ask, scope));
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    keep.log.say(&format!("`{name}` is not watched: {why}"));
                    unwatched.insert(name, why);
                }
            }
        }
        for name in watched.keys() {
            keep.log.say(&format!("watching `{name}`"));
        }
        let hub = Hub::for_many(keep.setup.clone(), node, views).await?;
        let status = Status { trouble: None, ..before.clone() };
        let looked_up = Some(Instant::now());
        let (sessions, remembering) = (BTreeMap::new(), Arc::new(Semaphore::new(REMEMBERING_MAX)));
        let mut keeper = Self { keep, hub, watched, sessions, status, looked_up, unwatched, remembering };
        for text in keeper.hub.engine.hooks_told("looking") {
            keep.log.say(&text);
        }
        keep.log.say(&keeper.hub.engine.verdicts_told());
        keeper.say_status();
        Ok(keeper)
    }

    async fn watch(&mut self, commands: &mut mpsc::Receiver<Command>, stop: &mut Stop) -> Result<()> {
        let mut second = Instant::now() + SECOND;
        loop {
            let next_end = self.sessions.values().map(|session| session.until).min().unwrap_or(second);
            tokio::select! {
                () = stop.requested() => return Ok(()),
                Some(command) = commands.recv() => self.take(command),
                () = sleep_until(second.min(next_end)) => {}
                woken = self.hub.wait() => self.hub.turn(woken).await?,
            }
            for text in self.hub.take_news() {
                self.keep.log.say(&text);
            }
            self.end_sessions();
            if Instant::now() >= second {
                second = Instant::now() + SECOND;
                self.each_second();
            }
        }
    }

    fn each_second(&mut self) {
        if self.looked_up.is_none_or(|at| at.elapsed() >= LOOK_UP) {
            self.look_up();
        }
        if let Err(error) = self.hub.settle().and_then(|()| self.hub.narrow()) {
            self.keep.log.say(&format!("more is watched than is asked for: {error:#}"));
        }
        self.say_status();
    }

    /// Watches what is to be watched and was not there, and lets go of what is no more.
    fn look_up(&mut self) {
        self.looked_up = Some(Instant::now());
        let world = self.hub.engine.world();
        self.keep.neighbours.learn(world.kubernetes.nodes.as_ref());
        let wanted = wanted(&self.keep.targets, world);
        for (name, id) in std::mem::take(&mut self.watched) {
            if wanted.contains(&name) {
                self.watched.insert(name, id);
            } else {
                self.keep.log.say(&format!("`{name}` is not watched any more"));
                self.hub.forget(id);
            }
        }
        for name in wanted {
            if self.watched.contains_key(&name) {
                continue;
            }
            let ask = watching(&name);
            match self.hub.add(&ask, |scope| self.keep.recording(ask.clone(), scope)) {
                Ok(id) => {
                    self.keep.log.say(&format!("watching `{name}`"));
                    self.unwatched.remove(&name);
                    self.watched.insert(name, id);
                }
                Err(error) => {
                    // Once, not every few seconds for as long as it is so.
                    let why = format!("{error:#}");
                    if self.unwatched.get(&name) != Some(&why) {
                        self.keep.log.say(&format!("`{name}` is not watched: {why}"));
                        self.unwatched.insert(name, why);
                    }
                }
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Open(request, line) => self.open(request, line),
            Command::Stop(id) => {
                let stopped = self.sessions.values_mut().filter(|session| id != 0 && session.id == id);
                stopped.for_each(|session| (session.until, session.is_stopped) = (Instant::now(), true));
            }
        }
    }

    fn open(&mut self, request: Request, line: Line) {
        if let Some(since) = request.since {
            self.remember(&request, since, line);
            return;
        }
        if self.sessions.len() >= SESSIONS_MAX {
            self.status.sessions_refused += 1;
            line.end(2, format!("{SESSIONS_MAX} traces are running in this agent, which is its limit"));
            return;
        }
        let Request { ask, duration, count, output, id, .. } = request;
        let listener = Box::new(Printer { output, paper: line.clone() });
        match self.hub.add(&ask.clone(), |scope| View::new(ask, scope, count, listener)) {
            Ok(view) => {
                self.status.sessions_opened += 1;
                let until = Instant::now() + duration;
                self.sessions.insert(view, Session { until, line, id, is_stopped: false });
                self.hub.announce(view);
            }
            Err(error) => line.end(2, format!("{error:#}")),
        }
    }

    /// Answers from what is kept.
    fn remember(&mut self, request: &Request, since: Duration, line: Line) {
        let output = request.output;
        let scope = match self.hub.scope(&request.ask) {
            Ok(scope) => scope,
            Err(error) => return line.end(2, format!("{error:#}")),
        };
        let Ok(permit) = Arc::clone(&self.remembering).try_acquire_owned() else {
            self.status.sessions_refused += 1;
            let full = format!("{REMEMBERING_MAX} others are being told what happened, which is the limit");
            return line.end(2, full);
        };
        let now = Moment::now();
        let since_ns = now.unix_ns.saturating_sub(since.as_nanos() as u64);
        let mut found = self.keep.record.borrow().history.since(since_ns, &scope);
        let newest = request.count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
        found.flows.drain(..found.flows.len().saturating_sub(newest));
        let is_watched = self.watched.values().any(|id| self.hub.covers(*id, &scope));
        // There may be more of them than a client reads at once: it is waited for, but not by the engine.
        tokio::spawn(async move {
            match told(&found, output, since, now, is_watched, &line).await {
                Ok(outcome) => line.end(outcome.code().into(), String::new()),
                Err(error) => line.end(2, format!("{error:#}")),
            }
            drop(permit);
        });
    }

    /// Ends sessions whose time has come, that had what they asked for, or that nobody reads any more.
    fn end_sessions(&mut self) {
        let now = Instant::now();
        let mut over: BTreeSet<ViewId> = self.hub.done().into_iter().collect();
        let late = self.sessions.iter().filter(|(_, session)| session.until <= now);
        over.extend(late.map(|(id, _)| *id));
        for id in over {
            let Some(session) = self.sessions.remove(&id) else {
                self.lose(id);
                continue;
            };
            if session.line.is_gone() {
                self.hub.forget(id);
            } else if let Some(closed) = self.hub.remove(id) {
                finish(session, closed);
            }
        }
    }

    /// What is watched cannot be recorded: says so, and watches it anew.
    fn lose(&mut self, id: ViewId) {
        if let Some(error) = self.hub.view_mut(id).and_then(View::take_error) {
            self.keep.log.say(&format!("a flow was not recorded: {error:#}"));
        }
    }

    fn say_status(&mut self) {
        let record = self.keep.record.borrow();
        let engine = &mut self.hub.engine;
        self.status.said = Some(SystemTime::now());
        self.status.serving_since = self.status.serving_since.or(self.status.said);
        self.status.hooks = engine.hooks().map(hook_status).collect();
        self.status.verdicts_from = match engine.source() {
            EventSource::Probe(_) => "probe",
            EventSource::MonitorSocket => "monitor",
            EventSource::Hubble => "hubble",
            EventSource::None(_) => "maps",
        };
        self.status.cilium_version.clone_from(&engine.world().version);
        if let Ok(totals) = engine.totals() {
            self.status.records_made = totals.tally.counters.made();
            self.status.records_read = totals.tally.records;
            self.status.records_lost = totals.tally.counters.lost();
            self.status.records_malformed = totals.tally.malformed;
        }
        self.status.flows = record.flows;
        self.status.flows_unjudged = record.unjudged;
        self.status.world_age = engine.world_age();
        self.status.sessions = self.sessions.len() as u64;
        self.status.history_bytes = record.history.bytes();
        self.status.history_flows = record.history.len() as u64;
        self.status.targets = self.watched.keys().cloned().collect();
        self.status.missing = engine.world().missing.iter().map(|own| own.what.clone()).collect();
        self.keep.board.write(self.status.clone());
    }

    /// The agent stops: every session gets what it has.
    fn close(self) {
        let mut sessions = self.sessions;
        for (id, closed) in self.hub.close() {
            if let Some(session) = sessions.remove(&id) {
                finish(session, closed);
            }
        }
    }

    /// The engine cannot go on: every session is told why.
    fn fail(self, error: &Error) {
        for session in self.sessions.into_values() {
            session.line.end(2, format!("the agent's engine stopped: {error:#}"));
        }
        drop(self.hub.close());
    }
}

/// What is to be watched: what was named, and every Service that asks for Private Link.
fn wanted(targets: &[String], world: &World) -> BTreeSet<String> {
    targets.iter().cloned().chain(private_link_targets(world)).collect()
}

fn hook_status(hook: &Hook) -> HookStatus {
    let state = match &hook.state {
        HookState::Attached(means) => Ok(*means),
        HookState::Lost(why) | HookState::Refused(why) => Err(why.clone()),
    };
    HookStatus { place: hook.place.clone(), state }
}

fn finish(session: Session, closed: Result<Summary>) {
    match closed {
        Ok(summary) => {
            let is_interrupted = session.is_stopped && summary.flows == [0; 3];
            let outcome = if is_interrupted { Outcome::Interrupted } else { summary.outcome() };
            session.line.end(outcome.code().into(), String::new());
        }
        Err(error) => session.line.end(2, format!("{error:#}")),
    }
}

/// Writes what is kept, and what is not.
async fn told(
    found: &Found,
    output: Output,
    since: Duration,
    now: Moment,
    is_watched: bool,
    line: &Line,
) -> Result<Outcome> {
    for flow in &found.flows {
        let lines = match output {
            Output::Text => {
                format!("{}\n{}", render::when(flow.first_ns, now.unix_ns), flow.text()).into_bytes()
            }
            Output::Json => flow.json()?,
        };
        if !line.data_waiting(lines).await {
            break;
        }
    }
    let lacks: Vec<String> = found.lacks.iter().map(|lack| lack_text(*lack, now)).collect();
    let verdicts = [FlowVerdict::Allowed, FlowVerdict::Dropped, FlowVerdict::Inconclusive];
    let verdicts =
        verdicts.map(|verdict| found.flows.iter().filter(|flow| flow.verdict == verdict).count() as u64);
    let summary = render::Summary { verdicts, since, lacks, is_watched };
    line.data_waiting(render::summary(&summary, output)).await;
    Ok(Outcome::of_flows(verdicts))
}

fn lack_text(lack: Lack, now: Moment) -> String {
    let when = |ns| render::when(ns, now.unix_ns);
    match lack {
        Lack::BeganAt(ns) => format!("the agent has been watching only since {}", when(ns)),
        Lack::FineUpTo(ns) => format!("of flows that were answered not all are kept up to {}", when(ns)),
        Lack::TroubledUpTo(ns) => {
            format!("of flows that were not answered not all are kept up to {}", when(ns))
        }
        Lack::UnjudgedUpTo(ns) => {
            format!("there were more flows than could be judged one by one, up to {}", when(ns))
        }
    }
}
