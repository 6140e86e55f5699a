//! One engine and those who ask it: the one trace of the command line, or all that an agent has.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Error, Result};
use probe_model::world::World;
use tokio::time::Instant;

use super::coverage::Coverage;
use super::engine::{Engine, Turn, Woken};
use super::scope::Scope;
use super::summary::Summary;
use super::view::{Ended, View};
use super::{Ask, Setup};
use crate::sources::assemble::assemble;
use crate::sources::live::{self, LiveNode};

/// How long flows are judged at one turn for those who may miss some: half of the time, where it never ends.
const JUDGING_MAX: Duration = Duration::from_millis(25);
/// How long the flows of a pod that is gone are judged by the maps that had it.
const DEPARTED_MAX: Duration = Duration::from_mins(2);

/// A view's name, never used again.
pub(crate) type ViewId = u64;

/// An engine and its views.
pub(crate) struct Hub {
    pub(crate) engine: Engine,
    views: BTreeMap<ViewId, View>,
    next: ViewId,
    /// What is looked at whoever asks.
    base: Option<Scope>,
    /// More is looked at than is asked for.
    is_wide: bool,
    /// What everyone was told.
    news: Vec<String>,
}

/// The node as it is before anything is attached.
pub(crate) struct Node {
    live: LiveNode,
    /// What is known of it.
    pub(crate) world: World,
}

impl Node {
    /// What it says a question is about.
    ///
    /// # Errors
    ///
    /// For a target that is unknown.
    pub(crate) fn scope(&self, ask: &Ask, setup: &Setup) -> Result<Scope> {
        Scope::new(&self.world, ask, setup)
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// As [`live::read`].
    pub(crate) fn read(setup: &Setup) -> Result<Self> {
        let live = live::read(&setup.live)?;
        let mut world = assemble(&live.node);
        setup.put_cluster_into(&mut world);
        Ok(Self { live, world })
    }
}

impl Hub {
    /// Attaches for one question.
    ///
    /// # Errors
    ///
    /// When nothing can be attached.
    pub(crate) async fn for_one(setup: Setup, node: Node, view: View) -> Result<Self> {
        let coverage = Coverage::of([&view.scope], setup.no_tc);
        let Node { live, world } = node;
        let engine = Engine::start(setup, live, world, coverage).await?;
        Ok(Self::new(engine, vec![view], None))
    }

    /// Attaches at the node's own interfaces and for these questions, whose views are numbered from 0 on; others may come.
    ///
    /// # Errors
    ///
    /// When nothing can be attached, or no source knows the uplink.
    pub(crate) async fn for_many(setup: Setup, node: Node, views: Vec<View>) -> Result<Self> {
        let Node { live, world } = node;
        let base = Scope::of_the_node(&world, &setup)?;
        let scopes = std::iter::once(&base).chain(views.iter().map(|view| &view.scope));
        let coverage = Coverage::of(scopes, setup.no_tc);
        let engine = Engine::start(setup, live, world, coverage).await?;
        Ok(Self::new(engine, views, Some(base)))
    }

    fn new(engine: Engine, views: Vec<View>, base: Option<Scope>) -> Self {
        let views: BTreeMap<_, _> = (0..).zip(views).collect();
        let next = views.len() as ViewId;
        Self { engine, views, next, base, is_wide: false, news: Vec::new() }
    }

    /// Takes another question.
    ///
    /// # Errors
    ///
    /// For a target that is unknown, or when nothing can be attached for it. The others go on.
    pub(crate) fn add(&mut self, ask: &Ask, view: impl FnOnce(Scope) -> View) -> Result<ViewId> {
        // The maps at hand may be older than what is asked for.
        if !self.engine.is_fresh() {
            let (node, world) = self.engine.look_again().context("Cilium's maps cannot be read")?;
            self.engine.adopt(node, world);
        }
        let scope = self.scope(ask)?;
        let coverage = self.coverage_with(&[], Some(&scope));
        let seen_since_ns = self.engine.cover(coverage)?;
        let before = self.engine.totals()?;
        let id = self.next;
        self.next += 1;
        self.views.insert(id, view(scope).after(before, seen_since_ns));
        Ok(id)
    }

    pub(crate) fn view(&self, id: ViewId) -> Option<&View> {
        self.views.get(&id)
    }

    pub(crate) fn view_mut(&mut self, id: ViewId) -> Option<&mut View> {
        self.views.get_mut(&id)
    }

    /// Views that have had what they asked for, or whose listeners are gone.
    pub(crate) fn done(&self) -> Vec<ViewId> {
        self.views.iter().filter(|(_, view)| view.is_done()).map(|(id, _)| *id).collect()
    }

    /// Ends one question: what it waits for is judged by what was seen. The others go on.
    ///
    /// # Errors
    ///
    /// What its listener says, or the kernel of our counters. `None` if there is no such view.
    pub(crate) fn remove(&mut self, id: ViewId) -> Option<Result<Summary>> {
        let mut view = self.views.remove(&id)?;
        self.is_wide = true;
        let at = Instant::now();
        for path in self.engine.undecided() {
            view.take(&mut self.engine, &path, &mut None, false);
        }
        for text in self.engine.take_notices() {
            view.notice(&text);
            self.tell(&text);
        }
        let hooks = self.engine.hooks().cloned().collect();
        let closed = self.engine.totals().and_then(|mut totals| {
            totals.tally.add_skipped(self.engine.skipped());
            view.close(&self.engine, Ended { totals, hooks, at })
        });
        Some(closed)
    }

    /// Ends one question without a word: nobody listens any more.
    pub(crate) fn forget(&mut self, id: ViewId) {
        self.is_wide |= self.views.remove(&id).is_some();
    }

    /// Waits until there is something to do. Cancelling it loses nothing.
    pub(crate) async fn wait(&mut self) -> Woken {
        self.engine.wait().await
    }

    /// Does what there is to do, and tells those whom it concerns.
    ///
    /// # Errors
    ///
    /// When the engine cannot go on.
    pub(crate) async fn turn(&mut self, woken: Woken) -> Result<()> {
        let mut turn = self.engine.turn(woken).await?;
        if let Some(maps) = turn.maps.take() {
            let (node, world) = *maps;
            self.follow_targets(node, world);
        }
        self.give(&turn);
        Ok(())
    }

    fn give(&mut self, turn: &Turn) {
        if turn.has_records {
            self.views.values_mut().for_each(View::note_record);
        }
        let began = Instant::now();
        for path in &turn.paths {
            let is_late = began.elapsed() > JUDGING_MAX;
            let mut judged = None;
            for view in self.views.values_mut() {
                view.take(&mut self.engine, path, &mut judged, is_late);
            }
        }
        for late in &turn.late_resets {
            for view in self.views.values_mut() {
                view.take_late_reset(&self.engine, late);
            }
        }
        for text in self.engine.take_notices() {
            self.tell(&text);
        }
    }

    /// Says something to everyone.
    fn tell(&mut self, text: &str) {
        for view in self.views.values_mut() {
            view.notice(text);
        }
        if self.base.is_some() {
            self.news.push(text.to_owned());
        }
    }

    /// What everyone was told since the last time, for whoever keeps the hub.
    pub(crate) fn take_news(&mut self) -> Vec<String> {
        std::mem::take(&mut self.news)
    }

    /// What the maps say a question is about.
    ///
    /// # Errors
    ///
    /// For a target that is unknown.
    pub(crate) fn scope(&self, ask: &Ask) -> Result<Scope> {
        Scope::new(self.engine.world(), ask, &self.engine.setup)
    }

    /// Whether a view sees all that goes to the target of a scope.
    pub(crate) fn covers(&self, id: ViewId, scope: &Scope) -> bool {
        let Some(view) = self.views.get(&id) else { return false };
        !scope.addresses.is_empty() && scope.addresses.iter().all(|address| view.scope.is_at(*address))
    }

    /// Says to one view what is looked at for it.
    pub(crate) fn announce(&mut self, id: ViewId) {
        let notices = self.engine.take_notices();
        let Some(view) = self.views.get_mut(&id) else { return };
        let hooks = self.engine.hooks_told(&format!("tracing `{}`", view.ask.dst));
        let verdicts = self.engine.verdicts_told();
        for text in notices.into_iter().chain(hooks).chain([verdicts]) {
            view.notice(&text);
        }
    }

    /// Looks every target up in maps that were read anew, and goes on with those that were made anew or became more.
    fn follow_targets(&mut self, node: LiveNode, world: World) {
        let mut grown = Vec::new();
        for (id, view) in &self.views {
            // A pod that is being made anew is none for a while.
            if let Ok(scope) = Scope::new(&world, &view.ask, &self.engine.setup)
                && scope.adds_to(&view.scope)
            {
                grown.push((*id, scope.in_place_of(&view.scope)));
            }
        }
        if grown.is_empty() {
            self.engine.take(node, world);
            return;
        }
        let coverage = self.coverage_with(&grown, None);
        self.engine.adopt(node, world);
        match self.engine.cover(coverage) {
            Ok(_) => self.switched(grown),
            Err(error) => {
                for (id, _) in grown {
                    let Some(view) = self.views.get_mut(&id) else { continue };
                    let dst = &view.ask.dst;
                    let text = format!("`{dst}` is another now, and nothing is attached for it: {error:#}");
                    view.notice(&text);
                }
            }
        }
    }

    fn switched(&mut self, grown: Vec<(ViewId, Scope)>) {
        for (id, scope) in grown {
            let Some(view) = self.views.get_mut(&id) else { continue };
            view.scope = scope;
            let dst = view.ask.dst.clone();
            view.notice(&format!("`{dst}` was made anew or became more"));
            for text in self.engine.hooks_told(&format!("tracing `{dst}`")) {
                view.notice(&text);
            }
        }
    }

    /// What all views need, with some of them changed and one more.
    fn coverage_with(&self, changed: &[(ViewId, Scope)], more: Option<&Scope>) -> Coverage {
        let views = self.views.iter().map(|(id, view)| {
            let changed = changed.iter().find(|(own, _)| own == id).map(|(_, scope)| scope);
            changed.unwrap_or(&view.scope)
        });
        Coverage::of(self.base.iter().chain(views).chain(more), self.engine.setup.no_tc)
    }

    /// Forgets pods that have been gone for long: what is traced is what there is. A target that is no more is told.
    ///
    /// # Errors
    ///
    /// When nothing could be attached for the rest; all is as before then.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if self.engine.departed_for().is_none_or(|time| time < DEPARTED_MAX) {
            return Ok(());
        }
        let Some((node, world)) = self.engine.look_again() else { return Ok(()) };
        let mut left = Vec::new();
        for (id, view) in &mut self.views {
            match Scope::new(&world, &view.ask, &self.engine.setup) {
                Ok(scope) => left.push((*id, scope)),
                Err(error) => {
                    let scope = self.base.clone().unwrap_or_default();
                    left.push((*id, view.scope.clone().without_pods(scope)));
                    let text = format!("`{}` is gone: {error:#}", view.ask.dst);
                    view.notice(&text);
                }
            }
        }
        let coverage = self.coverage_with(&left, None);
        self.engine.adopt(node, world);
        self.engine.cover(coverage)?;
        for (id, scope) in left {
            if let Some(view) = self.views.get_mut(&id) {
                view.scope = scope;
            }
        }
        Ok(())
    }

    /// Lets go of what nobody asks for any more.
    ///
    /// # Errors
    ///
    /// When nothing could be attached for the rest; all is as before then.
    pub(crate) fn narrow(&mut self) -> Result<()> {
        if std::mem::take(&mut self.is_wide) {
            let coverage = self.coverage_with(&[], None);
            self.engine.cover(coverage)?;
        }
        Ok(())
    }

    /// Detaches before anything else, tells what is left undecided, and sums up.
    ///
    /// # Errors
    ///
    /// Of each view what its listener says. The kernel's, if our counters could not be read, is every view's.
    pub(crate) fn close(mut self) -> Vec<(ViewId, Result<Summary>)> {
        let at = Instant::now();
        let hooks: Vec<_> = self.engine.hooks().cloned().collect();
        let (turn, ended) = self.engine.finish();
        self.give(&turn);
        let totals = self.engine.final_totals();
        let ended = ended.map_err(|error| format!("{error:#}"));
        let close = |(id, view): (ViewId, View)| {
            let summary = ended.clone().map_err(Error::msg).and_then(|()| {
                view.close(&self.engine, Ended { totals: totals.clone(), hooks: hooks.clone(), at })
            });
            (id, summary)
        };
        self.views.into_iter().map(close).collect()
    }
}
