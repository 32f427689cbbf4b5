//! What is written into blocks: different in each, at each time, and known to whoever reads it.

use std::fmt;

/// A block begins with its number, the generation of what was written, and the seed; bytes that
/// follow from all three come after.
const HEAD: usize = 24;

/// Fills a block.
pub(super) fn fill(seed: u64, number: u64, generation: u64, block: &mut [u8]) {
    let head = [number, generation, seed].map(u64::to_le_bytes).concat();
    let (first, rest) = block.split_at_mut(HEAD.min(block.len()));
    first.copy_from_slice(head.get(..first.len()).unwrap_or_default());
    let mut state = seed ^ number.rotate_left(20) ^ generation.rotate_left(44);
    for word in rest.chunks_mut(8) {
        let bytes = next(&mut state).to_le_bytes();
        word.copy_from_slice(bytes.get(..word.len()).unwrap_or_default());
    }
}

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number that stands for what is in a block that we did not write.
pub(super) fn digest(block: &[u8]) -> u64 {
    let mut state = block.len() as u64;
    for word in block.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        state ^= u64::from_le_bytes(bytes);
        state = next(&mut state);
    }
    state
}

/// What is in a block that should hold something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Zeroes,
    /// What was written to block `number` as `generation`, whole.
    Written {
        number: u64,
        generation: u64,
    },
    /// What should be there up to this byte, and something else from there on.
    Torn(usize),
    Other,
}

impl Found {
    /// Looks at a block that should be `expected`, if that is known.
    pub(super) fn of(seed: u64, block: &[u8], expected: &[u8]) -> Self {
        if block.iter().all(|byte| *byte == 0) {
            return Self::Zeroes;
        }
        let word = |at: usize| block.get(at..).and_then(<[u8]>::first_chunk);
        if let (Some(number), Some(generation)) = (word(0), word(8)) {
            let (number, generation) =
                (u64::from_le_bytes(*number), u64::from_le_bytes(*generation));
            let mut again = vec![0; block.len()];
            fill(seed, number, generation, &mut again);
            if again == block {
                return Self::Written { number, generation };
            }
        }
        let same = block.iter().zip(expected).take_while(|(a, b)| a == b);
        match same.count() {
            0 => Self::Other,
            same => Self::Torn(same),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeroes => f.write_str("zeroes"),
            Self::Written { number, generation } => {
                write!(
                    f,
                    "what was written to block {number} as write {generation}"
                )
            }
            Self::Torn(from) => write!(f, "something else from its byte {from} on"),
            Self::Other => f.write_str("something else"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_told_apart() {
        let block = |number, generation| {
            let mut block = vec![0; 512];
            fill(7, number, generation, &mut block);
            block
        };
        let expected = block(3, 1);
        assert_ne!(block(3, 1)[24..], block(3, 2)[24..]);
        assert_ne!(block(3, 1)[24..], block(4, 1)[24..]);
        let found = |block: &[u8]| Found::of(7, block, &expected);
        assert_eq!(found(&[0; 512]), Found::Zeroes);
        let (number, generation) = (9, 4);
        assert_eq!(found(&block(9, 4)), Found::Written { number, generation });
        let torn = [&expected[..100], &block(3, 2)[100..]].concat();
        assert_eq!(found(&torn), Found::Torn(100));
        assert_eq!(found(&[1; 512]), Found::Other);
        assert_ne!(digest(&torn), digest(&expected));
    }
}
