//! Bytes that follow from a number, so that whoever receives them knows each of them.

/// Fills `bytes` with what belongs to `seed`.
pub(super) fn fill(seed: u64, bytes: &mut [u8]) {
    let mut state = seed;
    for word in bytes.chunks_mut(8) {
        let next = next(&mut state).to_le_bytes();
        word.copy_from_slice(&next[..word.len()]);
    }
}

/// Whether `bytes` is what [`fill`] makes of `seed`.
pub(super) fn matches(seed: u64, bytes: &[u8]) -> bool {
    let mut state = seed;
    bytes.chunks(8).all(|word| *word == next(&mut state).to_le_bytes()[..word.len()])
}

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_bit_is_seen() {
        let mut bytes = [0; 45];
        fill(7, &mut bytes);
        assert!(matches(7, &bytes));
        assert!(!matches(8, &bytes));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches(7, &bytes), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
