//! HTTP/2 connections: over TLS, made the same way to both systems, and to the socket of a local agent.
//!
//! Each is made when it is first used, and again after its member was away.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

pub fn over_tls(address: SocketAddr, config: Arc<ClientConfig>) -> Channel {
    let connect = tower::service_fn(move |_| {
        let tls = TlsConnector::from(config.clone());
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::from(address.ip());
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
        }
    });
    Endpoint::from_static("http://member").connect_with_connector_lazy(connect)
}

pub fn to_socket(path: PathBuf) -> Channel {
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Endpoint::from_static("http://member").connect_with_connector_lazy(connect)
}

/// One call.
pub async fn call<Q, R>(channel: &Channel, path: &'static str, request: Q) -> Result<R, String>
where
    Q: Message + 'static,
    R: Message + Default + 'static,
{
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| blixard::error_chain(&error))?;
    let codec = tonic_prost::ProstCodec::<Q, R>::default();
    let reply = client.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await;
    reply.map(tonic::Response::into_inner).map_err(|status| status.to_string())
}
