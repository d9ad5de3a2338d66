//! A client that speaks to the agents as they speak to each other: it numbers its requests, and sends one again, to
//! whichever agent, until it has an answer, and after that as well when it is told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blixard::identity::{Expected, NodeIdentity, member_client};
use blixard::seat::Seat;
use blixard::store::Store;
use blixard_core::command::{self, Command, Entry, Reply, Request};
use blixard_core::state::WINDOW;
use blixard_core::types::{ClientId, Timestamp};
use fastrand::Rng;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

use crate::record::{Answer, Change};
use crate::vm;

mod proto {
    #![allow(clippy::pedantic, reason = "it is generated")]
    tonic::include_proto!("blixard.peer.v1");
}

use proto::forward_reply::Result as Forwarded;

/// How often a request is sent before its outcome is left unknown.
const ATTEMPTS: usize = 60;
/// How long one attempt waits, in milliseconds: often too short, so that the next one finds it under way.
const ATTEMPT_MS: std::ops::Range<u64> = 20..700;
/// Between two attempts that nobody took.
const PAUSE: Duration = Duration::from_millis(50);

/// Who the clients say they are: a member, by what a copy of its store keeps.
///
/// # Errors
/// What is wrong with the copy.
pub fn identity(store: &Path) -> Result<NodeIdentity, String> {
    let failed = |error: &dyn std::error::Error| format!("{}: {}", store.display(), blixard::error_chain(error));
    let opened = Store::open(store).map_err(|error| failed(&error))?;
    let kept = opened.ok_or_else(|| format!("{} is not there", store.display()))?.identity();
    let identity = kept.map_err(|error| failed(&error))?;
    let identity = identity.ok_or_else(|| format!("{} is of no member", store.display()))?;
    Seat::of(&identity).map(|seat| seat.identity).ok_or_else(|| format!("{} keeps a damaged identity", store.display()))
}

pub struct Client {
    addresses: Vec<SocketAddr>,
    tls: Arc<rustls::ClientConfig>,
    channels: BTreeMap<SocketAddr, Channel>,
    request: Request,
    pauses: Interval,
    rng: Rng,
}

/// What came of one attempt.
enum Attempt {
    Answered(command::Answer),
    /// It was not taken, and that is certain.
    Refused,
    Unknown,
}

impl Client {
    pub fn of(identity: &NodeIdentity, addresses: &[SocketAddr], mut rng: Rng) -> Self {
        let client = ClientId(rng.u128(..));
        let request = Request { client, sequence: 0, answered: 0, until: WINDOW };
        let tls = Arc::new(member_client(identity, Expected::AnyMember).expect("it was read from a member's store"));
        let mut pauses = interval(PAUSE);
        pauses.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { addresses: addresses.to_vec(), tls, channels: BTreeMap::new(), request, pauses, rng }
    }

    /// What is answered to one change; nothing where nobody knows what came of it.
    pub async fn ask(&mut self, register: &str, change: Change) -> Option<Answer> {
        self.request.sequence += 1;
        self.request.answered = self.request.sequence;
        let mut certain = true;
        for _ in 0..ATTEMPTS {
            match self.attempt(register, change).await {
                Attempt::Answered(answer) => {
                    self.request.until = answer.index + WINDOW;
                    return understand(&answer);
                }
                Attempt::Unknown => certain = false,
                Attempt::Refused => _ = self.pauses.tick().await,
            }
        }
        certain.then_some(Answer::Nothing)
    }

    /// Sends the last request once more, as if its answer had been lost; what is answered, if anything.
    pub async fn ask_again(&mut self, register: &str, change: Change) -> Option<Answer> {
        match self.attempt(register, change).await {
            Attempt::Answered(answer) => understand(&answer),
            Attempt::Refused | Attempt::Unknown => None,
        }
    }

    async fn attempt(&mut self, register: &str, change: Change) -> Attempt {
        let address = self.addresses[self.rng.usize(..self.addresses.len())];
        let patience = Duration::from_millis(self.rng.u64(ATTEMPT_MS));
        let Ok(Some(channel)) = timeout(patience, self.channel(address)).await else { return Attempt::Refused };
        let entry = Entry {
            at: Timestamp(0),
            decided_in: None,
            request: Some(self.request),
            command: command_of(register, change),
        };
        let request = proto::ForwardRequest { command: entry.encode(), timeout_ms: 5000 };
        let Ok(Ok(reply)) = timeout(patience, call(channel, request)).await else {
            self.channels.remove(&address);
            return Attempt::Unknown;
        };
        match reply.result {
            Some(Forwarded::Outcome(outcome)) => {
                postcard::from_bytes(&outcome).map_or(Attempt::Unknown, Attempt::Answered)
            }
            Some(Forwarded::NotLeader(_) | Forwarded::Refused(_)) => Attempt::Refused,
            Some(Forwarded::Unknown(_)) | None => Attempt::Unknown,
        }
    }

    async fn channel(&mut self, address: SocketAddr) -> Option<Channel> {
        if let Some(channel) = self.channels.get(&address) {
            return Some(channel.clone());
        }
        let connect = tower::service_fn({
            let tls = TlsConnector::from(self.tls.clone());
            move |_| {
                let tls = tls.clone();
                async move {
                    let tcp = TcpStream::connect(address).await?;
                    tcp.set_nodelay(true)?;
                    Ok::<_, std::io::Error>(TokioIo::new(tls.connect(ServerName::from(address.ip()), tcp).await?))
                }
            }
        });
        let channel = Endpoint::from_static("http://member").connect_with_connector(connect).await.ok()?;
        self.channels.insert(address, channel.clone());
        Some(channel)
    }
}

async fn call(channel: Channel, request: proto::ForwardRequest) -> Result<proto::ForwardReply, tonic::Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<proto::ForwardRequest, proto::ForwardReply>::default();
    let path = PathAndQuery::from_static("/blixard.peer.v1.Peer/Forward");
    Ok(client.unary(tonic::Request::new(request), path, codec).await?.into_inner())
}

fn command_of(register: &str, change: Change) -> Command {
    let name = register.parse().expect("registers have names of VMs");
    match change {
        Change::Put { value, must } => {
            Command::PutVm { name, spec: vm::spec(register, value.content), running: value.running, must }
        }
        Change::SetRunning { running } => Command::SetVmRunning { name, running },
        Change::Remove => Command::RemoveVm { name },
    }
}

/// Nothing where the state itself doesn't know any more what came of it.
fn understand(answer: &command::Answer) -> Option<Answer> {
    match &answer.reply {
        Reply::Done => Some(Answer::Done { index: answer.index }),
        Reply::Refused(_) => Some(Answer::Refused { index: Some(answer.index) }),
        _ => None,
    }
}
