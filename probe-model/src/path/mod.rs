//! Sightings of packets, put together: which belong to one flow, which way it went, what became of it.
//!
//! Pure: times come with the sightings, and the order in which records arrive changes nothing.

mod buffer;
mod confirm;
mod datagrams;
pub mod evidence;
mod flow;
mod fragments;
mod gap;
mod kernel_drop;
mod link;
mod outcome;
mod packet;
mod payload;
pub mod probe;
pub mod proxy;
mod sighting;
pub mod together;
mod tracker;

#[cfg(test)]
mod tests;

pub use confirm::Confirmation;
pub use evidence::Evidence;
pub use flow::{CiliumEvent, Hop, Path, PathDrop, PathSocket, Rewrite};
pub use gap::{Candidate, Gap, Watch, Ways};
pub use kernel_drop::{DropCause, classify};
pub use link::LegKey;
pub use outcome::{Outcome, Refusal};
pub use packet::{Fragment, Icmp, Packet, Quoted, TcpFlags, Tunnel, TunnelKind};
pub use payload::Beginning;
pub use probe_common::HookPoint;
pub use sighting::{Namespace, Place, Seen, Sighting, SocketEvent};
pub use tracker::{Capacity, Need, Patience, Tracker};
