//! Against the running kernel: maps filled with random contents, read in every way, must read the same.

use std::{collections::BTreeMap, fs};

use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType};

use super::*;
use crate::sources::testing::{PrivateBpffs, Random};

/// Fills the map; what it then holds.
fn fill(map: &MapHandle, entries: usize, random: &mut Random) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut expected = BTreeMap::new();
    while expected.len() < entries {
        let mut key = random.bytes(map.key_size() as usize);
        if map.map_type() == MapType::LpmTrie {
            // A prefix of any length, the bits behind it zero: the kernel keeps them, and two keys would be one.
            let bits = (map.key_size() - 4) * 8;
            let prefix = (random.next() % u64::from(bits + 1)) as u32;
            key[..4].copy_from_slice(&prefix.to_ne_bytes());
            for bit in prefix..bits {
                key[4 + bit as usize / 8] &= !(0x80 >> (bit % 8));
            }
        }
        let value = random.bytes(map.value_size() as usize);
        if map.map_type().is_percpu() {
            let cpus = libbpf_rs::num_possible_cpus().unwrap();
            let values: Vec<Vec<u8>> = (0..cpus).map(|_| random.bytes(map.value_size() as usize)).collect();
            map.update_percpu(&key, &values, MapFlags::ANY).unwrap();
            expected.insert(key, values.concat());
        } else {
            map.update(&key, &value, MapFlags::ANY).unwrap();
            expected.insert(key, value);
        }
    }
    expected
}

/// Reads a map of `entries` random entries in batches of every size and key by key.
#[track_caller]
fn check(map_type: MapType, key: u32, value: u32, entries: usize, max: u32) {
    let Some(bpffs) = PrivateBpffs::mount() else { return };
    let map = bpffs.create("cilium_test", map_type, key, value, max);
    let expected = Entries::collect(fill(&map, entries, &mut Random(0x5eed))).unwrap();
    let pin = Globals::open(bpffs.path()).unwrap().map("cilium_test").unwrap();

    assert_eq!(sorted(pin.read_by_key().unwrap()), expected, "key by key");
    for capacity in [1, 2, 3, 100, 4096, max as usize, usize::MAX] {
        let Batches::All(batches) = pin.read_in_batches(capacity, usize::MAX).unwrap() else {
            panic!("this kernel reads {map_type:?} in batches");
        };
        assert_eq!(batches.len(), entries, "each entry once, first batch of {capacity}");
        assert_eq!(sorted(batches), expected, "first batch of {capacity}");
    }
    let read = pin.read().unwrap();
    assert_eq!(read.entries, expected);
    assert_eq!(pin.read_at_most(entries).unwrap().as_ref(), Some(&read));
    assert_eq!(pin.read_at_most(entries - 1).unwrap(), None);
    for (key, value) in expected.iter().step_by(entries / 50 + 1) {
        assert_eq!(pin.lookup(key).unwrap().as_deref(), Some(value));
    }
}

#[test]
fn hash() {
    check(MapType::Hash, 12, 12, 3000, 4096);
}

#[test]
fn lpm_trie() {
    check(MapType::LpmTrie, 12, 24, 16_384, 16_384);
}

#[test]
fn lru_hash() {
    // Half full: an LRU map evicts before it is full.
    check(MapType::LruHash, 14, 56, 500, 4096);
}

#[test]
fn percpu_hash() {
    check(MapType::PercpuHash, 8, 16, 300, 1024);
    check(MapType::PercpuHash, 8, 12, 300, 1024);
}

#[test]
fn array_holds_every_index() {
    let Some(bpffs) = PrivateBpffs::mount() else { return };
    let map = bpffs.create("cilium_runtime_config", MapType::Array, 4, 8, 256);
    map.update(&7_u32.to_ne_bytes(), &99_u64.to_ne_bytes(), MapFlags::ANY).unwrap();
    let read = Globals::open(bpffs.path()).unwrap().read("cilium_runtime_config", None).unwrap();
    assert_eq!((read.map.entries.len(), read.caveat), (256, None));
    assert_eq!(read.map.entries.get(7), Some((&7_u32.to_ne_bytes()[..], &99_u64.to_ne_bytes()[..])));
}

#[test]
fn facts_in_bpftools_words() {
    let Some(bpffs) = PrivateBpffs::mount() else { return };
    let words = [
        ("cilium_call_policy", MapType::ProgArray, 4, 4, 8, "prog_array"),
        ("cilium_events", MapType::PerfEventArray, 4, 4, 2, "perf_event_array"),
        ("cilium_ipcache", MapType::LpmTrie, 24, 12, 512, "lpm_trie"),
        ("cilium_metrics", MapType::PercpuHash, 8, 16, 16, "percpu_hash"),
        ("cilium_snat_v4_external", MapType::LruHash, 14, 40, 16, "lru_hash"),
    ];
    for (name, map_type, key, value, max, _) in words {
        drop(bpffs.create(name, map_type, key, value, max));
    }
    drop(bpffs.create("cilium_ipcache:pending", MapType::Hash, 4, 4, 1));
    drop(bpffs.create("other", MapType::Hash, 4, 4, 1));

    let globals = Globals::open(bpffs.path()).unwrap();
    assert_eq!(globals.pins().unwrap(), words.map(|word| word.0));
    for (name, _, key_size, value_size, max_entries, word) in words {
        let read = globals.read(name, None).unwrap();
        let expected = RawMap {
            id: globals.map(name).unwrap().id(),
            map_type: word.to_owned(),
            key_size,
            value_size,
            max_entries,
            entries: Entries::default(),
        };
        assert!(expected.id > 0);
        assert_eq!((read.map, read.caveat), (expected, None));
    }
}

#[test]
fn the_kernel_refuses_to_write() {
    let Some(bpffs) = PrivateBpffs::mount() else { return };
    let map = bpffs.create("cilium_lxc", MapType::Hash, 4, 4, 8);
    map.update(&[1; 4], &[2; 4], MapFlags::ANY).unwrap();
    let pin = Globals::open(bpffs.path()).unwrap().map("cilium_lxc").unwrap();
    let refused = [
        pin.handle.update(&[1; 4], &[3; 4], MapFlags::ANY).unwrap_err(),
        pin.handle.delete(&[1; 4]).unwrap_err(),
        pin.handle.freeze().unwrap_err(),
    ];
    assert_eq!(refused.map(|error| error.kind()), [ErrorKind::PermissionDenied; 3]);
    assert_eq!(pin.lookup(&[1; 4]).unwrap(), Some(vec![2; 4]));
    assert_eq!(pin.lookup(&[9; 4]).unwrap(), None);
}

#[test]
fn what_cannot_be_read_is_named() {
    let Some(bpffs) = PrivateBpffs::mount() else { return };
    let globals = Globals::open(bpffs.path()).unwrap();
    let folder = globals.path().display().to_string();
    assert_eq!(
        globals.map("cilium_lxc").unwrap_err().to_string(),
        format!("failed to open `cilium_lxc`: no such pin in `{folder}`; is Cilium running on this node?")
    );

    drop(bpffs.create("cilium_lxc", MapType::Hash, 4, 4, 8));
    let error = format!("{:#}", globals.map("cilium_lxc").unwrap().lookup(&[1]).unwrap_err());
    assert!(error.starts_with("failed to look up a key in `cilium_lxc`: "), "{error}");

    fs::remove_dir(bpffs.path().join("tc/globals")).unwrap_err();
    fs::remove_file(bpffs.globals().join("cilium_lxc")).unwrap();
    fs::remove_dir(bpffs.globals()).unwrap();
    let error = Globals::open(bpffs.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("; is Cilium running on this node?") && error.starts_with("no `tc/globals`"),
        "{error}"
    );
}

#[test]
fn a_user_without_privileges() {
    let Some(bpffs) = PrivateBpffs::mount() else { return };
    drop(bpffs.create("cilium_lxc", MapType::Hash, 4, 4, 8));
    let globals = Globals::open(bpffs.path()).unwrap();
    // SAFETY: a raw system call, which changes this thread alone; the thread ends with this test.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) }, 0);
    let error = globals.map("cilium_lxc").unwrap_err().to_string();
    assert!(error.starts_with("failed to open `cilium_lxc`: no permission; run as root"), "{error}");
}

#[test]
fn folders_that_are_no_bpffs() {
    let folder = tempfile::tempdir().unwrap();
    let error = Globals::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("` is no BPF file system; mount it with `mount -t bpf bpf "), "{error}");
    let error = Globals::open(&folder.path().join("none")).unwrap_err().to_string();
    assert!(error.starts_with("no folder `") && error.ends_with("give it by `--bpffs`"), "{error}");
}

#[test]
fn a_map_that_is_replaced_is_read_again() {
    let Some(bpffs) = PrivateBpffs::mount() else { return };
    let map = bpffs.create("cilium_lxc", MapType::Hash, 4, 4, 8);
    map.update(&[1; 4], &[1; 4], MapFlags::ANY).unwrap();
    let path = bpffs.globals().join("cilium_lxc");
    let mut replaced = None;
    let reading = read_settled(&path, None, || {
        if replaced.is_none() {
            fs::remove_file(&path).unwrap();
            let new = bpffs.create("cilium_lxc", MapType::Hash, 4, 4, 8);
            new.update(&[2; 4], &[2; 4], MapFlags::ANY).unwrap();
            replaced = Some(new);
        }
    })
    .unwrap();
    let id = replaced.unwrap().info().unwrap().info.id;
    assert_eq!((reading.map.id, reading.caveat), (id, None));
    assert_eq!(reading.map.entries.iter().collect::<Vec<_>>(), [(&[2; 4][..], &[2; 4][..])]);
}

#[test]
fn a_map_that_keeps_growing_says_so() {
    let Some(bpffs) = PrivateBpffs::mount() else { return };
    let map = bpffs.create("cilium_lxc", MapType::Hash, 4, 4, 64);
    let mut key = 0_u32;
    let reading = read_settled(&bpffs.globals().join("cilium_lxc"), None, || {
        key += 1;
        map.update(&key.to_ne_bytes(), &[0; 4], MapFlags::ANY).unwrap();
    })
    .unwrap();
    assert_eq!(reading.caveat.as_deref(), Some("it changed while it was read, 3 times in a row"));
    assert_eq!(reading.map.entries.len(), 2);

    // Counters may change at will.
    let reading = read_settled(&bpffs.globals().join("cilium_lxc"), None, || {
        map.update(&1_u32.to_ne_bytes(), &[9; 4], MapFlags::ANY).unwrap();
    })
    .unwrap();
    assert_eq!(reading.caveat, None);
}

#[test]
fn a_map_with_the_keys_that_it_had_is_read_once() {
    let Some(bpffs) = PrivateBpffs::mount() else { return };
    let map = bpffs.create("cilium_lxc", MapType::Hash, 4, 4, 8);
    map.update(&[1; 4], &[1; 4], MapFlags::ANY).unwrap();
    let path = bpffs.globals().join("cilium_lxc");
    let read_after = |before: Option<&RawMap>| {
        let mut again = 0;
        let reading = read_settled(&path, before, || again += 1).unwrap();
        assert_eq!(reading.caveat, None);
        (reading.map, again)
    };
    let (first, again) = read_after(None);
    assert_eq!(again, 1);
    map.update(&[1; 4], &[2; 4], MapFlags::ANY).unwrap();
    let (second, again) = read_after(Some(&first));
    assert_eq!((second.entries.iter().collect::<Vec<_>>(), again), (vec![(&[1; 4][..], &[2; 4][..])], 0));
    map.update(&[2; 4], &[2; 4], MapFlags::ANY).unwrap();
    let (third, again) = read_after(Some(&second));
    assert_eq!((third.entries.len(), again), (2, 1));
    let of_another = RawMap { id: third.id + 1, ..third };
    assert_eq!(read_after(Some(&of_another)).1, 1);
}

#[test]
fn a_program_under_a_maps_name() {
    let Some(bpffs) = PrivateBpffs::mount() else { return };
    let path = bpffs.globals().join("cilium_lxc");
    // `mov r0, 0; exit` as a socket filter.
    let instructions = [0x0000_0000_0000_00b7_u64, 0x0000_0000_0000_0095];
    // SAFETY: two instructions of eight bytes, which outlive the call, and NUL-terminated strings.
    let pinned = unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER,
            c"test".as_ptr(),
            c"GPL".as_ptr(),
            instructions.as_ptr().cast(),
            instructions.len() as libbpf_sys::size_t,
            ptr::null_mut(),
        );
        let shown = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
        libbpf_sys::bpf_obj_pin(fd, shown.as_ptr())
    };
    assert_eq!(pinned, 0);
    let error = format!("{:#}", PinnedMap::open(&path).unwrap_err());
    assert!(error.contains("`cilium_lxc`"), "{error}");
}
