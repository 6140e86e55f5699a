//! A reader of protobuf's wire format that knows only the published numbers of fields, not our types.

use std::collections::BTreeMap;

/// A field's value on the wire.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wire {
    Varint(u64),
    Fixed64(u64),
    Bytes(Vec<u8>),
}

/// A message: its fields, by number, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields(BTreeMap<u64, Vec<Wire>>);

impl Fields {
    /// Reads a message.
    pub(super) fn read(mut bytes: &[u8]) -> Self {
        let mut fields = Self::default();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = match key & 7 {
                0 => Wire::Varint(varint(&mut bytes)),
                1 => Wire::Fixed64(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    Wire::Bytes(take(&mut bytes, length).to_vec())
                }
                other => panic!("wire type {other}"),
            };
            fields.0.entry(key >> 3).or_default().push(value);
        }
        fields
    }

    fn all(&self, number: u64) -> &[Wire] {
        self.0.get(&number).map(Vec::as_slice).unwrap_or_default()
    }

    /// Messages of a repeated field.
    pub(super) fn messages(&self, number: u64) -> Vec<Self> {
        self.all(number).iter().map(|value| Self::read(bytes(value))).collect()
    }

    /// The one message of a field.
    pub(super) fn message(&self, number: u64) -> Self {
        let [one] = &self.messages(number)[..] else { panic!("field {number} of {self:?}") };
        one.clone()
    }

    /// Bytes, empty without the field.
    pub(super) fn bytes(&self, number: u64) -> Vec<u8> {
        self.all(number).first().map(|value| bytes(value).to_vec()).unwrap_or_default()
    }

    /// Text, empty without the field.
    pub(super) fn text(&self, number: u64) -> String {
        String::from_utf8(self.bytes(number)).unwrap()
    }

    /// A number of 8 bytes.
    pub(super) fn fixed64(&self, number: u64) -> u64 {
        let [Wire::Fixed64(value)] = self.all(number) else { panic!("field {number} of {self:?}") };
        *value
    }

    /// A number, 0 without the field.
    pub(super) fn varint(&self, number: u64) -> u64 {
        match self.all(number) {
            [] => 0,
            [Wire::Varint(value)] => *value,
            other => panic!("field {number}: {other:?}"),
        }
    }

    /// Attributes in field `number`, as text: `KeyValue` is key 1, value 2; `AnyValue` is text 1, bool 2, int 3, array 5.
    pub(super) fn attributes(&self, number: u64) -> BTreeMap<String, String> {
        let pairs = self.messages(number).into_iter().map(|pair| (pair.text(1), any(&pair.message(2))));
        let mut all = BTreeMap::new();
        for (key, value) in pairs {
            assert_eq!(all.insert(key.clone(), value), None, "{key} twice");
        }
        all
    }
}

fn any(value: &Fields) -> String {
    let (number, _) = value.0.first_key_value().expect("a value");
    match number {
        1 => value.text(1),
        2 => (value.varint(2) == 1).to_string(),
        3 => value.varint(3).to_string(),
        5 => format!("{:?}", value.message(5).messages(1).iter().map(any).collect::<Vec<_>>()),
        other => panic!("AnyValue {other}"),
    }
}

fn bytes(value: &Wire) -> &[u8] {
    let Wire::Bytes(bytes) = value else { panic!("{value:?}") };
    bytes
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint without end")
}
