//! Protobuf's wire format, read by hand where it matters which fields there are.
//!
//! A library skips fields that it does not know. In a filter that would widen what is asked for, in silence.
//!
//! Source: protobuf's `encoding` guide.

use crate::grpc::Status;

/// A field's value, as it lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A varint.
    Number(u64),
    /// Text, a message, or packed numbers.
    Bytes(&'a [u8]),
    /// Four or eight bytes, which no field that is read here has.
    Fixed,
}

/// A field: its number and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) value: Value<'a>,
}

/// The fields of a message, in their order.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.take();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| Status::invalid("the request is no protobuf")))
    }
}

impl<'a> Fields<'a> {
    fn take(&mut self) -> Option<Field<'a>> {
        let key = varint(&mut self.0)?;
        let number = Some(key >> 3).filter(|number| *number != 0)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut self.0)?),
            2 => {
                let length = varint(&mut self.0)?;
                Value::Bytes(self.0.split_off(..usize::try_from(length).ok()?)?)
            }
            1 => self.0.split_off(..8).map(|_| Value::Fixed)?,
            5 => self.0.split_off(..4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some(Field { number, value })
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if part << shift >> shift != part {
            return None;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl<'a> Field<'a> {
    /// A message, or text that is read elsewhere.
    pub(super) fn bytes(self, name: &str) -> Result<&'a [u8], Status> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(Status::invalid(format!("`{name}` has another type than it should"))),
        }
    }

    /// Text.
    pub(super) fn text(self, name: &str) -> Result<&'a str, Status> {
        let text = str::from_utf8(self.bytes(name)?);
        text.map_err(|_| Status::invalid(format!("`{name}` is no text")))
    }

    /// One number.
    pub(super) fn number(self, name: &str) -> Result<u64, Status> {
        match self.value {
            Value::Number(number) => Ok(number),
            _ => Err(Status::invalid(format!("`{name}` has another type than it should"))),
        }
    }

    /// Numbers of a repeated field: one by one, or many packed.
    pub(super) fn numbers(self, name: &str) -> Result<Vec<u64>, Status> {
        let Value::Bytes(mut packed) = self.value else { return Ok(vec![self.number(name)?]) };
        let mut numbers = Vec::new();
        while !packed.is_empty() {
            let number = varint(&mut packed);
            numbers.push(number.ok_or_else(|| Status::invalid(format!("`{name}` is no list of numbers")))?);
        }
        Ok(numbers)
    }
}
