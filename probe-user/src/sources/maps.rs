//! Cilium's pinned maps, read and never written: every map is opened read-only, so that the kernel refuses the rest.
//!
//! Dumps go in batches, straight through `libbpf_sys`: the iterator of libbpf-rs 0.27 swallows every error, so that a
//! buffer too small for one bucket ends the dump early and an LPM trie on kernel 5.10 looks empty.

use std::{
    ffi::CStr,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    ptr,
};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, MapType};

use probe_model::cilium::entries::Entries;

use super::{raw::RawMap, unusable::Unusable};

/// Where Cilium pins its maps, under the bpffs root. Source: `pkg/defaults` and `bpf/lib/maps.h`, Cilium 1.13–1.18.
pub const GLOBALS: &str = "tc/globals";

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;
/// How much one batch may hold at first: little enough for the heap, whose pages are there already.
const BATCH_BYTES: usize = 1 << 17;
/// Maps with more entries than this, and LRU maps, are not read a second time to see whether they changed.
const VERIFIED_ENTRIES: usize = 16_384;
/// How often a map that changes is read.
const READS: usize = 3;

/// The folder with Cilium's pinned maps.
#[derive(Clone, Debug)]
pub struct Globals {
    path: PathBuf,
}

impl Globals {
    /// Opens `tc/globals` under the bpffs root.
    ///
    /// # Errors
    ///
    /// When the root is no BPF file system, holds no Cilium, or may not be searched: each its own message.
    pub fn open(bpffs: &Path) -> Result<Self> {
        let shown = bpffs.display();
        if !is_bpffs(bpffs)? {
            bail!(Unusable::absent(
                format!("`{shown}` is no BPF file system"),
                format!("mount it with `mount -t bpf bpf {shown}`, or give the one Cilium uses by `--bpffs`"),
            ));
        }
        let path = bpffs.join(GLOBALS);
        match fs::metadata(&path) {
            Ok(_) => Ok(Self { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!(Unusable::absent(
                    format!("no `{GLOBALS}` in BPF file system `{shown}`"),
                    "is Cilium running on this node?",
                ))
            }
            Err(error) => Err(no_permission(&path, error)),
        }
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of Cilium's pins, sorted. Pins of an upgrade under way (`:pending`) are left out.
    ///
    /// # Errors
    ///
    /// When the folder cannot be listed.
    pub fn pins(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.path).map_err(|error| no_permission(&self.path, error))?;
        let mut pins = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("failed to list `{}`", self.path.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("cilium_") && !name.ends_with(":pending") {
                pins.push(name);
            }
        }
        pins.sort();
        Ok(pins)
    }

    /// Opens one pinned map.
    ///
    /// # Errors
    ///
    /// As [`PinnedMap::open`].
    pub fn map(&self, name: &str) -> Result<PinnedMap> {
        PinnedMap::open(&self.path.join(name))
    }

    /// Reads one pinned map, again if it changes meanwhile. With the keys that it had `before`, it did not.
    ///
    /// # Errors
    ///
    /// As [`PinnedMap::open`] and [`PinnedMap::read`].
    pub fn read(&self, name: &str, before: Option<&RawMap>) -> Result<Reading> {
        read_settled(&self.path.join(name), before, || {})
    }
}

/// A map as it was read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The map, its entries sorted by key.
    pub map: RawMap,
    /// Why the entries may not have been there all at one time.
    pub caveat: Option<String>,
}

/// A pinned map, open for reading.
#[derive(Debug)]
pub struct PinnedMap {
    path: PathBuf,
    handle: MapHandle,
    id: u32,
}

impl PinnedMap {
    /// Opens the pin at `path`, read-only.
    ///
    /// # Errors
    ///
    /// When there is no such pin, it is no map, or this process may not: each its own message.
    pub fn open(path: &Path) -> Result<Self> {
        let name = pin_name(path);
        if path.as_os_str().as_bytes().contains(&0) {
            bail!("failed to open `{name}`: a pin's name has no NUL byte");
        }
        let handle = MapHandle::from_pinned_path_with_file_flags(path, libbpf_sys::BPF_F_RDONLY)
            .map_err(|error| refused(path, error))?;
        // A pinned program or link opens just as well, and its facts would be taken for a map's.
        if let Ok(kind) = fs::read_link(format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd()))
            && !kind.to_string_lossy().ends_with("bpf-map")
        {
            bail!("`{name}` is no map: found `{}`, expected `anon_inode:bpf-map`", kind.display());
        }
        let info = handle.info().with_context(|| format!("failed to read what kind of map `{name}` is"))?;
        Ok(Self { path: path.to_owned(), id: info.info.id, handle })
    }

    /// The map's id in the kernel. Cilium may replace a map under its pin: the id tells.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Bytes of a key, as the map declares it.
    pub fn key_size(&self) -> u32 {
        self.handle.key_size()
    }

    /// What the map declares of itself, without entries.
    pub fn facts(&self) -> RawMap {
        RawMap {
            id: self.id,
            map_type: type_word(self.handle.map_type()),
            key_size: self.handle.key_size(),
            value_size: self.handle.value_size(),
            max_entries: self.handle.max_entries(),
            entries: Entries::default(),
        }
    }

    /// The value of one key; of a per-CPU map the values of all CPUs, one after another.
    ///
    /// # Errors
    ///
    /// When the key has another size than the map's, or the kernel refuses.
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = if self.handle.map_type().is_percpu() {
            let found = self.handle.lookup_percpu(key, MapFlags::ANY);
            found.map(|values| values.map(|values| values.concat()))
        } else {
            self.handle.lookup(key, MapFlags::ANY)
        };
        found.with_context(|| format!("failed to look up a key in `{}`", pin_name(&self.path)))
    }

    /// All entries, sorted by key, each key once. Perf buffers and other maps that hold no entries give none.
    ///
    /// Not atomic: what is added or deleted meanwhile may be there or not. [`Globals::read`] looks twice.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or the map changes faster than it can be read.
    pub fn read(&self) -> Result<RawMap> {
        let map = self.read_at_most(usize::MAX)?;
        Ok(map.expect("no map has more entries than memory has bytes"))
    }

    /// [`Self::read`], or `None` as soon as there are more than `limit` entries.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn read_at_most(&self, limit: usize) -> Result<Option<RawMap>> {
        if !holds_entries(self.handle.map_type()) {
            return Ok(Some(self.facts()));
        }
        let capacity = BATCH_BYTES / (self.handle.key_size() as usize + self.value_bytes()?).max(1);
        let in_batches = self
            .read_in_batches(capacity, limit)
            .with_context(|| format!("failed to read `{}` in batches", pin_name(&self.path)))?;
        let entries = match in_batches {
            Batches::All(entries) => entries,
            Batches::TooMany => return Ok(None),
            Batches::Refused => self.read_by_key()?,
        };
        Ok((entries.len() <= limit).then(|| RawMap { entries: sorted(entries), ..self.facts() }))
    }

    /// All entries by `BPF_MAP_LOOKUP_BATCH`, with room for `capacity` in the first batch.
    fn read_in_batches(&self, capacity: usize, limit: usize) -> Result<Batches> {
        let max_entries = (self.handle.max_entries() as usize).max(1);
        let mut batch = Batch::new(self, capacity.clamp(1, max_entries))?;
        let (mut bytes, mut count) = (Vec::new(), 0);
        loop {
            match batch.lookup(self) {
                Step::More if batch.count > 0 => batch.drain_into(&mut bytes),
                Step::Last => {
                    batch.drain_into(&mut bytes);
                    return Ok(Batches::All(self.entries(bytes)?));
                }
                // One bucket of a hash holds more than the buffer; at most the whole map.
                Step::NoSpace if batch.capacity < max_entries => batch.grow(max_entries),
                _ => return Ok(Batches::Refused),
            }
            count += batch.count;
            if count > limit {
                return Ok(Batches::TooMany);
            }
            // A trie restarts from its first key when the last one was deleted meanwhile.
            if count > 2 * max_entries {
                return Ok(Batches::Refused);
            }
        }
    }

    /// All entries by `BPF_MAP_GET_NEXT_KEY` and a lookup each.
    fn read_by_key(&self) -> Result<Entries> {
        let name = pin_name(&self.path);
        let (mut bytes, mut key) = (Vec::new(), None);
        // A deleted key restarts a hash from its first bucket: without a bound this might never end.
        let bound = 2 * self.handle.max_entries() as usize + 1;
        for _ in 0..bound {
            let next = self.next_key(key.as_deref());
            let Some(next) = next.with_context(|| format!("failed to list the keys of `{name}`"))? else {
                return self.entries(bytes);
            };
            // Deleted since, or an empty slot of an array of programs.
            if let Some(value) = self.lookup(&next)? {
                bytes.extend_from_slice(&next);
                bytes.extend_from_slice(&value);
            }
            key = Some(next);
        }
        bail!("`{name}` changes faster than it can be read: {bound} keys and no end; try again")
    }

    fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.handle.key_size() as usize];
        // SAFETY: `key`, where there is one, and `next` have the map's key size; the kernel reads the one and writes the other.
        let result = unsafe {
            libbpf_sys::bpf_map_get_next_key(
                self.handle.as_fd().as_raw_fd(),
                key.map_or(ptr::null(), <[u8]>::as_ptr).cast(),
                next.as_mut_ptr().cast(),
            )
        };
        match -result {
            0 => Ok(Some(next)),
            libc::ENOENT => Ok(None),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Keys and values one after another as entries, if there are any: of a per-CPU map only a lookup tells their size.
    fn entries(&self, bytes: Vec<u8>) -> Result<Entries> {
        let value_size = self.handle.value_size() as usize;
        let cpus = if self.handle.map_type().is_percpu() { possible_cpus()? } else { 1 };
        let entries = Entries::new(self.handle.key_size() as usize, value_size * cpus, bytes);
        entries.with_context(|| format!("failed to read `{}`", pin_name(&self.path)))
    }

    /// Bytes that a lookup writes for one value.
    fn value_bytes(&self) -> Result<usize> {
        let value = self.handle.value_size() as usize;
        if !self.handle.map_type().is_percpu() {
            return Ok(value);
        }
        Ok(value.next_multiple_of(8) * possible_cpus()?)
    }
}

fn possible_cpus() -> Result<usize> {
    libbpf_rs::num_possible_cpus().context("failed to count the possible CPUs")
}

/// What reading in batches came to.
enum Batches {
    All(Entries),
    TooMany,
    /// This kernel cannot do that for this type of map, or not while it changes.
    Refused,
}

/// What one batch ended with.
enum Step {
    More,
    Last,
    NoSpace,
    Refused,
}

/// The buffers of batched lookups: room for `capacity` keys and values, of which `count` are there.
struct Batch {
    capacity: usize,
    count: usize,
    key_size: usize,
    value_size: usize,
    value_bytes: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Where the next batch begins: opaque, a bucket's number or a key.
    position: Option<Vec<u8>>,
}

impl Batch {
    fn new(map: &PinnedMap, capacity: usize) -> Result<Self> {
        let key_size = map.handle.key_size() as usize;
        let (value_size, value_bytes) = (map.handle.value_size() as usize, map.value_bytes()?);
        // Not filled with zeros: most maps fill a small part of the room for them.
        let keys = Vec::with_capacity(capacity * key_size);
        let values = Vec::with_capacity(capacity * value_bytes);
        Ok(Self { capacity, count: 0, key_size, value_size, value_bytes, keys, values, position: None })
    }

    fn grow(&mut self, limit: usize) {
        self.capacity = (2 * self.capacity).min(limit);
        self.keys = Vec::with_capacity(self.capacity * self.key_size);
        self.values = Vec::with_capacity(self.capacity * self.value_bytes);
    }

    fn lookup(&mut self, map: &PinnedMap) -> Step {
        let opts = libbpf_sys::bpf_map_batch_opts {
            sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        let mut count = self.capacity as u32;
        // The kernel writes a `u32` for hashes, a key for others.
        let mut next = vec![0_u8; self.key_size.max(4)];
        // SAFETY: `keys` and `values` have room for `count` keys and values of the sizes the map declares (values of all possible CPUs,
        // each rounded up to 8 bytes, for per-CPU maps); both positions are as long as the kernel's, which is at most
        // the longer of a key and a `u32`. All of them outlive the call.
        let result = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.handle.as_fd().as_raw_fd(),
                self.position.as_mut().map_or(ptr::null_mut(), Vec::as_mut_ptr).cast(),
                next.as_mut_ptr().cast(),
                self.keys.as_mut_ptr().cast(),
                self.values.as_mut_ptr().cast(),
                &raw mut count,
                &raw const opts,
            )
        };
        let step = match -result {
            0 => {
                self.position = Some(next);
                Step::More
            }
            libc::ENOENT => Step::Last,
            libc::ENOSPC => Step::NoSpace,
            _ => Step::Refused,
        };
        let is_filled = matches!(step, Step::More | Step::Last);
        self.count = if is_filled { (count as usize).min(self.capacity) } else { 0 };
        // SAFETY: there is room for as many, and the kernel has written them.
        unsafe {
            self.keys.set_len(self.count * self.key_size);
            self.values.set_len(self.count * self.value_bytes);
        }
        step
    }

    fn drain_into(&mut self, bytes: &mut Vec<u8>) {
        bytes.reserve(self.count * (self.key_size + self.value_bytes));
        for i in 0..self.count {
            bytes.extend_from_slice(&self.keys[i * self.key_size..][..self.key_size]);
            let value = &self.values[i * self.value_bytes..][..self.value_bytes];
            if self.value_bytes == self.value_size {
                bytes.extend_from_slice(value);
                continue;
            }
            // Between the values of two CPUs there may be padding.
            for of_cpu in value.chunks(self.value_size.next_multiple_of(8)) {
                bytes.extend_from_slice(&of_cpu[..self.value_size]);
            }
        }
    }
}

/// Reads a pin until two readings in a row have the same keys of the same map, the one `before` among them; `between` runs
/// before each but the first.
fn read_settled(path: &Path, before: Option<&RawMap>, mut between: impl FnMut()) -> Result<Reading> {
    let mut map = PinnedMap::open(path)?.read()?;
    if before.is_some_and(|before| before.id == map.id && same_keys(before, &map)) {
        return Ok(Reading { map, caveat: None });
    }
    for _ in 1..READS {
        between();
        let pin = PinnedMap::open(path)?;
        let same_map = pin.id == map.id;
        if same_map && !is_verified(&map) {
            return Ok(Reading { map, caveat: None });
        }
        let again = pin.read()?;
        let settled = same_map && same_keys(&map, &again);
        map = again;
        if settled {
            return Ok(Reading { map, caveat: None });
        }
    }
    Ok(Reading { map, caveat: Some(format!("it changed while it was read, {READS} times in a row")) })
}

/// Whether two readings of the map can be expected to agree, and are cheap.
fn is_verified(map: &RawMap) -> bool {
    !map.map_type.starts_with("lru_") && map.entries.len() <= VERIFIED_ENTRIES
}

/// Values may differ: they hold counters.
fn same_keys(a: &RawMap, b: &RawMap) -> bool {
    a.entries.keys().eq(b.entries.keys())
}

/// By key, of a key that was read twice the later value.
pub(super) fn sorted(entries: Entries) -> Entries {
    // Most keys are told apart by their first 16 bytes, which compare faster as a number.
    let head = |key: &[u8]| {
        let mut head = [0; 16];
        let length = key.len().min(16);
        head[..length].copy_from_slice(&key[..length]);
        u128::from_be_bytes(head)
    };
    let key = |idx: usize| entries.get(idx).map_or(&[][..], |(key, _)| key);
    let mut order: Vec<_> = entries.keys().enumerate().map(|(idx, key)| (head(key), idx)).collect();
    if order.is_sorted_by(|a, b| a.0 < b.0) {
        return entries;
    }
    let rest = |idx: usize| key(idx).get(16..).unwrap_or_default();
    order.sort_unstable_by(|(a, i), (b, j)| a.cmp(b).then_with(|| rest(*i).cmp(rest(*j))).then(i.cmp(j)));
    let mut bytes = Vec::with_capacity(entries.bytes().len());
    for (place, (_, idx)) in order.iter().enumerate() {
        let is_replaced = order.get(place + 1).is_some_and(|(_, next)| key(*next) == key(*idx));
        if let Some((key, value)) = entries.get(*idx).filter(|_| !is_replaced) {
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
        }
    }
    Entries::new(entries.key_size(), entries.value_size(), bytes).expect("whole entries")
}

/// Whether user space can list the map. A perf buffer must not even be tried: it is the agent's.
fn holds_entries(map_type: MapType) -> bool {
    use MapType as M;
    matches!(
        map_type,
        M::Hash
            | M::Array
            | M::ProgArray
            | M::PercpuHash
            | M::PercpuArray
            | M::LruHash
            | M::LruPercpuHash
            | M::LpmTrie
            | M::ArrayOfMaps
            | M::HashOfMaps
    )
}

/// bpftool's word for a type, such as `lpm_trie`; the number where libbpf knows none.
fn type_word(map_type: MapType) -> String {
    let number = u32::from(map_type);
    // SAFETY: takes any number and returns null or a string that lives as long as the program.
    let word = unsafe { libbpf_sys::libbpf_bpf_map_type_str(number) };
    if word.is_null() {
        return number.to_string();
    }
    // SAFETY: not null, hence one of libbpf's NUL-terminated constants.
    unsafe { CStr::from_ptr(word) }.to_string_lossy().into_owned()
}

fn pin_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Whether a folder is the root of a BPF file system, or inside one.
///
/// # Errors
///
/// When it does not exist or may not be searched.
pub fn is_bpffs(folder: &Path) -> Result<bool> {
    let found = rustix::fs::statfs(folder).map_err(io::Error::from);
    let found = found.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let shown = folder.display();
            let next = "is the BPF file system mounted elsewhere? give it by `--bpffs`";
            Unusable::absent(format!("no folder `{shown}`"), next).into()
        }
        _ => no_permission(folder, error),
    })?;
    Ok(u32::try_from(found.f_type) == Ok(BPF_FS_MAGIC))
}

fn no_permission(path: &Path, error: io::Error) -> anyhow::Error {
    let shown = path.display();
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Unusable::new(format!("no permission to read `{shown}`"), "run as root").into();
    }
    anyhow::Error::new(error).context(format!("failed to read `{shown}`"))
}

/// Why a pin could not be opened, with the next step.
fn refused(path: &Path, error: libbpf_rs::Error) -> anyhow::Error {
    let name = pin_name(path);
    let folder = path.parent().unwrap_or(path).display();
    match error.kind() {
        ErrorKind::NotFound => {
            let found = format!("failed to open `{name}`: no such pin in `{folder}`");
            Unusable::absent(found, "is Cilium running on this node?").into()
        }
        ErrorKind::PermissionDenied => {
            let next = "run as root with CAP_BPF, or with CAP_SYS_ADMIN before kernel 5.8";
            Unusable::new(format!("failed to open `{name}`: no permission"), next).into()
        }
        _ => anyhow::Error::new(error).context(format!("failed to open `{name}` in `{folder}`")),
    }
}

#[cfg(test)]
mod tests;
