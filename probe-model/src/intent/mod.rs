//! The intent view: what policy objects mean for an endpoint, whatever the policy map holds.
//!
//! Objects ([`object`]) and a cluster ([`cluster`]) go in. [`Engine`] answers for one pod as Cilium's agent would: whether a
//! direction is enforced, which entries its policy map must hold and which policies are behind each ([`engine`]). The
//! mechanism is Cilium's: rules are merged by protocol and port ([`filter`](self)), selectors become identities, and the map
//! is filled with deny before allow ([`entries`]); verdicts are those of [`crate::cilium::policy`] on that map.
//! It is checked against Cilium's own engine (1.16) in `tests/intent.rs`.

pub mod admitted;
pub mod cluster;
pub mod edit;
pub mod engine;
pub mod entries;
mod filter;
mod kin;
pub mod label;
pub mod object;
pub mod path;
pub mod port;
pub mod selector;
pub mod why;
pub mod yaml;

pub use cluster::{Cluster, Pod};
pub use engine::{DirectionIntent, Engine, Flow, IntentEntry, IntentVerdict};
