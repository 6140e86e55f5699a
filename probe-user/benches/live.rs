//! What reading the kernel's maps costs, beside the plain way: a key at a time. Needs root.

use std::hint::black_box;
use std::path::Path;

use criterion::Criterion;
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType};
use probe_user::sources::maps::PinnedMap;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// As many entries as AKS lets a policy map have.
const ENTRIES: u32 = 16_384;

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    // SAFETY: the process has one thread yet, and keeps its descriptors.
    let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
    let mounted = unshared
        .and_then(|()| mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC))
        .and_then(|()| mount("bpf", folder.path(), "bpf", MountFlags::empty(), None));
    if let Err(error) = mounted {
        println!("skipped: cannot mount a BPF file system here: {error}");
        return;
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    for (name, map_type, key, value) in
        [("LPM trie", MapType::LpmTrie, 12, 24), ("hash", MapType::Hash, 12, 24)]
    {
        compare(&mut criterion, &folder.path().join("map"), name, map_type, (key, value));
    }
    criterion.final_summary();
}

fn compare(criterion: &mut Criterion, pin: &Path, name: &str, map_type: MapType, (key, value): (u32, u32)) {
    let map = filled(pin, map_type, key, value);
    let mut group = criterion.benchmark_group(format!("read a {name} of {ENTRIES} entries"));
    let pinned = PinnedMap::open(pin).expect("a pin");
    group.bench_function("plsprobe, in batches, sorted", |bench| {
        bench.iter(|| {
            let read = pinned.read().expect("a map");
            assert_eq!(read.entries.len(), ENTRIES as usize);
            black_box(read)
        });
    });
    group.bench_function("a key at a time", |bench| {
        bench.iter(|| {
            let lookup = |key: Vec<u8>| map.lookup(&key, MapFlags::ANY).expect("an entry");
            let read: Vec<_> = map.keys().map(lookup).collect();
            assert_eq!(read.len(), ENTRIES as usize);
            black_box(read)
        });
    });
    group.finish();
    std::fs::remove_file(pin).expect("a pin");
}

/// A map like a full policy map: identities that count up, protocol and port.
fn filled(pin: &Path, map_type: MapType, key: u32, value: u32) -> MapHandle {
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        map_flags: libbpf_sys::BPF_F_NO_PREALLOC,
        ..Default::default()
    };
    let mut map = MapHandle::create(map_type, Some("bench"), key, value, ENTRIES, &opts).expect("a map");
    map.pin(pin).expect("a pin");
    for number in 0..ENTRIES {
        let identity = (0x0100_0001 + number / 16).to_le_bytes();
        let port = (8000 + (number % 16) as u16).to_be_bytes();
        let key = [&64u32.to_le_bytes()[..], &identity, &[0, 6], &port].concat();
        map.update(&key, &vec![0; value as usize], MapFlags::ANY).expect("room");
    }
    map
}
