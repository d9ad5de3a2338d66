//! One HTTP/2 connection over TLS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

/// As members have it: how long a connection may say nothing before it is asked whether it lives, and has to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3));

/// A connection that is made when it is first used, and again after it broke.
pub fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> Channel {
    connect_from(Ipv4Addr::UNSPECIFIED, address, config)
}

/// The same from an address of this machine.
pub fn connect_from(own: Ipv4Addr, address: SocketAddr, config: Arc<ClientConfig>) -> Channel {
    let connect = tower::service_fn(move |_| {
        let tls = TlsConnector::from(config.clone());
        async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(IpAddr::V4(own), 0))?;
            let tcp = socket.connect(address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::from(address.ip());
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
        }
    });
    Endpoint::from_static("http://member")
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connect)
}

/// One call.
pub async fn call<Q, R>(channel: &Channel, path: &'static str, request: Q) -> Result<R, String>
where
    Q: Message + 'static,
    R: Message + Default + 'static,
{
    let mut client = ready(channel).await?;
    let codec = tonic_prost::ProstCodec::<Q, R>::default();
    let reply = client.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await;
    reply.map(tonic::Response::into_inner).map_err(|status| status.to_string())
}

/// The client of a connection that takes a call.
pub async fn ready(channel: &Channel) -> Result<Grpc<Channel>, String> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| blixard::error_chain(&error))?;
    Ok(client)
}
