//! The table of offsets, and how a structure of ours is compared with it.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::ops::RangeInclusive;

use fixtures::Offset;
use probe_model::cilium::DecodeError;

/// A field's name in the table, and how to set it.
pub(crate) type Field<T> = (&'static str, Set<T>);

/// How to set a field, with all else equal.
#[derive(Clone)]
pub(crate) enum Set<T> {
    /// To a number of as many bits as the field has, given as all zeros and all ones: exactly its bits change.
    Bits(fn(&mut T, u128)),
    /// To one of two values, where not every number is one: some of its bits change and no others.
    Some(fn(&mut T, bool)),
}

/// How one structure is written and read.
pub(crate) struct Codec<'a, T> {
    /// A value to set fields of; its own bits do not count.
    pub(crate) zero: &'a dyn Fn() -> T,
    /// Writes it in the layout of a version of Cilium, 1.*minor*.
    pub(crate) encode: &'a dyn Fn(&T, u32) -> Vec<u8>,
    /// Reads it.
    pub(crate) decode: &'a dyn Fn(&[u8]) -> Result<T, DecodeError>,
}

/// The table, and what of it was checked.
pub(crate) struct Table {
    rows: Vec<Offset>,
    /// Structures with versions.
    pub(crate) checked: BTreeSet<(&'static str, &'static str)>,
    /// Fields checked, once for each layout.
    pub(crate) fields: usize,
}

impl Table {
    pub(crate) fn read() -> Self {
        Self { rows: fixtures::offsets(), checked: BTreeSet::new(), fields: 0 }
    }

    /// Structures that were not checked, by name.
    pub(crate) fn unchecked(&self) -> Vec<&'static str> {
        let rows = self.rows.iter().filter(|row| !self.checked.contains(&(row.structure, row.versions)));
        rows.map(|row| row.structure).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Checks every layout of a structure: [`Table::check_in`] without bounds.
    pub(crate) fn check<T: Debug + PartialEq>(
        &mut self,
        structure: &str,
        codec: &Codec<'_, T>,
        fields: &[Field<T>],
    ) {
        self.check_in(structure, 0..=u32::MAX, codec, fields);
    }

    /// Checks the layouts of a structure that begin with one of these versions of Cilium, 1.*minor*.
    ///
    /// In each, every field but padding must be one of `fields`. Set to two values, with all else equal, it must change the
    /// bits that the table gives it, and what is read back must be what was written.
    pub(crate) fn check_in<T: Debug + PartialEq>(
        &mut self,
        structure: &str,
        minors: RangeInclusive<u32>,
        codec: &Codec<'_, T>,
        fields: &[Field<T>],
    ) {
        let wanted = |row: &&Offset| row.structure == structure && minors.contains(&minor_of(row.versions));
        let rows: Vec<_> = self.rows.iter().filter(wanted).copied().collect();
        assert!(!rows.is_empty(), "the table has no `{structure}` of {minors:?}");
        let mut used = BTreeSet::new();
        for row in &rows {
            self.checked.insert((row.structure, row.versions));
            if is_padding(row.field) {
                continue;
            }
            let field = fields.iter().find(|(name, _)| *name == row.field);
            let (name, set) =
                field.unwrap_or_else(|| panic!("no field `{structure}.{}` in {}", row.field, row.versions));
            used.insert(*name);
            check_field(row, codec, set);
            self.fields += 1;
        }
        let unused: Vec<_> =
            fields.iter().map(|(name, _)| name).filter(|name| !used.contains(*name)).collect();
        assert!(unused.is_empty(), "the table's `{structure}` of {minors:?} has no {unused:?}");
    }
}

fn check_field<T: Debug + PartialEq>(row: &Offset, codec: &Codec<'_, T>, set: &Set<T>) {
    let at = format!("`{}.{}` in {}", row.structure, row.field, row.versions);
    let (start, width) =
        row.bits.map_or((0, 8 * row.field_size), |(start, width)| (start.into(), width.into()));
    let written = [false, true].map(|high| {
        let mut value = (codec.zero)();
        match set {
            Set::Bits(set) => set(&mut value, if high { u128::MAX >> (128 - width) } else { 0 }),
            Set::Some(set) => set(&mut value, high),
        }
        let raw = (codec.encode)(&value, minor_of(row.versions));
        assert_eq!(raw.len(), row.size, "bytes of {at}");
        assert_eq!((codec.decode)(&raw), Ok(value), "{at} read back");
        raw
    });
    let mut own = vec![0u8; row.size];
    for bit in start..start + width {
        own[row.offset + bit / 8] |= 1 << (bit % 8);
    }
    let changed: Vec<_> = written[0].iter().zip(&written[1]).map(|(low, high)| low ^ high).collect();
    match set {
        Set::Bits(_) => assert_eq!(changed, own, "bits of {at}"),
        Set::Some(_) => {
            let outside = changed.iter().zip(&own).any(|(changed, own)| changed & !own != 0);
            let some = changed.iter().any(|changed| *changed != 0);
            assert!(some && !outside, "bits of {at}: changed {changed:?}, its own are {own:?}");
        }
    }
}

fn is_padding(field: &str) -> bool {
    ["pad", "reserved", "unused"].iter().any(|prefix| field.starts_with(prefix))
}

/// The minor version of the first of `versions`: 16 of `1.16.0-rc.2..1.17.14`, 20 of `1.20bp`.
fn minor_of(versions: &str) -> u32 {
    let minor = versions.split('.').nth(1).expect("a version").trim_end_matches("bp");
    minor.parse().expect("a number")
}
