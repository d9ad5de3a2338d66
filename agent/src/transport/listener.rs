//! The port that peers and joining hosts reach: TLS 1.3 and HTTP/2, with a limit on everything.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blixard_core::types::{Hash, NodeId};
use futures_util::future::BoxFuture;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tracing::{debug, warn};

use super::door::{Challenge, Door};
use super::passing::{API_PATH, ApiResponse};
use super::peer::{PeerService, no_certificate};
use super::proto::join_server::JoinServer;
use super::proto::peer_server::PeerServer;
use super::strangers::Place;
use super::{IDLE_KEEPALIVE, KEEPALIVE_TIMEOUT, MAX_FRAME, Shared, Side};
use crate::identity::peer_of;

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections of members: each that is no server has one to the server that it follows, and one to each
/// that has led when it had something to propose.
const MAX_PEERS: usize = 20_000;
/// How long a connection without a member's certificate may last: one join takes far less.
const STRANGER_LIFETIME: Duration = Duration::from_secs(60);
/// Most calls on it: a join takes two.
const MAX_STRANGER_CALLS: u32 = 16;
/// How long a node that was removed has to hear that.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Largest message of the join protocol.
const MAX_JOIN: usize = 64 * 1024;
/// Calls at a time on one connection: of a member, and of anybody else.
const MAX_STREAMS: u32 = 64;
const MAX_STRANGER_STREAMS: u32 = 4;
const MAX_HEADERS: u32 = 16 * 1024;
/// Bytes that a peer may send ahead of what this node has read, a stream and a connection.
const WINDOW: u32 = 8 << 20;
const STRANGER_WINDOW: u32 = 64 * 1024;
/// Streams that a client opened and reset before they were looked at.
const MAX_PENDING_RESETS: usize = 20;
/// What the paths of all calls between members begin with.
const PEER_PATH: &str = "/blixard.peer.v1.Peer/";
/// Least time between two warnings about what came from the network.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// An answer on its way.
type Answering = BoxFuture<'static, Result<ApiResponse, Infallible>>;

/// What is known of the other side of a connection; each request carries it.
#[derive(Clone)]
pub struct Caller {
    pub remote: SocketAddr,
    /// The member in its certificate, if it has shown one.
    pub peer: Option<NodeId>,
    /// SHA-256 of the certificate that it was shown.
    pub leaf: Hash,
    /// The nonce that its next Admit must answer.
    pub challenge: Arc<Mutex<Option<Challenge>>>,
}

/// Accepts connections until it is dropped.
pub async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let peer = PeerServer::new(PeerService::new(shared.clone()));
    let join = JoinServer::new(Door::new(shared.clone()));
    let port = Arc::new(Port {
        peer: peer.max_decoding_message_size(MAX_FRAME).max_encoding_message_size(MAX_FRAME),
        join: join.max_decoding_message_size(MAX_JOIN),
        shared,
        peers: Arc::new(Semaphore::new(MAX_PEERS)),
    });
    loop {
        match listener.accept().await {
            Ok((tcp, remote)) => match port.shared.strangers.connect(remote.ip(), Instant::now()) {
                Ok(place) => port.shared.tasks.spawn(port.clone().serve(tcp, remote, place)),
                Err(error) => port.note(remote, &error.to_string()),
            },
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                // Most likely out of file descriptors: one must be closed first.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct Port {
    peer: PeerServer<PeerService>,
    join: JoinServer<Door>,
    shared: Arc<Shared>,
    peers: Arc<Semaphore>,
}

impl Port {
    async fn serve(self: Arc<Self>, tcp: TcpStream, remote: SocketAddr, place: Place) {
        let Side { tls, cluster } = self.shared.side.borrow().clone();
        let _ = tcp.set_nodelay(true);
        let handshake = TlsAcceptor::from(tls.config).accept(tcp);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let reason = crate::identity::refusal(&error).map_or_else(|| error.to_string(), |e| e.to_string());
                return self.note(remote, &reason);
            }
            Err(_) => return self.note(remote, "the TLS handshake took too long"),
        };
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(b"h2") {
            return self.note(remote, "the client speaks TLS, but not this protocol");
        }
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let peer = match (certificate, cluster) {
            (Some(certificate), Some((cluster, epoch))) => match peer_of(certificate, cluster, epoch) {
                Ok(peer) => Some(peer),
                Err(error) => return self.note(remote, &error.to_string()),
            },
            _ => None,
        };
        let (_member, _stranger) = if peer.is_some() {
            drop(place);
            let Ok(permit) = self.peers.clone().try_acquire_owned() else {
                return self.note(remote, "too many connections of members");
            };
            (Some(permit), None)
        } else {
            match place.stay_stranger() {
                Ok(place) => (None, Some(place)),
                Err(error) => return self.note(remote, &error.to_string()),
            }
        };
        let caller = Caller { remote, peer, leaf: tls.leaf, challenge: Arc::default() };
        let certificate = certificate.cloned();
        let asked_enough = Arc::new(Notify::new());
        let connection = self.connection(TokioIo::new(stream), caller, asked_enough.clone());
        let over = async {
            if let Some((peer, certificate)) = peer.zip(certificate) {
                tokio::select! {
                    () = self.shared.distrust(&certificate) => {}
                    () = async {
                        self.shared.removal(peer).await;
                        tokio::time::sleep(LAST_WORDS).await;
                    } => {}
                }
            } else if tokio::time::timeout(STRANGER_LIFETIME, asked_enough.notified()).await.is_ok() {
                self.note(remote, "too many calls without a member's certificate");
            }
        };
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                debug!(%remote, %error, "a connection ended");
            },
            () = over => {}
        }
    }

    async fn connection(
        &self,
        stream: TokioIo<tokio_rustls::server::TlsStream<TcpStream>>,
        caller: Caller,
        asked_enough: Arc<Notify>,
    ) -> hyper::Result<()> {
        let is_member = caller.peer.is_some();
        let (window, streams) = if is_member { (WINDOW, MAX_STREAMS) } else { (STRANGER_WINDOW, MAX_STRANGER_STREAMS) };
        let (peer, join, shared) = (self.peer.clone(), self.join.clone(), self.shared.clone());
        let calls = AtomicU32::new(0);
        let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| -> Answering {
            if !is_member && calls.fetch_add(1, Ordering::Relaxed) >= MAX_STRANGER_CALLS {
                asked_enough.notify_one();
                return Box::pin(std::future::pending());
            }
            request.extensions_mut().insert(caller.clone());
            // Each answers "unimplemented" to what it doesn't know.
            let is_of = |path| request.uri().path().starts_with(path);
            match caller.peer {
                Some(_) if is_of(PEER_PATH) => tower::Service::call(&mut peer.clone(), request),
                Some(peer) if is_of(API_PATH) => {
                    let shared = shared.clone();
                    Box::pin(async move { Ok(shared.api(peer, request.map(Body::new)).await) })
                }
                // Before its frame is read, which may be large.
                None if is_of(PEER_PATH) => Box::pin(std::future::ready(Ok(no_certificate().into_http()))),
                _ => tower::Service::call(&mut join.clone(), request),
            }
        });
        hyper::server::conn::http2::Builder::new(self.shared.tasks.clone())
            .timer(TokioTimer::new())
            .max_concurrent_streams(streams)
            .max_header_list_size(MAX_HEADERS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_PENDING_RESETS)
            .initial_stream_window_size(window)
            .initial_connection_window_size(window)
            .keep_alive_interval(IDLE_KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .serve_connection(stream, service)
            .await
    }

    fn note(&self, remote: SocketAddr, reason: &str) {
        self.shared.noise.warn(format_args!("a connection of {remote}: {reason}"));
    }
}

/// What others do wrong: a warning once in a while, otherwise for debugging, so that nobody can fill the journal.
#[derive(Default)]
pub struct Noise(Mutex<Option<Instant>>);

impl Noise {
    pub fn warn(&self, reason: std::fmt::Arguments<'_>) {
        let mut warned = self.0.lock().expect("nothing panics while it holds this lock");
        if warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
            *warned = Some(Instant::now());
            warn!(%reason, "refused what came from the network");
        } else {
            debug!(%reason, "refused what came from the network");
        }
    }
}
