//! Keeps this node's certificate valid, and of the authority that the cluster wants: asks for the next one when two thirds
//! of its time are over, or another authority issues; shows it from then on, and keeps it beside the store, for the next
//! start.
//!
//! What it trusts is what the cluster says, as confirmed by a quorum; for a certificate that expires there need be none.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blixard_core::command::{Command, Reply};
use blixard_core::types::{Hash, RotationStep};

use super::data;
use super::inbound::Inward;
use crate::identity::{Clock, IdentityError, Issued, NodeIdentity};
use crate::node::{Handle, ProposeError};
use crate::transport::Transport;

/// In the data's directory; the seat in the store has the certificate that this node has joined with.
const FILE: &str = "certificate";
/// How often it is looked whether the certificate is due, where nothing else is heard; and how long after a failure.
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
    pub handle: Handle,
    pub inward: Arc<Inward>,
    pub transport: Arc<Transport>,
}

/// What the cluster wants a node to show and to trust.
struct Wanted {
    /// First the one that is to have issued its certificate.
    authorities: Vec<Vec<u8>>,
    /// What it is to say then, if that is waited for.
    step: Option<RotationStep>,
}

impl Renewer {
    /// Goes on until it is dropped, or the node ends.
    pub async fn run(self, mut identity: NodeIdentity) {
        let (mut news, mut said) = (self.handle.assignments(), String::new());
        // What is on disk; after a failed write not what is shown.
        let mut kept = identity.clone();
        loop {
            news.mark_unchanged();
            let pause = match self.go_on(&mut identity, &mut kept).await {
                Ok(()) => {
                    self.transport.set_certificate_fault(None);
                    LOOK
                }
                Err(reason) => {
                    if reason != said {
                        tracing::error!(reason, "this node's certificate is not as it is to be, and may expire");
                        said.clone_from(&reason);
                    }
                    self.transport.set_certificate_fault(Some(reason));
                    ASK_AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = news.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Does what there is to do about the certificate.
    async fn go_on(&self, identity: &mut NodeIdentity, kept: &mut NodeIdentity) -> Result<(), String> {
        let text = |error: &dyn std::error::Error| crate::error_chain(error);
        let mut wanted = self.wanted().map_err(|error| text(&error))?;
        let mut unheard = None;
        if wanted.as_ref().is_some_and(|wanted| wanted.authorities != identity.issued.authorities) {
            // After a restart the state may be behind the certificate.
            match self.handle.barrier().await {
                Ok(()) => wanted = self.wanted().map_err(|error| text(&error))?,
                // Who shows one that has expired hears of no quorum before it is renewed.
                Err(error) => (wanted, unheard) = (None, Some(text(&error))),
            }
        }
        let next = match &wanted {
            Some(wanted) if wanted.authorities != identity.issued.authorities => {
                Some(self.rotated(identity, wanted.authorities.clone()).await?)
            }
            _ if identity.is_due(self.clock) => {
                let issuer = Hash::of(&identity.issued.authorities[0]);
                Some(self.certified(identity, issuer, |certificate| identity.renewed(certificate, self.clock)).await?)
            }
            _ => None,
        };
        if let Some(next) = next {
            self.transport.present(&next).map_err(|error| text(&error))?;
            tracing::info!(node = %next.node, "this node shows another certificate, or trusts another authority");
            *identity = next;
        }
        if *kept != *identity {
            self.keep(identity).map_err(|error| format!("it can't be written to {}: {error}", self.dir.display()))?;
            kept.clone_from(identity);
        }
        match (unheard, wanted.and_then(|wanted| wanted.step)) {
            (Some(reason), _) => Err(reason),
            (None, Some(step)) => self.say(step).await,
            (None, None) => Ok(()),
        }
    }

    /// Nothing where this node knows nothing of the cluster yet.
    fn wanted(&self) -> Result<Option<Wanted>, ProposeError> {
        let node = self.handle.node();
        self.handle.read(|state, _| {
            let cluster = state.cluster()?;
            let said = state.nodes().get(&node)?.rotated;
            Some(Wanted {
                authorities: cluster.authorities().into_iter().map(<[u8]>::to_vec).collect(),
                step: cluster.rotation_step().filter(|step| said < Some(*step)),
            })
        })
    }

    /// As the cluster wants it: by a certificate of another authority where it has to be.
    async fn rotated(&self, identity: &NodeIdentity, authorities: Vec<Vec<u8>>) -> Result<NodeIdentity, String> {
        let with = |certificate| {
            let issued = Issued { authorities: authorities.clone(), certificate };
            identity.reissued(issued, self.clock)
        };
        if let Ok(same) = with(identity.issued.certificate.clone()) {
            return Ok(same);
        }
        self.certified(identity, Hash::of(&authorities[0]), with).await
    }

    /// With the next certificate: by this node itself where it can sign, else by whichever member can.
    async fn certified(
        &self,
        identity: &NodeIdentity,
        issuer: Hash,
        accept: impl Fn(Vec<u8>) -> Result<NodeIdentity, IdentityError>,
    ) -> Result<NodeIdentity, String> {
        let request = identity.request().map_err(|error| crate::error_chain(&error))?;
        let own = self.inward.reissue(&request, issuer);
        match own.and_then(|certificate| accept(certificate).map_err(|error| crate::error_chain(&error))) {
            Ok(next) => Ok(next),
            Err(own) => {
                let asked = self.transport.renew(identity, issuer, accept).await;
                asked.map_err(|others| format!("this host can't renew it: {own}; others can't: {others}"))
            }
        }
    }

    async fn say(&self, step: RotationStep) -> Result<(), String> {
        let answer = self.handle.propose(Command::Rotated { node: self.handle.node(), step }).await;
        match answer.map_err(|error| crate::error_chain(&error))?.reply {
            Reply::Refused(reason) => Err(reason),
            _ => Ok(()),
        }
    }

    fn keep(&self, identity: &NodeIdentity) -> io::Result<()> {
        let bytes = postcard::to_stdvec(identity).expect("it is plain data");
        data::write_whole(&self.dir, FILE, &bytes)
    }
}
