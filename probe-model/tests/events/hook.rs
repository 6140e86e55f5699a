//! Notifications at the kernel function, where their size is known; and bytes that are none.

use probe_model::cilium::events::{Notification, Sample, Stream};
use probe_model::cilium::{DecodeError, EndpointId};

use super::{LAYOUTS, Random, build, header_mut};

/// Notifications with these fields have a vendor's version in their header, and room for its fields, from 1.19 on.
const EXTENSIBLE: [(&str, usize); 3] =
    [("drop_notify", 48), ("trace_notify", 56), ("policy_verdict_notify", 40)];

#[track_caller]
fn refused(result: Result<Sample<'_>, DecodeError>, words: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
}

#[test]
fn the_packet_is_what_was_captured() {
    for (structure, size) in LAYOUTS {
        let notification = build(structure, size, || 1);
        let sample = Sample::from_hook(&notification.encode(), size, b"packet").map(|s| s.packet.to_vec());
        assert_eq!(sample, Ok(b"packet".to_vec()), "{structure} {size}");
    }
}

#[test]
fn a_size_that_is_not_the_versions_is_refused() {
    for (structure, size) in LAYOUTS {
        let mut meta = build(structure, size, || 0).encode();
        meta.resize(80, 0);
        for wrong in (0..80).filter(|wrong| !LAYOUTS.contains(&(structure, *wrong))) {
            refused(Sample::from_hook(&meta[..wrong], wrong, &[]).map(|_| panic!("{structure} {wrong}")), "");
        }
        refused(Sample::from_hook(&meta, size + 4, &[]), &format!("{} bytes", size + 4));
    }
}

#[test]
fn a_vendors_fields_are_skipped() {
    for (structure, size) in EXTENSIBLE {
        let mut notification = build(structure, size, || 1);
        header_mut(&mut notification).unwrap().ext_version = 3;
        let mut meta = notification.encode();
        meta.extend([0xee; 40]);
        let whole = Sample::from_hook(&meta, meta.len(), b"packet").unwrap();
        assert_eq!((whole.notification, whole.packet), (notification, &b"packet"[..]), "{structure}");
        // As much of it as a record keeps.
        let cut = Sample::from_hook(&meta[..64], meta.len(), b"packet").unwrap();
        assert_eq!(cut, whole, "{structure}");
        // Without the size, nobody knows where the packet begins.
        refused(Stream::default().decode(&meta), "`ext_version` 3");
        // Longer without a vendor's word.
        meta[15] = 0;
        refused(Sample::from_hook(&meta, meta.len(), &[]), &format!("{} bytes, {size} of which", size + 40));
    }
}

#[test]
fn a_vendors_fields_before_1_19_are_refused() {
    for (structure, size) in [("drop_notify", 36), ("drop_notify", 40), ("trace_notify", 48)] {
        let mut meta = build(structure, size, || 0).encode();
        meta[15] = 1;
        let version = u16::from(meta[14]) + 256;
        refused(
            Sample::from_hook(&meta, size, &[]),
            &format!("`version` {version}, expected 1 (Cilium 1.13"),
        );
        refused(Stream::default().decode(&meta), &format!("`version` {version}, expected 1 (Cilium 1.13"));
    }
    let mut meta = build("policy_verdict_notify", 32, || 0).encode();
    meta[15] = 1;
    refused(Sample::from_hook(&meta, 32, &[]), "32 bytes, 40 of which are known");
}

#[test]
fn versions_that_are_not_known() {
    for (structure, size, known) in
        [("drop_notify", 48, 1..=3), ("trace_notify", 56, 1..=2), ("policy_verdict_notify", 40, 1..=1)]
    {
        for version in (0..=u8::MAX).filter(|version| !known.contains(version)) {
            let mut meta = build(structure, size, || 0).encode();
            meta[14] = version;
            let words = format!("`{structure}` has `version` {version}, expected 1 (Cilium 1.13");
            refused(Sample::from_hook(&meta, size, &[]), &words);
            refused(Stream::default().decode(&meta), &words);
        }
    }
}

#[test]
fn directions_and_match_types_that_are_not_known() {
    let Notification::PolicyVerdict(mut verdict) = build("policy_verdict_notify", 32, || 0) else {
        unreachable!()
    };
    verdict.header.source = EndpointId(7);
    let mut meta = verdict.encode();
    for (bits, words) in [(0, "`dir` 0"), (3, "`dir` 3"), (1 | 7 << 3, "`match_type` 7")] {
        meta[27] = bits;
        refused(Sample::from_hook(&meta, 32, &[]), words);
        refused(Stream::default().decode(&meta), words);
    }
}

#[test]
fn cut_anywhere() {
    for (structure, size) in LAYOUTS {
        let raw = build(structure, size, || 0).encode();
        for length in 0..size {
            let cut = &raw[..length];
            assert!(Sample::from_hook(cut, size, &[]).is_err(), "{structure} cut to {length}");
            // What is left of the longer layout may be all of the shorter one.
            let is_whole = |&(other, size)| other == structure && (size..size + 8).contains(&length);
            let decoded = Stream::default().decode(cut);
            assert!(decoded.is_err() || LAYOUTS.iter().any(is_whole), "{structure} cut to {length}");
        }
    }
    assert!(Sample::from_hook(&[], 0, &[]).is_err());
}

#[test]
fn no_bytes_panic() {
    let mut random = Random::new(9);
    let mut stream = Stream::default();
    let mut decoded = 0;
    for round in 0..200_000 {
        let length = random.index(260);
        let mut raw = random.bytes(length);
        if let Some(first) = raw.first_mut() {
            *first %= 9;
        }
        // Half of them have a version that is known, so that more than the header is read.
        if round % 2 == 0 && length > 15 {
            raw[12..16].copy_from_slice(&[random.index(200) as u8, 0, 1 + random.index(3) as u8, 0]);
        }
        decoded += usize::from(stream.decode(&raw).is_ok());
        let meta_size = random.index(80);
        let meta = &raw[..meta_size.min(length)];
        decoded += usize::from(Sample::from_hook(meta, meta_size, &raw).is_ok());
        decoded += usize::from(Sample::from_hook(&raw, random.number() as usize, &raw).is_ok());
    }
    assert!(decoded > 20_000, "only {decoded} were read");
}
