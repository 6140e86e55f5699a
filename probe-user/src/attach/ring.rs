//! The ring buffer that our programs write to.
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};

use aya::maps::{Map, MapData};

use crate::sys::RingPages;

/// A ring buffer, open for reading.
pub(crate) struct Ring {
    map: MapData,
    pages: RingPages,
}

impl Ring {
    /// Maps a ring buffer of `bytes` of data, a power of two.
    ///
    /// # Errors
    ///
    /// For another type of map, or when the kernel refuses.
    pub(super) fn open(map: Map, bytes: u32) -> io::Result<Self> {
        let Map::RingBuf(map) = map else {
            return Err(io::Error::other("our map of records is no ring buffer; rebuild plsprobe"));
        };
        let pages = RingPages::map(map.fd().as_fd(), bytes as usize)?;
        Ok(Self { map, pages })
    }

    /// Its records, for reading.
    pub(super) fn pages(&mut self) -> &mut RingPages {
        &mut self.pages
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.map.fd().as_fd().as_raw_fd()
    }
}
