//! Our programs on this node: loaded, attached beside Cilium's, read, and taken away again. aya only.
//!
//! Everything happens in the network namespace of the calling thread, which on a node is the node's own.

mod alone;
mod classifiers;
#[cfg(test)]
mod every_program;
mod expression;
mod filter;
mod kernel_types;
mod loading;
mod object;
mod program_log;
mod records;
mod ring;
mod tracing;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};
use probe_common::{Config, Counter, Stream, StreamSlot};

pub use classifiers::{Interface, Leftover, Ours, Role};
pub use expression::Expression;
pub use filter::{Filter, PortRange, Target};
pub use kernel_types::TypeIds;
pub use object::is_built_in;
pub use records::{Record, Records};
pub(crate) use ring::Ring;
pub use tracing::{KERNEL_HOOKS, ip_functions, probed_functions, tracepoints, typed_tracepoints};

use crate::sys::{self, Wire};

/// What to load and where to attach it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which packets are wanted.
    pub filter: Filter,
    /// Offsets of kernel fields, Cilium's events map, the kernel's drop reasons.
    pub config: Config,
    /// Type ids of what is hooked in the kernel; a function without one is probed by a kprobe only, a tracepoint by a
    /// raw one.
    pub type_ids: TypeIds,
    /// Size of the ring buffer in bytes, a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Interfaces to look at.
    pub interfaces: Vec<Interface>,
    /// Inode numbers of the network namespaces whose packets are kept by the hooks that see every namespace (IP layer,
    /// devices); empty: every one's.
    pub namespaces: BTreeSet<u32>,
    /// Attach nothing to tc: tracepoints at receive and transmit stand in.
    pub no_tc: bool,
    /// By which means kernel functions are to be probed.
    pub probe: Probe,
}

/// Means to see calls of a kernel function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// The best that the kernel allows.
    #[default]
    Any,
    /// fentry or nothing.
    Fentry,
    /// A kprobe or nothing.
    Kprobe,
}

/// How often the last records are waited for, and how long each time.
const FINISH_ATTEMPTS: u32 = 25;
const FINISH_WAIT: Duration = Duration::from_millis(2);

/// Default size of the ring buffer: room for some 13,000 packets, which is 30 ms at 430,000 records a second.
///
/// It counts as this process's memory. With half of it none was lost either, where the load took all CPUs.
pub const RING_BYTES: u32 = 2 << 20;

/// What a hook is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// A classifier at an interface.
    Classifier,
    /// The kernel's drops.
    KernelDrops,
    /// Cilium's notifications.
    CiliumEvents,
    /// The kernel's IP layer, in every network namespace.
    IpLayer,
    /// TCP sockets, in every network namespace.
    Sockets,
    /// Every interface's receiving and sending, in every network namespace.
    Devices,
}

/// One hook that was wanted, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What it is for.
    pub kind: HookKind,
    /// Its place, as an operator would say it: `eth0 ingress`, `bpf_skb_event_output`.
    pub place: String,
    /// How it was attached, or why not.
    pub state: HookState,
}

/// What came of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookState {
    /// Attached, and by which means: `legacy tc`, `tcx`, `kprobe`.
    Attached(&'static str),
    /// Was attached and is gone, and why.
    Lost(String),
    /// Not attached, and why.
    Refused(String),
}

/// A hook whose program the kernel did not run each time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its place; of a program at several places all of them.
    pub place: String,
    /// How often.
    pub runs: u64,
}

impl HookState {
    /// Whether packets can be seen there.
    pub fn is_attached(&self) -> bool {
        matches!(self, Self::Attached(_))
    }
}

/// What our programs saw, kept and lost, summed over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters([u64; Counter::COUNT as usize]);

impl Counters {
    /// One of them.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Adds those of another attachment.
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }

    /// What was counted after `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let mut counters = *self;
        for (now, then) in counters.0.iter_mut().zip(before.0) {
            *now = now.saturating_sub(then);
        }
        counters
    }

    /// Packets at any hook that matched the filter, of which no record was made where they are only counted.
    pub fn matched(&self) -> u64 {
        self.get(Counter::PacketMatched) + self.get(Counter::PacketCounted)
    }

    /// Records that were made, whether or not there was room for them.
    pub fn made(&self) -> u64 {
        let counters = [
            Counter::PacketMatched,
            Counter::DropMatched,
            Counter::EventSeen,
            Counter::SocketMatched,
            Counter::PayloadMatched,
        ];
        counters.into_iter().map(|counter| self.get(counter)).sum()
    }

    /// Records that found no room in the ring buffer.
    pub fn lost(&self) -> u64 {
        let counters = [
            Counter::PacketLost,
            Counter::DropLost,
            Counter::EventLost,
            Counter::SocketLost,
            Counter::PayloadLost,
        ];
        counters.into_iter().map(|counter| self.get(counter)).sum()
    }
}

/// Our programs, attached. Dropping it detaches them; [`Self::detach`] also says what could not be.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Attachment {
    classifiers: classifiers::Classifiers,
    tracing: tracing::Tracing,
    counters: PerCpuArray<MapData, u64>,
    streams: Array<MapData, Wire<StreamSlot>>,
    no_tc: bool,
    leftovers: Vec<Leftover>,
    log: program_log::ProgramLog,
    ebpf: Ebpf,
    _alone: alone::Slot,
}

impl Attachment {
    /// Loads our programs, fills the filter and attaches; leftovers of a killed plsprobe are removed first.
    ///
    /// A hook that the kernel refuses is no error: it is in [`Self::hooks`] with the reason.
    ///
    /// # Errors
    ///
    /// When the object is missing, of another wire version, or does not load (no privilege, an old kernel).
    pub fn start(settings: &Settings) -> Result<(Self, Records)> {
        let slot = alone::Slot::take().context("failed to tell whether another plsprobe runs here")?;
        let leftovers = if slot.is_alone() { classifiers::remove_leftovers()? } else { Vec::new() };
        let lifted = sys::lift_memlock_limit();
        let mut ebpf = object::load(settings).map_err(|error| match lifted {
            Ok(()) => error,
            Err(why) => error.context(format!(
                "RLIMIT_MEMLOCK could not be lifted ({why}), which kernels before 5.11 need"
            )),
        })?;
        let log = program_log::ProgramLog::open(&mut ebpf)?;
        let ring = ebpf.take_map("RECORDS").ok_or_else(|| no_map("RECORDS"))?;
        let ring = Ring::open(ring, settings.ring_bytes).context("failed to map our ring buffer")?;
        let records = Records::new(ring)?;
        let counters = take(&mut ebpf, "COUNTERS")?;
        let streams = take(&mut ebpf, "STREAMS")?;
        let interfaces = if settings.no_tc { &[][..] } else { &settings.interfaces };
        let types =
            kernel_types::of_hooks(&settings.type_ids).context("failed to make kernel types for aya")?;
        let lookers = classifiers::lookers(interfaces).map(|name| (name, ""));
        let on_kernel = tracing::first_choices(settings).map(|(name, target)| (name.to_owned(), target));
        let mut loader = loading::Loader::new(&mut ebpf, types, &lookers.chain(on_kernel).collect());
        let tracing = tracing::Tracing::attach(&mut loader, settings);
        let classifiers = classifiers::Classifiers::attach(&mut ebpf, interfaces);
        let no_tc = settings.no_tc;
        Ok((
            Self { classifiers, tracing, counters, streams, no_tc, leftovers, log, ebpf, _alone: slot },
            records,
        ))
    }

    /// Filters of a killed plsprobe that were removed at the start.
    pub fn leftovers(&self) -> &[Leftover] {
        &self.leftovers
    }

    /// Every hook that was wanted, with what came of it.
    pub fn hooks(&self) -> impl Iterator<Item = &Hook> {
        self.classifiers.hooks().chain(self.tracing.hooks())
    }

    /// Where Cilium's notifications are read, if the kernel allows it.
    pub fn cilium_events(&self) -> Option<&Hook> {
        self.tracing.hooks().find(|hook| hook.kind == HookKind::CiliumEvents && hook.state.is_attached())
    }

    /// Looks whether interfaces have gone and attaches to those named that are new. Returns the hooks that changed.
    pub fn recheck(&mut self, interfaces: &[Interface]) -> Vec<Hook> {
        if self.no_tc {
            return Vec::new();
        }
        self.classifiers.recheck(&mut self.ebpf, interfaces)
    }

    /// Our classifiers that are attached, as far as we know.
    pub fn classifiers(&self) -> Vec<Ours> {
        self.classifiers.ours(&self.ebpf)
    }

    /// Attaches anew at a place (`eth0 ingress`) where somebody has removed ours. `None` if none was there.
    pub fn restore(&mut self, place: &str) -> Option<Hook> {
        self.classifiers.restore(&mut self.ebpf, place)
    }

    /// Attaches anew at a place (`eth0 ingress`) where somebody else's filter has come before ours.
    /// `None` if nothing of ours is there.
    pub fn reattach(&mut self, place: &str) -> Option<Hook> {
        self.classifiers.reattach(&mut self.ebpf, place)
    }

    /// What the programs said since the last time, each message once.
    pub fn program_news(&mut self) -> Vec<String> {
        self.log.news()
    }

    /// Has the programs only count a stream's packets from then on, by the records' clock, but for one a second and what
    /// opens or ends a connection. What opens one has them make records of all again.
    ///
    /// The stream's slot must be free: it was never used, or [`Self::record_each`] freed it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to write to our map.
    pub fn count_only(&mut self, stream: &Stream, since_ns: u64) -> Result<()> {
        self.set_slot(stream, StreamSlot { words: stream.words(), since_ns })
    }

    /// Has the programs make a record of each of a stream's packets again.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to write to our map.
    pub fn record_each(&mut self, stream: &Stream) -> Result<()> {
        self.set_slot(stream, StreamSlot::default())
    }

    fn set_slot(&mut self, stream: &Stream, slot: StreamSlot) -> Result<()> {
        let index = Stream::slot(stream.words());
        self.streams.set(index, Wire(slot), 0).context("failed to say which packets are only counted")
    }

    /// What the programs counted so far.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to read the map.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        for (index, sum) in (0..).zip(&mut counters.0) {
            let per_cpu = self.counters.get(&index, 0).context("failed to read our counters")?;
            *sum = per_cpu.iter().sum();
        }
        Ok(counters)
    }

    /// Hooks whose programs the kernel did not run each time: it runs none within its own run, and no kprobe within
    /// another. Of programs that are detached nothing can be said any more.
    ///
    /// # Errors
    ///
    /// When the kernel does not let itself be asked.
    pub fn skipped(&self) -> Result<Vec<Skipped>> {
        self.tracing.skipped(&self.ebpf)
    }

    /// Counts what was made and gives the last records, once all is detached.
    ///
    /// A program that another CPU was just running when it was detached still writes its last record: waits, a moment
    /// at most, until what was made is either read or lost.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to read our counters.
    pub fn finish(&self, records: &mut Records, mut each: impl FnMut(Record<'_>)) -> Result<Counters> {
        let mut left = FINISH_ATTEMPTS;
        loop {
            records.drain(&mut each);
            let counters = self.counters()?;
            left -= 1;
            if counters.made() == records.read() + counters.lost() || left == 0 {
                return Ok(counters);
            }
            std::thread::sleep(FINISH_WAIT);
        }
    }

    /// Detaches everything, and reports what could not be. No program begins to run after that; the counters stay.
    pub fn detach(&mut self) -> Vec<anyhow::Error> {
        let mut errors = self.classifiers.detach(&mut self.ebpf);
        errors.extend(tracing::detach(&mut self.ebpf));
        errors
    }
}

/// Removes the filters that a killed plsprobe has left in this network namespace, unless another one is tracing here:
/// then they may be its own, and the answer is `None`.
///
/// # Errors
///
/// When the kernel does not let itself be asked, or refuses to remove one.
pub fn remove_leftovers() -> Result<Option<Vec<Leftover>>> {
    let slot = alone::Slot::take().context("failed to tell whether another plsprobe runs here")?;
    slot.is_alone().then(classifiers::remove_leftovers).transpose()
}

/// Whether a plsprobe is tracing in this network namespace.
///
/// # Errors
///
/// When the kernel does not let itself be asked.
pub fn is_tracing_here() -> Result<bool> {
    let slot = alone::Slot::take().context("failed to tell whether another plsprobe runs here")?;
    Ok(!slot.is_alone())
}

/// Takes a map out of the object by name and type. It must outlive the loading of every program.
fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf.take_map(name).ok_or_else(|| no_map(name))?;
    T::try_from(map).with_context(|| format!("failed to open our map `{name}`"))
}

/// Borrows a map of the object by name and type.
fn borrow<'a, T: TryFrom<&'a mut Map, Error = MapError>>(ebpf: &'a mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf.map_mut(name).ok_or_else(|| no_map(name))?;
    T::try_from(map).with_context(|| format!("failed to open our map `{name}`"))
}

fn no_map(name: &str) -> anyhow::Error {
    anyhow!("our eBPF object has no map `{name}`; rebuild plsprobe")
}
