//! The one thing that a log entry can be, and its encoding.

use serde::{Deserialize, Serialize};

use crate::ANEW;
use crate::manifest::{Manifest, VmSpec};
use crate::types::{
    Address, Availability, ClientId, ClusterEpoch, ClusterId, Exit, Generation, Hash, Hypervisor, InstanceId, Labels,
    Level, NodeEpoch, NodeId, NodeName, NodeRole, Nonce, PublicKey, RaftId, Resources, RotationStep, SecretIds, TaskId,
    Term, Timestamp, TokenId, VmName,
};

/// First byte of every encoded entry. What a released agent has written under a number is never changed.
const FORMAT: u8 = 1;
/// Longest message of a report, in characters; the rest is cut off.
pub const MAX_MESSAGE_CHARS: usize = 500;
/// Largest encoded command, in bytes: a manifest of the largest size and room for the rest.
pub const MAX_BYTES: usize = 5 << 20;

/// A command as it lies in the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The leader's clock when it proposed: the only time that the state knows.
    pub at: Timestamp,
    /// The term in which the leader decided it; only decisions have one, and they are refused in any other.
    pub decided_in: Option<Term>,
    /// Which request of whom it is, where it would matter that it is carried out twice.
    pub request: Option<Request>,
    pub command: Command,
}

/// A request of a client, by which it is known when it comes again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    pub client: ClientId,
    /// Counts the client's requests.
    pub sequence: u64,
    /// The client waits for no answer to a request below this number any more.
    pub answered: u64,
    /// The last log index at which it may be carried out.
    pub until: u64,
}

/// What is asked of the state. New kinds go to the end: the position is part of the encoding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// The first entry of every cluster.
    Found {
        cluster: ClusterId,
        ca_certificate: Vec<u8>,
        sealed_ca_key: Vec<u8>,
        first: NewNode,
        /// How many servers its configuration lists.
        listed_servers: usize,
    },
    /// A blank node wants in. The same name with the same key gets the same ids again.
    Admit(NewNode),
    /// Where a node is reached and what it has to give, said by the node at each start.
    RegisterWorker {
        node: NodeId,
        address: Address,
        /// The newest level that its agent understands.
        understands: Level,
        role: NodeRole,
        worker: Worker,
        /// The cluster secrets that it has; nothing where it joins otherwise.
        secrets: Option<SecretIds>,
        /// Drawn in each boot of its host.
        boot: Hash,
    },
    /// A manifest, by a host that carries it or by a person.
    OfferManifest {
        manifest: Manifest,
        from: Origin,
    },
    /// A person wants the manifest that this host carries to be the head.
    AcceptManifest {
        node: NodeId,
    },
    /// A person wants the manifest that was head before to be it again.
    RollBackManifest {
        from: String,
    },
    /// Units of a node have changed.
    Report {
        node: NodeId,
        vms: Vec<VmReport>,
        tasks: Vec<TaskReport>,
    },
    RunTask(TaskSpec),
    /// Decision: whether a worker answers.
    SetWorkerAlive {
        node: NodeId,
        alive: bool,
    },
    /// Decision: run this instance on this node, as this generation; also replaces the placement on the same node.
    Place {
        instance: InstanceId,
        node: NodeId,
        generation: Generation,
    },
    /// Decision: stop this placement; once it is confirmed stopped, the instance can be placed anew.
    Unplace {
        instance: InstanceId,
        generation: Generation,
    },
    /// Decision: run this task on this node.
    PlaceTask {
        task: TaskId,
        node: NodeId,
    },
    /// A VM of the command line's is made or replaced; `must` is what has to be so for that, if anything.
    PutVm {
        name: VmName,
        spec: VmSpec,
        running: bool,
        must: Option<Presence>,
    },
    /// A VM of the command line's is to run, or to be stopped.
    SetVmRunning {
        name: VmName,
        running: bool,
    },
    /// A VM of the command line's is stopped and forgotten.
    RemoveVm {
        name: VmName,
    },
    /// Decision: from the next entry on, `apply` does what this level says.
    RaiseLevel {
        level: Level,
    },
    /// Decision: all servers hash their state as it is after this entry.
    CheckState,
    /// What a server's state was after the entry `at`, a [`Command::CheckState`]: a SHA-256 of its rows.
    StateHash {
        node: NodeId,
        at: u64,
        hash: Hash,
    },
    /// A person wants this node out of the cluster; with `dead` they say that nothing runs on it, and never will again.
    RemoveNode {
        node: NodeId,
        dead: bool,
        /// Give up the volumes that it has.
        abandon_volumes: bool,
    },
    /// Decision: a node that was to be removed runs nothing and has no vote any more, so it is no member from now on.
    ForgetNode {
        node: NodeId,
    },
    /// A node that was a member in an earlier epoch of the cluster has given up what it had of it, and wants in again.
    Rejoin {
        host: NewNode,
        was_in: ClusterEpoch,
    },
    /// A node that has rejoined runs nothing but what is placed on it.
    ReturnNode {
        node: NodeId,
    },
    /// A person wants a token with which one host can join; only the hash of its secret is ever told to anybody else.
    CreateToken {
        token: TokenId,
        /// SHA-256 of its secret.
        secret: Hash,
        ttl_ms: u64,
        /// What a host that joins with it is, whatever its configuration says.
        role: Option<NodeRole>,
    },
    /// A person wants nobody to join with this token any more.
    RevokeToken {
        token: TokenId,
    },
    /// As [`Command::Admit`] or [`Command::Rejoin`], of a host that has shown a token: it is used up in the same step.
    Redeem {
        token: TokenId,
        /// SHA-256 of the secret that it has shown.
        secret: Hash,
        /// When it expires, as it says itself.
        expires: Timestamp,
        host: NewNode,
        /// Where it rejoins: as in [`Command::Rejoin`].
        was_in: Option<ClusterEpoch>,
    },
    /// Decision: this node is to be a server, by a fresh raft id.
    Enlist {
        node: NodeId,
    },
    /// As [`Command::Admit`] or [`Command::Rejoin`], of a host that has proved that it has the private part of this key.
    AdmitDeclared {
        key: PublicKey,
        host: NewNode,
        /// Where it rejoins: as in [`Command::Rejoin`].
        was_in: Option<ClusterEpoch>,
    },
    /// A person wants another authority for the cluster's certificates: its own one (DER), and its key, sealed.
    RotateAuthority {
        certificate: Vec<u8>,
        sealed_key: Vec<u8>,
    },
    /// A node has come so far with the rotation of the authority, and keeps that over a restart.
    Rotated {
        node: NodeId,
        step: RotationStep,
    },
    /// A person wants the next cluster secret to open what the current one does: all of it at once.
    Reseal {
        keys: Vec<Resealed>,
    },
    /// A person wants nothing placed on a node any more, or its instances elsewhere, too, or neither of the two.
    SetAvailability {
        node: NodeId,
        availability: Availability,
        /// Give up the volumes that it has.
        abandon_volumes: bool,
    },
    /// A person wants an instance on this node, and not where it is.
    Move {
        instance: InstanceId,
        to: NodeId,
        /// Give up its volumes, if it has any.
        abandon_volumes: bool,
    },
    /// A node's fence has stopped all that it may stop, seen that nothing of it runs, and drawn this nonce: the node begins its
    /// next epoch, after the `expected` one.
    Arm {
        node: NodeId,
        expected: NodeEpoch,
        nonce: Nonce,
        /// A hash of what its firmware says which machine it is; nothing where it doesn't say.
        machine: Option<Hash>,
    },
    /// Decision: this epoch of a node is over, and nothing automatic runs on it any more.
    Fence {
        node: NodeId,
        epoch: NodeEpoch,
    },
    /// A person says that nothing runs on a node that doesn't answer.
    ConfirmDead {
        node: NodeId,
        /// Give up the volumes that it has.
        abandon_volumes: bool,
    },
    /// Decision: too many nodes are silent at once for their instances to start elsewhere, or no longer.
    SetTakeover {
        is_frozen: bool,
    },
    /// A person wants instances of silent nodes to start elsewhere, though these are many.
    ResumeTakeover,
}

/// A key that was sealed with another secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resealed {
    /// SHA-256 of the sealed key whose place it takes.
    pub was: Hash,
    pub sealed: Vec<u8>,
}

/// Whether a VM has to be there already: of two that create the same one, the second is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Presence {
    Absent,
    Present,
}

/// Who asks to become a member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewNode {
    pub name: NodeName,
    /// `HOST:PORT` at which the others reach it.
    pub address: Address,
    /// SHA-256 of its public key (SPKI, DER): a reinstalled host has another one.
    pub key: Hash,
    /// The newest level that its agent understands.
    pub understands: Level,
    pub role: NodeRole,
}

/// What a node offers to instances: what the machine has less the reserve for the host itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Worker {
    pub resources: Resources,
    /// Nix's name of the machine type.
    pub system: String,
    pub kvm: bool,
    pub hypervisors: Vec<Hypervisor>,
    pub labels: Labels,
    /// Why its fence can't be armed, so that nothing automatic is placed on it; nothing where it can.
    pub no_fence: Option<String>,
}

/// Who offers a manifest, and on what occasion.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Origin {
    /// The host carries it. Where its system was just `activated`, and not merely booted, an `authority` may bring back
    /// a manifest that was head before.
    Host { node: NodeId, activated: bool, authority: bool },
    /// A person applied it; the text says who and where.
    Person(String),
}

/// What a node says of an instance that was placed on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmReport {
    pub instance: InstanceId,
    pub generation: Generation,
    pub phase: InstancePhase,
    pub restarts: u32,
    /// One line about what went wrong; empty when nothing did.
    pub message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum InstancePhase {
    Starting,
    Running,
    /// It ended and its policy doesn't restart it.
    Ended(Exit),
    /// As asked: nothing of it runs any more, so it may be placed elsewhere.
    Stopped,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskReport {
    pub task: TaskId,
    pub phase: TaskPhase,
    /// One line about what went wrong; empty when nothing did.
    pub message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TaskPhase {
    Running,
    Ended(Exit),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Program and arguments, run as they are: no shell.
    pub command: Vec<String>,
    pub request: Resources,
}

/// What `apply` answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Admitted {
        node: NodeId,
        /// Of one that is to be a server at once.
        raft: Option<RaftId>,
    },
    /// The hash is of the manifest that it is about.
    Manifest {
        result: ManifestReply,
        hash: Hash,
    },
    Task(TaskId),
    /// Nothing was changed; the text says why, and what to do.
    Refused(String),
    /// The request came too late: whether it was carried out before is not known any more.
    Expired,
    Token {
        expires: Timestamp,
    },
}

/// What came of a command, and which log entry it was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    pub index: u64,
    pub reply: Reply,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ManifestReply {
    /// It is the head already.
    Equal,
    /// It is the head now.
    Applied,
    /// It has been the head before and isn't: it waits for a person.
    Held,
}

/// Why bytes are not an entry of this agent's.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the log entry has format {found}, this agent reads {FORMAT}: written by a newer agent; upgrade this one")]
    Newer { found: u8 },
    #[error(
        "the log entry can't be read: written by a newer agent, or corrupt; upgrade this one, or {anew}", anew = ANEW
    )]
    Unreadable,
    #[error("the log entry is empty")]
    Empty,
}

impl Entry {
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![FORMAT]).expect("commands have no part that postcard refuses")
    }

    /// # Errors
    /// What this agent can't decode is never skipped: the caller stops the node.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (&format, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
        if format != FORMAT {
            return Err(DecodeError::Newer { found: format });
        }
        match postcard::take_from_bytes(body) {
            Ok((entry, [])) => Ok(entry),
            _ => Err(DecodeError::Unreadable),
        }
    }
}

impl Command {
    /// The node that this is about and that alone may say it; others are refused it.
    pub fn speaker(&self) -> Option<NodeId> {
        match self {
            Self::RegisterWorker { node, .. }
            | Self::Report { node, .. }
            | Self::StateHash { node, .. }
            | Self::ReturnNode { node }
            | Self::Rotated { node, .. }
            | Self::Arm { node, .. }
            | Self::OfferManifest { from: Origin::Host { node, .. }, .. } => Some(*node),
            _ => None,
        }
    }

    /// Whether it says that nothing runs of an epoch of a node: the leader has to know that the node may act no more.
    pub fn ends_epoch(&self) -> bool {
        matches!(self, Self::Arm { .. } | Self::ConfirmDead { .. } | Self::RemoveNode { dead: true, .. })
    }

    /// Whether only the leader itself may propose it, for the term in which it decided.
    pub fn is_decision(&self) -> bool {
        matches!(
            self,
            Self::SetWorkerAlive { .. }
                | Self::Place { .. }
                | Self::Unplace { .. }
                | Self::PlaceTask { .. }
                | Self::RaiseLevel { .. }
                | Self::CheckState
                | Self::ForgetNode { .. }
                | Self::Enlist { .. }
                | Self::Fence { .. }
                | Self::SetTakeover { .. }
                | Self::Found { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            at: Timestamp(1_700_000_000_000),
            decided_in: Some(Term(3)),
            request: None,
            command: Command::Place { instance: "web-0".parse().unwrap(), node: NodeId(2), generation: Generation(1) },
        }
    }

    #[test]
    fn an_entry_reads_back_as_it_was_written() {
        assert_eq!(Entry::decode(&entry().encode()).unwrap(), entry());
    }

    #[test]
    fn what_lies_in_a_log_is_never_encoded_otherwise() {
        let head = [1, 0x80, 0xd0, 0x95, 0xff, 0xbc, 0x31, 1, 3, 0, 9, 5];
        assert_eq!(entry().encode(), [&head[..], b"web-0", &[2, 1]].concat());
    }

    #[test]
    fn an_entry_of_a_newer_agent_is_named_as_such() {
        let mut newer = entry().encode();
        newer[0] = 2;
        assert!(Entry::decode(&newer).unwrap_err().to_string().contains("newer agent"));
        let mut longer = entry().encode();
        longer.push(0);
        assert!(matches!(Entry::decode(&longer), Err(DecodeError::Unreadable)));
        assert!(matches!(Entry::decode(&[]), Err(DecodeError::Empty)));
    }

    #[test]
    fn an_entry_cut_short_is_refused() {
        let bytes = entry().encode();
        for length in 0..bytes.len() {
            assert!(Entry::decode(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
        }
    }
}
