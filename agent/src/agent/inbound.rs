//! What this node answers to the others.

use std::sync::{Arc, OnceLock};

use blixard_core::command::{Command, Entry, NewNode, Reply};
use blixard_core::driver::{Message, Position};
use blixard_core::state::Cluster;
use blixard_core::types::{ClusterId, Hash, NodeId, RaftId, SecretId};
use tokio::time::Instant;

use crate::api;
use crate::identity::{Authority, Clock, ClusterSecret, Issued, Secrets};
use crate::node::{Handle, directory_of, now};
use crate::transport::{
    Admission, ApiRequest, ApiResponse, Beat, Candidate, Credential, Denials, Directory, ForwardError, Heartbeat,
    Inbound, LeaseError, Member, Refusal, SnapshotRows, Standing, Told,
};

/// The node behind the transport, once there is one.
pub struct Inward {
    secrets: Option<Secrets>,
    clock: Clock,
    /// The cluster of a host that was a member before: nobody may take it for blank while it starts.
    kept: Option<ClusterId>,
    node: OnceLock<(Handle, ClusterId)>,
    /// This host's API, and where its answers are made: not on the thread of the servers' connections.
    api: api::Service,
    runtime: tokio::runtime::Handle,
}

impl Inward {
    /// Needs a tokio runtime.
    pub fn new(secrets: Option<Secrets>, clock: Clock, kept: Option<ClusterId>, api: api::Service) -> Self {
        Self { secrets, clock, kept, node: OnceLock::new(), api, runtime: tokio::runtime::Handle::current() }
    }

    /// An authority by what the state has of its key.
    fn unseal(&self, sealed_key: &[u8]) -> Result<Authority, String> {
        let secrets =
            self.secrets.as_ref().ok_or("this host has no cluster secret, so it can't sign: ask one that has")?;
        let authority = Authority::unseal(sealed_key, secrets);
        Ok(authority.map_err(|error| crate::error_chain(&error))?.at(self.clock))
    }

    /// Refuses who has proved the secret that another one has taken the place of.
    fn check_secret(&self, cluster: &Cluster, proved: SecretId) -> Result<(), String> {
        let next = self.secrets.as_ref().and_then(Secrets::next).map(ClusterSecret::id);
        if next.is_some() && cluster.secret() == next && next != Some(proved) {
            return Err(
                "the cluster secret was rotated, and this host has the one before: put the one that there is now \
                        into its cluster.secret_file"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// A certificate for the member that has this key; see [`Inbound::renew`].
    pub fn reissue(&self, request: &[u8], issuer: Hash) -> Result<Vec<u8>, String> {
        let text = |error: &dyn std::error::Error| crate::error_chain(error);
        let (handle, _) = self.node.get().ok_or("this host is starting: try again")?;
        let key = Authority::key_of(request).map_err(|error| text(&error))?;
        let read = handle.read(|state, _| {
            let member = state.nodes().iter().find(|(_, node)| node.key == key).map(|(node, _)| *node);
            (state.cluster().cloned(), member)
        });
        let (cluster, member) = read.map_err(|error| text(&error))?;
        let cluster = cluster.ok_or("the cluster is being founded: try again")?;
        let member = member.ok_or("no member of this cluster has this key: it was removed, or has not joined")?;
        let authority = self.unseal(cluster.sealed_key_of(issuer).unwrap_or(&cluster.sealed_ca_key))?;
        authority.issue(request, cluster.epoch, member).map_err(|error| text(&error))
    }

    /// From now on the others reach this node.
    pub fn open(&self, handle: Handle, cluster: ClusterId) {
        assert!(self.node.set((handle, cluster)).is_ok(), "an agent becomes a member once");
    }

    async fn issue(&self, candidate: Candidate) -> Result<Admission, String> {
        let text = |error: &dyn std::error::Error| crate::error_chain(error);
        let (handle, _) = self.node.get().ok_or("this host is starting: try again")?;
        // Before anything is proposed: who could not be given a certificate is not to have used up a token.
        let cluster = handle.read(|state, _| state.cluster().cloned()).map_err(|error| text(&error))?;
        let cluster = cluster.ok_or("the cluster is being founded: try again")?;
        self.unseal(&cluster.sealed_ca_key)?;
        if let Credential::Secret(proved) = candidate.credential {
            self.check_secret(&cluster, proved)?;
        }
        let key = Authority::key_of(&candidate.request).map_err(|error| text(&error))?;
        let Candidate { name, address, request, understands, role, was_in, credential } = candidate;
        let new = NewNode { name: name.clone(), address: address.clone(), key, understands, role };
        if !matches!(credential, Credential::Secret(_)) {
            handle.barrier().await.map_err(|error| text(&error))?;
            // Who only guesses is no work for the cluster. Who is no server knows no tokens, and no manifest.
            let known = handle.read(|state, standing| match (standing.raft, &credential) {
                (Some(_), Credential::Token { id, secret, expires }) => {
                    state.find_token(*id, secret, *expires, now()).map(|_| ())
                }
                (Some(_), Credential::Key(key)) => state.check_key(&name, key),
                _ => Ok(()),
            });
            known.map_err(|error| text(&error))??;
        }
        let command = match (credential, was_in) {
            (Credential::Secret(_), None) => Command::Admit(new),
            (Credential::Secret(_), Some(was_in)) => Command::Rejoin { host: new, was_in },
            (Credential::Key(key), was_in) => Command::AdmitDeclared { key, host: new, was_in },
            (Credential::Token { id, secret, expires }, was_in) => {
                Command::Redeem { token: id, secret, expires, host: new, was_in }
            }
        };
        let answer = handle.propose(command).await.map_err(|error| text(&error))?;
        let (node, raft) = match answer.reply {
            Reply::Admitted { node, raft } => (node, raft),
            Reply::Refused(why) => return Err(why),
            reply => return Err(format!("an answer of another kind: {reply:?}")),
        };
        // As it is by now: a rotation of the authority waits for whoever was admitted before its last step.
        let read = handle.read(|state, _| (state.cluster().cloned(), directory_of(state)));
        let (cluster, members) = read.map_err(|error| text(&error))?;
        let cluster = cluster.expect("a cluster never ceases to be one");
        let issued = self.unseal(&cluster.sealed_ca_key)?.issue(&request, cluster.epoch, node);
        let certificate = issued.map_err(|error| text(&error))?;
        let issued =
            Issued { authorities: cluster.authorities().into_iter().map(<[u8]>::to_vec).collect(), certificate };
        let mut members = members.servers_and(node);
        members.enter(node, Member { name, address, raft });
        Ok(Admission { cluster: cluster.id, epoch: cluster.epoch, issued, node, raft, members })
    }
}

#[tonic::async_trait]
impl Inbound for Inward {
    fn step(&self, messages: Vec<Message>) {
        if let Some((handle, _)) = self.node.get() {
            handle.step(messages);
        }
    }

    fn unreachable(&self, peer: RaftId) {
        if let Some((handle, _)) = self.node.get() {
            handle.unreachable(peer);
        }
    }

    fn called(&self) {
        if let Some((handle, _)) = self.node.get() {
            handle.called();
        }
    }

    async fn introduce(&self, node: NodeId, member: Member) {
        if let Some((handle, _)) = self.node.get() {
            handle.introduce(node, member).await;
        }
    }

    fn removed(&self, by: NodeId) {
        if let Some((handle, _)) = self.node.get() {
            handle.removed(by);
        }
    }

    fn dismissed(&self, by: NodeId) {
        if let Some((handle, _)) = self.node.get() {
            handle.dismissed(by);
        }
    }

    fn superseded(&self, by: NodeId) {
        if let Some((handle, _)) = self.node.get() {
            handle.superseded(by);
        }
    }

    async fn follow(&self, from: NodeId) -> Result<Told, Refusal> {
        let (handle, _) = self.node.get().ok_or_else(|| Refusal("this host is starting: try again".to_owned()))?;
        handle.assignments_of(from).await.map_err(|error| Refusal(crate::error_chain(&error)))
    }

    fn beat(&self, from: NodeId) -> Beat {
        match self.node.get() {
            Some((handle, _)) => handle.heard(from),
            None => Beat { leader: None, servers: Directory::default(), applied: 0 },
        }
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<NodeId, LeaseError> {
        let (handle, _) = self.node.get().ok_or(LeaseError::NoLeader)?;
        handle.relay(heartbeat).await
    }

    async fn heartbeats(&self, heartbeats: Vec<Heartbeat>) -> Result<Denials, LeaseError> {
        let (handle, _) = self.node.get().ok_or(LeaseError::NoLeader)?;
        handle.take_heartbeats(heartbeats).await
    }

    async fn api(&self, question: ApiRequest) -> ApiResponse {
        let api = self.api.clone();
        let answered = self.runtime.spawn(async move { api.answer_member(question).await });
        // A runtime that ends answers nothing.
        answered.await.unwrap_or_else(|_| api::silence())
    }

    fn standing(&self) -> Standing {
        let cluster = self.node.get().map(|(_, cluster)| *cluster).or(self.kept);
        cluster.map_or(Standing::Blank, Standing::Member)
    }

    async fn forward(&self, from: NodeId, command: Vec<u8>, deadline: Instant) -> Result<Vec<u8>, ForwardError> {
        let Some((handle, _)) = self.node.get() else {
            return Err(ForwardError::NotLeader { to: NodeId(0), leader: None });
        };
        let to = handle.node();
        let refused = |reason: String| ForwardError::Refused { to, reason };
        let entry = Entry::decode(&command).map_err(|error| refused(error.to_string()))?;
        if entry.command.is_decision() {
            return Err(refused("a leader's decision is never forwarded".to_owned()));
        }
        if entry.command.speaker().is_some_and(|speaker| speaker != from) {
            return Err(refused(format!("node {from} speaks for another node")));
        }
        let answer = handle.propose_on_leader(entry.command, entry.request, deadline).await?;
        Ok(postcard::to_stdvec(&answer).expect("a reply has no part that postcard refuses"))
    }

    async fn snapshot(&self, from: NodeId, at: Position) -> Option<Arc<dyn SnapshotRows>> {
        self.node.get()?.0.snapshot(from, at).await
    }

    async fn admit(&self, candidate: Candidate) -> Result<Admission, Refusal> {
        self.issue(candidate).await.map_err(Refusal)
    }

    fn renew(&self, request: &[u8], issuer: Hash) -> Result<Vec<u8>, Refusal> {
        self.reissue(request, issuer).map_err(Refusal)
    }
}
