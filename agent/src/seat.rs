//! A host's seat in its cluster: who it is there, kept in the store; taken by founding the cluster or joining it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use blixard_core::command::{Command, NewNode};
use blixard_core::types::{ClusterEpoch, ClusterId, Level, NodeId, RaftId, TrustAnchor};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::identity::{
    self, Authority, AuthorityError, HostKey, IdentityError, JoinToken, NodeIdentity, NodeKey, Secrets,
};
use crate::store::{Store, StoreError};
use crate::transport::{
    Answer, Asking, Decision, Directory, Joined, Member, TwoClusters, ask_all, decide, join, join_declared, redeem,
};

/// The founder's id; every blank server starts from a group of it alone and learns the rest from the log.
pub const FOUNDER: RaftId = RaftId(1);
/// How long a blank host waits before it asks the others again, with the secret or without it.
const ASK_AGAIN: Duration = Duration::from_millis(500);
const ASK_MEMBERS_AGAIN: Duration = Duration::from_secs(10);

/// What a member keeps about itself.
#[derive(Debug, Clone)]
pub struct Seat {
    pub identity: NodeIdentity,
    /// By which it is a server, if it is one.
    pub raft: Option<RaftId>,
    /// The last raft id that it had; it never has that again.
    pub spent: RaftId,
    /// The servers as it last heard of them: whom it talks to before it has the state.
    pub members: Directory,
    /// The cluster's first entry, on the host that founds it.
    pub founding: Option<Command>,
}

/// Why a host has no seat.
#[derive(Debug, thiserror::Error)]
pub enum SeatError {
    #[error("cannot read who this host is from {path}: the data is damaged, or written by a newer agent")]
    Decode { path: PathBuf },
    #[error("cannot read who this host is")]
    Identity(#[source] IdentityError),
    #[error("cannot keep who this host is")]
    Keep(#[source] StoreError),
    #[error("cannot make the cluster's authority")]
    Found(#[source] AuthorityError),
    #[error(transparent)]
    TwoClusters(TwoClusters),
    #[error(
        "the data in {path} belongs to cluster {own}, but {other} is in cluster {found}: correct cluster.servers, or, to \
         give up what this host has of {own}, move that directory away"
    )]
    OtherCluster { path: PathBuf, own: ClusterId, other: String, found: ClusterId },
    #[error("the data in {path} is of a host named {kept}: set node.name to that, or move the directory away")]
    OtherName { path: PathBuf, kept: String },
}

/// What the store keeps: first the key alone, then the whole seat.
#[derive(Serialize, Deserialize)]
enum Kept {
    /// Asked with, so that asking again after a crash is the same host asking.
    Asking {
        key: Vec<u8>,
    },
    Seated(Box<Seated>),
    /// As `Asking`, by a host that was a member of this cluster, in this epoch.
    Rejoining {
        key: Vec<u8>,
        cluster: ClusterId,
        was_in: ClusterEpoch,
    },
}

impl Kept {
    fn read(config: &Config, bytes: &[u8]) -> Result<Self, SeatError> {
        let path = || config.node.data_dir.clone();
        match postcard::from_bytes(bytes).map_err(|_| SeatError::Decode { path: path() })? {
            Self::Seated(seated) if seated.name != *config.name() => {
                Err(SeatError::OtherName { path: path(), kept: seated.name.to_string() })
            }
            kept => Ok(kept),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Seated {
    name: blixard_core::types::NodeName,
    identity: NodeIdentity,
    raft: Option<RaftId>,
    spent: RaftId,
    members: Vec<(NodeId, Member)>,
    founding: Option<Command>,
}

impl Seat {
    /// The seat that was kept, or a new one. A blank host asks until it may join or found, by its key or token if it has no
    /// secret; `tell` is told what it waits for.
    ///
    /// # Errors
    /// What asking again can't mend.
    pub async fn take(
        config: &Config,
        secrets: Option<&Secrets>,
        store: &mut Store,
        kept: Option<Vec<u8>>,
        understands: Level,
        tell: impl Fn(String),
    ) -> Result<Self, SeatError> {
        let decode = |key: &[u8]| NodeKey::decode(key).map_err(SeatError::Identity);
        let (key, was_in) = match kept.map(|bytes| Kept::read(config, &bytes)).transpose()? {
            Some(Kept::Seated(seated)) => return Ok(seated.into_seat()),
            Some(Kept::Asking { key }) => (decode(&key)?, None),
            Some(Kept::Rejoining { key, was_in, .. }) => (decode(&key)?, Some(was_in)),
            None => {
                let key = NodeKey::generate().map_err(SeatError::Identity)?;
                store.set_identity(&encode(&Kept::Asking { key: key.encode() })).map_err(SeatError::Keep)?;
                (key, None)
            }
        };
        let asking = Asking { own: config.own(), key, was_in, understands, role: config.role() };
        let seat = Self::ask(config, secrets, &asking, tell).await?;
        seat.keep(config, store)?;
        Ok(seat)
    }

    /// What was kept; nothing for a host that is no member yet.
    ///
    /// # Errors
    /// When it can't be read, or is another host's.
    pub fn of_kept(config: &Config, kept: &[u8]) -> Result<Option<Self>, SeatError> {
        Ok(match Kept::read(config, kept)? {
            Kept::Seated(seated) => Some(seated.into_seat()),
            Kept::Asking { .. } | Kept::Rejoining { .. } => None,
        })
    }

    /// Keeps in a blank store only whose it was, so that the node joins anew with its key.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep_to_rejoin(&self, store: &mut Store) -> Result<(), SeatError> {
        let NodeIdentity { cluster, epoch: was_in, .. } = self.identity;
        let key = self.identity.key().map_err(SeatError::Identity)?.encode();
        store.set_identity(&encode(&Kept::Rejoining { key, cluster, was_in })).map_err(SeatError::Keep)
    }

    /// The cluster that a host is in or rejoins, by what was kept; nothing for a blank host, or where it can't be read.
    pub fn cluster_of(kept: &[u8]) -> Option<ClusterId> {
        match postcard::from_bytes(kept).ok()? {
            Kept::Seated(seated) => Some(seated.identity.cluster),
            Kept::Rejoining { cluster, .. } => Some(cluster),
            Kept::Asking { .. } => None,
        }
    }

    /// Keeps it, on disk when it returns.
    ///
    /// # Errors
    /// `Keep`.
    pub fn keep(&self, config: &Config, store: &mut Store) -> Result<(), SeatError> {
        store.set_identity(&self.encode(config)).map_err(SeatError::Keep)
    }

    /// The bytes to keep.
    pub fn encode(&self, config: &Config) -> Vec<u8> {
        encode(&Kept::Seated(Box::new(Seated::new(config, self))))
    }

    /// The same host as a server by this raft id.
    #[must_use]
    pub fn enlisted(self, raft: RaftId) -> Self {
        Self { raft: Some(raft), spent: raft, ..self }
    }

    /// The same host as no server, and the servers as it last heard of them.
    #[must_use]
    pub fn dismissed(self, members: Directory) -> Self {
        Self { raft: None, members, founding: None, ..self }
    }

    /// The seat that was kept, if there is one that can be read.
    pub fn of(kept: &[u8]) -> Option<Self> {
        match postcard::from_bytes(kept).ok()? {
            Kept::Seated(seated) => Some(seated.into_seat()),
            Kept::Asking { .. } | Kept::Rejoining { .. } => None,
        }
    }

    async fn ask(
        config: &Config,
        secrets: Option<&Secrets>,
        asking: &Asking,
        tell: impl Fn(String),
    ) -> Result<Self, SeatError> {
        let mut told = String::new();
        loop {
            let (asked, again) = match secrets {
                Some(secrets) => (Self::ask_by_secret(config, secrets, asking).await?, ASK_AGAIN),
                None => (Self::ask_members(config, asking).await, ASK_MEMBERS_AGAIN),
            };
            let waiting = match asked {
                ControlFlow::Break(seat) => return Ok(seat),
                ControlFlow::Continue(waiting) => waiting,
            };
            if waiting != told {
                tracing::warn!(reason = waiting, "this host is not a member yet");
                told.clone_from(&waiting);
            }
            tell(waiting);
            tokio::time::sleep(again).await;
        }
    }

    /// The seat, or what is waited for.
    async fn ask_by_secret(
        config: &Config,
        secrets: &Secrets,
        asking: &Asking,
    ) -> Result<ControlFlow<Self, String>, SeatError> {
        let answers = ask_all(config.servers(), secrets, config.name()).await;
        let servers = match decide(&answers).map_err(SeatError::TwoClusters)? {
            Decision::Found if asking.was_in.is_some() => {
                let reason = "this host rejoins a cluster, and no server that answers is in one";
                return Ok(ControlFlow::Continue(reason.to_owned()));
            }
            Decision::Found => return Self::found(config, secrets, asking).map(ControlFlow::Break),
            Decision::Wait(reason) => return Ok(ControlFlow::Continue(reason)),
            Decision::Join(servers) => servers,
        };
        let mut failures = Vec::new();
        for server in servers {
            match join(&server, secrets, asking).await {
                Ok(joined) => return Ok(ControlFlow::Break(joined.into())),
                Err(error) => failures.push(crate::error_chain(&error)),
            }
        }
        Ok(ControlFlow::Continue(failures.join("; ")))
    }

    /// As [`Self::ask_by_secret`], of a host without one: it only ever joins, by way of members.
    async fn ask_members(config: &Config, asking: &Asking) -> ControlFlow<Self, String> {
        let credential = match Credential::read(config) {
            Ok(credential) => credential,
            Err(reason) => return ControlFlow::Continue(reason),
        };
        let mut failures = Vec::new();
        for server in config.servers().iter().filter(|server| server.name != *config.name()) {
            let joined = match &credential {
                Credential::Token(token) => redeem(server, token, asking).await,
                Credential::Key(key, anchor) => join_declared(server, key, *anchor, asking).await,
            };
            match joined {
                Ok(joined) => return ControlFlow::Break(joined.into()),
                Err(error) => failures.push(crate::error_chain(&error)),
            }
        }
        if failures.is_empty() {
            failures.push("a host without the secret joins by way of another: list one in cluster.servers".to_owned());
        }
        ControlFlow::Continue(failures.join("; "))
    }

    fn found(config: &Config, secrets: &Secrets, asking: &Asking) -> Result<Self, SeatError> {
        let Asking { own, key, understands, role, .. } = asking;
        let authority = Authority::create(identity::draw_cluster_id()).map_err(SeatError::Found)?;
        let (cluster, epoch, node, raft) = (authority.cluster(), ClusterEpoch::FIRST, NodeId(1), FOUNDER);
        let request = key.request().map_err(SeatError::Identity)?;
        let issued = authority.issue_alone(&request, epoch, node).map_err(SeatError::Found)?;
        let identity = key.identify(cluster, epoch, node, issued);
        let first = NewNode {
            name: own.name.clone(),
            address: own.address.clone(),
            key: Authority::key_of(&request).map_err(SeatError::Found)?,
            understands: *understands,
            role: *role,
        };
        let raft = Some(raft);
        let member = Member { name: own.name.clone(), address: own.address.clone(), raft };
        tracing::info!(%cluster, "this host founds the cluster");
        Ok(Self {
            identity: identity.map_err(SeatError::Identity)?,
            raft,
            spent: FOUNDER,
            members: Directory::of([(node, member)]),
            founding: Some(Command::Found {
                cluster,
                ca_certificate: authority.certificate().to_vec(),
                sealed_ca_key: authority.seal(secrets.current()),
                first,
                listed_servers: config.servers().len(),
            }),
        })
    }

    /// Ends once nobody among the configured servers is of another cluster, as far as they answer.
    ///
    /// # Errors
    /// [`SeatError::OtherCluster`].
    pub async fn check_cluster(&self, config: &Config, secrets: Option<&Secrets>) -> Result<(), SeatError> {
        // Without it, nobody's word on this can be trusted; certificates of another cluster are refused in any case.
        let Some(secrets) = secrets else { return Ok(()) };
        for (server, answer) in ask_all(config.servers(), secrets, config.name()).await {
            match answer {
                Answer::Member(found) if found != self.identity.cluster => {
                    return Err(SeatError::OtherCluster {
                        path: config.node.data_dir.clone(),
                        own: self.identity.cluster,
                        other: server.to_string(),
                        found,
                    });
                }
                Answer::Failed(error) => {
                    tracing::debug!(peer = %server, error = crate::error_chain(&error), "a server could not be asked");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What a host without the cluster secret joins by.
enum Credential {
    Token(JoinToken),
    Key(HostKey, TrustAnchor),
}

impl Credential {
    /// Read anew each time, since a person may have put another one in its place.
    fn read(config: &Config) -> Result<Self, String> {
        let key = config.node.key_file.as_ref().zip(config.cluster.authority);
        match (key, &config.cluster.token_file) {
            (Some((path, anchor)), _) => {
                HostKey::read(path).map(|key| Self::Key(key, anchor)).map_err(|error| crate::error_chain(&error))
            }
            (None, Some(path)) => JoinToken::read(path).map(Self::Token).map_err(|error| crate::error_chain(&error)),
            (None, None) => unreachable!("a configuration without a secret has a key or a token"),
        }
    }
}

impl From<Joined> for Seat {
    fn from(joined: Joined) -> Self {
        let Joined { identity, raft, members } = joined;
        Self { identity, raft, spent: raft.unwrap_or_default(), members, founding: None }
    }
}

impl Seated {
    fn new(config: &Config, seat: &Seat) -> Self {
        Self {
            name: config.name().clone(),
            identity: seat.identity.clone(),
            raft: seat.raft,
            spent: seat.spent,
            members: seat.members.members().map(|(node, member)| (node, member.clone())).collect(),
            founding: seat.founding.clone(),
        }
    }

    fn into_seat(self) -> Seat {
        let members = Directory::of(self.members);
        Seat { identity: self.identity, raft: self.raft, spent: self.spent, members, founding: self.founding }
    }
}

fn encode(kept: &Kept) -> Vec<u8> {
    postcard::to_stdvec(kept).expect("a seat has no part that postcard refuses")
}
