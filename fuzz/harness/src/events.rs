//! Perf samples of `cilium_events`.

use probe_model::cilium::events::{Notification, Sample, Stream};
use probe_model::path::{Patience, Sighting, Tracker};

/// Samples of one stream, one after another: a byte that is the length, the sample.
///
/// Each is also taken for what a program handed to the kernel, cut between notification and packet at every place where a
/// layout may end.
pub fn events(data: &[u8]) {
    let mut stream = Stream::default();
    let mut tracker = Tracker::new(Patience::default());
    let mut rest = data;
    let mut ktime_ns = 0;
    while let Some((length, after)) = rest.split_first() {
        let (sample, after) = after.split_at(after.len().min(usize::from(*length)));
        ktime_ns += 1_000_000;
        sample_alone(sample);
        if let Ok(Some(sighting)) = Sighting::from_stream(ktime_ns, &mut stream, sample) {
            tracker.push(&sighting);
        }
        rest = after;
    }
    assert!(tracker.finish().len() <= data.len());
}

/// The inverse of what [`events`] reads, of samples that are not too long.
pub(crate) fn encode(samples: &[Vec<u8>]) -> Vec<u8> {
    samples
        .iter()
        .filter(|sample| sample.len() < 256)
        .flat_map(|sample| [&[sample.len() as u8], &sample[..]].concat())
        .collect()
}

fn sample_alone(raw: &[u8]) {
    if let Ok(sample) = Sample::decode(raw) {
        assert!(sample.packet.len() <= raw.len());
        encodes_again(&sample.notification);
    }
    for size in [24, 28, 32, 36, 40, 48, 56] {
        let meta = &raw[..raw.len().min(size)];
        if let Ok(sample) = Sample::from_hook(meta, size, &raw[meta.len()..]) {
            encodes_again(&sample.notification);
        }
    }
}

/// What a notification decoded to encodes to bytes that decode to it.
fn encodes_again(notification: &Notification) {
    let raw = notification.encode();
    let again = Sample::from_hook(&raw, raw.len(), &[]).map(|sample| sample.notification);
    assert_eq!(again.as_ref(), Ok(notification), "encoded as {raw:02x?}");
}
