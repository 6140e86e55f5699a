//! The agent's monitor stream: Go's gob encoding of one struct, decoded as the bytes arrive.
//!
//! The agent writes one gob stream per connection: type definitions first, then `Payload` values. Type ids are chosen by
//! the encoder, so they are read from the definitions; fields are found by name, and those this reader does not know are
//! skipped. Nothing here reads a socket.
//!
//! Source: `Payload` in Cilium `pkg/monitor/payload/monitor_payload.go`; the wire form in the documentation of Go's
//! `encoding/gob`. Same bytes in Cilium 1.13–1.18.

use std::{collections::BTreeMap, fmt};

/// Messages longer than this are refused: a perf sample is at most 64 KiB.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Type definitions beyond this many are refused; the agent sends one.
const MAX_TYPES: usize = 64;
/// Fields of one struct beyond this many are refused.
const MAX_FIELDS: usize = 256;
/// Values nested deeper than this are refused.
const MAX_DEPTH: usize = 16;

/// `PERF_RECORD_SAMPLE` of the kernel's `perf_event_type`, and `EventSample` of Cilium's payload.
const EVENT_SAMPLE: i64 = 9;
/// `PERF_RECORD_LOST`, and `RecordLost` of Cilium's payload.
const RECORD_LOST: i64 = 2;

/// Ids of the types that gob knows without a definition.
mod builtin {
    pub(super) const BOOL: i64 = 1;
    pub(super) const INT: i64 = 2;
    pub(super) const UINT: i64 = 3;
    pub(super) const FLOAT: i64 = 4;
    pub(super) const BYTES: i64 = 5;
    pub(super) const STRING: i64 = 6;
    pub(super) const COMPLEX: i64 = 7;
    pub(super) const INTERFACE: i64 = 8;
}

/// One value of the monitor stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// One event of the datapath or the agent.
    Sample {
        /// The CPU whose perf buffer held it.
        cpu: i64,
        /// The raw event, first byte its message type, with the padding the perf buffer gave it.
        data: Vec<u8>,
    },
    /// Events that the agent's perf reader lost.
    Lost {
        /// The CPU whose perf buffer overflowed.
        cpu: i64,
        /// How many.
        count: u64,
    },
    /// A perf record of another type, which holds no event.
    Unknown {
        /// The record's number in the kernel's `perf_event_type`.
        record_type: i64,
    },
}

/// Why a stream is not the monitor's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GobError {
    /// A message ends inside a value.
    Truncated,
    /// A message has bytes left after its value.
    Trailing(usize),
    /// A length or count is above what this reader accepts.
    TooLong {
        /// What was counted.
        what: &'static str,
        /// How many.
        found: u64,
        /// How many are accepted.
        limit: usize,
    },
    /// An integer's length byte is not one gob writes.
    BadInteger(u8),
    /// A field number that the type does not have.
    UnknownField {
        /// The type's id.
        type_id: i64,
        /// The field's position, from 0.
        field: u64,
    },
    /// A value or field of a type that was never defined.
    UndefinedType(i64),
    /// Values are nested too deeply.
    TooDeep,
    /// A name is not UTF-8.
    BadName,
    /// `Payload` has a known field of an unexpected type.
    UnexpectedFieldType {
        /// The field's name.
        field: &'static str,
        /// Its type id, as defined by the stream.
        found: i64,
        /// The built-in type id expected.
        expected: i64,
    },
}

impl fmt::Display for GobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "gob message ends inside a value"),
            Self::Trailing(n) => write!(f, "gob message has {n} bytes left after its value"),
            Self::TooLong { what, found, limit } => {
                write!(f, "gob stream has {found} {what}, expected at most {limit}")
            }
            Self::BadInteger(byte) => {
                write!(f, "gob integer begins with {byte:#04x}, expected below 0x80 or at least 0xf8")
            }
            Self::UnknownField { type_id, field } => {
                write!(f, "gob value has field {field}, which type {type_id} does not define")
            }
            Self::UndefinedType(id) => write!(f, "gob value has type {id}, which the stream never defined"),
            Self::TooDeep => write!(f, "gob value is nested more than {MAX_DEPTH} deep"),
            Self::BadName => write!(f, "gob type has a name that is not UTF-8"),
            Self::UnexpectedFieldType { field, found, expected } => {
                write!(f, "gob field `{field}` of `Payload` has type {found}, expected {expected}")
            }
        }
    }
}

impl std::error::Error for GobError {}

/// Decodes a monitor stream from chunks of any size.
///
/// ```
/// use probe_model::cilium::gob::{Decoder, Payload};
///
/// let mut decoder = Decoder::new();
/// decoder.feed(b"\x38\xff\x81\x03\x01\x01\x07Payload\x01\xff\x82\x00\x01\x04\x01\x04Data\x01\x0a\x00");
/// assert_eq!(decoder.next(), Ok(None)); // the definition is not complete yet
/// decoder.feed(b"\x01\x03CPU\x01\x04\x00\x01\x04Lost\x01\x06\x00\x01\x04Type\x01\x04\x00\x00\x00");
/// decoder.feed(b"\x0d\xff\x82\x01\x04\x05\x00\x34\x12\x01\x06\x02\x12\x00");
/// assert_eq!(decoder.next(), Ok(Some(Payload::Sample { cpu: 3, data: vec![5, 0, 0x34, 0x12] })));
/// assert_eq!(decoder.next(), Ok(None));
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    consumed: usize,
    types: BTreeMap<i64, Type>,
    skipped: u64,
}

impl Decoder {
    /// A decoder at the beginning of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that were fed and belong to no complete message yet. Not 0 at the end of a stream: it was cut.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    /// Complete values of other types than `Payload` that were passed over.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The next value, or `None` until more bytes are fed.
    ///
    /// # Errors
    ///
    /// [`GobError`] when the bytes are no monitor stream. Where the next message begins is then unknown:
    /// the connection has to be given up.
    #[expect(clippy::should_implement_trait, reason = "`None` is no end: more bytes may follow")]
    pub fn next(&mut self) -> Result<Option<Payload>, GobError> {
        while let Some((begin, end)) = self.message()? {
            self.consumed = end;
            let mut reader = Reader { bytes: &self.buffer[begin..end], depth: 0 };
            let type_id = reader.int()?;
            if type_id < 0 {
                let definition = reader.wire_type()?;
                reader.finish()?;
                if self.types.len() >= MAX_TYPES {
                    let found = self.types.len() as u64 + 1;
                    return Err(GobError::TooLong { what: "type definitions", found, limit: MAX_TYPES });
                }
                let id = type_id.checked_neg().ok_or(GobError::UndefinedType(type_id))?;
                self.types.insert(id, definition);
                continue;
            }
            match self.types.get(&type_id) {
                Some(Type::Struct { name, fields }) if name == "Payload" => {
                    let payload = reader.payload(type_id, fields, &self.types)?;
                    reader.finish()?;
                    return Ok(Some(payload));
                }
                Some(_) => self.skipped += 1,
                None => return Err(GobError::UndefinedType(type_id)),
            }
        }
        Ok(None)
    }

    /// Where the next complete message lies in the buffer, without its length.
    fn message(&self) -> Result<Option<(usize, usize)>, GobError> {
        let rest = &self.buffer[self.consumed..];
        let mut reader = Reader { bytes: rest, depth: 0 };
        let length = match reader.uint() {
            Ok(length) => length,
            Err(GobError::Truncated) => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = limited("bytes in a message", length, MAX_MESSAGE)?;
        let begin = self.consumed + rest.len() - reader.bytes.len();
        Ok((reader.bytes.len() >= length).then_some((begin, begin + length)))
    }
}

/// A type as the stream defines it, as far as skipping its values needs.
#[derive(Clone, Debug)]
enum Type {
    Struct {
        name: String,
        fields: Vec<Field>,
    },
    /// Slices and arrays: a count, then the elements.
    List {
        element: i64,
    },
    Map {
        key: i64,
        element: i64,
    },
    /// A type that encodes itself: a length, then its bytes.
    Opaque,
}

#[derive(Clone, Debug)]
struct Field {
    name: String,
    type_id: i64,
}

/// Reads gob's primitives off the front of one message.
struct Reader<'a> {
    bytes: &'a [u8],
    depth: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], GobError> {
        let (taken, rest) = self.bytes.split_at_checked(n).ok_or(GobError::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn finish(&self) -> Result<(), GobError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(GobError::Trailing(self.bytes.len())) }
    }

    /// An unsigned integer: below 128 as itself, else a negated byte count and big-endian bytes.
    fn uint(&mut self) -> Result<u64, GobError> {
        let first = self.take(1)?[0];
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let length = usize::from(first.wrapping_neg());
        if length > 8 {
            return Err(GobError::BadInteger(first));
        }
        Ok(self.take(length)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A signed integer: the sign in bit 0, complemented when it is set.
    fn int(&mut self) -> Result<i64, GobError> {
        let raw = self.uint()?;
        let magnitude = (raw >> 1).cast_signed();
        Ok(if raw & 1 == 1 { !magnitude } else { magnitude })
    }

    fn bytes(&mut self) -> Result<&'a [u8], GobError> {
        let length = self.uint()?;
        self.take(limited("bytes in a value", length, MAX_MESSAGE)?)
    }

    fn name(&mut self) -> Result<String, GobError> {
        Ok(str::from_utf8(self.bytes()?).map_err(|_| GobError::BadName)?.to_owned())
    }

    /// Walks a struct's fields: calls `field` with the position of each that is present.
    fn fields(
        &mut self,
        mut field: impl FnMut(&mut Self, usize) -> Result<(), GobError>,
    ) -> Result<(), GobError> {
        let mut next = 0;
        loop {
            let delta = self.uint()?;
            if delta == 0 {
                return Ok(());
            }
            next += limited("fields in a struct", delta, MAX_FIELDS)?;
            limited("fields in a struct", next as u64, MAX_FIELDS)?;
            field(self, next - 1)?;
        }
    }

    /// The value of a type definition: gob's own `wireType`, a struct of which one field is present.
    fn wire_type(&mut self) -> Result<Type, GobError> {
        let mut definition = None;
        self.fields(|reader, kind| {
            definition = Some(match kind {
                0 | 1 => Type::List { element: reader.common_and_ids::<2>()?.1[0] },
                2 => reader.struct_type()?,
                3 => {
                    let (_, [key, element]) = reader.common_and_ids()?;
                    Type::Map { key, element }
                }
                4..=6 => {
                    reader.common_and_ids::<0>()?;
                    Type::Opaque
                }
                _ => return Err(GobError::UnknownField { type_id: 0, field: kind as u64 }),
            });
            Ok(())
        })?;
        definition.ok_or(GobError::Truncated)
    }

    /// `structType`: the common part, then the list of fields.
    fn struct_type(&mut self) -> Result<Type, GobError> {
        let (mut name, mut fields) = (String::new(), Vec::new());
        self.fields(|reader, position| {
            match position {
                0 => name = reader.common()?,
                1 => {
                    let count = reader.uint()?;
                    for _ in 0..limited("fields in a struct", count, MAX_FIELDS)? {
                        fields.push(reader.field_type()?);
                    }
                }
                _ => return Err(GobError::UnknownField { type_id: 0, field: position as u64 }),
            }
            Ok(())
        })?;
        Ok(Type::Struct { name, fields })
    }

    /// The other definitions: the common part, then up to `N` integers.
    fn common_and_ids<const N: usize>(&mut self) -> Result<(String, [i64; N]), GobError> {
        let (mut name, mut ids) = (String::new(), [0; N]);
        self.fields(|reader, position| {
            match position.checked_sub(1) {
                None => name = reader.common()?,
                Some(i) if i < N => ids[i] = reader.int()?,
                Some(_) => return Err(GobError::UnknownField { type_id: 0, field: position as u64 }),
            }
            Ok(())
        })?;
        Ok((name, ids))
    }

    /// `CommonType` and `fieldType` alike: a name, then an id.
    fn field_type(&mut self) -> Result<Field, GobError> {
        let mut field = Field { name: String::new(), type_id: 0 };
        self.fields(|reader, position| {
            match position {
                0 => field.name = reader.name()?,
                1 => field.type_id = reader.int()?,
                _ => return Err(GobError::UnknownField { type_id: 0, field: position as u64 }),
            }
            Ok(())
        })?;
        Ok(field)
    }

    fn common(&mut self) -> Result<String, GobError> {
        Ok(self.field_type()?.name)
    }

    fn payload(
        &mut self,
        type_id: i64,
        fields: &[Field],
        types: &BTreeMap<i64, Type>,
    ) -> Result<Payload, GobError> {
        let (mut data, mut cpu, mut lost, mut record_type) = (Vec::new(), 0, 0, 0);
        self.fields(|reader, position| {
            let field =
                fields.get(position).ok_or(GobError::UnknownField { type_id, field: position as u64 })?;
            match field.name.as_str() {
                "Data" => data = reader.typed("Data", field, builtin::BYTES)?.bytes()?.to_vec(),
                "CPU" => cpu = reader.typed("CPU", field, builtin::INT)?.int()?,
                "Lost" => lost = reader.typed("Lost", field, builtin::UINT)?.uint()?,
                "Type" => record_type = reader.typed("Type", field, builtin::INT)?.int()?,
                _ => reader.skip(field.type_id, types)?,
            }
            Ok(())
        })?;
        Ok(match record_type {
            EVENT_SAMPLE => Payload::Sample { cpu, data },
            RECORD_LOST => Payload::Lost { cpu, count: lost },
            record_type => Payload::Unknown { record_type },
        })
    }

    /// This reader, if the stream defined the field as expected.
    fn typed(&mut self, name: &'static str, field: &Field, expected: i64) -> Result<&mut Self, GobError> {
        if field.type_id == expected {
            return Ok(self);
        }
        Err(GobError::UnexpectedFieldType { field: name, found: field.type_id, expected })
    }

    /// Passes over one value.
    fn skip(&mut self, type_id: i64, types: &BTreeMap<i64, Type>) -> Result<(), GobError> {
        if self.depth >= MAX_DEPTH {
            return Err(GobError::TooDeep);
        }
        self.depth += 1;
        match type_id {
            builtin::BOOL | builtin::INT | builtin::UINT | builtin::FLOAT => drop(self.uint()?),
            builtin::BYTES | builtin::STRING => drop(self.bytes()?),
            builtin::COMPLEX => drop((self.uint()?, self.uint()?)),
            builtin::INTERFACE => self.skip_interface()?,
            _ => match types.get(&type_id).ok_or(GobError::UndefinedType(type_id))? {
                Type::Struct { fields, .. } => self.fields(|reader, position| {
                    let field = fields
                        .get(position)
                        .ok_or(GobError::UnknownField { type_id, field: position as u64 })?;
                    reader.skip(field.type_id, types)
                })?,
                Type::List { element } => self.skip_each(&[*element], types)?,
                Type::Map { key, element } => self.skip_each(&[*key, *element], types)?,
                Type::Opaque => drop(self.bytes()?),
            },
        }
        self.depth -= 1;
        Ok(())
    }

    /// A count, then that many groups of values.
    fn skip_each(&mut self, group: &[i64], types: &BTreeMap<i64, Type>) -> Result<(), GobError> {
        let count = self.uint()?;
        // Every element takes at least one byte: a count above the bytes left cannot be true.
        for _ in 0..limited("elements in a list", count, self.bytes.len())? {
            for type_id in group {
                self.skip(*type_id, types)?;
            }
        }
        Ok(())
    }

    /// An interface value: the concrete type's name, its id, a length, the value. An empty name is nil.
    fn skip_interface(&mut self) -> Result<(), GobError> {
        if self.bytes()?.is_empty() {
            return Ok(());
        }
        self.int()?;
        self.bytes()?;
        Ok(())
    }
}

fn limited(what: &'static str, found: u64, limit: usize) -> Result<usize, GobError> {
    usize::try_from(found).ok().filter(|found| *found <= limit).ok_or(GobError::TooLong {
        what,
        found,
        limit,
    })
}
