//! The monitor stream's decoder against recordings of a real agent's socket, and against bytes of every kind.

use std::{fs, path::Path};

use probe_model::cilium::gob::{Decoder, GobError, Payload};

/// `struct Payload` as the agent of Cilium 1.14 defines it, with id 65.
const DEFINITION: &[u8] = b"\x38\xff\x81\x03\x01\x01\x07Payload\x01\xff\x82\x00\x01\x04\
    \x01\x04Data\x01\x0a\x00\x01\x03CPU\x01\x04\x00\x01\x04Lost\x01\x06\x00\x01\x04Type\x01\x04\x00\x00\x00";

/// Decodes `chunks` to their end; the number is what was left of an incomplete message.
fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<(Vec<Payload>, usize), GobError> {
    let (mut decoder, mut payloads) = (Decoder::new(), Vec::new());
    for chunk in chunks {
        decoder.feed(chunk);
        while let Some(payload) = decoder.next()? {
            payloads.push(payload);
        }
    }
    Ok((payloads, decoder.pending()))
}

#[track_caller]
fn check(messages: &[&[u8]], expected: &Result<Vec<Payload>, GobError>) {
    let stream = messages.concat();
    assert_eq!(decode([&stream[..]]).map(|(payloads, _)| payloads), *expected);
    assert_eq!(decode(stream.chunks(1)).map(|(payloads, _)| payloads), *expected, "byte by byte");
}

#[test]
fn the_values_of_the_reference() {
    let sample = b"\x0d\xff\x82\x01\x04\x05\x00\x34\x12\x01\x06\x02\x12\x00";
    let sample_of_cpu_0 = b"\x0b\xff\x82\x01\x04\x05\x00\x34\x12\x03\x12\x00";
    let lost = b"\x0b\xff\x82\x02\x02\x01\xfe\x01\x2c\x01\x04\x00";
    let data = vec![5, 0, 0x34, 0x12];
    check(
        &[DEFINITION, sample, sample_of_cpu_0, lost],
        &Ok(vec![
            Payload::Sample { cpu: 3, data: data.clone() },
            Payload::Sample { cpu: 0, data },
            Payload::Lost { cpu: 1, count: 300 },
        ]),
    );
}

#[test]
fn a_long_sample() {
    let value =
        [b"\xff\xd4\xff\x82\x01\xff\xc8".as_slice(), &[7; 200], b"\x01\xfe\x01\x04\x02\x12\x00"].concat();
    check(&[DEFINITION, &value], &Ok(vec![Payload::Sample { cpu: 130, data: vec![7; 200] }]));
}

#[test]
fn another_record_type_is_named() {
    check(&[DEFINITION, b"\x05\xff\x82\x04\x02\x00"], &Ok(vec![Payload::Unknown { record_type: 1 }]));
}

#[test]
fn fields_are_found_by_name_and_unknown_ones_skipped() {
    // struct Payload { Type int; When []string; Data []byte; Extra map[string]uint; Any interface } with id 70,
    // []string with id 71, map[string]uint with id 72.
    let stream: [&[u8]; 4] = [
        b"\x44\xff\x8b\x03\x01\x01\x07Payload\x01\xff\x8c\x00\x01\x05\
          \x01\x04Type\x01\x04\x00\x01\x04When\x01\xff\x8e\x00\x01\x04Data\x01\x0a\x00\
          \x01\x05Extra\x01\xff\x90\x00\x01\x03Any\x01\x10\x00\x00\x00",
        b"\x0c\xff\x8d\x02\x01\x02\xff\x8e\x00\x01\x0c\x00\x00",
        b"\x0f\xff\x8f\x04\x01\x02\xff\x90\x00\x01\x0c\x01\x06\x00\x00",
        b"\x1f\xff\x8c\x01\x12\x01\x02\x03one\x03two\x01\x02\x04\x00\x01\x01\x01k\xfe\x01\x00\x01\x03int\x04\x01\x02\x00",
    ];
    let stream: Vec<Vec<u8>> = stream.iter().map(|message| with_length(message)).collect();
    let stream: Vec<&[u8]> = stream.iter().map(Vec::as_slice).collect();
    check(&stream, &Ok(vec![Payload::Sample { cpu: 0, data: vec![4, 0] }]));
}

/// The message with its true length in place of the one-byte placeholder.
fn with_length(message: &[u8]) -> Vec<u8> {
    [&[u8::try_from(message.len() - 1).unwrap()], &message[1..]].concat()
}

#[test]
fn a_value_of_another_struct_is_passed_over() {
    let other = b"\x12\xff\x83\x03\x01\x01\x05Other\x01\xff\x84\x00\x01\x00\x00\x00";
    let (other, value) = (with_length(other), b"\x03\xff\x84\x00");
    let stream = [DEFINITION, &other, value, b"\x05\xff\x82\x04\x12\x00"].concat();
    let mut decoder = Decoder::new();
    decoder.feed(&stream);
    assert_eq!(decoder.next(), Ok(Some(Payload::Sample { cpu: 0, data: vec![] })));
    assert_eq!(decoder.skipped(), 1);
}

#[test]
fn what_is_no_monitor_stream_is_refused() {
    check(&[b"\x03\xff\x82\x00"], &Err(GobError::UndefinedType(65)));
    check(&[DEFINITION, b"\x04\xff\x82\x05\x00"], &Err(GobError::UnknownField { type_id: 65, field: 4 }));
    check(&[DEFINITION, b"\x04\xff\x82\x01\x04"], &Err(GobError::Truncated));
    check(&[DEFINITION, b"\x04\xff\x82\x00\x00"], &Err(GobError::Trailing(1)));
    check(&[b"\xf0"], &Err(GobError::BadInteger(0xf0)));
    let (what, limit) = ("bytes in a message", 1 << 20);
    check(&[b"\xfc\x40\x00\x00\x00"], &Err(GobError::TooLong { what, found: 1 << 30, limit }));
    let type_of_cpu = DEFINITION.windows(3).position(|name| name == b"CPU").unwrap() + 4;
    let mut cpu_is_a_string = DEFINITION.to_vec();
    cpu_is_a_string[type_of_cpu] = 12;
    check(
        &[&cpu_is_a_string, b"\x05\xff\x82\x02\x01\x00"],
        &Err(GobError::UnexpectedFieldType { field: "CPU", found: 6, expected: 2 }),
    );
}

#[test]
fn a_cut_stream_shows_what_was_left() {
    let stream = [DEFINITION, b"\x0d\xff\x82\x01\x04\x05"].concat();
    assert_eq!(decode([&stream[..]]), Ok((vec![], 6)));
}

/// What `events.jsonl` says the stream holds.
fn expected(events: &Path) -> Vec<Payload> {
    let text = fs::read_to_string(events.join("events.jsonl")).unwrap();
    let payload = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let (cpu, hex) = (line["cpu"].as_i64().unwrap(), line["hex"].as_str().unwrap());
        match line["perf_type"].as_i64().unwrap() {
            9 => Payload::Sample { cpu, data: unhex(hex) },
            2 => Payload::Lost { cpu, count: line["lost"].as_u64().unwrap() },
            record_type => Payload::Unknown { record_type },
        }
    };
    text.lines().map(payload).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn recordings_decode_to_their_samples() {
    let recordings = ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"];
    for scenario in recordings.into_iter().flat_map(fixtures::scenarios) {
        let events = scenario.path.join("events");
        let (stream, expected) = (fs::read(events.join("events.bin")).unwrap(), expected(&events));
        assert!(!expected.is_empty(), "{}", events.display());
        for size in [1, 2, 3, 7, 64, 1000, 4096, stream.len()] {
            let decoded = decode(stream.chunks(size));
            assert_eq!(decoded, Ok((expected.clone(), 0)), "{} in chunks of {size}", events.display());
        }
    }
}

/// Marsaglia's xorshift: the same bytes on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let sample = b"\x0d\xff\x82\x01\x04\x05\x00\x34\x12\x01\x06\x02\x12\x00";
    let valid = [DEFINITION, sample, sample].concat();
    let (mut refused, mut accepted) = (0, 0);
    for round in 0..200_000 {
        let mut bytes = valid.clone();
        match round % 3 {
            0 => bytes = (0..random.next() % 64).map(|_| random.byte()).collect(),
            1 => {
                let at = usize::from(random.byte()) % bytes.len();
                bytes[at] = random.byte();
            }
            _ => {
                let at = usize::from(random.byte()) % bytes.len();
                bytes.splice(at..=at, [random.byte(), random.byte()]);
            }
        }
        match decode([&bytes[..]]) {
            Ok(_) => accepted += 1,
            Err(error) => refused += usize::from(!error.to_string().is_empty()),
        }
    }
    assert!(refused > 1000 && accepted > 1000, "{refused} refused, {accepted} accepted");
}
