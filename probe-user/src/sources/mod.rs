//! Where a World comes from: a live node or a folder of recordings, both as one [`raw::RawNode`].

pub mod addresses;
pub mod agent;
pub mod assemble;
pub mod btf;
pub mod folder;
pub mod maps;
pub mod monitor;
pub mod netfilter;
pub mod network_text;
pub mod raw;
pub mod rest;

#[cfg(test)]
mod testing;
