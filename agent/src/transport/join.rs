//! The joiner's side: asks all listed servers what they know, and becomes a member by way of one of them.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::types::{
    ClusterEpoch, ClusterId, Hash, InvalidValue, Level, NodeId, NodeName, NodeRole, PublicKey, RaftId, Server,
    TrustAnchor,
};
use futures_util::future::join_all;
use rustls::ClientConfig;
use tonic::transport::Channel;

use super::connect::{self, ConnectError};
use super::door::{ADMIT_TIMEOUT, NONCE, Transcript, encode_role, hash_of_names};
use super::link::describe;
use super::proto::admit_reply::Result as Reply;
use super::proto::join_client::JoinClient;
use super::proto::{AdmitReply, AdmitRequest, Admitted, HelloRequest};
use super::{Directory, Member, Standing, Tasks, directory, proto};
use crate::error_chain;
use crate::identity::{
    ClusterSecret, HostKey, IdentityError, Issued, NodeIdentity, NodeKey, PeerError, Secrets, joining_client, random,
    stranger_client,
};

/// How long one server may take to answer Hello, beyond the connection.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer to Admit: the directory grows with the cluster.
pub(super) const MAX_ADMITTED: usize = 1 << 20;

/// What a listed server answered, when asked whether it knows the cluster.
#[derive(Debug)]
pub enum Answer {
    /// It is the one that asks.
    Own,
    /// It proved the secret, lists the same servers, and is in no cluster.
    Blank,
    /// It proved the secret, and is in this cluster.
    Member(ClusterId),
    Failed(AskError),
}

/// Why a listed server gave no answer that counts.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{server} did not answer within {} s", HELLO_TIMEOUT.as_secs())]
    TimedOut { server: Server },
    #[error("{server} refused the question: {reason}")]
    Call { server: Server, reason: String },
    #[error("{server} gave an answer that makes no sense: {what}")]
    Answer { server: Server, what: String },
    #[error(
        "{server} did not prove the cluster secret: cluster.secret_file must hold the same on both hosts, also after \
         it was rotated (if it does, somebody is between them)"
    )]
    Secret { server: Server },
    #[error("{found} answered at the address of {server}: correct the address in cluster.servers")]
    OtherName { server: Server, found: NodeName },
    #[error(
        "{server} lists other servers: make the names in cluster.servers the same, in the same order, on all hosts"
    )]
    OtherList { server: Server },
}

/// Why a host did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("cannot join by way of {server}")]
    Ask { server: Server, source: Box<AskError> },
    #[error("cannot join by way of {server}: it is in no cluster (any more)")]
    Blank { server: Server },
    #[error(
        "{key} is of cluster {own}, and {server} is in cluster {found}: use one of the cluster that is to be joined, or correct \
         cluster.servers"
    )]
    OtherCluster { key: &'static str, server: Server, own: ClusterId, found: ClusterId },
    #[error("{server} refused to admit this host: {reason}")]
    Refused { server: Server, reason: String },
    #[error("no answer of {server} to the request to join; ask again")]
    TimedOut { server: Server },
    #[error("cannot use what {server} answered to the request to join")]
    Values { server: Server, source: InvalidValue },
    #[error("cannot use the identity that {server} gave")]
    Identity { server: Server, source: IdentityError },
}

/// A host that asks to become a member.
#[derive(Debug)]
pub struct Asking {
    /// Its name, and where the others will reach it.
    pub own: Server,
    pub key: NodeKey,
    /// The epoch in which it was a member, if it was one.
    pub was_in: Option<ClusterEpoch>,
    /// The newest level that its agent understands.
    pub understands: Level,
    pub role: NodeRole,
}

/// What a host is after it joined.
#[derive(Debug)]
pub struct Joined {
    pub identity: NodeIdentity,
    /// By which it is to be a server at once, if it is.
    pub raft: Option<RaftId>,
    /// The servers, and this node.
    pub members: Directory,
}

/// The answer of each of `servers`, in their order, all asked at once; takes at most some seconds.
///
/// `own` is this node's name in the list, and isn't asked.
pub async fn ask_all(servers: &[Server], secrets: &Secrets, own: &NodeName) -> Vec<(Server, Answer)> {
    let list = hash_of_names(servers).to_string();
    let questions = servers.iter().map(|server| async {
        if server.name == *own {
            return (server.clone(), Answer::Own);
        }
        let answer = match ask(server, secrets, own).await {
            Err(error) => Answer::Failed(error),
            Ok((greeted, _)) => match greeted.standing {
                Standing::Member(cluster) => Answer::Member(cluster),
                Standing::Blank if greeted.transcript.servers == list => Answer::Blank,
                Standing::Blank => Answer::Failed(AskError::OtherList { server: server.clone() }),
            },
        };
        (server.clone(), answer)
    });
    join_all(questions).await
}

/// Becomes a member of the cluster that `server` is in.
///
/// # Errors
/// Nothing is left half-done on this side after any of them. After `TimedOut` the cluster may know this host already;
/// asking again with the same `key` gets the same node id.
pub async fn join(server: &Server, secrets: &Secrets, asking: &Asking) -> Result<Joined, JoinError> {
    let asked = |source| JoinError::Ask { server: server.clone(), source: Box::new(source) };
    let (greeted, secret) = ask(server, secrets, &asking.own.name).await.map_err(asked)?;
    let Standing::Member(cluster) = greeted.standing else { return Err(JoinError::Blank { server: server.clone() }) };
    let address = &asking.own.address;
    let prove = |transcript: &Transcript, request: &[u8]| transcript.prove_joiner(secret, address, request).to_vec();
    greeted.admit(server, cluster, asking, None, prove).await
}

/// Becomes a member of the cluster that the host knows by `anchor`, by the key that is declared for it.
///
/// # Errors
/// As [`join`].
pub async fn join_declared(
    server: &Server,
    key: &HostKey,
    anchor: TrustAnchor,
    asking: &Asking,
) -> Result<Joined, JoinError> {
    let greeted = greet(server, &asking.own.name, joining_client(anchor)).await;
    let named = greeted.and_then(|(greeted, _)| greeted.check_name(server));
    let greeted = named.map_err(|error| not_found(server, "cluster.authority", error))?;
    let address = &asking.own.address;
    let prove = |transcript: &Transcript, request: &[u8]| transcript.sign_joiner(key, address, request);
    greeted.admit(server, anchor.cluster, asking, Some(key.public()), prove).await
}

/// Why a host that knows its cluster by its authority has not found it at `server`; `key` is where it has that from.
pub(super) fn not_found(server: &Server, key: &'static str, error: AskError) -> JoinError {
    let server = server.clone();
    match error {
        AskError::Connect(ConnectError::OtherPeer { source: PeerError::NoNode, .. }) => JoinError::Blank { server },
        AskError::Connect(ConnectError::OtherPeer { source: PeerError::OtherCluster { found, own }, .. }) => {
            JoinError::OtherCluster { key, server, own, found }
        }
        error => JoinError::Ask { server, source: Box::new(error) },
    }
}

impl Joined {
    /// What a server of `cluster` has answered to a request to join.
    ///
    /// # Errors
    /// A refusal, or what can't be used.
    pub(super) fn of(server: &Server, cluster: ClusterId, key: &NodeKey, reply: AdmitReply) -> Result<Self, JoinError> {
        let server = || server.clone();
        let admitted = match reply.result {
            Some(Reply::Admitted(admitted)) => admitted,
            Some(Reply::Refused(reason)) => return Err(JoinError::Refused { server: server(), reason }),
            None => return Err(JoinError::Refused { server: server(), reason: "it gave no reason".to_owned() }),
        };
        let values = |source| JoinError::Values { server: server(), source };
        let members = directory_of(&admitted).map_err(values)?;
        let (node, epoch) = (NodeId(admitted.node), admitted.epoch.parse().map_err(values)?);
        let issued = admitted.issued.unwrap_or_default().into();
        let identity = key.identify(cluster, epoch, node, issued);
        let identity = identity.map_err(|source| JoinError::Identity { server: server(), source })?;
        Ok(Self { identity, raft: directory::raft(admitted.raft), members })
    }
}

/// A server that is known to be of the cluster, over the connection for which that holds.
struct Greeted {
    client: JoinClient<Channel>,
    transcript: Transcript,
    standing: Standing,
    _tasks: Connection,
}

impl Greeted {
    /// This one, if it is the one that was called.
    fn check_name(self, server: &Server) -> Result<Self, AskError> {
        let found = &self.transcript.server;
        if *found == server.name {
            Ok(self)
        } else {
            Err(AskError::OtherName { server: server.clone(), found: found.clone() })
        }
    }

    /// What the server answers to the request to join its `cluster`, by what `prove` makes of the transcript and the PKCS#10.
    async fn admit(
        mut self,
        server: &Server,
        cluster: ClusterId,
        asking: &Asking,
        declared: Option<PublicKey>,
        prove: impl FnOnce(&Transcript, &[u8]) -> Vec<u8>,
    ) -> Result<Joined, JoinError> {
        let Asking { own, key, was_in, understands, role } = asking;
        let request = key.request().map_err(|source| JoinError::Identity { server: server.clone(), source })?;
        let admit = AdmitRequest {
            name: own.name.to_string(),
            address: own.address.to_string(),
            proof: prove(&self.transcript, &request),
            request,
            understands: understands.0,
            was_in: was_in.map(|epoch| epoch.to_string()),
            role: encode_role(*role).into(),
            declared: declared.map(|key| key.to_string()),
        };
        // The server has its own, shorter limit, and says more when it is reached.
        let reply = match tokio::time::timeout(ADMIT_TIMEOUT + HELLO_TIMEOUT, self.client.admit(admit)).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => {
                return Err(JoinError::Refused { server: server.clone(), reason: describe(&status) });
            }
            Err(_) => return Err(JoinError::TimedOut { server: server.clone() }),
        };
        Joined::of(server, cluster, key, reply)
    }
}

impl From<proto::Issued> for Issued {
    fn from(proto::Issued { authorities, certificate }: proto::Issued) -> Self {
        Self { authorities, certificate }
    }
}

/// Ends the tasks of one connection.
pub(super) struct Connection(pub Tasks);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.begin_close();
    }
}

/// A server that has proved this one of the secrets.
async fn ask<'a>(
    server: &Server,
    secrets: &'a Secrets,
    own: &NodeName,
) -> Result<(Greeted, &'a ClusterSecret), AskError> {
    let (greeted, proofs) = greet(server, own, stranger_client()).await?;
    // Before anything in the answer is believed.
    let is_proved = |secret: &ClusterSecret| proofs.iter().any(|proof| greeted.transcript.verify_server(secret, proof));
    let secret = secrets.find(is_proved).ok_or_else(|| AskError::Secret { server: server.clone() })?;
    Ok((greeted.check_name(server)?, secret))
}

/// Whoever answers Hello at the address of `server`, and its proofs of secrets.
async fn greet(server: &Server, own: &NodeName, client: ClientConfig) -> Result<(Greeted, Vec<Vec<u8>>), AskError> {
    let stream = connect::connect(&server.address, Arc::new(client)).await?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let leaf = Hash::of(certificates.first().map_or(&[][..], |certificate| certificate));
    let tasks = Connection(Tasks::default());
    let call_failed = |reason| AskError::Call { server: server.clone(), reason };

    let hello = async {
        let channel = connect::over(stream, &tasks.0).await.map_err(|error| call_failed(error_chain(&error)))?;
        let mut client = JoinClient::new(channel).max_decoding_message_size(MAX_ADMITTED);
        let nonce = random::<NONCE>().to_vec();
        let request = HelloRequest { nonce: nonce.clone(), name: own.to_string() };
        let reply = client.hello(request).await.map_err(|status| call_failed(describe(&status)))?;
        Ok::<_, AskError>((client, nonce, reply.into_inner()))
    };
    let timed_out = |_| AskError::TimedOut { server: server.clone() };
    let (client, nonce, reply) = tokio::time::timeout(HELLO_TIMEOUT, hello).await.map_err(timed_out)??;

    let makes_no_sense = |what: InvalidValue| AskError::Answer { server: server.clone(), what: what.to_string() };
    let standing = match reply.cluster.as_str() {
        "" => Standing::Blank,
        cluster => Standing::Member(cluster.parse().map_err(makes_no_sense)?),
    };
    let transcript = Transcript {
        joiner_nonce: nonce,
        server_nonce: reply.nonce,
        leaf,
        joiner: own.clone(),
        server: reply.name.parse().map_err(makes_no_sense)?,
        cluster: reply.cluster,
        servers: reply.servers,
    };
    Ok((Greeted { client, transcript, standing, _tasks: tasks }, reply.proofs))
}

fn directory_of(admitted: &Admitted) -> Result<Directory, InvalidValue> {
    admitted.members.iter().map(Member::decode).collect::<Result<Vec<_>, _>>().map(Directory::of)
}
