//! Maps as bytes: keys and values of whatever size the map has.
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aya::maps::MapData;

use super::contents::Entries;

// enum bpf_cmd
const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_MAP_GET_NEXT_KEY: i32 = 4;

/// The element commands' part of `union bpf_attr`.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

/// A map of known key and value size.
#[derive(Debug)]
pub struct RawMap {
    map: MapData,
    key_size: usize,
    value_size: usize,
}

impl RawMap {
    /// Opens a pin.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn open(pin: &Path) -> Result<Self> {
        Self::new(MapData::from_pin(pin).with_context(|| format!("failed to open `{}`", pin.display()))?)
    }

    /// A map that is open.
    ///
    /// # Errors
    ///
    /// The kernel does not tell its sizes.
    pub fn new(map: MapData) -> Result<Self> {
        let info = map.info()?;
        Ok(Self { map, key_size: info.key_size() as usize, value_size: info.value_size() as usize })
    }

    /// Makes the map hold `entries` and nothing else. An entry that stays is overwritten, never missing in between.
    ///
    /// # Errors
    ///
    /// A key or a value does not have the map's size, or the kernel refuses one.
    pub fn replace(&self, entries: &Entries) -> Result<()> {
        for (key, value) in entries {
            self.update(key, value)?;
        }
        for key in self.keys()? {
            if !entries.iter().any(|(kept, _)| *kept == key) {
                self.delete(&key)?;
            }
        }
        Ok(())
    }

    /// Writes one entry.
    ///
    /// # Errors
    ///
    /// As [`Self::replace`].
    pub fn update(&self, key: &[u8], value: &[u8]) -> Result<()> {
        if (key.len(), value.len()) != (self.key_size, self.value_size) {
            bail!(
                "an entry of {} and {} bytes, expected {} and {}",
                key.len(),
                value.len(),
                self.key_size,
                self.value_size
            );
        }
        let mut value = value.to_vec();
        self.call(BPF_MAP_UPDATE_ELEM, Some(key), &mut value).context("failed to update an entry")
    }

    /// Every entry.
    ///
    /// # Errors
    ///
    /// The kernel refuses to read it.
    pub fn entries(&self) -> Result<Entries> {
        let mut entries = Entries::new();
        for key in self.keys()? {
            // Unless it is gone since its key was listed.
            if let Some(value) = self.lookup(&key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }

    /// The value of a key; in a trie, of the longest prefix that covers it.
    ///
    /// # Errors
    ///
    /// The key does not have the map's size, or the kernel refuses to read the map.
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if key.len() != self.key_size {
            bail!("a key of {} bytes, expected {}", key.len(), self.key_size);
        }
        let mut value = vec![0; self.value_size];
        match self.call(BPF_MAP_LOOKUP_ELEM, Some(key), &mut value) {
            Ok(()) => Ok(Some(value)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err).context("failed to look up an entry"),
        }
    }

    /// Deletes everything.
    ///
    /// # Errors
    ///
    /// The kernel refuses to.
    pub fn clear(&self) -> Result<()> {
        self.keys()?.iter().try_for_each(|key| self.delete(key))
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        match self.call(BPF_MAP_DELETE_ELEM, Some(key), &mut []) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.context("failed to delete an entry"),
        }
    }

    fn keys(&self) -> Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0; self.key_size];
            match self.call(BPF_MAP_GET_NEXT_KEY, keys.last().map(Vec::as_slice), &mut next) {
                Ok(()) => keys.push(next),
                Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(keys),
                Err(err) => return Err(err).context("failed to list keys"),
            }
        }
    }

    /// One element command; `buffer` is the value or the next key, of the map's size, or empty where none is used.
    fn call(&self, command: i32, key: Option<&[u8]>, buffer: &mut [u8]) -> io::Result<()> {
        let attr = ElementAttr {
            map_fd: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
            _pad: 0,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            // The kernel refuses whatever a command has no use for.
            value_or_next_key: if buffer.is_empty() { 0 } else { buffer.as_mut_ptr() as u64 },
            flags: 0,
        };
        // SAFETY: `attr` and the buffers it points to outlive the call; the callers give them the map's sizes, which
        // is how much the kernel reads and writes.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<ElementAttr>()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
