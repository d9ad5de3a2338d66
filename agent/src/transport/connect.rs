//! One TLS connection to one address.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::types::Address;
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::{KEEPALIVE, KEEPALIVE_TIMEOUT, Tasks};
use crate::identity::{PeerError, TlsError, refusal};

/// How long finding the host, TCP's handshake and TLS's may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Most bytes on the way to a peer that hasn't taken them yet, a connection.
const WINDOW: u32 = 8 << 20;

/// Why there is no connection to an address.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect to anybody")]
    Own(#[source] TlsError),
    #[error("cannot connect to {address}")]
    Reach { address: Address, source: std::io::Error },
    #[error("cannot connect to {address}: no answer within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut { address: Address },
    #[error("cannot agree on TLS with {address}: is it a Blixard agent's port?")]
    Handshake { address: Address, source: std::io::Error },
    #[error("{address} is not the peer that was called")]
    OtherPeer { address: Address, source: PeerError },
    #[error("{address} speaks TLS, but not this protocol: is it a Blixard agent's port?")]
    OtherProtocol { address: Address },
}

/// A TLS connection on which HTTP/2 was agreed.
pub async fn connect(address: &Address, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, ConnectError> {
    let attempt = async {
        let reach = |source| ConnectError::Reach { address: address.clone(), source };
        let tcp = TcpStream::connect(address.as_str()).await.map_err(reach)?;
        tcp.set_nodelay(true).map_err(reach)?;
        // Nobody looks at this name: the certificate is checked by its URI, or a proof bound to it follows.
        let name = ServerName::try_from("blixard").expect("it is a DNS name");
        let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(|source| match refusal(&source) {
            Some(source) => ConnectError::OtherPeer { address: address.clone(), source },
            None => ConnectError::Handshake { address: address.clone(), source },
        })?;
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(ConnectError::OtherProtocol { address: address.clone() });
        }
        Ok(tls)
    };
    let timed_out = |_| ConnectError::TimedOut { address: address.clone() };
    tokio::time::timeout(CONNECT_TIMEOUT, attempt).await.map_err(timed_out)?
}

/// How HTTP/2 is spoken on such a connection; its tasks end with `tasks`.
pub fn endpoint<E>(tasks: E) -> Endpoint
where
    E: hyper::rt::Executor<BoxFuture<'static, ()>> + Send + Sync + 'static,
{
    Endpoint::from_static("http://blixard")
        .executor(tasks)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_max_header_list_size(16 * 1024)
}

/// Whether what failed so had a connection, and may have reached the other side.
pub fn had_connection(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    !causes.any(<dyn std::error::Error>::is::<ConnectError>)
}

/// HTTP/2 over this one connection: what was checked of it, or proved for it, holds on no other.
pub async fn over(stream: TlsStream<TcpStream>, tasks: &Tasks) -> Result<Channel, tonic::transport::Error> {
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| std::io::Error::other("the connection was lost"));
        async { stream }
    });
    endpoint(tasks.clone()).connect_with_connector(connector).await
}
