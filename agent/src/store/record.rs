//! The records of a file: a length and a CRC-32C (each four bytes, the least first), and so many bytes.

/// Of a length and a checksum.
pub const HEAD_BYTES: usize = 8;
/// More than any record has: a longer one is damaged.
const MAX_BYTES: u32 = 64 << 20;

/// What stands before this record; nothing where it is too long.
pub fn head(record: &[u8]) -> Option<[u8; HEAD_BYTES]> {
    let bytes = u32::try_from(record.len()).ok().filter(|bytes| *bytes <= MAX_BYTES)?;
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&bytes.to_le_bytes());
    head[4..].copy_from_slice(&crc32c::crc32c(record).to_le_bytes());
    Some(head)
}

/// What a head says of its record.
pub struct Head {
    pub bytes: usize,
    checksum: u32,
}

impl Head {
    /// Nothing where no record is that long.
    pub fn read(head: [u8; HEAD_BYTES]) -> Option<Self> {
        let [bytes, checksum] = [0, 4].map(|at| u32::from_le_bytes(std::array::from_fn(|byte| head[at + byte])));
        (bytes <= MAX_BYTES).then_some(Self { bytes: bytes as usize, checksum })
    }

    /// Whether the record is what was written.
    pub fn is_of(&self, record: &[u8]) -> bool {
        record.len() == self.bytes && crc32c::crc32c(record) == self.checksum
    }
}
