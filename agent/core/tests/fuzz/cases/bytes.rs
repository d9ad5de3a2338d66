//! What a case is made of: bytes, drawn by a seed or found by a fuzzer.

/// Numbers out of bytes; zeros once they are used up.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    /// Less than `bound`, which is at most 256.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    pub fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    /// Whether what happens in so many of 256 cases happens; never where no bytes are left.
    pub fn happens(&mut self, of_256: u8) -> bool {
        u16::from(self.byte()) + u16::from(of_256) >= 256
    }

    pub fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// At most so many of the next bytes.
    pub fn take(&mut self, most: usize) -> &'a [u8] {
        let count = self.below(most + 1).min(self.0.len());
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    /// Does damage: bits that flip, bytes that are lost, come twice or from nowhere.
    pub fn damage(&mut self, what: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = usize::try_from(self.word() >> 32).expect("half a word") % (what.len() + 1);
            let end = (at + 1 + self.below(16)).min(what.len());
            match self.below(5) {
                0 => what.truncate(at),
                1 => drop(what.drain(at..end)),
                2 => what.extend_from_within(at..end),
                3 => drop(what.splice(at..at, self.take(8).to_vec())),
                _ => what.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << self.below(8)),
            }
        }
    }
}
