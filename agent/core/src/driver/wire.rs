//! Raft's own types as bytes; they are built on another prost than the agent's, so only their bytes leave this crate.

use raft::eraftpb::{Entry, HardState, Message};
use raft_prost::Message as _;

/// Bytes that are not what they were taken for.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("cannot decode {what}: it is damaged, or written by a newer agent")]
    Decode {
        what: &'static str,
        #[source]
        source: raft_prost::DecodeError,
    },
    #[error("cannot decode a record of an unknown kind: it was written by a newer agent; start that one")]
    UnknownKind,
}

pub fn encode_message(message: &Message) -> Vec<u8> {
    message.encode_to_vec()
}

/// How many bytes [`encode_message`] makes of it.
pub fn encoded_message_len(message: &Message) -> usize {
    message.encoded_len()
}

/// # Errors
/// When the bytes are no message.
pub fn decode_message(bytes: &[u8]) -> Result<Message, DecodeError> {
    Message::decode(bytes).map_err(|source| DecodeError::Decode { what: "a raft message", source })
}

/// Appends the entry's bytes to `to`.
pub fn encode_entry(entry: &Entry, to: &mut Vec<u8>) {
    entry.encode(to).expect("a vector takes any length");
}

/// # Errors
/// When the bytes are no entry.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, DecodeError> {
    Entry::decode(bytes).map_err(|source| DecodeError::Decode { what: "a log entry", source })
}

/// Appends the hard state's bytes to `to`.
pub fn encode_hard_state(hard_state: &HardState, to: &mut Vec<u8>) {
    hard_state.encode(to).expect("a vector takes any length");
}

/// # Errors
/// When the bytes are no hard state.
pub fn decode_hard_state(bytes: &[u8]) -> Result<HardState, DecodeError> {
    HardState::decode(bytes).map_err(|source| DecodeError::Decode { what: "a hard state", source })
}
