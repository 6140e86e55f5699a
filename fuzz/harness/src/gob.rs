//! The monitor socket's stream.

use probe_model::cilium::gob::{Decoder, GobError, Payload};

/// A monitor stream: what comes out must not depend on how it was cut into chunks, which the first byte says.
pub fn gob(data: &[u8]) {
    let Some((chunk, stream)) = data.split_first() else { return };
    let whole = decode(stream, stream.len().max(1));
    let chunked = decode(stream, usize::from(*chunk) + 1);
    assert_eq!(whole, chunked, "chunks of {} bytes", usize::from(*chunk) + 1);
}

#[derive(Debug, PartialEq)]
struct Decoded {
    payloads: Vec<Payload>,
    skipped: u64,
    error: Option<GobError>,
}

fn decode(stream: &[u8], chunk: usize) -> Decoded {
    let mut decoder = Decoder::new();
    let mut payloads = Vec::new();
    let mut error = None;
    'stream: for bytes in stream.chunks(chunk) {
        decoder.feed(bytes);
        loop {
            match decoder.next() {
                Ok(Some(payload)) => payloads.push(payload),
                Ok(None) => break,
                Err(found) => {
                    error = Some(found);
                    break 'stream;
                }
            }
        }
        assert!(decoder.pending() <= stream.len());
    }
    Decoded { payloads, skipped: decoder.skipped(), error }
}
