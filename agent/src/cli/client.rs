//! A connection to the agent of this host.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::api::proto::api_client::ApiClient;

/// Why no agent answers.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "no agent answers at {path}: see why with `journalctl -u blixard`, start it with `systemctl start blixard`, or name its socket with --socket"
    )]
    Absent { path: PathBuf, source: std::io::Error },
    #[error("the agent's socket {path} is not open to you: be root, or a member of the group blixard")]
    Denied { path: PathBuf, source: std::io::Error },
    #[error("cannot talk to the agent at {path}")]
    Talk { path: PathBuf, source: tonic::transport::Error },
}

pub type Client = ApiClient<Channel>;

/// # Errors
/// Each says what to do.
pub async fn connect(path: &Path) -> Result<Client, ConnectError> {
    let own = || path.to_owned();
    // Asked once beforehand: tonic hides the operating system's answer.
    UnixStream::connect(path).await.map_err(|source| match source.kind() {
        ErrorKind::PermissionDenied => ConnectError::Denied { path: own(), source },
        _ => ConnectError::Absent { path: own(), source },
    })?;
    let connector = {
        let path = own();
        tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        })
    };
    // The address is never used: the connector has the path.
    let channel = Endpoint::from_static("http://agent").connect_with_connector(connector).await;
    let channel = channel.map_err(|source| ConnectError::Talk { path: own(), source })?;
    Ok(ApiClient::new(channel).max_decoding_message_size(64 << 20))
}
