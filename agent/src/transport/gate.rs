//! Whose frames are opened: a frame of this cluster, from the node in the certificate, whose messages are its own.
//!
//! Only here the certificate and the directory are known. Whether raft can take what a message says is the driver's to
//! judge, who knows this node's log and term.

use blixard_core::driver::{Message, wire};
use blixard_core::types::{ClusterId, NodeId};

use super::proto::RaftFrame;
use super::{Directory, MAX_MESSAGE};

/// Most messages of a frame; a link sends at most [`super::link::BATCH_MESSAGES`].
const MAX_MESSAGES: usize = 4096;

/// Why a frame was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the frame is of cluster {found:?}, and this is cluster {own}")]
    Cluster { found: String, own: ClusterId },
    #[error("the frame says that node {found} sent it, and the certificate is node {peer}'s")]
    Sender { found: u64, peer: NodeId },
    #[error("node {peer} is not in the directory of members of this node (yet)")]
    Stranger { peer: NodeId },
    #[error("node {peer} was removed from this cluster")]
    Removed { peer: NodeId },
    #[error("node {peer} is no server of this cluster")]
    NoServer { peer: NodeId },
    #[error("the frame has {count} messages, and at most {MAX_MESSAGES} are taken")]
    TooMany { count: usize },
    #[error("a Raft message has {size} bytes, and at most {MAX_MESSAGE} are taken")]
    TooLarge { size: usize },
    #[error("a Raft message cannot be decoded")]
    Undecodable,
    #[error("a Raft message says that it is from {found}, and node {peer} is {expected}")]
    From { found: u64, peer: NodeId, expected: u64 },
}

/// The messages of a frame that `peer` (by its certificate) sent.
///
/// # Errors
/// The first thing that is wrong; then none of the frame's messages may be used.
pub fn open(
    frame: &RaftFrame,
    cluster: ClusterId,
    peer: NodeId,
    directory: &Directory,
) -> Result<Vec<Message>, Refused> {
    if frame.cluster != cluster.to_string() {
        return Err(Refused::Cluster { found: frame.cluster.chars().take(64).collect(), own: cluster });
    }
    if frame.sender != peer.0 {
        return Err(Refused::Sender { found: frame.sender, peer });
    }
    let expected = directory.member(peer)?.raft.ok_or(Refused::NoServer { peer })?.0;
    if frame.messages.len() > MAX_MESSAGES {
        return Err(Refused::TooMany { count: frame.messages.len() });
    }
    let mut messages = Vec::with_capacity(frame.messages.len());
    for bytes in &frame.messages {
        if bytes.len() > MAX_MESSAGE {
            return Err(Refused::TooLarge { size: bytes.len() });
        }
        let message = wire::decode_message(bytes).map_err(|_| Refused::Undecodable)?;
        if message.from != expected {
            return Err(Refused::From { found: message.from, peer, expected });
        }
        messages.push(message);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use blixard_core::types::RaftId;
    use proptest::prelude::*;

    use super::super::Member;
    use super::*;

    const PEER: NodeId = NodeId(2);

    fn cluster() -> ClusterId {
        ClusterId::from_bytes([1; 16])
    }

    fn directory() -> Directory {
        let member = |n: u64| Member {
            name: format!("node{n}").parse().unwrap(),
            address: format!("127.0.0.1:{n}").parse().unwrap(),
            raft: Some(RaftId(10 + n)),
        };
        Directory::of((1..=3).map(|n| (NodeId(n), member(n))))
    }

    fn message() -> Message {
        Message { from: 12, to: 11, term: 5, ..Message::default() }
    }

    fn frame(messages: Vec<Vec<u8>>) -> RaftFrame {
        RaftFrame { cluster: cluster().to_string(), sender: PEER.0, messages, ..RaftFrame::default() }
    }

    fn opened(frame: &RaftFrame) -> Result<Vec<Message>, Refused> {
        open(frame, cluster(), PEER, &directory())
    }

    #[test]
    fn a_frame_of_another_cluster_or_sender_is_refused_whole() {
        let good = wire::encode_message(&message());
        assert_eq!(opened(&frame(vec![good.clone(), good.clone()])).unwrap(), vec![message(), message()]);
        let other = RaftFrame { cluster: "x".repeat(1000), ..frame(vec![good.clone()]) };
        assert!(matches!(opened(&other), Err(Refused::Cluster { found, .. }) if found.len() == 64));
        let other = RaftFrame { sender: 3, ..frame(vec![good.clone()]) };
        assert_eq!(opened(&other), Err(Refused::Sender { found: 3, peer: PEER }));
        assert_eq!(opened(&frame(vec![good.clone(), vec![0xff; 9]])), Err(Refused::Undecodable));
        assert!(matches!(opened(&frame(vec![vec![]; MAX_MESSAGES + 1])), Err(Refused::TooMany { .. })));
        assert!(matches!(opened(&frame(vec![vec![0; MAX_MESSAGE + 1]])), Err(Refused::TooLarge { .. })));
    }

    #[test]
    fn a_message_is_from_the_node_in_the_certificate() {
        let good = wire::encode_message(&message());
        for found in [0, 11, 13] {
            let bad = wire::encode_message(&Message { from: found, ..message() });
            let expected = Err(Refused::From { found, peer: PEER, expected: 12 });
            assert_eq!(opened(&frame(vec![good.clone(), bad])), expected);
        }
    }

    #[test]
    fn who_is_not_in_the_directory_is_refused_even_without_a_message() {
        for messages in [vec![], vec![wire::encode_message(&message())]] {
            let stranger = RaftFrame { sender: 9, ..frame(messages) };
            let refused = open(&stranger, cluster(), NodeId(9), &directory());
            assert_eq!(refused, Err(Refused::Stranger { peer: NodeId(9) }));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_at_all_are_opened_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in opened(&frame(vec![bytes])).into_iter().flatten() {
                prop_assert_eq!(message.from, 12);
            }
        }
    }
}
