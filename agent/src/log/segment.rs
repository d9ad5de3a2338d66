//! The bytes of a segment.
//!
//! ```text
//! header  magic[8] format:u32 sequence:u64 salt:u64 base_index:u64 base_term:u64 crc:u32          48 bytes
//! frame   length:u32 body_crc:u32 head_crc:u32 items[length]                                      one a batch
//! item    kind:u8 length:u32 bytes[length]                                      1 entry, 2 hard state
//! ```
//!
//! Numbers are little-endian. Both checksums of a frame are CRC-32C over the segment's salt, the frame's offset, and what they
//! cover, so a frame is valid only where it was written. The head has one of its own, so that looking for a valid frame
//! behind a damaged one is cheap at every offset.

use blixard_core::driver::Position;
use blixard_core::driver::wire::{self, DecodeError};
use raft::eraftpb::{Entry, HardState};

pub(super) const FORMAT: u32 = 1;
pub(super) const HEADER_BYTES: usize = 48;
pub(super) const SUFFIX: &str = ".log";
/// A segment that doesn't have its own name yet.
pub(super) const UNFINISHED: &str = "unfinished";
const MAGIC: [u8; 8] = *b"BLXDLOG\n";
const FRAME_HEAD: usize = 12;
const ENTRY: u8 = 1;
const HARD_STATE: u8 = 2;

pub(super) fn name(sequence: u64) -> String {
    format!("{sequence:016x}{SUFFIX}")
}

pub(super) fn sequence_of(file: &str) -> Option<u64> {
    let sequence = u64::from_str_radix(file.strip_suffix(SUFFIX)?, 16).ok()?;
    (name(sequence) == file).then_some(sequence)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    pub(super) salt: u64,
    /// The entry before the segment's first: the log's last one then, or the last one in a snapshot.
    pub(super) base: Position,
}

/// What is wrong with a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Defect {
    Foreign,
    NewerFormat { version: u32 },
    Damaged { offset: u64 },
}

pub(super) enum Item {
    Entry(Entry),
    HardState(HardState),
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        for number in [self.sequence, self.salt, self.base.index, self.base.term] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Defect> {
        let damaged = Defect::Damaged { offset: 0 };
        if bytes.is_empty() {
            return Err(damaged);
        }
        if !bytes.starts_with(&MAGIC) {
            return Err(Defect::Foreign);
        }
        let version = u32_at(bytes, MAGIC.len());
        if let Some(version) = version.filter(|version| *version > FORMAT) {
            return Err(Defect::NewerFormat { version });
        }
        let number = |place: usize| u64_at(bytes, MAGIC.len() + 4 + 8 * place);
        let checked = || {
            let sum = u32_at(bytes, HEADER_BYTES - 4)?;
            if version? != FORMAT || sum != crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) {
                return None;
            }
            let base = Position { index: number(2)?, term: number(3)? };
            Some(Self { sequence: number(0)?, salt: number(1)?, base })
        };
        checked().ok_or(damaged)
    }

    /// Adds a frame at the end of a segment that is all in `bytes`.
    pub(super) fn append_frame(&self, bytes: &mut Vec<u8>, entries: &[Entry], hard_state: Option<&HardState>) {
        self.append_frame_at(bytes.len() as u64, bytes, entries, hard_state);
    }

    /// Adds a frame that will stand at `offset` in its segment.
    pub(super) fn append_frame_at(
        &self,
        offset: u64,
        bytes: &mut Vec<u8>,
        entries: &[Entry],
        hard_state: Option<&HardState>,
    ) {
        let head = bytes.len();
        bytes.extend([0; FRAME_HEAD]);
        for entry in entries {
            append_item(bytes, ENTRY, |bytes| wire::encode_entry(entry, bytes));
        }
        if let Some(hard_state) = hard_state {
            append_item(bytes, HARD_STATE, |bytes| wire::encode_hard_state(hard_state, bytes));
        }
        let body = &bytes[head + FRAME_HEAD..];
        let length = u32::try_from(body.len()).expect("raft bounds what it hands out in one turn").to_le_bytes();
        let body_crc = self.crc(offset, body).to_le_bytes();
        let head_crc = self.crc(offset, &[length, body_crc].concat()).to_le_bytes();
        bytes[head..head + FRAME_HEAD].copy_from_slice(&[length, body_crc, head_crc].concat());
    }

    /// The items of a valid frame at `offset`, and where the next one begins.
    pub(super) fn frame_at<'a>(&self, bytes: &'a [u8], offset: usize) -> Option<(&'a [u8], usize)> {
        let head = bytes.get(offset..offset.checked_add(FRAME_HEAD)?)?;
        if u32_at(head, 8)? != self.crc(offset as u64, &head[..8]) {
            return None;
        }
        let begin = offset + FRAME_HEAD;
        let end = begin.checked_add(usize::try_from(u32_at(head, 0)?).ok()?)?;
        let body = bytes.get(begin..end)?;
        (u32_at(head, 4)? == self.crc(offset as u64, body)).then_some((body, end))
    }

    /// Whether any valid frame begins behind `offset`: then what stands there is no torn end.
    pub(super) fn has_frame_behind(&self, bytes: &[u8], offset: usize) -> bool {
        (offset + 1..bytes.len()).any(|offset| self.frame_at(bytes, offset).is_some())
    }

    fn crc(&self, offset: u64, bytes: &[u8]) -> u32 {
        let place = [self.salt, offset].map(u64::to_le_bytes).concat();
        crc32c::crc32c_append(crc32c::crc32c(&place), bytes)
    }
}

/// The items in a frame's body.
pub(super) fn items(mut body: &[u8]) -> Result<Vec<Item>, DecodeError> {
    let mut items = Vec::new();
    while !body.is_empty() {
        let item = body.first().zip(u32_at(body, 1)).and_then(|(kind, length)| {
            let (bytes, rest) = body[5..].split_at_checked(usize::try_from(length).ok()?)?;
            Some((*kind, bytes, rest))
        });
        let (kind, bytes, rest) = item.ok_or(DecodeError::UnknownKind)?;
        items.push(match kind {
            ENTRY => Item::Entry(wire::decode_entry(bytes)?),
            HARD_STATE => Item::HardState(wire::decode_hard_state(bytes)?),
            _ => return Err(DecodeError::UnknownKind),
        });
        body = rest;
    }
    Ok(items)
}

fn append_item(bytes: &mut Vec<u8>, kind: u8, encode: impl FnOnce(&mut Vec<u8>)) {
    bytes.push(kind);
    let length = bytes.len();
    bytes.extend([0; 4]);
    encode(bytes);
    let encoded = u32::try_from(bytes.len() - length - 4).expect("an entry is far below 4 GiB");
    bytes[length..length + 4].copy_from_slice(&encoded.to_le_bytes());
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_valid_only_in_its_own_segment_at_its_own_offset() {
        let header = Header { sequence: 1, salt: 7, base: Position::default() };
        let mut bytes = header.encode();
        assert_eq!((bytes.len(), Header::decode(&bytes)), (HEADER_BYTES, Ok(header)));
        header.append_frame(&mut bytes, &[], Some(&HardState { term: 3, vote: 1, commit: 0 }));
        assert!(header.frame_at(&bytes, HEADER_BYTES).is_some());
        assert!(Header { salt: 8, ..header }.frame_at(&bytes, HEADER_BYTES).is_none());
        bytes.insert(HEADER_BYTES, 0);
        assert!(header.frame_at(&bytes, HEADER_BYTES + 1).is_none());
    }

    #[test]
    fn names_are_those_that_the_log_gives() {
        assert_eq!(sequence_of(&name(26)), Some(26));
        for file in ["1a.log", "000000000000001A.log", "notes.log", "+00000000000001a.log"] {
            assert_eq!(sequence_of(file), None, "{file}");
        }
    }
}
