//! `plsprobe agent`: the long-running half of a node. One engine sees, judges and remembers; everything else is told of
//! what it judged by the [`feed`].

pub mod feed;
pub mod flow;
pub mod status;
