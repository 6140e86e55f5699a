//! Undecoded entries of one map, as the kernel stores them.

use bytes::Bytes;

use super::DecodeError;

/// Keys and values of one map, one after another in a single buffer: key, value, key, value, ….
///
/// A dump of a large map costs one allocation; a clone shares the buffer.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    key_size: usize,
    value_size: usize,
    bytes: Bytes,
}

impl Entries {
    /// Takes `bytes` as entries of `key_size` and `value_size` bytes. A per-CPU map's value is that of all CPUs together.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] if `bytes` ends in the middle of an entry, or holds some although both sizes are zero.
    pub fn new(key_size: usize, value_size: usize, bytes: impl Into<Bytes>) -> Result<Self, DecodeError> {
        let bytes = bytes.into();
        let entry_size = key_size.saturating_add(value_size);
        let is_whole = if entry_size == 0 { bytes.is_empty() } else { bytes.len() % entry_size == 0 };
        if !is_whole {
            let (what, expected) = ("entries", "a multiple of key and value size");
            return Err(DecodeError::Size { what, expected, found: bytes.len() });
        }
        Ok(Self { key_size, value_size, bytes })
    }

    /// No entries of a map with these sizes.
    pub fn empty(key_size: usize, value_size: usize) -> Self {
        Self { key_size, value_size, bytes: Bytes::new() }
    }

    /// Collects entries of equal sizes; the first one says which, without one they are 0.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] with the first key or value that has another size than the first entry's.
    pub fn collect<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, DecodeError> {
        let mut sizes = None;
        let mut bytes = Vec::new();
        for (key, value) in entries {
            let (key, value) = (key.as_ref(), value.as_ref());
            let (key_size, value_size) = *sizes.get_or_insert((key.len(), value.len()));
            for (what, found, wanted) in [("key", key.len(), key_size), ("value", value.len(), value_size)] {
                if found != wanted {
                    return Err(DecodeError::Size {
                        what,
                        expected: "the size of the map's first one",
                        found,
                    });
                }
            }
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
        }
        let (key_size, value_size) = sizes.unwrap_or_default();
        Self::new(key_size, value_size, bytes)
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.key_size
    }

    /// Bytes of a value, of all CPUs together for a per-CPU map.
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.bytes.len().checked_div(self.key_size + self.value_size).unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The buffer.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Key and value number `idx`.
    pub fn get(&self, idx: usize) -> Option<(&[u8], &[u8])> {
        let entry_size = self.key_size + self.value_size;
        let begin = idx.checked_mul(entry_size)?;
        let entry =
            self.bytes.get(begin..begin.checked_add(entry_size)?).filter(|entry| !entry.is_empty())?;
        Some(entry.split_at(self.key_size))
    }

    /// The value of a key, by looking at every entry.
    pub fn find(&self, key: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(candidate, _)| *candidate == key).map(|(_, value)| value)
    }

    /// Every key and value, in the order of the buffer.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> + Clone {
        // `chunks_exact` takes no 0; an empty map may have no sizes.
        let entry_size = (self.key_size + self.value_size).max(1);
        self.bytes.chunks_exact(entry_size).map(|entry| entry.split_at(self.key_size))
    }

    /// Every key, in the order of the buffer.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        self.iter().map(|(key, _)| key)
    }
}

/// The same keys and values in the same order; of nothing the sizes do not matter.
impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        let sizes = |entries: &Self| (entries.key_size, entries.value_size);
        self.bytes == other.bytes && (self.is_empty() || sizes(self) == sizes(other))
    }
}

impl Eq for Entries {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_went_in() {
        let entries = Entries::collect([([1_u8, 2], [3_u8]), ([4, 5], [6])]).unwrap();
        assert_eq!((entries.len(), entries.key_size(), entries.value_size()), (2, 2, 1));
        assert_eq!(entries.iter().collect::<Vec<_>>(), [(&[1, 2][..], &[3][..]), (&[4, 5], &[6])]);
        assert_eq!(entries.get(1), Some((&[4, 5][..], &[6][..])));
        assert_eq!((entries.get(2), entries.get(usize::MAX)), (None, None));
        assert_eq!(entries.find(&[4, 5]), Some(&[6][..]));
        assert_eq!(entries.find(&[4, 6]), None);
        assert_eq!(Entries::new(2, 1, entries.bytes().clone()).unwrap(), entries);
    }

    #[test]
    fn what_ends_in_the_middle_of_an_entry_is_refused() {
        assert!(Entries::new(2, 2, vec![0; 7]).is_err());
        assert!(Entries::new(0, 0, vec![0; 1]).is_err());
        assert!(Entries::collect([(vec![1], vec![1]), (vec![1], vec![1, 2])]).is_err());
        assert!(Entries::new(0, 0, vec![]).unwrap().is_empty());
        assert_eq!(Entries::default().iter().count(), 0);
        assert_eq!(Entries::empty(4, 8), Entries::default());
    }
}
