//! The server side of joining: tells a stranger who this node is, proves it, and admits whoever proves the secret, or
//! that it has the key by which it is declared.
//!
//! ```text
//!              Hello: draws a nonce          Admit: takes the nonce, right or wrong
//!  (nothing) ──────────────────────▶ challenged ──────────────────────────────────▶ (nothing)
//! ```
//! The nonce belongs to one connection and 30 s, so a recorded Admit is worth nothing on another, and there are never
//! more nonces than connections.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::types::{Address, Hash, InvalidValue, Level, NodeName, NodeRole, PublicKey, Server};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::listener::Caller;
use super::proto::admit_reply::Result as Reply;
use super::proto::join_server::Join;
use super::proto::{
    AdmitReply, AdmitRequest, Admitted, HelloReply, HelloRequest, RedeemRequest, RenewReply, RenewRequest,
};
use super::{Admission, Candidate, Credential, Shared, Standing, proto};
use crate::identity::{ClusterSecret, HostKey, Issued, Secrets, random, verify_signature};

/// How long after Hello an Admit is taken.
const CHALLENGE_LIFETIME: Duration = Duration::from_secs(30);
/// How long the cluster may take to agree on a new member.
pub const ADMIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a nonce.
pub const NONCE: usize = 32;

/// What both sides of one Hello saw of it: each proof is over all of this.
#[derive(Debug, Clone)]
pub struct Transcript {
    pub joiner_nonce: Vec<u8>,
    pub server_nonce: Vec<u8>,
    /// SHA-256 of the certificate in the TLS handshake that this side saw.
    pub leaf: Hash,
    pub joiner: NodeName,
    pub server: NodeName,
    /// The server's cluster; empty if it has none.
    pub cluster: String,
    /// The server's list of servers.
    pub servers: String,
}

impl Transcript {
    /// What the server proves with its answer to Hello.
    pub fn prove_server(&self, secret: &ClusterSecret) -> [u8; 32] {
        self.with(&[], |parts| secret.prove("blixard join 1: server", parts))
    }

    pub fn verify_server(&self, secret: &ClusterSecret, proof: &[u8]) -> bool {
        self.with(&[], |parts| secret.verify("blixard join 1: server", parts, proof))
    }

    /// What the joiner proves with Admit.
    pub fn prove_joiner(&self, secret: &ClusterSecret, address: &Address, request: &[u8]) -> [u8; 32] {
        self.with(&[address.as_str().as_bytes(), request], |parts| secret.prove("blixard join 1: joiner", parts))
    }

    pub fn verify_joiner(&self, secret: &ClusterSecret, address: &Address, request: &[u8], proof: &[u8]) -> bool {
        let more = [address.as_str().as_bytes(), request];
        self.with(&more, |parts| secret.verify("blixard join 1: joiner", parts, proof))
    }

    /// What a joiner proves with Admit that has a key of its own instead.
    pub fn sign_joiner(&self, key: &HostKey, address: &Address, request: &[u8]) -> Vec<u8> {
        self.with(&[address.as_str().as_bytes(), request], |parts| key.sign("blixard join 1: declared joiner", parts))
    }

    pub fn verify_signature(&self, key: &PublicKey, address: &Address, request: &[u8], signature: &[u8]) -> bool {
        let more = [address.as_str().as_bytes(), request];
        self.with(&more, |parts| verify_signature(key, "blixard join 1: declared joiner", parts, signature))
    }

    fn with<T>(&self, more: &[&[u8]], use_parts: impl FnOnce(&[&[u8]]) -> T) -> T {
        let leaf = self.leaf.to_string();
        let mut parts: Vec<&[u8]> = vec![
            &self.joiner_nonce,
            &self.server_nonce,
            leaf.as_bytes(),
            self.joiner.as_str().as_bytes(),
            self.server.as_str().as_bytes(),
            self.cluster.as_bytes(),
            self.servers.as_bytes(),
        ];
        parts.extend(more);
        use_parts(&parts)
    }
}

/// What the next Admit on a connection must answer.
pub struct Challenge {
    transcript: Transcript,
    since: Instant,
}

/// The names of `cluster.servers` in their order, as one hash: hosts with equal ones have the same founder.
pub fn hash_of_names(servers: &[Server]) -> Hash {
    let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
    Hash::of(names.join("\n").as_bytes())
}

/// The Join service.
pub struct Door {
    pub(super) shared: Arc<Shared>,
}

impl Door {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Counts a try to join, unless there were too many.
    pub(super) fn try_join(&self, caller: &Caller) -> Result<(), Status> {
        let tried = self.shared.strangers.try_join(caller.remote.ip(), Instant::now());
        tried.map_err(|error| Status::resource_exhausted(error.to_string()))
    }

    /// The try has come to something.
    pub(super) fn forgive(&self, caller: &Caller) {
        self.shared.strangers.forgive(caller.remote.ip(), Instant::now());
    }

    fn secrets(&self) -> Result<&Secrets, Status> {
        let without = || Status::failed_precondition("this host has no cluster secret: ask one that has");
        self.shared.secrets.as_ref().ok_or_else(without)
    }

    /// What the cluster says to who has shown something.
    pub(super) async fn decide(&self, candidate: Candidate) -> Reply {
        let name = candidate.name.clone();
        let reply = self.ask_cluster(candidate).await;
        match &reply {
            Reply::Admitted(admitted) => info!(%name, node = admitted.node, "admitted a host"),
            Reply::Refused(reason) => warn!(%name, reason, "refused a host"),
        }
        reply
    }

    async fn ask_cluster(&self, candidate: Candidate) -> Reply {
        if self.shared.inbound.standing() == Standing::Blank {
            return Reply::Refused(format!("{} is in no cluster itself, yet", self.shared.own.name));
        }
        match tokio::time::timeout(ADMIT_TIMEOUT, self.shared.inbound.admit(candidate)).await {
            Ok(Ok(admission)) => Reply::Admitted(encode(admission)),
            Ok(Err(refusal)) => Reply::Refused(refusal.0),
            Err(_) => Reply::Refused(format!(
                "the cluster did not agree on a new member within {} s: has it a quorum?",
                ADMIT_TIMEOUT.as_secs()
            )),
        }
    }
}

#[tonic::async_trait]
impl Join for Door {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let caller = caller(&request);
        let HelloRequest { nonce, name } = request.into_inner();
        if nonce.len() != NONCE {
            return Err(Status::invalid_argument(format!("the nonce has {} bytes instead of {NONCE}", nonce.len())));
        }
        let transcript = Transcript {
            joiner_nonce: nonce,
            server_nonce: random::<NONCE>().to_vec(),
            leaf: caller.leaf,
            joiner: name.parse().map_err(|error| invalid(&error))?,
            server: self.shared.own.name.clone(),
            cluster: match self.shared.inbound.standing() {
                Standing::Blank => String::new(),
                Standing::Member(cluster) => cluster.to_string(),
            },
            servers: hash_of_names(&self.shared.servers).to_string(),
        };
        let proofs = self.secrets()?.newest_first().map(|secret| transcript.prove_server(secret).to_vec());
        let reply = HelloReply {
            nonce: transcript.server_nonce.clone(),
            name: transcript.server.to_string(),
            cluster: transcript.cluster.clone(),
            servers: transcript.servers.clone(),
            proofs: proofs.collect(),
        };
        let challenge = Challenge { transcript, since: Instant::now() };
        *caller.challenge.lock().expect("nothing panics while it holds this lock") = Some(challenge);
        Ok(Response::new(reply))
    }

    async fn admit(&self, request: Request<AdmitRequest>) -> Result<Response<AdmitReply>, Status> {
        let caller = caller(&request);
        let challenge = caller.challenge.lock().expect("nothing panics while it holds this lock").take();
        let Some(Challenge { transcript, .. }) = challenge.filter(|c| c.since.elapsed() < CHALLENGE_LIFETIME) else {
            return Err(Status::failed_precondition("no Hello on this connection waits for an Admit: say Hello first"));
        };
        self.try_join(&caller)?;
        let request = request.into_inner();
        let role = role_of(request.role());
        let AdmitRequest { name, address, request, proof, understands, was_in, declared, .. } = request;
        let address: Address = address.parse().map_err(|error| invalid(&error))?;
        let (credential, what) = if let Some(key) = declared {
            let key = key.parse().map_err(|error| invalid(&error))?;
            let proved = transcript.verify_signature(&key, &address, &request, &proof);
            (proved.then_some(Credential::Key(key)), "that it has the key it names")
        } else {
            let proved = self.secrets()?.find(|secret| transcript.verify_joiner(secret, &address, &request, &proof));
            let what = "the cluster secret: cluster.secret_file must hold the same on both hosts";
            (proved.map(|secret| Credential::Secret(secret.id())), what)
        };
        let Some(credential) = credential.filter(|_| name == transcript.joiner.as_str()) else {
            let (remote, name) = (caller.remote, &transcript.joiner);
            self.shared.noise.warn(format_args!("{name} at {remote} did not prove {what}"));
            return Err(Status::permission_denied(format!("{name} did not prove {what}")));
        };
        // Anybody has a key: whether it is the declared one, the cluster says.
        let is_stranger = !matches!(credential, Credential::Secret(_));
        if !is_stranger {
            self.forgive(&caller);
        }
        let was_in = was_in.map(|epoch| epoch.parse()).transpose().map_err(|error| invalid(&error))?;
        let (name, understands) = (transcript.joiner, Level(understands));
        let candidate = Candidate { name, address, request, understands, role, was_in, credential };
        let reply = self.decide(candidate).await;
        if is_stranger && matches!(reply, Reply::Admitted(_)) {
            self.forgive(&caller);
        }
        Ok(Response::new(AdmitReply { result: Some(reply) }))
    }

    async fn redeem(&self, request: Request<RedeemRequest>) -> Result<Response<AdmitReply>, Status> {
        self.take_token(request).await
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        self.renew_certificate(&request)
    }
}

pub(super) fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get::<Caller>().expect("the listener adds it to each request").clone()
}

pub(super) fn role_of(role: proto::Role) -> NodeRole {
    match role {
        proto::Role::Auto => NodeRole::Auto,
        proto::Role::Server => NodeRole::Server,
        proto::Role::Worker => NodeRole::Worker,
    }
}

/// How a role goes over the wire.
pub fn encode_role(role: NodeRole) -> proto::Role {
    match role {
        NodeRole::Auto => proto::Role::Auto,
        NodeRole::Server => proto::Role::Server,
        NodeRole::Worker => proto::Role::Worker,
    }
}

pub(super) fn invalid(error: &InvalidValue) -> Status {
    Status::invalid_argument(error.to_string())
}

impl From<Issued> for proto::Issued {
    fn from(Issued { authorities, certificate }: Issued) -> Self {
        Self { authorities, certificate }
    }
}

fn encode(admission: Admission) -> Admitted {
    let members = admission.members.members().map(|(node, member)| member.encode(node));
    Admitted {
        cluster: admission.cluster.to_string(),
        issued: Some(admission.issued.into()),
        node: admission.node.0,
        raft: admission.raft.map_or(0, |raft| raft.0),
        members: members.collect(),
        epoch: admission.epoch.to_string(),
    }
}
