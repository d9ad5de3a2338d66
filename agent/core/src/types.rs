//! Newtypes that validate on the way in, so that no room has to ask twice.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

mod availability;
mod epoch;
mod exit;
mod hash;
mod lease;
mod priority;
mod public_key;
mod resources;
mod role;
mod rotation;
mod secret;
mod token;
mod trust_anchor;

pub use availability::Availability;
pub use epoch::ClusterEpoch;
pub use exit::{Exit, RestartPolicy};
pub use hash::Hash;
pub use lease::{BootTime, Failover, InvalidLease, LeaseTerms, NodeEpoch, Nonce};
pub use priority::{InvalidPriority, Priority};
pub use public_key::PublicKey;
pub use resources::{Hypervisor, Labels, Resources};
pub use role::NodeRole;
pub use rotation::RotationStep;
pub use secret::{SecretId, SecretIds};
pub use token::TokenId;
pub use trust_anchor::TrustAnchor;

/// Longest VM name: `-` and a replica number of up to five digits still make a DNS label of it.
pub const MAX_VM_NAME: usize = 57;
/// Longest DNS label (RFC 1035, 2.3.4), so the longest node name.
pub const MAX_LABEL: usize = 63;

/// Why a text isn't the value that it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    #[error("{kind} {text:?} is not a DNS label: use 1 to {max} of a-z, 0-9 and '-', not beginning or ending with '-'")]
    Label { kind: &'static str, text: String, max: usize },
    #[error("{text:?} is not an instance: write VM-REPLICA, like web-0")]
    Instance { text: String },
    #[error("{text:?} is not a task: write a number, like 7, or task-7")]
    Task { text: String },
    #[error("{text:?} is not a store path: it must look like /nix/store/HASH-NAME, with nothing behind the name")]
    StorePath { text: String },
    #[error("{text:?} is a derivation, not what it builds: name its output path")]
    Derivation { text: String },
    #[error("{text:?} is not a hash: write 64 hexadecimal digits")]
    Hash { text: String },
    #[error(
        "{text:?} is not an Ed25519 public key: write the line that `openssl pkey -pubout` prints between BEGIN and END, like \
         MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="
    )]
    PublicKey { text: String },
    #[error("{text:?} is not a token's id: write 16 hexadecimal digits, as `blixard token ls` shows them")]
    Token { text: String },
    #[error("{text:?} is not a cluster and its authority: write what `blixard cluster authority` prints on a member")]
    TrustAnchor { text: String },
    #[error("{text:?} is not a cluster's id: write 32 hexadecimal digits")]
    Cluster { text: String },
    #[error("{text:?} is not an epoch of a cluster: it looks like 2-1f3a9c04")]
    Epoch { text: String },
    #[error("{text:?} is not an address: write HOST:PORT, like 192.168.1.1:7420 or [fd00::1]:7420")]
    Address { text: String },
    #[error("{text:?} is not a role: write auto, server or worker")]
    Role { text: String },
    #[error("{text:?} is not a server: write NAME@HOST:PORT, like alpha@192.168.1.1:7420")]
    Server { text: String },
}

/// At most 100 characters of a text that somebody else wrote, for an error message.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn label(kind: &'static str, text: &str, max: usize) -> Result<String, InvalidValue> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let valid =
        (1..=max).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-');
    if valid { Ok(text.to_owned()) } else { Err(InvalidValue::Label { kind, text: excerpt(text), max }) }
}

/// A type that is written as text everywhere: on the wire, in JSON, on a terminal.
macro_rules! text_newtype {
    ($type:ident) => {
        impl TryFrom<String> for $type {
            type Error = InvalidValue;
            fn try_from(text: String) -> Result<Self, InvalidValue> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

use text_newtype;

/// A number that counts one thing, and is never reused.
macro_rules! number_newtype {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub u64);
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($type), self.0)
            }
        }
    };
}

number_newtype!(
    /// A node for its whole life; a reinstalled host is another node.
    NodeId
);
number_newtype!(
    /// A server's name in Raft's messages; each promotion to server takes a fresh one, so it isn't the node's id.
    RaftId
);
number_newtype!(
    /// How often an instance was placed. What carries an older one is refused.
    Generation
);
number_newtype!(
    /// What `apply` does with each command, and which rows it writes: equal on all servers, since all do it at the one
    /// level that the state says. An agent does all levels up to its own newest.
    Level
);

impl Level {
    /// The newest that this agent understands.
    pub const NEWEST: Self = Self(if cfg!(feature = "next-level") { 2 } else { 1 });
}
number_newtype!(
    /// Raft's term: who decides in it is one leader at most.
    Term
);
number_newtype!(
    /// Milliseconds since 1970, as the leader stamped them into a command.
    Timestamp
);

/// A host's name: a DNS label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl FromStr for NodeName {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        label("node name", text, MAX_LABEL).map(Self)
    }
}
impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl NodeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
text_newtype!(NodeName);

/// A declared VM's name: a DNS label that leaves room for a replica number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(Arc<str>);

impl FromStr for VmName {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        label("VM name", text, MAX_VM_NAME).map(|name| Self(name.into()))
    }
}
impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl VmName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
text_newtype!(VmName);

/// One replica of a VM, written `web-0`: the name of its unit's instance, its directories and its GC root.
///
/// The text is unambiguous because only what follows the last `-` is the replica.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId {
    pub vm: VmName,
    pub replica: u16,
}

impl FromStr for InstanceId {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let parsed = text.rsplit_once('-').and_then(|(vm, replica)| {
            let is_canonical = replica == "0" || !replica.starts_with(['0', '+']);
            Some(Self { vm: vm.parse().ok()?, replica: replica.parse().ok().filter(|_| is_canonical)? })
        });
        parsed.ok_or_else(|| InvalidValue::Instance { text: excerpt(text) })
    }
}
impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.vm, self.replica))
    }
}
text_newtype!(InstanceId);

/// A run-once task, written `task-7`; the number is replicated and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(pub u64);

impl FromStr for TaskId {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let number = text.strip_prefix("task-").unwrap_or(text);
        let valid = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let parsed = if valid { number.parse().ok() } else { None };
        parsed.map(Self).ok_or_else(|| InvalidValue::Task { text: excerpt(text) })
    }
}
impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("task-{}", self.0))
    }
}
text_newtype!(TaskId);

/// The absolute path of an output in `/nix/store`; that it exists and is valid is the `nix` room's to say.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorePath(Arc<str>);

impl FromStr for StorePath {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let path = nix_derivation::store_path::StorePath::from_absolute_path(text.as_bytes())
            .map_err(|_| InvalidValue::StorePath { text: excerpt(text) })?;
        if path.is_derivation() {
            return Err(InvalidValue::Derivation { text: excerpt(text) });
        }
        Ok(Self(text.into()))
    }
}
impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl StorePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
text_newtype!(StorePath);

/// A cluster for its whole life: 128 random bits, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(u128);

impl ClusterId {
    /// The id that these bits make; whoever founds a cluster draws them.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}
impl FromStr for ClusterId {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let valid = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let parsed = if valid { u128::from_str_radix(text, 16).ok() } else { None };
        parsed.map(Self).ok_or_else(|| InvalidValue::Cluster { text: excerpt(text) })
    }
}
impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:032x}", self.0))
    }
}
text_newtype!(ClusterId);

/// Whoever sends requests to the cluster; drawn anew at each of its starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ClientId(pub u128);

/// Where a node's peers reach it: a host name or IP address, and a TCP port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(String);

impl FromStr for Address {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let is_name = |host: &str| {
            let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
            (1..=253).contains(&host.len()) && host.bytes().all(inner)
        };
        let is_ipv6 = |host: &str| host.parse::<std::net::Ipv6Addr>().is_ok();
        let is_host = |host: &str| match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(ip) => is_ipv6(ip),
            None => is_name(host),
        };
        let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
        match text.rsplit_once(':') {
            Some((host, port)) if is_host(host) && is_port(port) => Ok(Self(text.to_owned())),
            _ => Err(InvalidValue::Address { text: excerpt(text) }),
        }
    }
}
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl Address {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
text_newtype!(Address);

/// One entry of `cluster.servers`, written `alpha@192.168.1.1:7420`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Server {
    pub name: NodeName,
    pub address: Address,
}

impl FromStr for Server {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (name, address) = text.split_once('@').ok_or_else(|| InvalidValue::Server { text: excerpt(text) })?;
        Ok(Self { name: name.parse()?, address: address.parse()? })
    }
}
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@{}", self.name, self.address))
    }
}
text_newtype!(Server);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_dns_labels_are_refused() {
        for text in ["", "../x", "Web", "a_b", "-a", "a-", "é", "a.b", "a b", &"a".repeat(300)] {
            assert!(text.parse::<VmName>().is_err(), "{text:?}");
            assert!(text.parse::<NodeName>().is_err(), "{text:?}");
        }
        assert!("a".repeat(MAX_VM_NAME).parse::<VmName>().is_ok());
        assert!("a".repeat(MAX_VM_NAME + 1).parse::<VmName>().is_err());
    }

    #[test]
    fn a_long_wrong_name_is_quoted_in_part() {
        let error = "é".repeat(300).parse::<VmName>().unwrap_err().to_string();
        assert!(error.len() < 450 && error.contains('…'), "{error}");
    }

    #[test]
    fn an_instance_reads_back_as_it_was_written() {
        for text in ["web-0", "web-12", "a-0-3", "web-65535"] {
            assert_eq!(text.parse::<InstanceId>().unwrap().to_string(), text);
        }
        for text in ["web", "web-", "web-00", "web--1", "web-65536", "-0", "web-+1"] {
            assert!(text.parse::<InstanceId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn store_paths_are_outputs_directly_in_the_store() {
        let hash = "0c6kzph7l0dcbfmjap64f0czdafn3b7x";
        assert!(format!("/nix/store/{hash}-runner").parse::<StorePath>().is_ok());
        for text in [
            "/nix/store".to_owned(),
            format!("/nix/store/{hash}-runner/bin"),
            format!("/nix/store/../{hash}-runner"),
            format!("/gnu/store/{hash}-runner"),
            format!("/nix/store/{hash}"),
            format!("/nix/store/{}-runner", "e".repeat(32)),
            format!("/nix/store/{hash}-runner.drv"),
            String::new(),
        ] {
            assert!(text.parse::<StorePath>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_task_is_named_with_or_without_its_prefix() {
        assert_eq!("7".parse::<TaskId>().unwrap(), TaskId(7));
        assert_eq!("task-7".parse::<TaskId>().unwrap(), TaskId(7));
        for text in ["", "task-", "+7", "task-task-7", "99999999999999999999"] {
            assert!(text.parse::<TaskId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_cluster_id_reads_back_as_it_was_written() {
        let id = ClusterId::from_bytes([7; 16]);
        assert_eq!(id.to_string().parse::<ClusterId>().unwrap(), id);
        for text in ["", "07", &"g".repeat(32), &"A".repeat(32), &"0".repeat(33)] {
            assert!(text.parse::<ClusterId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_server_is_a_name_at_an_address_with_a_port() {
        for text in ["alpha@192.168.1.1:7420", "a@host.example:1", "a@[fd00::1]:7420"] {
            assert_eq!(text.parse::<Server>().unwrap().to_string(), text);
        }
        for text in
            ["alpha", "@h:1", "a@h", "a@h:0", "a@h:65536", "a@h:+1", "a@:1", "a@fd00::1:7420", "A@h:1", "a@h/x:1"]
        {
            assert!(text.parse::<Server>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn sums_that_overflow_are_seen() {
        let most = Resources { cpus: 1, memory_mib: u64::MAX, disk_mib: 0 };
        assert_eq!(most.checked_add(Resources { memory_mib: 1, ..Resources::default() }), None);
    }
}
