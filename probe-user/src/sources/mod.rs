//! Where a World comes from: a live node or a folder of recordings, both as one [`raw::RawNode`].

pub mod btf;
pub mod raw;
