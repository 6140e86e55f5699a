//! The monitor socket's wire form: Go's gob encoding of one struct, as the agent writes it.
//!
//! Source: `Payload` in Cilium `pkg/monitor/payload/monitor_payload.go` and the documentation of Go's `encoding/gob`;
//! checked byte for byte against recorded streams.
use probe_model::cilium::gob::Payload;

/// The first id that Go gives to a struct of the program's own, when nothing else was encoded before.
pub const FIRST_TYPE_ID: i64 = 65;
/// `Type` of a payload that holds an event.
const EVENT_SAMPLE: i64 = 9;
/// `Type` of a payload that counts lost events.
const RECORD_LOST: i64 = 2;
/// Gob's ids of the field types.
const INT: i64 = 2;
const UINT: i64 = 3;
const BYTES: i64 = 5;

/// The encoder of one connection: it tells the type before the first value.
#[derive(Debug, Clone)]
pub struct Encoder {
    type_id: i64,
    announced: bool,
}

impl Encoder {
    /// An encoder whose struct has the id `type_id`.
    pub fn new(type_id: i64) -> Self {
        Self { type_id, announced: false }
    }

    /// The bytes that follow on the connection for `payload`.
    pub fn encode(&mut self, payload: &Payload) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.announced {
            self.announced = true;
            message(&mut bytes, &self.definition());
        }
        message(&mut bytes, &self.value(payload));
        bytes
    }

    /// `wireType{StructT: {CommonType{"Payload", id}, fields}}` of the negated id.
    fn definition(&self) -> Vec<u8> {
        let mut body = Vec::new();
        int(&mut body, -self.type_id);
        // The third field of wireType, its first field, the name as that one's first, the id as its second.
        body.extend([3, 1, 1]);
        name(&mut body, "Payload");
        body.push(1);
        int(&mut body, self.type_id);
        body.extend([0, 1]);
        uint(&mut body, 4);
        for (field, field_type) in [("Data", BYTES), ("CPU", INT), ("Lost", UINT), ("Type", INT)] {
            body.push(1);
            name(&mut body, field);
            body.push(1);
            int(&mut body, field_type);
            body.push(0);
        }
        body.extend([0, 0]);
        body
    }

    fn value(&self, payload: &Payload) -> Vec<u8> {
        let mut fields = Fields { body: Vec::new(), last: 0 };
        // The definition used the negated id.
        int(&mut fields.body, self.type_id);
        let (data, cpu, lost, kind): (&[u8], _, _, _) = match payload {
            Payload::Sample { cpu, data } => (data, *cpu, 0, EVENT_SAMPLE),
            Payload::Lost { cpu, count } => (&[], *cpu, *count, RECORD_LOST),
            Payload::Unknown { record_type } => (&[], 0, 0, *record_type),
        };
        // A field that holds its zero is left out.
        if !data.is_empty() {
            let body = fields.start(1);
            uint(body, data.len() as u64);
            body.extend_from_slice(data);
        }
        if cpu != 0 {
            int(fields.start(2), cpu);
        }
        if lost != 0 {
            uint(fields.start(3), lost);
        }
        if kind != 0 {
            int(fields.start(4), kind);
        }
        fields.body.push(0);
        fields.body
    }
}

/// A struct's fields: each is preceded by its distance from the one before.
struct Fields {
    body: Vec<u8>,
    last: u8,
}

impl Fields {
    fn start(&mut self, number: u8) -> &mut Vec<u8> {
        self.body.push(number - self.last);
        self.last = number;
        &mut self.body
    }
}

fn message(out: &mut Vec<u8>, body: &[u8]) {
    uint(out, body.len() as u64);
    out.extend_from_slice(body);
}

fn name(out: &mut Vec<u8>, text: &str) {
    uint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Below 128 one byte; else the negated count of big-endian bytes, then those.
fn uint(out: &mut Vec<u8>, value: u64) {
    if value < 128 {
        out.push(value as u8);
        return;
    }
    let bytes = value.to_be_bytes();
    let significant = &bytes[value.leading_zeros() as usize / 8..];
    out.push((significant.len() as u8).wrapping_neg());
    out.extend_from_slice(significant);
}

/// The sign in the lowest bit.
fn int(out: &mut Vec<u8>, value: i64) {
    let shifted = value.cast_unsigned() << 1;
    uint(out, if value < 0 { !shifted } else { shifted });
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use super::*;

    /// The reference's worked examples, `cilium-abi-agent.md` 9.4.
    #[test]
    fn values_are_as_documented() {
        let mut encoder = Encoder::new(FIRST_TYPE_ID);
        let first = encoder.encode(&Payload::Sample { cpu: 3, data: vec![5, 0, 0x34, 0x12] });
        assert_eq!(first[0], 0x38);
        assert_eq!(first[1..12], *b"\xff\x81\x03\x01\x01\x07Paylo");
        assert_eq!(
            first[57..],
            [0x0d, 0xff, 0x82, 1, 4, 5, 0, 0x34, 0x12, 1, 6, 2, 0x12, 0],
            "the value after the definition"
        );
        assert_eq!(
            encoder.encode(&Payload::Lost { cpu: 1, count: 300 }),
            [0x0b, 0xff, 0x82, 2, 2, 1, 0xfe, 1, 0x2c, 1, 4, 0]
        );
        let long = encoder.encode(&Payload::Sample { cpu: 130, data: vec![7; 200] });
        assert_eq!(long[..7], [0xff, 0xd4, 0xff, 0x82, 1, 0xff, 0xc8]);
        assert_eq!(long[207..], [1, 0xfe, 1, 4, 2, 0x12, 0]);
    }

    /// Every recorded stream, written again from its own samples.
    #[test]
    fn recorded_streams_come_out_byte_for_byte() {
        let mut streams = 0;
        for recording in ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"] {
            for scenario in fixtures::scenarios(recording) {
                let events = scenario.path.join("events");
                let Ok(recorded) = fs::read(events.join("events.bin")) else { continue };
                let lines = fs::read_to_string(events.join("events.jsonl")).unwrap();
                let payloads = lines.lines().map(payload).collect::<Vec<_>>();
                // Which id the struct has is the recording agent's affair; everything else is not.
                let type_id = (FIRST_TYPE_ID..1000)
                    .find(|id| {
                        let definition = Encoder::new(*id).definition();
                        recorded[1..].starts_with(&definition)
                    })
                    .unwrap_or_else(|| panic!("{}: no definition at the start", scenario.name));
                let mut encoder = Encoder::new(type_id);
                let ours: Vec<u8> = payloads.iter().flat_map(|payload| encoder.encode(payload)).collect();
                assert_eq!(ours, recorded, "{recording}/{}", scenario.name);
                streams += 1;
            }
        }
        assert!(streams >= 20, "{streams}");
    }

    fn payload(line: &str) -> Payload {
        let event: Value = serde_json::from_str(line).unwrap();
        let hex = event["hex"].as_str().unwrap().as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let cpu = event["cpu"].as_i64().unwrap();
        match event["perf_type"].as_i64().unwrap() {
            EVENT_SAMPLE => Payload::Sample { cpu, data: hex.chunks(2).map(byte).collect() },
            _ => Payload::Lost { cpu, count: event["lost"].as_u64().unwrap() },
        }
    }
}
