//! A steady load through a lab that proves what became of each packet.
//!
//! The clients are the virtual machine and a Private Link NAT IP, the server is `pls-app`:
//!
//! * numbered datagrams in both directions, each with bytes that follow from its number;
//! * TCP connections that live as long as the load, with one request after another;
//! * new connections to the load balancer's frontend, which the datapath translates.
//!
//! One thread holds both ends of what it sends, so nothing waits for a scheduler but the packet itself, and only so
//! many datagrams are under way at a time as fit the shortest queue: what is missing at the end was lost on the way.
//! Receive buffers and interface queues are asked all the same ([`Report::overrun`], [`Report::queue_drops`]).
//!
//! ```no_run
//! use std::time::Duration;
//! use probe_lab::load::{Load, LoadOptions};
//! # let lab = probe_lab::Lab::up(&probe_lab::LabOptions::default())?;
//! let load = Load::start(lab.instance(), &LoadOptions { pps: Some(100_000), ..LoadOptions::default() })?;
//! std::thread::sleep(Duration::from_secs(5));
//! let report = load.stop()?;
//! report.check_harmless()?;
//! println!("{report}");
//! # Ok::<(), anyhow::Error>(())
//! ```
mod control;
mod counters;
mod latency;
mod pace;
mod pattern;
mod report;
mod seen;
mod tcp;
mod udp;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::addresses::{NAT_IPS, VM};
use crate::instance::Instance;
use crate::netns::Ns;
use control::Control;
use counters::Counters;
pub use latency::Percentiles;
pub use report::{Connections, Datagrams, Report};
pub use seen::check_seen_once;

/// Who sends: a namespace and an address in it.
const CLIENTS: [(Ns, Ipv4Addr); 2] = [(Ns::Vm, VM), (Ns::Pls, NAT_IPS[0])];

/// How much to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Datagrams per second, both directions together; `None` for as many as the machine can.
    pub pps: Option<u32>,
    /// TCP connections that live as long as the load.
    pub connections: u16,
    /// Requests per second over these, all together.
    pub requests: u32,
    /// New connections per second.
    pub new_connections: u32,
    /// After which time without any progress a datagram counts as lost and a connection as stalled.
    pub patience: Duration,
}

impl Default for LoadOptions {
    fn default() -> Self {
        // Long beside every retransmission, and beside what a busy machine keeps a thread waiting.
        let patience = Duration::from_secs(20);
        Self { pps: None, connections: 32, requests: 1000, new_connections: 50, patience }
    }
}

/// A load that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Load {
    instance: Instance,
    control: Arc<Control>,
    began: Instant,
    before: Counters,
    datagrams: Vec<JoinHandle<udp::Sent>>,
    connections: Vec<JoinHandle<tcp::Exchanged>>,
}

impl Load {
    /// Opens every socket in a lab that is up, whoever owns it, and begins to send.
    ///
    /// # Errors
    ///
    /// The lab is not up, or its scenario lets a client through to nobody: `none` lets all of them.
    pub fn start(instance: &Instance, options: &LoadOptions) -> Result<Self> {
        let before = Counters::read(instance)?;
        let pairs = CLIENTS.map(|client| udp::Pair::open(instance, client, options));
        let persistent = tcp::Persistent::open(instance, &CLIENTS, options)?;
        let newcomers = tcp::Newcomers::new(instance, options);
        let mut load = Self {
            instance: instance.clone(),
            control: Arc::new(Control::new(CLIENTS.len() + 2)),
            began: Instant::now(),
            before,
            datagrams: Vec::new(),
            connections: Vec::new(),
        };
        for pair in pairs {
            let pair = pair?;
            let thread = load.spawn("load-udp", move |control| pair.run(control))?;
            load.datagrams.push(thread);
        }
        let persistent = load.spawn("load-tcp", move |control| persistent.run(control))?;
        let newcomers = load.spawn("load-connect", move |control| newcomers.run(control))?;
        load.connections = vec![persistent, newcomers];
        Ok(load)
    }

    /// Holds back until [`Self::resume`], and returns once nothing is under way: for what would lose packets by
    /// itself.
    pub fn pause(&self) {
        self.control.pause();
    }

    /// Goes on.
    pub fn resume(&self) {
        self.control.resume();
    }

    /// Ends it, waits for what is under way, and says what became of everything.
    ///
    /// # Errors
    ///
    /// A thread of the load panicked, or the lab has gone.
    pub fn stop(mut self) -> Result<Report> {
        self.control.stop();
        let elapsed = self.began.elapsed();
        let datagrams = join(std::mem::take(&mut self.datagrams))?;
        let connections = join(std::mem::take(&mut self.connections))?;
        let counters = Counters::read(&self.instance)?.since(&self.before);
        Ok(Report::new(elapsed, datagrams, connections, &counters))
    }

    fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Control) -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let control = Arc::clone(&self.control);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let result = work(&control);
                control.leave();
                result
            })
            .with_context(|| format!("failed to start thread `{name}`"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.control.stop();
        // A thread that panicked has said so on standard error.
        self.datagrams.drain(..).for_each(|thread| drop(thread.join()));
        self.connections.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn join<T>(threads: Vec<JoinHandle<T>>) -> Result<Vec<T>> {
    threads
        .into_iter()
        .map(|thread| {
            thread.join().map_err(|_| anyhow::anyhow!("a thread of the load panicked; it says above why"))
        })
        .collect()
}
