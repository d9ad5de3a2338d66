//! Keeps this node's certificate valid: asks for the next one when two thirds of its time are over, shows it from then on,
//! and keeps it beside the store, for the next start.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::data;
use super::inbound::Inward;
use crate::identity::{Clock, NodeIdentity};
use crate::transport::{Renewal, Transport};

/// In the data's directory; the seat in the store has the certificate that this node has joined with.
const FILE: &str = "certificate";
/// How often it is looked whether the certificate is due, and how often it is asked for when it is.
const LOOK: Duration = Duration::from_secs(3600);
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// The newest certificate that this node was given.
pub fn newest(dir: &Path, joined: &NodeIdentity) -> NodeIdentity {
    let path = dir.join(FILE);
    let kept = match std::fs::read(&path) {
        Ok(bytes) => postcard::from_bytes::<NodeIdentity>(&bytes).ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return joined.clone(),
        Err(_) => None,
    };
    kept.filter(|kept| kept.is_same_node(joined)).unwrap_or_else(|| {
        tracing::warn!(path = %path.display(), "a renewed certificate can't be used, and is asked for again");
        joined.clone()
    })
}

/// What a node renews its certificate with.
pub struct Renewer {
    pub dir: PathBuf,
    pub clock: Clock,
    pub inward: Arc<Inward>,
    pub transport: Arc<Transport>,
}

impl Renewer {
    /// Goes on until it is dropped.
    pub async fn run(self, mut identity: NodeIdentity) {
        let mut said = String::new();
        loop {
            if !identity.is_due(self.clock) {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            match self.renew(&identity).await {
                Ok(renewed) => {
                    tracing::info!(node = %renewed.node, "this node's certificate was renewed");
                    said.clear();
                    identity = renewed;
                }
                Err(reason) => {
                    if reason != said {
                        tracing::error!(reason, "this node's certificate can't be renewed, and expires or has expired");
                        said = reason;
                    }
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    /// By this node itself where it can sign, else by whichever member can.
    async fn renew(&self, identity: &NodeIdentity) -> Result<NodeIdentity, String> {
        let text = |error: &dyn std::error::Error| crate::error_chain(error);
        let request = identity.request().map_err(|error| text(&error))?;
        let renewed = match self.inward.reissue(&request) {
            Ok(Renewal { authority, certificate }) => {
                identity.renewed(authority, certificate, self.clock).map_err(|error| text(&error))?
            }
            Err(own) => {
                let asked = self.transport.renew(identity).await;
                asked.map_err(|others| format!("by this host: {own}; by others: {others}"))?
            }
        };
        self.transport.present(&renewed).map_err(|error| text(&error))?;
        if let Err(error) = self.keep(&renewed) {
            tracing::warn!(%error, "a renewed certificate can't be kept, and is asked for again at the next start");
        }
        Ok(renewed)
    }

    fn keep(&self, identity: &NodeIdentity) -> io::Result<()> {
        let bytes = postcard::to_stdvec(identity).expect("it is plain data");
        data::write_whole(&self.dir, FILE, &bytes)
    }
}
