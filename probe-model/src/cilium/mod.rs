//! Cilium's maps, events and decisions, one file per thing, named as Cilium names it.

pub mod drop_reason;
